"""
Draw the two scaling laws from the tables that the scripts wrote.

    python plot.py                          # out/*.csv -> out/scaling.png
    python plot.py out/0 out/1              # several runs of the same commands: their means

Left: accuracy against the FLOPs spent in RL, a line for each size of model; dotted, the accuracy before RL.
Without RL, against the FLOPs spent in SFT. All points but the last are measured on fewer problems.

Right: accuracy against the tokens spent on a problem at test time, or with a model of streams the tokens
allowed, a line for each method. Dotted: one stream before RL; grey or black: methods without a model; shaded:
95 % intervals (of several runs, their mean). Without a search.csv only the left panel is drawn.
"""
import csv
import io
import os
from collections import defaultdict

# First, so that Ctrl-C while matplotlib is imported ends quietly
from common import Parser, check_plain, fail, read_table, run_script, write_whole

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Colour and line of methods without a model
WITHOUT_MODEL = {"random steps": ("silver", "--"), "enumeration": ("gray", "-."),
                 "heuristic": ("black", "--"), "one step ahead": ("dimgray", (0, (1, 1)))}
# Columns drawn of training, where a table has them, besides within64, within128, ...
COLUMNS = {"pass16": "pass@16", "greedy": "greedy", "sampled": "single sample"}
TAB20 = plt.get_cmap("tab20").colors
COLORS = TAB20[::2] + TAB20[1::2]                                       # strong ones, then pale ones
WIDTHS = (1.5, 2.5, 1.0, 3.5, 0.7, 4.5)                             # of the lines of different sizes of model


# ------------------------------------------------------------------------------------------------------------
# Tables

