"""
Scaling curves from separate runs, each with its own schedule, and the laws that are fitted to them.

    python -m experiments.curves sizes          # depths 1 to 6 at four budgets -> results/curves/sizes.csv
    python -m experiments.curves sizes --budgets 40 --depths 4      # what the fit predicts, held against it
    python -m experiments.curves rl             # RL at four budgets, beside as much more SFT
    python -m experiments.curves steps          # with and without a chain of thought, over 1 to 8 operators
    python -m experiments.curves few            # from 100 to 100,000 worked solutions, then RL or search

Nothing is trained here: a run is a list of command lines for the other scripts, and a row of the table
measures its last checkpoint. A row is kept in the folder of its run; a run is skipped if its row is there or
in the table. So a command that was stopped goes on where it was, except for the run in progress, and several
commands with different --seeds may run at once. To repeat runs of the table, give another --results. Budgets
are in TFLOP.

    sizes   the loss of a plan (nats for the first step of a worked solution, up to its result) against
            compute, and the laws that laws.py fits to it
    rl      pass@k for k from 1 to 256 (unbiased), and a single sample at the temperature that is best on
            validation problems; by how much pass@k is above the base's, problem by problem.
    steps   expression: a worked solution, or the answer alone, at the same training compute; and the majority
            vote of each within as many tokens as one worked solution may take.
    few     SFT on a fixed number of worked solutions; from there the same compute in RL, or in search (six
            samples of each new problem) and imitation of its right samples.
"""
import glob
import json
import math
import os
import shlex
from argparse import Namespace
from itertools import product

# First, so that Ctrl-C while torch is imported ends quietly
from common import (Parser, between, choose_device, open_folder, positive, read_table, run_script, save_table,
                    whole, write_whole)

import numpy as np
import torch
from tqdm import tqdm

from batches import by_length, imitation_loss, make_batch
from checkpoint import load_checkpoint
from experiments.bases import answer
from experiments.laws import compute_optimal, fit_sizes, gains
from experiments.league import run
from metrics import mean_pass_at_k
from model import GPTConfig, flops_per_token
from plot import read
from sample import generate
from solutions import hard_part
from verify import EOS, TASKS, encode, held_out_problems, is_correct, make_problems

TERA = 1e12
SFT_STEP, RL_STEP = 5.9e9, 93e9             # FLOPs of a step of each script's defaults, at depth 3
FOUND = 0.9e9                               # of a problem that is sampled, and what is found learnt from
BATCH = 64                                  # problems in a step of SFT
CONTEXT = 16                                # tokens that a token of three numbers sees, on the mean
N_SAMPLES = 256
KS = [2 ** k for k in range(9)]             # of pass@k
SEEDED = "--seed {seed} --out {out} --test-problems {n_problems}"
SEARCH = "search.py --init {model} --out {out} --seed {seed} --n-problems {n_problems}"
BEST_T = SEARCH + " --budgets 75 --methods 'single sample' 'single sample (best T)'"


# ------------------------------------------------------------------------------------------------------------
# Runs: (what a row is about, its commands, its checkpoint), {out} is the folder of the run

def size_runs(args):
    """SFT of each size for each budget."""
    for seed, budget, depth in product(args.seeds, args.budgets, args.depths):
        ratio = of_depth(depth) / of_depth(3)
        steps = n_within(budget, SFT_STEP * ratio)
        flags = f"--depth {depth} --steps {steps} --log-every {steps} {SEEDED}"
        about = {"depth": depth, "budget": budget, "seed": seed, "steps": steps}
        yield about, [f"train_sft.py --no-streams {flags}"], "sft.pt"


def n_within(budget, flops):
    """How many steps, or problems, of so many FLOPs each a budget has room for."""
    return max(1, round(budget * TERA / flops))


def of_depth(depth):
    return flops_per_token(GPTConfig.from_depth(depth), CONTEXT)


