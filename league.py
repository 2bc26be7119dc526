"""
The league table: every hypothesis about how o1 was made, from one base model, at equal training FLOPs.

    python league.py                        # three seeds -> results/league.csv, results/league.md (half an hour a seed on two CPU cores)
    python league.py --quick                # one seed, half of everything -> out/league_quick (16 min)
    python league.py --level 4 --seeds 0    # four numbers -> out/league_level4

Nothing happens here but command lines, which the other scripts run: each row of the table is the list of commands that
makes it, and anyone can type them. A row that is in the table is not run again, so a league that was stopped goes on
where it was; to redo a row, delete its lines in league.csv.

The base is what train_sft.py makes. After it no solver gives a solution away: all that is learnt from is the model's own,
found by sampling or search, judged by the verifier. Rows are measured on the same test problems: greedy,
sampled and pass@16, the value head against the exact value of partial solutions (AUC), and the best accuracy under a
ceiling of 256 and of 1,024 tokens a problem, once by what the model itself thinks of its solutions and once with the
verifier, which sees finished ones only. The best of several methods is a little better than it would be on other problems,
in all rows.
"""
import csv
import os
import shlex
import subprocess
import sys

from tqdm import tqdm

from model import Parser, count, open_folder, positive, run_script, save_table, write_whole
from sample import wilson

BASE = "train_sft.py --level {level} --steps {base_steps} --seed {seed} --out {base_dir} --test-problems {n_problems}"
SAMPLE = "search.py --init {model} --save {out}/found{r}.jsonl --methods majority --budgets {sampled} --n-problems {n} --seed {r}{seed}"
SEARCH = "search.py --init {model} --save {out}/found{r}.jsonl --methods mcts_(verifier) --budgets {searched} --n-problems {n} --seed {r}{seed}"
WRITE = "traces.py --init {model} --data {out}/found{r}.jsonl --save {out}/traces{r}.jsonl --seed {seed} --write "
LEARN = "train_sft.py --init {model} --data {out}/traces{r}.jsonl --out {out}/round{r} --seed {seed} --test-problems {n_problems}"
RL = "train_rl.py --init {model} --out {out} --sft-coef 0 --seed {seed} --steps {n} --test-problems {n_problems} "

# name: (hypothesis, commands of a round, rounds, problems a round or RL steps). The numbers make the FLOPs equal at level 3.
ROWS = {
    "base": ("", [], 0, 0),
    "REINFORCE": ("outcome reward", [RL], 1, 50),
    "filter: sample, imitate": ("1 filter", [SAMPLE, WRITE + "attempts", LEARN], 2, 3800),
    "filter: policy gradient": ("1 filter", [RL + "--algo filter"], 1, 21),
    "PPO, outcome reward": ("2 evaluation", [RL + "--algo ppo"], 1, 31),
    "PPO, process reward": ("2 evaluation", [RL + "--algo ppo --reward process"], 1, 28),
    "PPO, exact process reward": ("2 evaluation", [RL + "--algo ppo --reward exact-process"], 1, 31),
    "verdicts, outcome labels": ("2 evaluation", [SAMPLE, WRITE + "verdicts", LEARN], 1, 7500),
    "verdicts, rollout labels": ("2 evaluation", [SAMPLE, WRITE + "verdicts --label rollouts", LEARN], 1, 4800),
    "verdicts, exact labels": ("2 evaluation", [SAMPLE, WRITE + "verdicts --label exact", LEARN], 1, 7500),
    "guidance: search, distil": ("3 guidance", [SEARCH, LEARN.replace("traces", "found")], 4, 4000),
    "composites": ("4 combination", [SAMPLE, WRITE + "composites", LEARN + " --attempts 3"], 1, 7000),
    "continuations": ("4 combination", [SAMPLE, WRITE + "continuations", LEARN + " --attempts 3"], 1, 5500),
}
OWN = ["majority", "vote (value)", "best-of-n (value)", "best-of-n (lines)", "beam (value)", "mcts (value)"]
OWN_VERDICTS = ["vote (verdict)", "best-of-n (verdict)", "revise"]      # for models that have learnt to write verdicts
VERIFIED = ["best-of-n (verifier)", "mcts (verifier)"]
BUDGETS = [256, 1024]


def run(command, log, **names):
    """Run a command line of ours; its output goes to a log. SystemExit names the command that failed and where it said why."""
    script, *words = [word.format(**names).replace("_(", " (") for word in command.split()]
    command = shlex.join([script, *words])
    with open(log, "a") as file:
        file.write(f"\n$ python {command}\n")
        file.flush()
        status = subprocess.run([sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), script), *words], stdout=file, stderr=file).returncode
    if status in (-2, 130):
        raise KeyboardInterrupt
    if status:
        print(f"league.py: error: python {command} failed, see {log}", file=sys.stderr)
        raise SystemExit(2)


