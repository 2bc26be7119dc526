"""
Draw the two scaling laws from the tables that the scripts wrote.

    python plot.py                          # out/*.csv -> out/scaling.png
    python plot.py out/0 out/1              # several runs of the same commands: their means

Left, accuracy against the FLOPs spent in training, SFT and then RL, a line for each size of model: points on
the way are measured on fewer problems than the last of each stage. Right, accuracy against the tokens spent
on a problem at test time, a line for each method, dashed what needs no model; shaded, 95 % intervals (of
several runs, the mean of theirs).
"""
import csv
import os
from collections import defaultdict

# First, so that Ctrl-C while matplotlib is imported ends quietly
from common import Parser, check_plain, fail, run_script, write_whole

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Dashed, in these colours
WITHOUT_MODEL = {"random steps": "silver", "enumeration": "gray", "heuristic": "black",
                 "one step ahead": "dimgray"}
# What is drawn of training, where a table has it; the last three are of streams
STAGES = {"pass16": ("pass@16", "tab:green"), "greedy": ("greedy", "tab:blue"),
          "sampled": ("single sample", "tab:orange"), "within1024": ("within 1,024 tokens", "tab:red"),
          "within256": ("within 256 tokens", "tab:purple"), "within64": ("within 64 tokens", "tab:brown")}
WIDTHS = (1.5, 2.5, 1.0, 3.5, 0.7, 4.5)                             # of the lines of different sizes of model


# ------------------------------------------------------------------------------------------------------------
# Tables

def number_or_text(value):
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def read(folders, name):
    """The rows of one table in all folders, numbers as floats."""
    rows = []
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open(path, newline="", encoding="utf-8-sig") as file:
                for row in csv.DictReader(file):
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

def draw_training(axis, folders):
    tables = [read(folders, name) for name in ("sft.csv", "rl.csv")]
    stages = {column: STAGES[column] for column in STAGES if all(column in row for row in sum(tables, []))}
    tables = [means(table, ["parameters", "step"], ["flops", *stages]) for table in tables]
    sizes = sorted({row["parameters"] for row in tables[0]})
    for size, width in zip(sizes, WIDTHS * len(sizes)):
        sft, rl = ([row for row in table if row["parameters"] == size] for table in tables)
        rl = sft[-1:] + rl                  # RL goes on where SFT ended
        for column, (label, color) in stages.items():
            if len(sizes) > 1:
                label = f"{label}, {size / 1e6:.1f}M parameters"
            style = {"color": color, "linewidth": width}
            axis.plot([row["flops"] for row in sft], [row[column] for row in sft], ".-", label=label, **style)
            axis.plot([row["flops"] for row in rl], [row[column] for row in rl], ".-", **style)
        if len(rl) > 1:
            axis.axvline(sft[-1]["flops"], color="gray", linewidth=1, linestyle=":")
            axis.text(sft[-1]["flops"], 0.02, "SFT ends, RL begins ", ha="right", color="gray", fontsize=8)
    axis.set(xlabel="train-time compute (FLOPs)", ylabel="accuracy on test problems", xscale="log",
             ylim=(0, 1.02), title="train-time scaling")
    axis.legend(loc="upper left", fontsize=8)
    axis.grid(alpha=0.2)


def draw_search(axis, folders):
    columns = ["accuracy", "ci_low", "ci_high", "tokens_per_problem"]
    by_method = defaultdict(list)
    for row in means(read(folders, "search.csv"), ["method", "oracle", "budget"], columns):
        by_method[row["method"] + (" (oracle)" if row["oracle"] else "")].append(row)
    for (method, points), color in zip(by_method.items(), plt.get_cmap("tab20").colors):
        x, y = [p["tokens_per_problem"] for p in points], [p["accuracy"] for p in points]
        color, style = WITHOUT_MODEL.get(method, color), "--" if method in WITHOUT_MODEL else "-"
        axis.plot(x, y, marker="o" if len(x) == 1 else ".", linestyle=style, color=color, label=method)
        low, high = [p["ci_low"] for p in points], [p["ci_high"] for p in points]
        axis.fill_between(x, low, high, color=color, alpha=0.12)
    most = max(p["tokens_per_problem"] for points in by_method.values() for p in points)
    ticks = [25 * 2 ** i for i in range(12) if 25 * 2 ** i < 1.5 * most]
    axis.set(xlabel="test-time compute (tokens a problem)", xscale="log", ylim=(0, 1.02),
             title="test-time scaling")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.2)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


# ------------------------------------------------------------------------------------------------------------
# The script

def save_figure(figure, path):
    with write_whole(path) as file:
        figure.savefig(file, format="png", dpi=120)
    print(f"wrote {path}")


def draw(folders, path):
    missing = [name for name in ("sft.csv", "search.csv") if not read(folders, name)]
    if missing:
        where = ", ".join(folders)
        fail(f"no {' and no '.join(missing)} in {where}: run train_sft.py, train_rl.py and search.py first")
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    draw_training(left, folders)
    draw_search(right, folders)
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
