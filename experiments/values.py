"""
The value head compared with enumeration: how well it separates partial solutions that can still be solved
from others, and whether its probabilities are calibrated.

    python -m experiments.values --models out/sft.pt            # -> out/values.csv, out/calibration.csv, .png
    python -m experiments.values --models out/sft.pt out/states/sft.pt

Partial solutions are a problem with one or more steps, but not all: "random" legal ones, or "own", those of
the model's samples at temperature 1, wrong ones included. values.csv has the AUC, P(one that can be solved is
rated above one that cannot), for each number of steps. calibration.csv has, for each tenth of the range of
values, the mean value and the share that can be solved: with calibrated values the two are equal.
"""
import os

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, choose_device, open_folder, positive, run_script, save_table

import matplotlib.pyplot as plt
import numpy as np
import torch

from checkpoint import load_checkpoint
from metrics import auc, values_of, wilson
from plot import save_figure
from sample import generate
from verify import EOS, HELD_OUT_SEED, TASKS, decode, encode, held_out_problems, random_steps, state_value

N_BINS = 10
MARKERS = "osD^v"


def partial_solutions(model, problems, max_tokens, seed):
    """Two of each problem for each number of steps: [(source, number of steps, problem, lines)]."""
    rng, generator = np.random.default_rng(HELD_OUT_SEED), torch.Generator().manual_seed(seed)
    prompts = [encode(problem.prompt) for problem in problems]
    samples = generate(model, prompts, max_tokens, 1.0, (EOS,), generator)
    found = []
    for problem, ids in zip(problems, samples.completions()):
        lines = decode(ids).splitlines(keepends=True)
        for n in range(1, problem.level - 1):
            found.append(("random", n, problem, random_steps(problem, n, rng)[0]))
            own = "".join(lines[:n])
            if own.count("\n") == n and "<|" not in own:
                found.append(("own", n, problem, own))
    return found


def value_rows(found, values, labels):
    """The AUC for each source and number of steps, rows of a table."""
    rows = []
    for source, n in sorted({(source, n) for source, n, _, _ in found}):
        chosen = [i for i, (other, m, _, _) in enumerate(found) if (other, m) == (source, n)]
        solvable = [labels[i] for i in chosen]
        rows.append({"source": source, "steps": n, "states": len(chosen), "solvable": np.mean(solvable),
                     "auc": auc([values[i] for i in chosen], solvable)})
    return rows


def calibration_rows(found, values, labels):
    """For each source, and each tenth of the values there are in it: rows of a table."""
    rows, labels = [], np.array(labels)
    probability = torch.tensor(values).sigmoid().numpy()
    for source in ("random", "own"):
        of_source = np.array([other == source for other, *_ in found])
        for k in range(N_BINS):
            inside = of_source & (np.minimum(probability * N_BINS, N_BINS - 1).astype(int) == k)
            if inside.any():
                rows.append({"source": source, "low": k / N_BINS, "high": (k + 1) / N_BINS,
                             "states": inside.sum(), "value": probability[inside].mean(),
                             "solvable": labels[inside].mean()})
    return rows


def draw(rows, path):
    """A panel for each source, a line for each model, with 95 % intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
    models = dict.fromkeys(row["checkpoint"] for row in rows)
    for axis, source in zip(axes, ("random", "own")):
        axis.plot([0, 1], [0, 1], color="gray", linestyle=":")
        for model, marker in zip(models, MARKERS * len(models)):
            points = [row for row in rows if (row["checkpoint"], row["source"]) == (model, source)]
            x, y = [row["value"] for row in points], [row["solvable"] for row in points]
            ends = [wilson(row["solvable"] * row["states"], row["states"]) for row in points]
            error = [(share - low, high - share) for share, (low, high) in zip(y, ends)]
            axis.errorbar(x, y, list(zip(*error)), marker=marker, label=model, capsize=2, elinewidth=0.7)
        axis.set(xlabel="value", ylabel="share that can be solved", title=f"{source} steps")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.2)
    save_figure(figure, path)


def read_flags(parser, n_problems, unfit):
    """
    The flags of an experiment that compares models, with the models: (args, [(path, model, flags of its
    run)]). unfit(flags) says why a model cannot be measured, "" if it can.
    """
    parser.add_argument("--models", nargs="+", default=["out/sft.pt"], metavar="FILE",
                        help="checkpoints to compare (default out/sft.pt)")
    parser.add_argument("--n-problems", type=positive, default=n_problems, metavar="N",
                        help=f"how many (default {n_problems})")
    parser.shared("--split", "--out", "--device", "--seed")
    args, loaded = parser.parse_args(), []
    with parser.errors():
        for path in args.models:
            model, checkpoint = load_checkpoint(path, choose_device(args.device), needs=("flags",))
            reason = unfit(checkpoint["flags"])
            if reason:
                raise ValueError(f"{path} {reason}")
            loaded.append((path, model, checkpoint["flags"]))
    return args, loaded


def unfit(flags):
    if TASKS[flags["task"]].enumerable and flags["level"] >= 3:
        return ""
    return (f"is for {flags['task']} at level {flags['level']}: there are no partial solutions there whose "
            "value is known")


def main():
    parser = Parser(description="What the value head knows, held against enumeration.")
    args, loaded = read_flags(parser, 1000, unfit)
    open_folder(args.out, "values.csv", "calibration.csv", "calibration.png")
    table, calibration = [], []
    for path, model, flags in loaded:
        problems = held_out_problems(flags["task"], flags["level"], args.n_problems, args.split)
        found = partial_solutions(model, problems, flags["max_tokens"], args.seed)
        values = values_of(model, [encode(problem.prompt + lines) for _, _, problem, lines in found])
        labels = [state_value(problem, lines) for _, _, problem, lines in found]
        about = {"checkpoint": path, "level": flags["level"]}
        calibration += [about | row for row in calibration_rows(found, values, labels)]
        for row in value_rows(found, values, labels):
            table.append(about | row)
            print(f"{path}  {row['source']:6} {row['steps']} steps  AUC {row['auc']:.3f}  "
                  f"{100 * row['solvable']:.1f} % of {row['states']} can be solved", flush=True)
    save_table(os.path.join(args.out, "values.csv"), table)
    save_table(os.path.join(args.out, "calibration.csv"), calibration)
    draw(calibration, os.path.join(args.out, "calibration.png"))


if __name__ == "__main__":
    run_script(main)
