"""
The league table: every hypothesis about how o1 was made, from one base model, at about equal training FLOPs.

    # Three seeds -> results/league.csv, .md (some two hours a seed on one core)
    python -m experiments.league
    python -m experiments.league --quick        # one seed, half of everything -> out/league_quick (16 min)
    python -m experiments.league --level 4 --seeds 0            # four numbers -> out/league_level4

This script only runs command lines of the other scripts: each row of the table is the list of commands that
makes it, and anyone can type them. A row that is in the table is not run again, so a league that was stopped
goes on where it was; to redo a row, delete its lines in league.csv.

Each row has the learning rate of three (--quick: one) with which its single samples solve most validation
problems; the runs that choose it are not counted. The base is what train_sft.py makes. Rows marked * use an
oracle beyond the verifier: enumeration says which turn was the first wrong one, or which states can be
solved. All else is learnt from the model's own attempts, found by sampling or search, judged by the verifier.
Rows are measured on the same test problems: greedy, sampled and pass@16; a single sample at the temperature
that is best on validation problems; the value head against the exact value of partial solutions (AUC); and
the best accuracy under a ceiling of 256 and of 1,024 tokens a problem, once with solutions chosen by the
model itself and once with the verifier, which sees finished ones only. The best of several methods is chosen
on the test problems, so it is a little too high in all rows. The last row, for comparison, is the heuristic
search without a model.
"""
import csv
import os
import shlex
import subprocess
import sys

from tqdm import tqdm

from common import (Parser, fail, open_folder, positive, read_table, run_script, save_table, stop_signals,
                    whole, write_whole)
from metrics import wilson
from verify import TASKS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RATES = 1e-3, 3e-4, 3e-3                                            # the first is for --quick
MEASURED = " --seed {seed} --split {split} --test-problems {n_problems} "
BASE = "train_sft.py --level {level} --steps {base_steps} --no-streams --out {base_dir}" + MEASURED
FOUND = "search.py --init {model} --save {out}/found{r}.jsonl --n-problems {n} --seed {r}{seed} "
SAMPLE = FOUND + "--methods majority --budgets {sampled}"
SEARCH = FOUND + "--methods 'mcts (verifier)' --budgets {searched}"
WRITE = ("-m experiments.rewrite --init {model} --data {out}/found{r}.jsonl --save {out}/traces{r}.jsonl "
         "--seed {seed} --write ")
LEARN_FROM = "train_sft.py --init {model} --lr {lr} --out {out}/round{r}" + MEASURED + "--data {out}/"
LEARN = LEARN_FROM + "traces{r}.jsonl"
RL_FLAGS = "--init {model} --lr {lr} --out {out} --sft-coef 0 --steps {n}" + MEASURED
RL, MORE_RL = "train_rl.py " + RL_FLAGS, "-m experiments.rewards " + RL_FLAGS
STREAM = " --max-tokens {stream}"           # room for three attempts

# name: (hypothesis, commands of a round, rounds, problems a round or RL steps). The numbers make the FLOPs
# equal at level 3.
ROWS = {
    "base": ("", [], 0, 0),
    "REINFORCE": ("outcome reward", [RL], 1, 50),
    "filter: sample, imitate": ("1 filter", [SAMPLE, WRITE + "attempts", LEARN], 2, 3800),
    "filter: policy gradient": ("1 filter", [RL + "--algo filter"], 1, 21),
    "PPO, outcome reward": ("2 evaluation", [RL + "--algo ppo"], 1, 31),
    "PPO, process reward": ("2 evaluation", [MORE_RL + "--algo ppo-process"], 1, 28),
    "PPO, exact process reward *": ("2 evaluation", [MORE_RL + "--algo ppo-exact"], 1, 31),
    "verdicts, outcome labels": ("2 evaluation", [SAMPLE, WRITE + "verdicts", LEARN], 1, 7500),
    "verdicts, rollout labels": (
        "2 evaluation", [SAMPLE, WRITE + "verdicts --label rollouts", LEARN], 1, 4800),
    "verdicts, exact labels *": ("2 evaluation", [SAMPLE, WRITE + "verdicts --label exact", LEARN], 1, 7500),
    "guidance: search, distil": ("3 guidance", [SEARCH, LEARN_FROM + "found{r}.jsonl"], 4, 4000),
    "composites *": ("4 combination", [SAMPLE, WRITE + "composites", LEARN + STREAM], 1, 7000),
    "continuations *": ("4 combination", [SAMPLE, WRITE + "continuations", LEARN + STREAM], 1, 5500),
}
OWN = ["majority", "vote (value)", "best-of-n (value)", "beam (value)", "mcts (value)"]
# Of models that write verdicts
OWN_MORE = ["best-of-n (lines)", "vote (verdict)", "best-of-n (verdict)", "revise"]
VERIFIED = ["best-of-n (verifier)", "mcts (verifier)"]
ALONE = ["greedy", "single sample (best T)", "heuristic"]
HEURISTIC = "no model: heuristic"
BUDGETS = 256, 1024
STOPPED = stop_signals()
# The columns of league.csv
BEST = [f"{kind}{budget}" for kind in ("own", "verified", "heuristic") for budget in BUDGETS]
WHOLE = ["level", "seed", "problems"]
NUMBERS = ["train_flops", "greedy", "sampled", "pass16", "value_auc", "tokens_greedy", "single_best_t", *BEST]
TEXTS = ["row", "hypothesis", "lr", *(f"{key}_method" for key in BEST)]


