"""
Draw the scaling curves.

    python -m experiments.plot_curves                       # results/curves/*.csv -> results/curves/*.png
    python -m experiments.plot_curves out/curves_quick

sizes.png: left, at each budget the loss of a plan against the size of the model, with the parabola that was
fitted near the best; right, the same losses against compute, a line for each depth, dashed the power law
through the lowest points, a star where it predicted a budget. rl.png: left, a single sample after RL and
after as much more SFT; right, by how much pass@k is above the base's, with paired intervals. steps.png: left,
accuracy with and without a chain of thought; right, what the chain is worth. few.png: accuracy against the
number of worked solutions.
"""
import os

# First, so that Ctrl-C while matplotlib is imported ends quietly
from common import Parser, fail, run_script

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.curves import KS, N_SAMPLES, TERA
from experiments.laws import (by_budget, column, compute_optimal, flops_of, gains, near_best, parabola,
                              power_law)
from plot import means, read, save_figure

BUDGETS, DEPTHS = plt.get_cmap("viridis"), plt.get_cmap("plasma")       # their colours


def along(key, rows, **which):
    """The rows of one depth or kind, in the order of a column."""
    return sorted((row for row in rows if row.items() >= which.items()), key=lambda row: row[key])


def draw_sizes(figure, rows):
    left, right = figure.subplots(1, 2)
    draw_budgets(left, rows)
    draw_depths(right, rows)
    losses = column(rows, "plan_loss")
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
             if losses.min() / 1.5 < tick < losses.max() * 1.5]
    for axis in (left, right):
        axis.minorticks_off()
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def colors_of(keys, of):
    return {key: of(0.85 * i / max(1, len(keys) - 1)) for i, key in enumerate(keys)}


def draw_budgets(axis, rows):
    """The loss of a plan against the size, for each budget with its parabola."""
    fitted, predicted = by_budget(rows)
    for budget, color in colors_of(fitted, BUDGETS).items():
        sizes, losses = column(fitted[budget], "parameters"), column(fitted[budget], "plan_loss")
        axis.plot(sizes, losses, ".", color=color, alpha=0.4)
        near = near_best(fitted[budget])
        around = np.log(column(near, "parameters"))
        x = np.linspace(around.min(), around.max(), 50)
        axis.plot(np.exp(x), np.exp(np.polyval(parabola(near), x)), color=color)
        end = losses[sizes == sizes.max()].mean()
        axis.text(sizes.max(), end, f"  {budget:g} TFLOP", color=color, va="center", fontsize=9)
    for budget, members in predicted.items():
        axis.plot(column(members, "parameters"), column(members, "plan_loss"), "kx",
                  label=f"{budget:g} TFLOP, not fitted")
    _, parameters, loss = compute_optimal(rows)
    axis.plot(parameters, loss, "k*", label="compute-optimal")
    axis.set(xlabel="parameters", ylabel="loss of a plan (nats a problem)", xscale="log", yscale="log")
    axis.legend(fontsize=8)
    sizes = sorted({row["parameters"] for row in rows})
    axis.set_xticks(sizes, [f"{size / 1e6:.2g}M" for size in sizes])
    axis.set_xlim(sizes[0] / 1.3, sizes[-1] * 2.2)                      # room for the labels


def draw_depths(axis, rows):
    """The same losses against compute, for each depth, and the power law through the lowest points."""
    averaged = means(rows, ["depth", "budget"], ["flops", "plan_loss"])
    for depth, color in colors_of(sorted({row["depth"] for row in rows}), DEPTHS).items():
        members = along("flops", averaged, depth=depth)
        x, y = column(members, "flops") / TERA, column(members, "plan_loss")
        axis.plot(x, y, ".-", color=color)
        axis.text(x[0], y[0], f"depth {depth:g}  ", color=color, va="center", ha="right", fontsize=9)
    all_flops, (flops, _, loss) = column(rows, "flops") / TERA, compute_optimal(rows)
    flops = flops / TERA
    if len(flops) > 1:
        exponent, factor = power_law(flops, loss)
        at = np.array([flops.min(), all_flops.max()])
        axis.plot(at, factor * at ** exponent, "k--", label=f"loss ~ FLOPs^{exponent:.2f}")
        predicted = by_budget(rows)[1]
        if predicted:
            at = flops_of(predicted) / TERA
            axis.plot(at, factor * at ** exponent, "k*", label="predicted")
        axis.legend(fontsize=8)
    axis.set(xlabel="training compute (TFLOP)", xscale="log", yscale="log")
    budgets = sorted({row["budget"] for row in rows})
    axis.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axis.set_xlim(left=all_flops.min() / (all_flops.max() / all_flops.min()) ** 0.2)        # for the labels