def rl_runs(args):
    """A base, RL from it with each budget, and as much more SFT."""
    for seed in args.seeds:
        base = {"kind": "base", "budget": 0.0, "seed": seed}
        steps = n_within(args.base, SFT_STEP)
        yield base, [f"train_sft.py --no-streams --steps {steps} {SEEDED}", BEST_T], "sft.pt"
        for budget in args.budgets:
            flags = f"--init {path_of(base, 'sft.pt', args)} --log-every 1000 {SEEDED}"
            n_rl, n_sft = n_within(budget, RL_STEP), n_within(budget, SFT_STEP)
            about = {"budget": budget, "seed": seed}
            yield {"kind": "RL"} | about, [f"train_rl.py --steps {n_rl} {flags}", BEST_T], "rl.pt"
            more = f"train_sft.py --lr 1e-3 --steps {n_sft} {flags}"    # at the base's it forgets much first
            yield {"kind": "more SFT"} | about, [more, BEST_T], "sft.pt"


def step_runs(args):
    """SFT on worked solutions and on answers alone, for each number of operators."""
    task = TASKS["expression"]
    scripts = {"with steps": ("train_sft.py", lambda solution: solution),
               "direct": ("-m experiments.bases --kind direct", answer)}
    for seed, budget, level, kind in product(args.seeds, args.budgets, task.levels, scripts):
        script, shown = scripts[kind]
        steps = n_within(budget, step_flops(level, shown))
        train = f"{script} --task expression --level {level} --no-streams --steps {steps} --log-every {steps}"
        vote = f"{SEARCH} --methods majority --budgets {task.max_tokens(level)}"
        about = {"kind": kind, "level": level, "budget": budget, "seed": seed, "steps": steps}
        yield about, [f"{train} {SEEDED}", vote], "sft.pt"


def step_flops(level, shown):
    """FLOPs of a step of SFT on expression, of whose worked solutions so much is shown."""
    problems, solutions = make_problems("expression", level, 200, np.random.default_rng(0))
    tokens = np.mean([len(encode(problem.prompt + shown(solution))) + 1
                      for problem, solution in zip(problems, solutions)])
    return 3 * BATCH * tokens * flops_per_token(GPTConfig(), tokens / 2)


def few_runs(args):
    """SFT on a few worked solutions, and from there RL, or search and imitation of what it found."""
    for seed, n in product(args.seeds, args.examples):
        base = {"kind": "SFT", "examples": n, "budget": 0.0, "seed": seed}
        steps = n_within(args.base, SFT_STEP)
        few = f"-m experiments.bases --kind few --solutions {n} --steps {steps} --log-every {steps}"
        yield base, [f"{few} {SEEDED}"], "sft.pt"
        for budget in args.budgets:
            about = {"examples": n, "budget": budget, "seed": seed}
            n_rl, n_found = n_within(budget, RL_STEP), n_within(budget, FOUND)
            start, save = f"--init {path_of(base, 'sft.pt', args)}", "--save {out}/found.jsonl"
            # It imitates no teacher beside, who would have more solutions to show
            train = f"train_rl.py --sft-coef 0 --steps {n_rl} --log-every {n_rl} {start} {SEEDED}"
            yield {"kind": "then RL"} | about, [train], "rl.pt"
            find = (f"search.py {start} {save} --out {{out}} --seed {{seed}} --n-problems {n_found} "
                    "--methods majority --budgets 160")
            learn = f"train_sft.py {start} --data {{out}}/found.jsonl --log-every 100000 {SEEDED}"
            yield {"kind": "then search"} | about, [find, learn], "sft.pt"


def identity(row):
    """What a row is about."""
    return {key: row[key] for key in ("kind", "depth", "level", "examples", "budget", "seed") if key in row}


def name(about):
    return "_".join(f"{key}{value}" for key, value in identity(about).items()).replace(" ", "_")


def path_of(about, checkpoint, args):
    """Where the checkpoint of a run is, as a command has it."""
    return shlex.quote(os.path.join(args.out, args.experiment, name(about), checkpoint))


# ------------------------------------------------------------------------------------------------------------
# What is measured

