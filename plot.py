"""
Draw the two scaling laws from the tables that the scripts wrote.

    python plot.py                          # out/*.csv -> out/scaling.png
    python plot.py out/seed0 out/seed1      # several runs of the same commands: their means
    python plot.py --league results/league.csv                          # the league table -> results/league.png

Left, accuracy against the FLOPs spent in training, SFT and then RL: points on the way are measured on fewer problems than the
last of each stage. Right, accuracy against the tokens spent on a problem at test time, a line for each method; shaded, 95 %
intervals (of several runs, the mean of theirs).
"""
import argparse
import csv
import io
import os
import sys
from collections import defaultdict

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt


WITHOUT_MODEL = {"random steps": "silver", "enumeration": "black"}      # dashed, in these colours


def read(folders, name):
    """The rows of one table in all folders, numbers as floats."""
    rows = []
    for folder in folders:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            continue
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    try:
                        row[key] = float(value)
                    except (TypeError, ValueError):
                        pass
                rows.append(row)
    return rows


def means(rows, keys, columns):
    """Rows averaged over those that agree in keys: a list of dicts, in the order of first appearance."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return [dict(zip(keys, group)) | {c: sum(row[c] for row in members) / len(members) for c in columns}
            for group, members in groups.items()]


def draw_training(axis, folders):
    columns = ["flops", "greedy", "sampled", "pass16"]
    sft, rl = (means(read(folders, name), ["step"], columns) for name in ("sft.csv", "rl.csv"))
    rl = sft[-1:] + rl                      # RL goes on where SFT ended
    for column, color, label in [("pass16", "tab:green", "pass@16"), ("greedy", "tab:blue", "greedy"), ("sampled", "tab:orange", "single sample")]:
        axis.plot([row["flops"] for row in sft], [row[column] for row in sft], color=color, marker=".", label=label)
        axis.plot([row["flops"] for row in rl], [row[column] for row in rl], color=color, marker=".")
    if sft and len(rl) > 1:
        axis.axvline(sft[-1]["flops"], color="gray", linewidth=1, linestyle=":")
        axis.text(sft[-1]["flops"], 0.02, "SFT ends, RL begins ", ha="right", color="gray", fontsize=8)
    axis.set(xlabel="train-time compute (FLOPs)", ylabel="accuracy on test problems", xscale="log", ylim=(0, 1.02), title="train-time scaling")
    axis.legend(loc="lower left")


def draw_search(axis, folders):
    rows = means(read(folders, "search.csv"), ["method", "oracle", "budget"], ["accuracy", "ci_low", "ci_high", "tokens_per_problem"])
    by_method = defaultdict(list)
    for row in rows:
        by_method[row["method"] + (" (oracle)" if row["oracle"] else "")].append(row)
    for (method, points), color in zip(by_method.items(), plt.get_cmap("tab20").colors):
        x, y = [p["tokens_per_problem"] for p in points], [p["accuracy"] for p in points]
        color = WITHOUT_MODEL.get(method, color)
        axis.plot(x, y, marker="o" if len(x) == 1 else ".", linestyle="--" if method in WITHOUT_MODEL else "-", color=color, label=method)
        axis.fill_between(x, [p["ci_low"] for p in points], [p["ci_high"] for p in points], color=color, alpha=0.15)
    most = max(row["tokens_per_problem"] for row in rows)
    ticks = [25 * 2 ** i for i in range(12) if 25 * 2 ** i < 1.5 * most]
    axis.set(xlabel="test-time compute (tokens a problem)", ylabel="accuracy on test problems", xscale="log", ylim=(0, 1.02), title="test-time scaling")
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


LEAGUE = {                                  # what is drawn of a league: (column, colour, marker)
    "single sample": ("sampled", "tab:orange", "o"), "greedy": ("greedy", "tab:blue", "o"), "pass@16": ("pass16", "tab:green", "o"),
    "best at 256 tokens, by the model itself": ("own256", "tab:purple", "<"), "at 1,024": ("own1024", "tab:purple", ">"),
    "best at 256 tokens, verified": ("verified256", "tab:red", "<"), "at 1,024, verified": ("verified1024", "tab:red", ">"),
}


def draw_league(axis, rows):
    """A line for each row of the table: the seeds' means, and thin lines from the lowest seed to the highest."""
    table = means(rows, ["row"], [column for column, _, _ in LEAGUE.values()])
    for label, (column, color, marker) in LEAGUE.items():
        for y, row in enumerate(table):
            seeds = [100 * r[column] for r in rows if r["row"] == row["row"]]
            axis.plot([min(seeds), max(seeds)], [y, y], color=color, linewidth=1, alpha=0.6)
        axis.plot([100 * row[column] for row in table], range(len(table)), color=color, marker=marker, linestyle="", label=label)
    axis.set_yticks(range(len(table)), [row["row"] for row in table])
    axis.invert_yaxis()
    axis.set(xlabel="test problems solved, %", title="every hypothesis from one base, at equal training FLOPs")
    axis.grid(axis="y", alpha=0.3)
    axis.figure.legend(fontsize=8, loc="outside lower center", ncol=4)


def save_figure(figure, path):
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    with open(path + ".tmp", "wb") as file:
        file.write(picture.getvalue())
    os.replace(path + ".tmp", path)
    print(f"wrote {path}")


def fail(message):
    print(f"plot.py: error: {message}", file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        fail(message)


def main():
    parser = Parser(description="Draw accuracy against train-time and test-time compute.")
    parser.add_argument("folders", nargs="*", default=["out"], help="where the tables are (default out); several are averaged")
    parser.add_argument("--out", metavar="FILE", help="the picture (default: scaling.png in the first folder)")
    parser.add_argument("--league", metavar="FILE", help="draw this league table instead, beside it under its name and .png, or --out")
    args = parser.parse_args()
    path = args.out or (os.path.splitext(args.league)[0] + ".png" if args.league else os.path.join(args.folders[0], "scaling.png"))
    if os.path.isdir(path):
        fail(f"--out {path} is a folder: name a file in it")
    try:
        if args.league:
            rows = read([os.path.dirname(args.league)], os.path.basename(args.league))
            if not rows:
                fail(f"no rows in {args.league}: league.py writes it")
            figure, axis = plt.subplots(figsize=(12, 2 + 0.4 * len({row["row"] for row in rows})), layout="constrained")
            draw_league(axis, rows)
            return save_figure(figure, path)
        missing = [name for name in ("sft.csv", "search.csv") if not read(args.folders, name)]
        if missing:
            fail(f"no {' and no '.join(missing)} in {', '.join(args.folders)}: run train_sft.py, train_rl.py and search.py first")
        figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
        draw_training(left, args.folders)
        draw_search(right, args.folders)
        save_figure(figure, path)
    except OSError as error:
        fail(f"{error.filename or path}: {error.strerror}")
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        fail(f"a table in {args.league or ', '.join(args.folders)} is not one that the scripts wrote ({error})")


if __name__ == "__main__":
    main()