def run(command, log, **names):
    """
    Run a command line of ours; its output goes to a log. SystemExit names the command that failed and where
    it said why.
    """
    words = shlex.split(command.format(**{key: shlex.quote(str(value)) for key, value in names.items()}))
    with open(log, "a") as file:
        file.write(f"\n$ python {shlex.join(words)}\n")
        file.flush()
        environment = os.environ | {"PYTHONPATH": ROOT}
        script = words if words[0] == "-m" else [os.path.join(ROOT, words[0]), *words[1:]]
        child = subprocess.Popen([sys.executable, *script], stdout=file, stderr=file, env=environment)
        try:
            status = child.wait()
        except BaseException:               # a signal: no child is left behind, and it may save
            child.terminate()
            child.wait()
            raise
    signum = -status if status < 0 else status - 128
    if signum in STOPPED:
        raise SystemExit(128 + signum)
    if status:
        fail(f"python {shlex.join(words)} failed, see {log}")


def last_row(model):
    """The last row of the table that a trainer wrote beside its checkpoint."""
    return read_table(model.replace(".pt", ".csv"))[-1]


def train(name, out, log, **names):
    """Run the commands of a row; returns the checkpoint that they end with."""
    _, commands, rounds, _ = ROWS[name]
    model = os.path.join(names["base_dir"], "sft.pt")
    os.makedirs(out, exist_ok=True)
    for r in range(1, rounds + 1):
        for command in commands:
            run(command, log, model=model, r=r, out=out, **names)
        is_rl = commands[0].startswith((RL, MORE_RL))
        model = os.path.join(out, "rl.pt" if is_rl else f"round{r}/sft.pt")
    return model


def best_rate(name, out, log, args, names):
    """
    The learning rate with which a row's single samples solve most validation problems. What each has solved
    goes to league_rates.csv.
    """
    tried = []
    for lr in args.rates:
        model = train(name, os.path.join(out, f"lr{lr}"), log, lr=lr, **names | {"split": "validation"})
        solved = {key: last_row(model)[key] for key in ("greedy", "sampled", "pass16")}
        tried.append({"row": name, "seed": names["seed"], "lr": lr, **solved})
    path = os.path.join(args.results, "league_rates.csv")
    others = [row for row in read_table(path) if (row["row"], int(row["seed"])) != (name, names["seed"])]
    save_table(path, others + tried)
    return max(tried, key=lambda row: float(row["sampled"]))["lr"]