def number_or_text(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def read(folders, name):
    """The rows of one table in all folders, numbers as floats. csv.Error if a row does not fit the header."""
    rows = []
    for folder in folders:
        for row in read_table(os.path.join(folder, name)):
            if None in row or None in row.values():
                raise csv.Error(f"{name} has lines with more or fewer cells than the first")
            rows.append({key: number_or_text(value) for key, value in row.items()})
    return rows


def means(rows, keys, columns):
    """Rows averaged over those that agree in keys: a list of dicts, in the order of first appearance."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    averaged = []
    for group, members in groups.items():
        mean = {column: sum(row[column] for row in members) / len(members) for column in columns}
        averaged.append(dict(zip(keys, group)) | mean)
    return averaged


# ------------------------------------------------------------------------------------------------------------
# The two laws

def rl_of(folders):
    """The rows of RL, only from folders where RL began after the SFT that is there now."""
    rows = []
    for folder in folders:
        sft, rl = read([folder], "sft.csv"), read([folder], "rl.csv")
        rows += rl if rl and sft and rl[0]["flops"] > sft[-1]["flops"] else []
    return rows


def draw_training(axis, folders):
    tables = [read(folders, "sft.csv"), rl_of(folders)]
    columns = [column for column in tables[0][0] if column in COLUMNS or column.startswith("within")
               if all(column in row for rows in tables for row in rows)]        # streams may be longer in one
    tables = [means(table, ["parameters", "step"], ["flops", *columns]) for table in tables]
    of_streams = any(column.startswith("within") for column in columns)
    sizes = sorted({row["parameters"] for row in tables[0]})
    for size, width in zip(sizes, WIDTHS * len(sizes)):
        sft, rl = ([row for row in table if row["parameters"] == size] for table in tables)
        for column, color in zip(columns, plt.get_cmap("tab10").colors):
            before, points = sft[-1], [(row["flops"], row[column]) for row in sft]
            if rl:
                points = [(row["flops"] - before["flops"], row[column]) for row in rl]
                axis.axhline(before[column], color=color, linewidth=1, linestyle=":")
            axis.plot(*zip(*points), ".-", color=color, linewidth=width)
            label = COLUMNS.get(column, f"within {column.removeprefix('within')} tokens")
            if of_streams and column == "sampled":
                label = "whole stream"
            label += f", {size / 1e6:.1f}M" * (len(sizes) > 1)
            axis.annotate(label, (1.01, points[-1][1]), xycoords=("axes fraction", "data"), va="center",
                          color=color, fontsize=8)
    stage = "RL (dotted: before it)" if tables[1] else "SFT"
    axis.set(xlabel=f"FLOPs spent in {stage}", ylabel="accuracy on held-out problems", xscale="log",
             title="train-time scaling")
    axis.grid(alpha=0.2)


def before_rl(folders):
    """What one stream solved at the end of SFT: budgets, and the share that was solved within each."""
    tables = [read([folder], "sft.csv") for folder in folders]
    at_end = [table[-1] for table in tables if table]
    columns = [column for column in at_end[0] if column.startswith("within")]
    shares = [sum(row[column] for row in at_end) / len(at_end) for column in columns]
    return [int(column.removeprefix("within")) for column in columns], shares


def draw_search(axis, folders):
    columns = ["accuracy", "ci_low", "ci_high", "tokens_per_problem"]
    by_method = defaultdict(list)
    table = read(folders, "search.csv")
    of_streams = any(row["method"] == "stream" for row in table)
    tokens = "budget" if of_streams else "tokens_per_problem"
    for row in means(table, ["method", "oracle", "budget"], columns):
        by_method[row["method"] + (" (oracle)" if row["oracle"] else "")].append(row)
    of_models = [method for method in by_method if method not in WITHOUT_MODEL]
    looks = {method: (color, "-") for method, color in zip(of_models, COLORS * len(of_models))}
    looks |= WITHOUT_MODEL
    for method, points in by_method.items():
        x, y = [p[tokens] for p in points], [p["accuracy"] for p in points]
        color, style = looks[method]
        axis.plot(x, y, marker="o" if len(x) == 1 else ".", linestyle=style, color=color, label=method)
        low, high = [p["ci_low"] for p in points], [p["ci_high"] for p in points]
        axis.fill_between(x, low, high, color=color, alpha=0.12)
    if of_streams and rl_of(folders):
        budgets, shares = before_rl(folders)
        if budgets:
            axis.plot(budgets, shares, ".:", color=looks["stream"][0], label="stream, before RL")
    shown = [p[tokens] for points in by_method.values() for p in points]
    least, most = min(shown) if of_streams else 25, max(shown)
    ticks = [least * 2 ** i for i in range(12) if least * 2 ** i < 1.5 * most]
    axis.set(xlabel=f"tokens {'allowed' if of_streams else 'spent'} for a problem", xscale="log",
             ylim=(0, 1.02), title="test-time scaling")
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.2)
    lines = sorted(axis.get_lines(), key=lambda line: -line.get_ydata()[-1])    # by their right ends
    axis.legend(handles=lines, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


# ------------------------------------------------------------------------------------------------------------
# The script

def save_figure(figure, path):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_whole(path, buffer.getvalue())
    print(f"wrote {path}")


def draw(folders, path):
    if not read(folders, "sft.csv"):
        where = ", ".join(folders)
        fail(f"no sft.csv in {where}: run train_sft.py first, and train_rl.py and search.py for all of it")
    panels = [draw_training] + [draw_search] * bool(read(folders, "search.csv"))
    size = 6.5 * len(panels), 5.5
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for panel, axis in zip(panels, axes[0]):
        panel(axis, folders)
    save_figure(figure, path)


def main():
    parser = Parser(description="Draw accuracy against train-time and test-time compute.")
    parser.add_argument("folders", nargs="*", default=["out"],
                        help="where the tables are (default out); several are averaged")
    parser.add_argument("--out", metavar="FILE",
                        help="the picture (default: scaling.png in the first folder)")
    args = parser.parse_args()
    path = args.out or os.path.join(args.folders[0], "scaling.png")
    check_plain(path)
    try:
        draw(args.folders, path)
    except (KeyError, TypeError, UnicodeDecodeError, csv.Error) as error:
        fail(f"a table in {', '.join(args.folders)} is not one that the scripts wrote ({error})")


if __name__ == "__main__":
    run_script(main)
