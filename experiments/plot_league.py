"""
Draw the league table.

    python -m experiments.plot_league                       # results/league.csv -> results/league.png
"""
import os

# First, so that Ctrl-C while matplotlib is imported ends quietly
from common import Parser, fail, run_script

import matplotlib.pyplot as plt

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
    table = means(rows, ["row"], [column for column, _, _ in LEAGUE.values()])
    for label, (column, color, marker) in LEAGUE.items():
        for y, row in enumerate(table):
            seeds = [100 * r[column] for r in rows if r["row"] == row["row"]]
            axis.plot([min(seeds), max(seeds)], [y, y], color=color, linewidth=1, alpha=0.6)
        x = [100 * row[column] for row in table]
        axis.plot(x, range(len(table)), color=color, marker=marker, linestyle="", label=label)
    for column, marker in (("heuristic256", "<"), ("heuristic1024", ">")):
        heuristic = 100 * sum(row[column] for row in rows) / len(rows)
        axis.plot([heuristic], [len(table)], color="black", marker=marker, linestyle="")
    axis.set_yticks(range(len(table) + 1), [row["row"] for row in table] + ["no model: heuristic, verified"])
    axis.invert_yaxis()
    axis.set(xlabel="test problems solved, %",
             title="every hypothesis from one base, at about equal training FLOPs")
    axis.grid(axis="y", alpha=0.3)
    axis.figure.legend(fontsize=8, loc="outside lower center", ncol=4)


def main():
    parser = Parser(description="Draw the league table.")
    parser.add_argument("table", nargs="?", default="results/league.csv", help="default results/league.csv")
    args = parser.parse_args()
    try:
        rows = read([os.path.dirname(args.table)], os.path.basename(args.table))
        if not rows:
            fail(f"no rows in {args.table}: experiments/league.py writes it")
        height = 2.4 + 0.4 * len({row["row"] for row in rows})
        figure, axis = plt.subplots(figsize=(12, height), layout="constrained")
        draw_league(axis, rows)
        save_figure(figure, os.path.splitext(args.table)[0] + ".png")
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        fail(f"{args.table} is not a table that experiments/league.py wrote ({error})")


if __name__ == "__main__":
    run_script(main)
