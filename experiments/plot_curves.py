"""
Draw the scaling curves.

    python -m experiments.plot_curves                       # results/curves/*.csv -> results/curves/*.png
    python -m experiments.plot_curves out/curves_quick

sizes.png: left, at each budget the loss of a plan against the size of the model, with the parabola that was
fitted; right, the same losses against compute, a line for each depth, dashed the power law through the lowest
points, a star where it foretold a budget. rl.png: left, a single sample after RL and after as much more SFT;
right, pass@k before and after.
"""
import os

# First, so that Ctrl-C while matplotlib is imported ends quietly
from common import Parser, fail, run_script

import matplotlib.pyplot as plt
import numpy as np

from experiments.curves import KS, TERA, compute_optimal
from plot import means, read, save_figure

GRAYS = plt.get_cmap("viridis")


def draw_sizes(figure, rows):
    left, right = figure.subplots(1, 2)
    averaged = means(rows, ["budget", "depth"], ["flops", "parameters", "plan_loss"])
    budgets, depths = (sorted({row[key] for row in rows}) for key in ("budget", "depth"))
    fitted = [b for b in budgets if len({row["depth"] for row in rows if row["budget"] == b}) > 2]
    for i, budget in enumerate(fitted):
        color = GRAYS(0.85 * i / max(1, len(fitted) - 1))
        members = [row for row in averaged if row["budget"] == budget]
        members.sort(key=lambda row: row["parameters"])
        all_seeds = [row for row in rows if row["budget"] == budget]
        left.plot([row["parameters"] for row in all_seeds], [row["plan_loss"] for row in all_seeds], ".",
                  color=color, alpha=0.4)
        x = np.log([row["parameters"] for row in members])
        parabola = np.polyfit(np.log([row["parameters"] for row in all_seeds]),
                              np.log([row["plan_loss"] for row in all_seeds]), 2)
        at = np.linspace(x.min(), x.max(), 50)
        left.plot(np.exp(at), np.exp(np.polyval(parabola, at)), color=color)
        left.text(np.exp(at[-1]), np.exp(np.polyval(parabola, at[-1])), f" {budget:g} TFLOP", color=color,
                  va="center", fontsize=9)
    flops, parameters, loss = compute_optimal([row for row in rows if row["budget"] in fitted])
    left.plot(parameters, loss, "k*", label="compute-optimal")
    left.set(xlabel="parameters", ylabel="loss of a plan (nats a problem)", xscale="log", yscale="log")
    left.legend(fontsize=8)
    sizes = sorted({row["parameters"] for row in rows})
    left.set_xticks(sizes, [f"{size / 1e6:.2g}M" for size in sizes])
    left.set_xlim(sizes[0] / 1.3, sizes[-1] * 2.2)                      # room for the labels
    for i, depth in enumerate(depths):
        color = GRAYS(0.85 * i / max(1, len(depths) - 1))
        members = sorted((row for row in averaged if row["depth"] == depth), key=lambda row: row["flops"])
        x, y = [row["flops"] for row in members], [row["plan_loss"] for row in members]
        right.plot(x, y, ".-", color=color)
        right.text(x[-1], y[-1], f" depth {depth:g}", color=color, va="center", fontsize=9)
    if len(flops) > 1:
        slope, height = np.polyfit(np.log(flops), np.log(loss), 1)
        at = np.array([flops.min(), max(row["flops"] for row in rows)])
        right.plot(at, np.exp(height) * at ** slope, "k--", label=f"loss ~ FLOPs^{slope:.2f}")
        foretold = [budget for budget in budgets if budget not in fitted]
        if foretold:
            at = [np.mean([row["flops"] for row in rows if row["budget"] == budget]) for budget in foretold]
            right.plot(at, np.exp(height) * np.array(at) ** slope, "k*", label="foretold")
        right.legend(fontsize=8)
    most = max(row["flops"] for row in rows)
    right.set(xlabel="training compute (FLOPs)", xscale="log", yscale="log")
    right.set_xlim(right=most * (most / min(row["flops"] for row in rows)) ** 0.2)
    for axis in (left, right):
        axis.minorticks_off()
        ticks = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if is_drawn(tick, rows)]
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def is_drawn(tick, rows):
    """Whether a tick is among what is drawn."""
    losses = [row["plan_loss"] for row in rows]
    return min(losses) / 1.5 < tick < max(losses) * 1.5


def draw_rl(figure, rows):
    left, right = figure.subplots(1, 2)
    columns = ["flops", "single_best_t", *(f"pass{k}" for k in KS)]
    averaged = means(rows, ["kind", "budget"], columns)
    base = next(row for row in averaged if row["kind"] == "base")
    styles = {"RL": "tab:orange", "more SFT": "tab:blue"}
    for kind, color in styles.items():
        members = sorted((row for row in averaged if row["kind"] == kind), key=lambda row: row["flops"])
        x = [(row["flops"] - base["flops"]) / TERA for row in members]
        for column, style, what in (("pass1", "o-", "T = 1"), ("single_best_t", "*--", "the best T")):
            y = [100 * row[column] for row in members]
            left.plot(x, y, style, color=color, label=f"{kind}, {what}")
        if members:
            last = members[-1]
            right.plot(KS, [100 * last[f"pass{k}"] for k in KS], ".-", color=color,
                       label=f"{kind}, {last['budget']:g} TFLOP")
    for column, style in (("pass1", ":"), ("single_best_t", "--")):
        left.axhline(100 * base[column], color="gray", linestyle=style)
    right.plot(KS, [100 * base[f"pass{k}"] for k in KS], ".-", color="gray", label="base")
    left.set(xlabel="compute after the base (TFLOP)", ylabel="single samples that are right, %", xscale="log",
             title="gray: the base, at temperature 1 and at its best")
    right.set(xlabel="k", ylabel="pass@k, %", xscale="log")
    for axis in (left, right):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.2)


PICTURES = {"sizes": draw_sizes, "rl": draw_rl}


def main():
    parser = Parser(description="Draw the scaling curves.")
    parser.add_argument("folder", nargs="?", default="results/curves", help="default results/curves")
    args = parser.parse_args()
    tables = {name: read([args.folder], f"{name}.csv") for name in PICTURES}
    if not any(tables.values()):
        fail(f"no {'.csv and no '.join(PICTURES)}.csv in {args.folder}: experiments/curves.py writes them")
    for name, rows in tables.items():
        if rows:
            figure = plt.figure(figsize=(11, 4.5), layout="constrained")
            try:
                PICTURES[name](figure, rows)
            except (KeyError, TypeError, StopIteration) as error:
                fail(f"{args.folder}/{name}.csv is not a table that experiments/curves.py wrote ({error})")
            save_figure(figure, os.path.join(args.folder, f"{name}.png"))


if __name__ == "__main__":
    run_script(main)
