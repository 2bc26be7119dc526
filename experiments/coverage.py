"""
How many problems repeated sampling solves, and how many of these remain without a verifier.

    python -m experiments.coverage                  # out/sft.pt -> out/coverage.csv, out/coverage.png
    python -m experiments.coverage --models out/answers/sft.pt out/expression/sft.pt --samples 1024

For models of worked solutions. Coverage is the share of problems of which at least one of k samples is right:
pass@k, an unbiased estimate from all samples. "fit" is the law of Brown et al. (2024, 2407.21787): minus the
logarithm of coverage is a power of k. It is fitted to the first half of the curve, on a logarithmic axis, so
it predicts the other half. The other rows choose one of k samples, without the verifier: by majority vote, by
a vote weighted with the values of the value head, or by the highest value; each is the mean over up to 16
disjoint groups of k samples.
"""
import math
import os
from functools import partial

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, open_folder, run_script, save_table, whole

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from best_of_n import best_of_n, draw, score, vote
from budget import Settings
from experiments.values import read_flags
from metrics import mean_pass_at_k, wilson
from plot import save_figure
from search import count_correct
from verify import held_out_problems

N_GROUPS = 16
AT_ONCE = 64                                # problems whose samples are drawn together
CHOOSERS = {
    "majority vote": partial(vote, scorer="count"),
    "vote of values": partial(vote, scorer="value"),
    "best value": partial(best_of_n, scorer="value"),
}
LOOKS = {"coverage": ("tab:green", "o"), "fit": ("tab:green", ""), "majority vote": ("tab:blue", "s"),
         "vote of values": ("tab:purple", "^"), "best value": ("tab:orange", "v")}


def draw_samples(model, problems, n, settings):
    """n samples of each problem: lists of Sample."""
    drawn = []
    for i in tqdm(range(0, len(problems), AT_ONCE), desc="sampling"):
        part = [problem for problem in problems[i:i + AT_ONCE] for _ in range(n)]
        samples = draw(model, part, [settings.max_tokens] * len(part), settings)
        drawn += [samples[start:start + n] for start in range(0, len(samples), n)]
    return drawn


def coverage(problems, drawn, ks):
    """pass@k for each k."""
    n = len(drawn[0])
    counts = [sum(score(problem, sample, "verifier") > 0 for sample in own)
              for problem, own in zip(problems, drawn)]
    return [mean_pass_at_k(n, counts, k) for k in ks]


def power_law(ks, shares):
    """
    (a, b) of log(share) = -a k^-b, by least squares of the logarithms of minus both sides; nan if fewer than
    two shares lie between 0 and 1.
    """
    known = [(np.log(k), np.log(-np.log(share))) for k, share in zip(ks, shares) if 0 < share < 1]
    if len(known) < 2:
        return math.nan, math.nan
    slope, intercept = np.polyfit(*zip(*known), 1)
    return float(np.exp(intercept)), float(-slope)


def chosen(problems, drawn, k, choose):
    """How often what is chosen of k samples is right, the mean over disjoint groups of samples."""
    n_groups, right = min(N_GROUPS, len(drawn[0]) // k), 0
    for start in range(0, n_groups * k, k):
        settings = Settings(0, samples=[own[start:start + k] for own in drawn])
        right += count_correct(problems, choose(None, problems, None, settings))
    return right / n_groups / len(problems)


def measure(problems, drawn):
    """Rows of a table: each way of choosing, at each k."""
    ks = [2 ** i for i in range(len(drawn[0]).bit_length())]
    found = {"coverage": coverage(problems, drawn, ks)}
    half = (len(ks) + 1) // 2
    a, b = power_law(ks[:half], found["coverage"][:half])
    found["fit"] = [float(np.exp(-a * k ** -b)) for k in ks]
    for how, choose in CHOOSERS.items():
        found[how] = [chosen(problems, drawn, k, choose) for k in tqdm(ks, desc=how)]
    rows = []
    for how, shares in found.items():
        for k, share in zip(ks, shares):
            low, high = wilson(share * len(problems), len(problems))
            rows.append({"how": how, "k": k, "problems": len(problems), "accuracy": share, "ci_low": low,
                         "ci_high": high, "a": a, "b": b})
    return rows


def draw_curves(rows, path):
    """A panel for each model."""
    models = list(dict.fromkeys(row["checkpoint"] for row in rows))
    size = 6.0 * len(models), 4.5
    figure, axes = plt.subplots(1, len(models), figsize=size, layout="constrained", squeeze=False)
    for axis, model in zip(axes[0], models):
        own = [row for row in rows if row["checkpoint"] == model]
        for how, (color, marker) in LOOKS.items():
            points = [(row["k"], 100 * row["accuracy"]) for row in own if row["how"] == how]
            axis.plot(*zip(*points), color=color, marker=marker, linestyle=":" if how == "fit" else "-",
                      label="fitted to its first half" if how == "fit" else how)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set(xlabel="samples a problem", ylabel="problems solved, %",
                 title=f"{own[0]['task']}, level {own[0]['level']}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save_figure(figure, path)


def unfit(flags):
    return "writes streams, of which one is sampled: experiments/streams.py" if flags.get("streams") else ""


def main():
    parser = Parser(description="How far repeated sampling goes, and what is left of it without a verifier.")
    parser.add_argument("--samples", type=whole(4, 2 ** 20), default=256, metavar="N",
                        help="samples of each problem (default 256)")
    args, loaded = read_flags(parser, 500, unfit)
    open_folder(args.out, "coverage.csv", "coverage.png")
    table = []
    for path, model, flags in loaded:
        problems = held_out_problems(flags["task"], flags["level"], args.n_problems, args.split)
        settings = Settings(flags["max_tokens"], torch.Generator().manual_seed(args.seed))
        rows = measure(problems, draw_samples(model, problems, args.samples, settings))
        about = {"checkpoint": path, "task": flags["task"], "level": flags["level"], "seed": args.seed}
        table += [about | row for row in rows]
        most = rows[-1]["k"]
        shown = ", ".join(f"{row['how']} {100 * row['accuracy']:.1f} %" for row in rows if row["k"] == most)
        print(f"{path}, {most} samples: {shown}", flush=True)
    save_table(os.path.join(args.out, "coverage.csv"), table)
    draw_curves(table, os.path.join(args.out, "coverage.png"))


if __name__ == "__main__":
    run_script(main)