@torch.no_grad()
def plan_loss(model, problems, solutions):
    """The mean of -log P(first step of the worked solution, up to its result), in nats a problem."""
    examples = [hard_part(problem, solution) for problem, solution in zip(problems, solutions)]
    total = 0.0
    for _, part in by_length(make_batch(examples, model.wte.weight.device)):
        logits, _ = model(part["idx"])                                  # (B, T, V)
        total += imitation_loss(logits, part).item()
    return total / len(problems)


def measure_accuracy(model, of):
    return {key: float(of.last[key]) for key in ("greedy", "sampled", "pass16")}


def measure_size(model, of):
    problems = held_out_problems(of.task, of.level, of.n_problems)
    solutions = [TASKS[of.task].solve(problem) for problem in problems]
    return measure_accuracy(model, of) | {"plan_loss": plan_loss(model, problems, solutions)}


def measure_coverage(model, of):
    """pass@k from N_SAMPLES samples of each problem, and what search.py found."""
    problems = held_out_problems(of.task, of.level, of.n_problems)
    generator, counts = torch.Generator().manual_seed(of.seed), []
    for problem in tqdm(problems, desc="samples"):
        prompts = [encode(problem.prompt)]
        samples = generate(model, prompts, of.max_tokens, 1.0, (EOS,), generator, N_SAMPLES)
        counts.append(sum(is_correct(problem, ids) for ids in samples.finished((EOS,))))
    found = {f"pass{k}": mean_pass_at_k(N_SAMPLES, counts, k) for k in KS}
    single = {line["method"]: float(line["accuracy"]) for line in read_table(f"{of.folder}/search.csv")}
    return found | {"single_best_t": single["single sample (best T)"], "right": " ".join(map(str, counts))}


def measure_vote(model, of):
    vote, = read_table(f"{of.folder}/search.csv")
    votes = {"majority": float(vote["accuracy"]), "room": float(vote["budget"])}
    return measure_accuracy(model, of) | votes


# name: (runs, what is measured, budgets in TFLOP, of the base)
EXPERIMENTS = {"sizes": (size_runs, measure_size, [2.5, 5, 10, 20], 0),
               "rl": (rl_runs, measure_coverage, [1, 3, 10, 30], 40),
               "steps": (step_runs, measure_vote, [20], 0),
               "few": (few_runs, measure_accuracy, [4], 20)}


def make_row(about, commands, checkpoint, measure, args):
    """Run the commands of a row, and measure what they made."""
    folder, seed = os.path.join(args.out, args.experiment, name(about)), about["seed"]
    os.makedirs(folder, exist_ok=True)
    model_path = os.path.join(folder, checkpoint)
    for command in commands:
        run(command, os.path.join(folder, "log.txt"), out=folder, model=model_path, seed=seed,
            n_problems=args.n_problems)
    last = read_table(model_path.replace(".pt", ".csv"))[-1]
    model, saved = load_checkpoint(model_path, choose_device(args.device), needs=("flags",))
    flags = {key: saved["flags"][key] for key in ("task", "level", "max_tokens")}
    of = Namespace(folder=folder, last=last, seed=seed, n_problems=args.n_problems, **flags)
    row = about | {key: float(last[key]) for key in ("flops", "parameters", "tokens")} | measure(model, of)
    write_whole(os.path.join(folder, "row.json"), json.dumps(row).encode())
    return row


def read_rows(args):
    """All rows there are, by their names: those of the table and those in the folders of runs."""
    rows = read_table(os.path.join(args.results, f"{args.experiment}.csv"))
    runs = glob.escape(os.path.join(args.out, args.experiment))
    for path in sorted(glob.glob(f"{runs}/*/row.json")):
        with open(path) as file:
            rows.append(json.load(file))
    return {name(row): row for row in rows}


def missing(runs, table, args):
    """The runs that have no row yet, and those whose checkpoint is gone that these start from."""
    todo = [about for about, _, _ in runs if name(about) not in table]
    typed = " ".join(command for about, commands, _ in runs if about in todo for command in commands)

    def is_needed(about, checkpoint):
        path = path_of(about, checkpoint, args)
        return path in typed and not os.path.exists(*shlex.split(path))

    return [(about, commands, checkpoint) for about, commands, checkpoint in runs
            if about in todo or is_needed(about, checkpoint)]


