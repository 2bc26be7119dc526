"""
Draw the league table.

    python -m experiments.plot_league                       # results/league.csv -> results/league.png

Left: all that was measured of each row. Right: pass@16 against a single sample. A method that only moves
probability to what the base already finds goes right and down; one that learns something new goes up.
"""
import os

# First, so that Ctrl-C while matplotlib is imported ends quietly
from common import Parser, fail, run_script

import matplotlib.pyplot as plt

from metrics import wilson
from plot import means, read, save_figure

LEAGUE = {                                  # what is drawn: (column, colour, marker)
    "single sample": ("sampled", "tab:orange", "o"),
    "single sample, best T": ("single_best_t", "tab:orange", "*"),
    "greedy": ("greedy", "tab:blue", "o"),
    "pass@16": ("pass16", "tab:green", "o"),
    "best at 256 tokens, by the model itself": ("own256", "tab:purple", "<"),
    "at 1,024": ("own1024", "tab:purple", ">"),
    "best at 256 tokens, verified": ("verified256", "tab:red", "<"),
    "at 1,024, verified": ("verified1024", "tab:red", ">"),
}


def draw_league(axis, rows):
    """A line for each row of the table: the seeds' means, thin lines from the lowest seed to the highest."""
    table = averaged(rows)
    for label, (column, color, marker) in LEAGUE.items():
        for y, row in enumerate(table):
            seeds = [100 * r[column] for r in rows if r["row"] == row["row"]]
            axis.plot([min(seeds), max(seeds)], [y, y], color=color, linewidth=1, alpha=0.6)
        x = [100 * row[column] for row in table]
        axis.plot(x, range(len(table)), color=color, marker=marker, linestyle="", label=label)
    for column, marker in (("heuristic256", "<"), ("heuristic1024", ">")):
        heuristic = 100 * sum(row[column] for row in rows) / len(rows)
        axis.plot([heuristic], [len(table)], color="black", marker=marker, linestyle="")
    names = [f"{row['row']}  {number}" for number, row in enumerate(table)]
    axis.set_yticks(range(len(table) + 1), names + ["no model: heuristic, verified"])
    axis.invert_yaxis()
    axis.set(xlabel="test problems solved, %")
    axis.grid(axis="y", alpha=0.3)
    axis.figure.legend(fontsize=8, loc="outside lower center", ncol=4)


def draw_sharpening(axis, rows):
    """The rows by their numbers, as the left panel has them; the bars are the 95 % intervals of the base."""
    points = {row["row"]: (100 * row["sampled"], 100 * row["pass16"]) for row in averaged(rows)}
    if "base" in points:
        x, y = points["base"]
        n = rows[0]["problems"]             # the same for all seeds, so more seeds do not make it narrower
        bars = [[abs(100 * end - at)] for at in (x, y) for end in wilson(at / 100 * n, n)]
        axis.errorbar(x, y, xerr=bars[:2], yerr=bars[2:], color="gray", linewidth=1, capsize=3)
        axis.axvline(x, color="gray", linewidth=0.5, linestyle=":")
        axis.axhline(y, color="gray", linewidth=0.5, linestyle=":")
    for number, point in enumerate(points.values()):
        axis.text(*point, number, ha="center", va="center", fontsize=9,
                  bbox={"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": "tab:blue"})
    axis.update_datalim(list(points.values()))
    axis.autoscale_view()
    axis.set(xlabel="a single sample is right, %", ylabel="one of 16 is right (pass@16), %")


def averaged(rows):
    """A dict for each row of the league: the means of its seeds."""
    return means(rows, ["row"], [column for column, _, _ in LEAGUE.values()])


def main():
    parser = Parser(description="Draw the league table.")
    parser.add_argument("table", nargs="?", default="results/league.csv", help="default results/league.csv")
    args = parser.parse_args()
    try:
        rows = read([os.path.dirname(args.table)], os.path.basename(args.table))
        if not rows:
            fail(f"no rows in {args.table}: experiments/league.py writes it")
        height = 2.4 + 0.4 * len({row["row"] for row in rows})
        figure, (left, right) = plt.subplots(1, 2, figsize=(15, height), width_ratios=(3, 2),
                                             layout="constrained")
        figure.suptitle("every hypothesis from one base, at about equal training FLOPs")
        draw_league(left, rows)
        draw_sharpening(right, rows)
        save_figure(figure, os.path.splitext(args.table)[0] + ".png")
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        fail(f"{args.table} is not a table that experiments/league.py wrote ({error})")


if __name__ == "__main__":
    run_script(main)
