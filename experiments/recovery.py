"""
Does a stream recover from an error? Errors are put into it on purpose.

    python -m experiments.recovery                  # out/rl.pt -> out/recovery.csv
    python -m experiments.recovery --init out/sft.pt --split validation

Each problem is begun in several ways, and the model continues: with nothing, an opening that can be solved,
one that cannot, a line that computes wrongly, and such a line after an opening that can be solved.
recovery.csv has, for each beginning, how often the continuation is right within --max-tokens, and what the
next line does: goes back, goes on, or is wrong. Enumeration says what can be solved.
"""
import os
from collections import Counter

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, open_folder, run_script, save_table

import numpy as np
import torch

from experiments.streams import read_flags
from metrics import wilson
from mistakes import slip
from sample import generate
from streams import Writer
from verify import EOS, decode, encode, is_correct, replay

NEXT_LINE = ("goes back", "goes on", "is wrong")
BEGINNINGS = ("nothing", "right opening", "wrong opening", "slip", "right opening, slip")


def begun(problem, beginning, rng):
    """A stream that was begun so, None if there is no such opening."""
    written = Writer(problem)
    state = written.start
    if "opening" in beginning:
        right, wrong = written.openings()
        among = right if beginning.startswith("right") else wrong
        if not among:
            return None
        line, state = among[rng.integers(len(among))]
        written.step(line)
    if "slip" in beginning:
        written.step(slip(problem, state, rng))
    return written


def next_line(problem, before, completion):
    """What the first line behind a beginning does."""
    line, newline, _ = completion.partition("\n")
    after = replay(problem, before + line + newline)
    if not newline or after.fault:
        return "is wrong"
    if line.startswith("wait"):
        return "goes back"
    return "is wrong" if after.state is None else "goes on"


def measure(model, problems, beginning, args):
    """One row: how problems that were begun so end."""
    rng, generator = np.random.default_rng(args.seed), torch.Generator().manual_seed(args.seed)
    streams = [written for problem in problems if (written := begun(problem, beginning, rng))]
    prompts = [encode(written.problem.prompt) + written.ids for written in streams]
    samples = generate(model, prompts, args.max_tokens, args.temperature, (EOS,), generator)
    solved, next_lines, n = 0, Counter(), len(streams)
    for written, ids, ended in zip(streams, samples.completions(), samples.finished((EOS,))):
        solved += ended is not None and is_correct(written.problem, written.ids + ended)
        next_lines[next_line(written.problem, decode(written.ids), decode(ids))] += 1
    low, high = wilson(solved, n)
    return {"checkpoint": args.init, "seed": args.seed, "beginning": beginning, "problems": n,
            "max_tokens": args.max_tokens, "accuracy": solved / n, "ci_low": low, "ci_high": high,
            **{f"next line {what}": next_lines[what] / n for what in NEXT_LINE}}


def main():
    parser = Parser(description="Begin streams with errors, and see how they go on.")
    args, model, problems = read_flags(parser, 1024, "the longest stream, not counting how it was begun")
    open_folder(args.out, "recovery.csv")
    table = []
    for beginning in BEGINNINGS:
        table.append(measure(model, problems, beginning, args))
        row = table[-1]
        shown = ", ".join(f"{what} {100 * row[f'next line {what}']:.0f} %" for what in NEXT_LINE)
        print(f"{beginning:20}  right {100 * row['accuracy']:.1f} %   the next line {shown}", flush=True)
    save_table(os.path.join(args.out, "recovery.csv"), table)
    print(f"wrote {args.out}/recovery.csv")


if __name__ == "__main__":
    run_script(main)