def draw_rl(figure, rows):
    left, right = figure.subplots(1, 2)
    columns = ["flops", "single_best_t", *(f"pass{k}" for k in KS)]
    averaged = means(rows, ["kind", "budget"], columns)
    base = next(row for row in averaged if row["kind"] == "base")
    styles = {"RL": "tab:orange", "more SFT": "tab:blue"}
    for kind, color in styles.items():
        members = along("flops", averaged, kind=kind)
        x = [(row["flops"] - base["flops"]) / TERA for row in members]
        for key, style, what in (("pass1", "o-", "T = 1"), ("single_best_t", "*--", "the best T")):
            y = [100 * row[key] for row in members]
            left.plot(x, y, style, color=color, label=f"{kind}, {what}")
    for key, style, what in (("pass1", ":", "T = 1"), ("single_best_t", "--", "the best T")):
        left.axhline(100 * base[key], color="gray", linestyle=style, label=f"the base, {what}")
    draw_gains(right, rows, styles)
    left.set(xlabel="compute after the base (TFLOP)", ylabel="single samples that are right, %", xscale="log")
    budgets = sorted({row["budget"] for row in rows} - {0})
    left.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    left.minorticks_off()
    for axis in (left, right):
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=3)
        axis.grid(alpha=0.2)


def draw_gains(axis, rows, styles):
    """By how much pass@k is above the base's, after the smallest and the largest budget."""
    over_base = gains(rows, KS, N_SAMPLES)
    for kind, color in styles.items():
        budgets = sorted({row["budget"] for row in over_base if row["kind"] == kind})
        for budget, style in zip(dict.fromkeys((*budgets[-1:], *budgets[:1])), (".-", ".--")):
            members = along("k", over_base, kind=kind, budget=budget)
            low, high = 100 * column(members, "low"), 100 * column(members, "high")
            axis.plot(KS, 100 * column(members, "gain"), style, color=color,
                      label=f"{kind}, {budget:g} TFLOP")
            axis.fill_between(KS, low, high, color=color, alpha=0.12)
    axis.axhline(0, color="gray")
    axis.set(xlabel="k", ylabel="pass@k above the base's, points", xscale="log")
    axis.set_xticks(KS, [str(k) for k in KS])
    axis.minorticks_off()


def draw_steps(figure, rows):
    left, right = figure.subplots(1, 2)
    averaged = means(rows, ["kind", "level"], ["greedy", "majority"])
    lines = {"with steps, greedy": ("with steps", "greedy", "o-", "tab:orange"),
             "direct, greedy": ("direct", "greedy", "s-", "tab:blue"),
             "direct, majority of as many tokens": ("direct", "majority", "s--", "tab:blue")}
    for label, (kind, key, style, color) in lines.items():
        members = along("level", averaged, kind=kind)
        left.plot(column(members, "level"), 100 * column(members, key), style, color=color, label=label)
    chain = {row["level"]: row["greedy"] for row in along("level", averaged, kind="with steps")}
    for key, style, label in (("greedy", "s-", "over the direct answer, greedy"),
                              ("majority", "s--", "over its majority vote at equal tokens")):
        members = [row for row in along("level", averaged, kind="direct") if row["level"] in chain]
        gap = [100 * (chain[row["level"]] - row[key]) for row in members]
        right.plot(column(members, "level"), gap, style, color="tab:gray", label=label)
    left.set(xlabel="operators", ylabel="problems solved, %")
    right.set(xlabel="operators", ylabel="gain of the chain of thought, points")
    right.axhline(0, color="black", linewidth=0.8)
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(fontsize=8)
        axis.grid(alpha=0.2)


def draw_few(figure, rows):
    axes = figure.subplots(1, 2)
    averaged = means(rows, ["kind", "examples"], ["sampled", "pass16"])
    styles = {"SFT": "o-", "then RL": "^-", "then search": "s--"}
    colors = {"SFT": "gray", "then RL": "tab:orange", "then search": "tab:blue"}
    labels = {"sampled": "single samples that are right, %", "pass16": "pass@16, %"}
    for axis, (key, label) in zip(axes, labels.items()):
        for kind, style in styles.items():
            members = along("examples", averaged, kind=kind)
            x, y = column(members, "examples"), 100 * column(members, key)
            axis.plot(x, y, style, color=colors[kind], label=kind)
        axis.set(xlabel="worked solutions", ylabel=label, xscale="log")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.2)


PICTURES = {"sizes": draw_sizes, "rl": draw_rl, "steps": draw_steps, "few": draw_few}


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