def read_table(path):
    if not os.path.exists(path):
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def make_row(name, seed, args):
    """Run the commands of a row and measure what they made."""
    hypothesis, commands, rounds, n = ROWS[name]
    folder = os.path.join(args.out, f"level{args.level}_seed{seed}")
    base_dir, out = os.path.join(folder, "base"), os.path.join(folder, "".join(c if c.isalnum() else "_" for c in name))
    os.makedirs(out, exist_ok=True)
    judges = any("verdicts" in command or "continuations" in command for command in commands)
    log, model = os.path.join(out, "log.txt"), os.path.join(base_dir, "sft.pt")
    names = {"seed": seed, "out": out, "n_problems": args.n_problems, "base_dir": base_dir, "base_steps": 6800 // args.divide, "n": max(1, n // args.divide),
             "level": args.level, "sampled": 160 * (args.level - 2), "searched": 150 * (args.level - 2)}     # tokens a training problem
    if [row["step"] for row in read_table(os.path.join(base_dir, "sft.csv"))][-1:] != [str(names["base_steps"])]:      # none, or one that was stopped
        run(BASE, log, **names)
    for r in range(1, rounds + 1):
        for command in commands:
            run(command, log, model=model, r=r, **names)
        model = os.path.join(out, "rl.pt" if commands[0].startswith(RL) else f"round{r}/sft.pt")
    run(f"search.py --init {{model}} --out {{out}} --seed {{seed}} --n-problems {{n_problems}} --budgets {BUDGETS[0]} {BUDGETS[1]} --methods greedy "
        + " ".join(OWN + VERIFIED + OWN_VERDICTS * judges).replace(" (", "_("), log, model=model, **names)      # without spaces, as in ROWS
    trained, base = read_table(model.replace(".pt", ".csv"))[-1], read_table(os.path.join(base_dir, "sft.csv"))[-1]
    searched = read_table(os.path.join(out, "search.csv"))
    row = {"row": name, "hypothesis": hypothesis, "level": args.level, "seed": seed, "problems": args.n_problems, "train_flops": float(trained["flops"]) - float(base["flops"]),
           "tokens_greedy": next(float(s["tokens_per_problem"]) for s in searched if s["method"] == "greedy")}
    row |= {key: float(trained[key]) for key in ("greedy", "sampled", "pass16", "value_auc")}
    for kind, methods in (("own", OWN + OWN_VERDICTS), ("verified", VERIFIED)):
        for budget in BUDGETS:
            best = max((s for s in searched if s["method"] in methods and int(s["budget"]) == budget), key=lambda s: float(s["accuracy"]))
            row |= {f"{kind}{budget}": float(best["accuracy"]), f"{kind}{budget}_method": best["method"]}
    return row


def with_interval(values, n):
    """
    The mean of several seeds in percent, and half the width of its 95 % interval over n problems. All seeds
    see the same problems, so more seeds do not make it narrower; differences between rows are surer than it.
    """
    mean = sum(values) / len(values)
    low, high = wilson(mean * n, n)
    return f"{100 * mean:.1f} ± {50 * (high - low):.1f}"


def markdown(table):
    """The means of the seeds as a table in Markdown."""
    columns = {"greedy": "greedy", "sampled": "single sample", "pass16": "pass@16", **{
        f"{kind}{budget}": f"best at {budget}{', verified' if kind == 'verified' else ''}" for kind in ("own", "verified") for budget in BUDGETS}}
    heads = ["hypothesis", "row", *columns.values(), "value AUC", "tokens, greedy", "training TFLOP"]
    lines = [heads, ["---"] * len(heads)]
    for name in ROWS:
        rows = [row for row in table if row["row"] == name]
        if rows:
            mean = {key: sum(float(row[key]) for row in rows) / len(rows) for key in ("value_auc", "tokens_greedy", "train_flops")}
            cells = []
            for key in columns:
                cell = with_interval([float(row[key]) for row in rows], int(rows[0]["problems"]))
                methods = sorted({row[f"{key}_method"] for row in rows}) if f"{key}_method" in rows[0] else []
                cells.append(cell + "".join(f"<br>{method}" for method in methods))
            lines.append([rows[0]["hypothesis"], name, *cells, f"{mean['value_auc']:.3f}", f"{mean['tokens_greedy']:.0f}", f"{mean['train_flops'] / 1e12:.1f}"])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main():
    parser = Parser(description="Run every hypothesis from one base at equal training FLOPs, and write the league table.")
    parser.add_argument("--seeds", nargs="+", type=count, default=None, metavar="N", help="default 0 1 2; with --quick 0")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"default: all of {', '.join(ROWS)}")
    parser.add_argument("--level", type=int, choices=[3, 4, 5, 6], default=3, help="how many numbers a problem has (default 3)")
    parser.add_argument("--n-problems", type=positive, help="test problems (default 1000; with --quick 300)")
    parser.add_argument("--quick", action="store_true", help="one seed, a base and rows of half the length, fewer problems")
    parser.add_argument("--out", metavar="DIR", help="folder for checkpoints, traces and logs (default out/league; with --quick out/league_quick; "
                        "with --level 4 out/league_level4)")
    parser.add_argument("--results", metavar="DIR", help="folder for league.csv and league.md (default results at level 3, else that of --out; with --quick too)")
    args = parser.parse_args()
    args.out = args.out or "out/league" + "_quick" * args.quick + f"_level{args.level}" * (args.level != 3)
    args.results = args.results or (args.out if args.quick or args.level != 3 else "results")
    args.n_problems = args.n_problems or (300 if args.quick else 1000)
    args.divide = 2 if args.quick else 1
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    path = os.path.join(args.results, "league.csv")
    for folder in (args.out, args.results):
        open_folder(folder)
    table = read_table(path)
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
        table = sorted([*table, row], key=lambda row: (int(row["seed"]), [*ROWS, row["row"]].index(row["row"])))
        save_table(path, table)
        with write_whole(os.path.join(args.results, "league.md")) as file:
            file.write(markdown(table).encode())
        bar.write(f"seed {seed}  {name:28} " + "  ".join(f"{key} {100 * row[key]:.1f}%" for key in ("greedy", "sampled", "pass16", "own256", "verified256"))
                  + f"  AUC {row['value_auc']:.2f}  {row['train_flops'] / 1e12:.1f} TFLOP")
    print(f"wrote {path} and {os.path.join(args.results, 'league.md')}")


if __name__ == "__main__":
    run_script(main)