# ------------------------------------------------------------------------------------------------------------
# The script

def parse_args():
    parser = Parser(description="Scaling curves from separate runs.")
    parser.add_argument("experiment", choices=EXPERIMENTS, help="which curves")
    parser.add_argument("--budgets", nargs="+", type=between(0, 1e9), metavar="X",
                        help="training compute of the runs in TFLOP (default: sizes 2.5 5 10 20, "
                             "rl 1 3 10 30, steps 20, few 4)")
    parser.add_argument("--depths", nargs="+", type=whole(1, 32), default=[1, 2, 3, 4, 5, 6], metavar="N",
                        help="sizes: depths of the models (default 1 to 6)")
    parser.add_argument("--base", type=between(0, 1e9), metavar="X",
                        help="rl, few: compute of the base in TFLOP (default 40, 20)")
    parser.add_argument("--examples", nargs="+", type=positive, default=[100, 1000, 10_000, 100_000],
                        metavar="N", help="few: worked solutions (default 100 1000 10000 100000)")
    parser.add_argument("--seeds", nargs="+", type=whole(0, 10 ** 9), default=[0, 1, 2], metavar="N",
                        help="default 0 1 2")
    parser.add_argument("--n-problems", type=positive, default=1000, metavar="N",
                        help="test problems (default 1000)")
    parser.add_argument("--quick", action="store_true", help="seed 0, a tenth of each budget, 200 problems")
    parser.add_argument("--results", metavar="DIR",
                        help="folder for the tables (default results/curves; with --quick that of --out)")
    parser.add_argument("--out", metavar="DIR",
                        help="folder for the runs (default out/curves; with --quick out/curves_quick)")
    parser.shared("--device")
    args = parser.parse_args()
    _, _, budgets, base = EXPERIMENTS[args.experiment]
    args.budgets, args.base = args.budgets or list(map(float, budgets)), args.base or base
    args.out = args.out or ("out/curves_quick" if args.quick else "out/curves")
    args.results = args.results or (args.out if args.quick else "results/curves")
    if args.quick:
        args.seeds, args.n_problems, args.base = [0], 200, args.base / 10
        args.budgets = [budget / 10 for budget in args.budgets]
    return parser, args


def main():
    parser, args = parse_args()
    runs, measure, *_ = EXPERIMENTS[args.experiment]
    for folder in (args.out, args.results):
        open_folder(folder)
    bar = tqdm(missing(list(runs(args)), read_rows(args), args), desc=args.experiment)
    for about, commands, checkpoint in bar:
        bar.set_postfix_str(name(about))
        row = make_row(about, commands, checkpoint, measure, args)
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
        bar.write("  ".join(f"{key} {value}" for key, value in shown.items()))
    table = list(read_rows(args).values())                  # also what other commands have made by now
    path = os.path.join(args.results, f"{args.experiment}.csv")
    save_table(path, table)
    print(f"wrote {path}: {len(table)} rows")
    if args.experiment == "sizes":
        fit(read([args.results], "sizes.csv"), os.path.join(args.results, "sizes_fit.csv"))
    if args.experiment == "rl":
        over_base = gains(read([args.results], "rl.csv"), KS, N_SAMPLES)
        save_table(os.path.join(args.results, "rl_gains.csv"), over_base)


def fit(rows, path):
    """Fit the law of sizes, if there are budgets enough, and show it."""
    if compute_optimal(rows).shape[-1] < 2:
        return
    laws = fit_sizes(rows)
    save_table(path, laws)
    for law in laws:
        interval = "" if math.isnan(law["low"]) else f" [{law['low']:.3f}, {law['high']:.3f}]"
        print(f"{law['quantity']}: {law['fitted']:.3f}{interval} {law['measured']}")


if __name__ == "__main__":
    run_script(main)