def make_row(name, seed, args):
    """Run the commands of a row and measure what they made."""
    hypothesis, commands, _, n = ROWS[name]
    folder = os.path.join(args.out, f"level{args.level}_seed{seed}")
    base_dir = os.path.join(folder, "base")
    out = os.path.join(folder, "".join(c if c.isalnum() else "_" for c in name))
    os.makedirs(out, exist_ok=True)
    log = os.path.join(out, "log.txt")
    names = {"seed": seed, "base_dir": base_dir, "split": "test",
             "n_problems": args.n_problems, "level": args.level,
             "base_steps": 6800 // args.divide, "n": max(1, n // args.divide),
             "stream": 3 * TASKS["countdown"].max_tokens(args.level),
             # Tokens a training problem
             "sampled": 160 * (args.level - 2), "searched": 150 * (args.level - 2)}
    done = [row["step"] for row in read_table(os.path.join(base_dir, "sft.csv"))][-1:]
    if done != [str(names["base_steps"])]:                              # no base yet, or one that was stopped
        run(BASE, log, **names)
    lr = args.rates[0] if commands else ""
    if commands and len(args.rates) > 1:
        lr = best_rate(name, out, log, args, names)
    model = train(name, out, log, lr=lr, **names)
    writes_verdicts = any("verdicts" in command or "continuations" in command for command in commands)
    search_for_answers(model, writes_verdicts, log, names | {"out": out})
    trained, base = last_row(model), last_row(os.path.join(base_dir, "sft.pt"))
    row = {"row": name, "hypothesis": hypothesis, "lr": lr, "level": args.level, "seed": seed,
           "problems": args.n_problems, "train_flops": float(trained["flops"]) - float(base["flops"])}
    row |= {key: float(trained[key]) for key in ("greedy", "sampled", "pass16", "value_auc")}
    return row | best_answers(read_table(os.path.join(out, "search.csv")))


def search_for_answers(model, writes_verdicts, log, names):
    """Measure a row's model with every search method of the table."""
    methods = [*ALONE, *OWN, *VERIFIED, *(OWN_MORE if writes_verdicts else [])]
    script = "-m experiments.judges" if writes_verdicts else "search.py"
    flags = "--init {model} --out {out} --seed {seed} --n-problems {n_problems}"
    command = f"{script} {flags} --budgets {BUDGETS[0]} {BUDGETS[1]} --methods {shlex.join(methods)}"
    run(command, log, model=model, **names)


def best_answers(searched):
    """From search.csv: what stands in a row of the league."""
    def accuracy(method):
        return next(float(s["accuracy"]) for s in searched if s["method"] == method)

    row = {"tokens_greedy": next(float(s["tokens_per_problem"]) for s in searched if s["method"] == "greedy"),
           "single_best_t": accuracy("single sample (best T)")}
    for kind, methods in (("own", OWN + OWN_MORE), ("verified", VERIFIED), ("heuristic", ["heuristic"])):
        for budget in BUDGETS:
            candidates = [s for s in searched if s["method"] in methods and int(s["budget"]) == budget]
            best = max(candidates, key=lambda s: float(s["accuracy"]))
            row |= {f"{kind}{budget}": float(best["accuracy"]), f"{kind}{budget}_method": best["method"]}
    return row


# ------------------------------------------------------------------------------------------------------------
# The table in Markdown

COLUMNS = {"greedy": "greedy", "sampled": "single sample", "single_best_t": "single, best T",
           "pass16": "pass@16", "own256": "best at 256", "own1024": "best at 1024",
           "verified256": "best at 256, verified",
           "verified1024": "best at 1024, verified"}


def with_interval(values, n):
    """
    The mean of several seeds in percent, and half the width of its 95 % interval over n problems. All seeds
    see the same problems, so more seeds do not make it narrower; differences between rows are surer than it.
    """
    mean = sum(values) / len(values)
    low, high = wilson(mean * n, n)
    return f"{100 * mean:.1f} ± {50 * (high - low):.1f}"


def cell(rows, key):
    """The mean of a column over the seeds, with the methods that reached it."""
    methods = sorted({row[f"{key}_method"] for row in rows}) if f"{key}_method" in rows[0] else []
    mean = with_interval([float(row[key]) for row in rows], int(rows[0]["problems"]))
    return mean + "".join(f"<br>{method}" for method in methods)


