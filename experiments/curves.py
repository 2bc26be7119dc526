"""
Scaling curves from separate runs, each with a schedule of its own, and the laws that are fitted to them.

    python -m experiments.curves sizes          # depths 1 to 6 at four budgets -> results/curves/sizes.csv
    python -m experiments.curves sizes --budgets 40 --depths 4      # what the fit predicts, held against it
    python -m experiments.curves rl             # RL at four budgets, beside as much more SFT

Nothing is trained here: a run is a list of command lines for the other scripts, and a row of the table is
what its last checkpoint can do. A row is kept in the folder of its run, and not run again if it is there or
in the table: so a command that was stopped goes on where it was, but for the last run, and several may go
side by side with other --seeds. To run again what the table has, give another --results. Budgets are in
TFLOP.

    sizes   the loss of a plan (nats for the first step of a worked solution, up to its result) against
            compute. At each budget with three sizes or more a parabola in the logarithm of the parameters;
            its lowest points, and power laws through these (approach 2 of Hoffmann et al. 2022). Budgets with
            fewer sizes are not fitted but predicted. Intervals: the seeds drawn again 1,000 times.
    rl      pass@k for k from 1 to 256 (unbiased), and a single sample at the temperature that is best on
            validation problems.
"""
import glob
import json
import os
import shlex
from argparse import Namespace
from itertools import product

# First, so that Ctrl-C while torch is imported ends quietly
from common import (Parser, between, choose_device, open_folder, positive, read_table, run_script, save_table,
                    whole, write_whole)

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from checkpoint import load_checkpoint
from experiments.league import run
from metrics import pass_at_k
from model import GPTConfig, flops_per_token
from sample import generate
from solutions import hard_part
from train_sft import make_batch
from trainer import by_length
from verify import EOS, TASKS, encode, held_out_problems, is_correct

TERA = 1e12
SFT_STEP, RL_STEP = 5.9e9, 93e9             # FLOPs of a step of each script's defaults, at depth 3
CONTEXT = 16                                # tokens that a token of three numbers sees, on the mean
N_SAMPLES = 256
KS = [2 ** k for k in range(9)]             # of pass@k
SEEDED = "--seed {seed} --out {out} --test-problems {n_problems}"
SEARCH = ("search.py --init {model} --out {out} --seed {seed} --n-problems {n_problems} --budgets 75 "
          "--methods 'single sample' 'single sample (best T)'")


# ------------------------------------------------------------------------------------------------------------
# Runs: (what a row is about, its commands, its checkpoint), {out} is the folder of the run

def size_runs(args):
    """SFT of each size for each budget."""
    for seed, budget, depth in product(args.seeds, args.budgets, args.depths):
        ratio = of_depth(depth) / of_depth(3)
        steps = max(1, round(budget * TERA / (SFT_STEP * ratio)))
        flags = f"--depth {depth} --steps {steps} --log-every {steps} {SEEDED}"
        about = {"depth": depth, "budget": budget, "seed": seed, "steps": steps}
        yield about, [f"train_sft.py --no-streams {flags}"], "sft.pt"


def of_depth(depth):
    return flops_per_token(GPTConfig.from_depth(depth), CONTEXT)


def rl_runs(args):
    """A base, RL from it with each budget, and as much more SFT."""
    for seed in args.seeds:
        base = {"kind": "base", "budget": 0.0, "seed": seed}
        folder = shlex.quote(os.path.join(args.out, "rl", name(base)))
        steps = max(1, round(args.base * TERA / SFT_STEP))
        yield base, [f"train_sft.py --no-streams --steps {steps} {SEEDED}", SEARCH], "sft.pt"
        for budget in args.budgets:
            flags = f"--init {folder}/sft.pt --log-every 1000 {SEEDED}"
            n_rl, n_sft = (max(1, round(budget * TERA / flops)) for flops in (RL_STEP, SFT_STEP))
            about = {"budget": budget, "seed": seed}
            yield {"kind": "RL"} | about, [f"train_rl.py --steps {n_rl} {flags}", SEARCH], "rl.pt"
            yield {"kind": "more SFT"} | about, [f"train_sft.py --steps {n_sft} {flags}", SEARCH], "sft.pt"


def identity(row):
    """What a row is about."""
    return {key: row[key] for key in ("kind", "depth", "budget", "seed") if key in row}


def name(about):
    return "_".join(f"{key}{value}" for key, value in identity(about).items()).replace(" ", "_")


# ------------------------------------------------------------------------------------------------------------
# What is measured

@torch.no_grad()
def plan_loss(model, problems, solutions):
    """The mean of -log P(first step of the worked solution, up to its result), in nats a problem."""
    examples = [hard_part(problem, solution) for problem, solution in zip(problems, solutions)]
    total = 0.0
    for _, part in by_length(make_batch(examples, model.wte.weight.device)):
        logits, _ = model(part["idx"])                                  # (B, T, V)
        total += F.cross_entropy(logits.flatten(0, 1), part["targets"].flatten(), ignore_index=-1,
                                 reduction="sum").item()
    return total / len(problems)


def measure_size(model, of):
    problems = held_out_problems(of.task, of.level, of.n_problems)
    solutions = [TASKS[of.task].solve(problem) for problem in problems]
    return {key: float(of.last[key]) for key in ("greedy", "sampled", "pass16")} | {
        "plan_loss": plan_loss(model, problems, solutions)}


def measure_coverage(model, of):
    """pass@k from N_SAMPLES samples of each problem, and what search.py found."""
    problems = held_out_problems(of.task, of.level, of.n_problems)
    generator, counts = torch.Generator().manual_seed(of.seed), []
    for problem in tqdm(problems, desc="samples"):
        prompts = [encode(problem.prompt)]
        samples = generate(model, prompts, of.max_tokens, 1.0, (EOS,), generator, N_SAMPLES)
        counts.append(sum(is_correct(problem, ids) for ids in samples.finished((EOS,))))
    found = {f"pass{k}": float(np.mean([pass_at_k(N_SAMPLES, c, k) for c in counts])) for k in KS}
    single = {line["method"]: float(line["accuracy"]) for line in read_table(f"{of.folder}/search.csv")}
    return found | {"single_best_t": single["single sample (best T)"]}


# name: (runs, what is measured, budgets in TFLOP)
EXPERIMENTS = {"sizes": (size_runs, measure_size, [2.5, 5, 10, 20]),
               "rl": (rl_runs, measure_coverage, [1, 3, 10, 30])}


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
    with write_whole(os.path.join(folder, "row.json")) as file:
        file.write(json.dumps(row).encode())
    return row


def read_rows(args):
    """All rows there are, by their names: those of the table and those in the folders of runs."""
    rows = read_table(os.path.join(args.results, f"{args.experiment}.csv"))
    rows = [{key: number_or_text(text) for key, text in row.items()} for row in rows]
    runs = glob.escape(os.path.join(args.out, args.experiment))
    for path in sorted(glob.glob(f"{runs}/*/row.json")):
        with open(path) as file:
            rows.append(json.load(file))
    return {name(row): row for row in rows}