def markdown(table):
    """The means of the seeds as a table in Markdown."""
    heads = ["hypothesis", "row", "learning rate", *COLUMNS.values(), "value AUC", "tokens, greedy",
             "training TFLOP"]
    lines = [heads, ["---"] * len(heads)]
    for name in ROWS:
        rows = [row for row in table if row["row"] == name]
        if rows:
            def mean(key):
                return sum(float(row[key]) for row in rows) / len(rows)
            rates = ", ".join(dict.fromkeys(str(row["lr"]) for row in rows))
            lines.append([rows[0]["hypothesis"], name, rates, *(cell(rows, key) for key in COLUMNS),
                          f"{mean('value_auc'):.3f}", f"{mean('tokens_greedy'):.0f}",
                          f"{mean('train_flops') / 1e12:.1f}"])
    base = [row for row in table if row["row"] == "base"]
    if base:
        cells = []
        for key in COLUMNS:
            cells.append(cell(base, key.replace("verified", "heuristic")) if "verified" in key else "")
        lines.append(["", HEURISTIC, "", *cells, "", "", ""])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


# ------------------------------------------------------------------------------------------------------------
# The script

def parse_args():
    parser = Parser(description="Run every hypothesis from one base at equal training FLOPs.")
    parser.add_argument("--seeds", nargs="+", type=whole(0, 10 ** 9), metavar="N",
                        help="default 0 1 2; with --quick 0")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW",
                        help=f"default: all of {', '.join(ROWS)}")
    parser.add_argument("--level", type=int, choices=[3, 4, 5, 6], default=3,
                        help="how many numbers a problem has (default 3)")
    parser.add_argument("--n-problems", type=positive, metavar="N",
                        help="test problems (default 1000; with --quick 300)")
    parser.add_argument("--quick", action="store_true",
                        help="one seed, a base and rows of half the length, fewer problems")
    parser.add_argument("--out", metavar="DIR",
                        help="folder for checkpoints, traces and logs (default out/league; with --quick "
                             "out/league_quick; with --level 4 out/league_level4)")
    parser.add_argument("--results", metavar="DIR",
                        help="folder for league.csv and league.md (default results at level 3, else that of"
                             " --out; with --quick too)")
    args = parser.parse_args()
    level = f"_level{args.level}" if args.level != 3 else ""
    args.out = args.out or "out/league" + ("_quick" if args.quick else "") + level
    args.results = args.results or (args.out if args.quick or level else "results")
    args.n_problems = args.n_problems or (300 if args.quick else 1000)
    args.divide = 2 if args.quick else 1
    args.rates = RATES[:1] if args.quick else RATES
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    return parser, args


def read_league(path):
    """The rows that are there already. ValueError if they are none that make_row has made."""
    try:
        table = read_table(path)
        for row in table:
            if set(row) != {*WHOLE, *NUMBERS, *TEXTS} or None in row.values():
                raise ValueError("other columns")
            for key in WHOLE:
                int(row[key])
            for key in NUMBERS:
                float(row[key])
    except (csv.Error, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is not a table that the league wrote: name another folder with "
                         "--results") from None
    return table


def main():
    parser, args = parse_args()
    path = os.path.join(args.results, "league.csv")
    for folder in (args.out, args.results):
        open_folder(folder)
    with parser.errors():
        table = read_league(path)
    if any(int(row["level"]) != args.level for row in table):
        parser.error(f"{path} is not a league of --level {args.level}: name another folder with --results")
    done = {(row["row"], int(row["seed"])) for row in table}
    work = [(seed, name) for seed in args.seeds for name in args.rows or ROWS if (name, seed) not in done]
    if done:
        print(f"{path} has {len(done)} rows already: they are not run again")
    bar = tqdm(work, desc="league")
    for seed, name in bar:
        bar.set_postfix_str(f"seed {seed}, {name}")
        row = make_row(name, seed, args)
        order = [*ROWS, *(row["row"] for row in table)]
        table = sorted([*table, row], key=lambda row: (int(row["seed"]), order.index(row["row"])))
        save_table(path, table)
        write_whole(os.path.join(args.results, "league.md"), markdown(table).encode())
        shown = ("greedy", "sampled", "pass16", "own256", "verified256")
        figures = [f"{key} {100 * row[key]:.1f}%" for key in shown]
        bar.write(f"seed {seed}  {name:28} {'  '.join(figures)}  AUC {row['value_auc']:.2f}  "
                  f"{row['train_flops'] / 1e12:.1f} TFLOP")
    print(f"wrote {path} and {os.path.join(args.results, 'league.md')}")


if __name__ == "__main__":
    run_script(main)