def number_or_text(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def missing(runs, table, args):
    """The runs that have no row yet, and the bases that these start from, where there is no checkpoint."""
    def has_checkpoint(about, checkpoint):
        return os.path.exists(os.path.join(args.out, args.experiment, name(about), checkpoint))

    seeds = {about["seed"] for about, _, _ in runs if name(about) not in table}
    return [(about, commands, checkpoint) for about, commands, checkpoint in runs
            if name(about) not in table or about.get("kind") == "base" and about["seed"] in seeds
            and not has_checkpoint(about, checkpoint)]


# ------------------------------------------------------------------------------------------------------------
# The law of sizes

def by_budget(rows):
    """Those budgets that are fitted, with three sizes or more, and the others: two dicts of their rows."""
    fitted, predicted = {}, {}
    for budget in sorted({row["budget"] for row in rows}):
        members = [row for row in rows if row["budget"] == budget]
        enough = len({row["depth"] for row in members}) > 2
        (fitted if enough else predicted)[budget] = members
    return fitted, predicted


def column(rows, key):
    return np.array([row[key] for row in rows])


def parabola(members):
    """log(loss) as a polynomial of log(parameters)."""
    return np.polyfit(np.log(column(members, "parameters")), np.log(column(members, "plan_loss")), 2)


def power_law(x, y):
    """(exponent, factor) of y = factor x^exponent."""
    exponent, height = np.polyfit(np.log(x), np.log(y), 1)
    return exponent, np.exp(height)


def flops_of(budgets):
    """The mean FLOPs of the runs of each budget."""
    return np.array([column(members, "flops").mean() for members in budgets.values()])


def compute_optimal(rows):
    """
    For each budget that is fitted, its FLOPs, the parameters at the lowest point of the parabola, kept within
    the sizes that were tried, and the loss there: three arrays.
    """
    found = []
    for members in by_budget(rows)[0].values():
        x, curve = np.log(column(members, "parameters")), parabola(members)
        a, b, _ = curve
        lowest = np.clip(-b / (2 * a), x.min(), x.max()) if a > 0 else x[np.argmin(np.polyval(curve, x))]
        found.append((column(members, "flops").mean(), np.exp(lowest), np.exp(np.polyval(curve, lowest))))
    return np.array(found).reshape(-1, 3).T


def fit_sizes(rows, n_draws=1000):
    """
    The exponents of parameters ~ FLOPs^a and loss ~ FLOPs^-b along the lowest points, and the loss that they
    predict for budgets that were not fitted: rows of a table, with 95 % intervals.
    """
    seeds, rng = sorted({row["seed"] for row in rows}), np.random.default_rng(0)
    predicted = by_budget(rows)[1]

    def quantities(drawn):
        flops, parameters, loss = compute_optimal(drawn)
        exponent, factor = power_law(flops, loss)
        return [power_law(flops, parameters)[0], -exponent, *factor * flops_of(predicted) ** exponent]

    def draw():
        return [row for seed in rng.choice(seeds, len(seeds)) for row in rows if row["seed"] == seed]

    names = ["exponent of parameters", "exponent of loss"]
    names += [f"loss at {budget} TFLOP" for budget in predicted]
    measured = ["", "", *(column(members, "plan_loss").mean() for members in predicted.values())]
    low, high = np.percentile([quantities(draw()) for _ in range(n_draws)], (2.5, 97.5), axis=0)
    return [dict(zip(("quantity", "fitted", "low", "high", "measured"), line))
            for line in zip(names, quantities(rows), low, high, measured)]


# ------------------------------------------------------------------------------------------------------------
# The script

def parse_args():
    parser = Parser(description="Scaling curves from separate runs.")
    parser.add_argument("experiment", choices=EXPERIMENTS, help="which curves")
    parser.add_argument("--budgets", nargs="+", type=between(0, 1e9), metavar="X",
                        help="training compute of the runs in TFLOP (default: sizes 2.5 5 10 20, "
                             "rl 1 3 10 30)")
    parser.add_argument("--depths", nargs="+", type=whole(1, 32), default=[1, 2, 3, 4, 5, 6], metavar="N",
                        help="sizes: depths of the models (default 1 to 6)")
    parser.add_argument("--base", type=between(0, 1e9), default=40, metavar="X",
                        help="rl: compute of the base in TFLOP (default 40)")
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
    args.budgets = args.budgets or list(map(float, EXPERIMENTS[args.experiment][2]))
    args.out = args.out or ("out/curves_quick" if args.quick else "out/curves")
    args.results = args.results or (args.out if args.quick else "results/curves")
    if args.quick:
        args.seeds, args.n_problems, args.base = [0], 200, args.base / 10
        args.budgets = [budget / 10 for budget in args.budgets]
    return parser, args


def main():
    parser, args = parse_args()
    runs, measure, _ = EXPERIMENTS[args.experiment]
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
    if args.experiment == "sizes" and compute_optimal(table).shape[-1] > 1:
        laws = fit_sizes(table)
        save_table(path.replace(".csv", "_fit.csv"), laws)
        for law in laws:
            print("{quantity}: {fitted:.3f} [{low:.3f}, {high:.3f}] {measured}".format(**law))


if __name__ == "__main__":
    run_script(main)
