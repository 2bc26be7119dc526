"""
How accuracy grows with the length of streams, and what goes wrong in them, compared with exact values.

    python -m experiments.streams                   # out/rl.pt -> out/streams.csv, out/faults.csv
    python -m experiments.streams --init out/sft.pt --temperatures 0.7 1 --split validation
    python -m experiments.streams --samples 64 --n-problems 100 --max-tokens 1024       # and out/lengths.csv

streams.csv has A(b), the share of problems that one sample solves within b tokens, <|eos|> included, on
targets that were trained on and on those that were not. faults.csv counts, by how many numbers are left (0:
after a wrong step): wrong steps, repeated openings, returns to a state that was never there, returns from a
state that can be solved, and steps that keep what can be solved solvable. "checked" is what seems to be
solved and has a check after it: at 0 numbers it should be taken back, at 1 not.

lengths.csv, with several samples for each problem, has the accuracy of each fifth of the streams by length:
once over all streams ("pooled"), where long ones come from hard problems, and once over the streams of each
problem ("within"), where they do not.
"""
import os
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, between, open_folder, positive, run_script, save_table

import numpy as np
import torch
from tqdm import tqdm

from checkpoint import check_room, load_model
from metrics import wilson
from sample import generate
from streams import SEEN_TARGETS, UNSEEN_TARGETS
from verify import (CHECK, EOS, HELD_OUT_SEED, TASKS, Step, decode, encode, is_correct, make_problems,
                    n_kept)

BUDGETS = [2 ** k for k in range(5, 15)]
BATCH = 500                                 # streams at once


def draw_problems(model, args, targets):
    """--n-problems held-out problems with these targets. ValueError if the model has no room for them."""
    rng = np.random.default_rng([HELD_OUT_SEED, 1])
    problems, _ = make_problems(args.task, args.level, args.n_problems, rng, args.split, targets)
    check_room(model, [encode(problem.prompt) for problem in problems], args.max_tokens)
    return problems


def read_flags(parser, most, longest):
    """
    The flags of an experiment on one kind of streams, `most` tokens of them, with what is to be read of
    them: (args, model, problems with targets that were trained on).
    """
    parser.shared("--init", "--task", "--level")
    parser.add_argument("--max-tokens", type=positive, default=most, metavar="N",
                        help=f"{longest} (default {most})")
    parser.add_argument("--temperature", type=between(0, 10), default=1.0, metavar="X",
                        help="to sample at (default 1)")
    parser.add_argument("--n-problems", type=positive, default=500, metavar="N",
                        help="how many, with targets that were trained on (default 500)")
    parser.shared("--split", "--out", "--device", "--seed")
    args = parser.parse_args()
    with parser.errors():
        model = load_model(args)
        return args, model, draw_problems(model, args, SEEN_TARGETS)


def sample_streams(model, problems, max_tokens, temperature, seed):
    """A stream for each problem: (completion, number of tokens, whether it is right)."""
    generator, streams = torch.Generator().manual_seed(seed), []
    for start in tqdm(range(0, len(problems), BATCH), desc="streams"):
        batch = problems[start:start + BATCH]
        prompts = [encode(problem.prompt) for problem in batch]
        samples = generate(model, prompts, max_tokens, temperature, (EOS,), generator)
        for problem, ids, ended in zip(batch, samples.completions(), samples.finished((EOS,))):
            streams.append((decode(ids).removesuffix("<|eos|>"), len(ids), is_correct(problem, ended)))
    return streams


def curve(streams, max_tokens, n_samples=1):
    """
    A(b) for each budget b: rows of a table. The intervals are of the problems: n_samples streams of one tell
    hardly more than one does.
    """
    rows, n = [], len(streams)
    for budget in [budget for budget in BUDGETS if budget <= max_tokens]:
        solved = sum(correct and length <= budget for _, length, correct in streams)
        low, high = wilson(solved / n_samples, n / n_samples)
        spent = sum(min(length, budget) for _, length, _ in streams) / n
        rows.append({"budget": budget, "problems": n // n_samples, "accuracy": solved / n, "ci_low": low,
                     "ci_high": high, "tokens_per_problem": spent})
    return rows


def by_length(streams, n_samples, n_parts=5):
    """
    Of n_samples streams for each problem, one problem after the other: how many are right in each part of
    them by length, pooled and within problems, as rows of a table.
    """
    length = np.array([length for _, length, _ in streams]).reshape(-1, n_samples)      # (problems, samples)
    right = np.array([correct for _, _, correct in streams], dtype=float).reshape(length.shape)
    rows = []
    for how, lengths, rights in (("pooled", length.reshape(1, -1), right.reshape(1, -1)),
                                 ("within", length, right)):
        order = lengths.argsort(axis=1, kind="stable")
        parts = np.array_split(np.arange(order.shape[1]), n_parts)
        for number, part in enumerate(parts, 1):
            chosen = order[:, part]
            rows.append({"how": how, "fifth": number, "problems": len(length), "samples": n_samples,
                         "tokens": np.take_along_axis(lengths, chosen, 1).mean(),
                         "accuracy": np.take_along_axis(rights, chosen, 1).mean()})
    return rows


class Move(NamedTuple):
    """A line of a stream, and where it leads."""
    line: str
    depth: int                              # how many steps stood before it
    before: tuple                           # what was left, None behind a wrong step
    after: tuple                            # what is left, None behind a wrong step
    returns: bool
    checks: bool                            # whether it is a check, which leads nowhere
    lost: bool                              # whether it returns to what was never there


def moves(problem, completion):
    """The lines of a stream, each a Move, up to the first return to nowhere."""
    task = TASKS[problem.task]
    standing = [Step(-1, task.start(problem))]
    for number, line in enumerate(completion.split("\n")[:-1]):
        before, depth = standing[-1].state, len(standing) - 1
        returns, checks = line.startswith("wait"), bool(CHECK.fullmatch(line))
        if returns:
            del standing[n_kept(problem, standing, line):]
        elif checks:
            pass
        elif before is None:
            standing.append(Step(number, None))
        else:
            standing.append(Step(number, *task.step(problem, before, line)))
        lost = not standing
        yield Move(line, depth, before, None if lost else standing[-1].state, returns, checks, lost)
        if lost:
            return


def gives_up(problem, move):
    """Whether a move, a wrong or unwise step or a return, turns away from what can be solved."""
    def is_solvable(state):
        return state is not None and TASKS[problem.task].is_solvable(problem, state)
    return is_solvable(move.before) and (move.returns or not is_solvable(move.after))


def faults(problem, completion):
    """
    Counts of what happens in a stream. Each key is (what, how many numbers were left before); "solvable" is
    said by enumeration.
    """
    task, counts, openings = TASKS[problem.task], Counter(), set()
    for move, following in pairwise([*moves(problem, completion), None]):
        n_left = 0 if move.before is None else len(move.before)         # 0: behind a wrong step
        if move.returns:
            counts["returns", n_left] += 1
            counts["returns from solvable", n_left] += gives_up(problem, move)
            counts["returns to nowhere", n_left] += move.lost
            continue
        if move.checks:
            if not (following and following.checks):                    # the last check of several
                counts["checked", n_left] += 1
                counts["checked and taken back", n_left] += bool(following and following.returns)
            continue
        counts["steps", n_left] += 1
        counts["wrong steps", n_left] += n_left > 0 and move.after is None
        if n_left and task.is_solvable(problem, move.before):
            counts["steps from solvable", n_left] += 1
            counts["steps that keep it solvable", n_left] += not gives_up(problem, move)
        if move.after is not None and move.depth == 0:
            counts["repeated openings", n_left] += tuple(sorted(move.after)) in openings
            openings.add(tuple(sorted(move.after)))
    return counts


def fault_rows(problems, streams):
    total = Counter()
    for problem, (completion, _, _) in zip(problems, streams):
        total += faults(problem, completion)
    return [{"what": what, "numbers_left": n_left, "count": n} for (what, n_left), n in sorted(total.items())]


def main():
    parser = Parser(description="Measure streams: accuracy by tokens, and what goes wrong.")
    parser.shared("--init", "--task", "--level")
    parser.add_argument("--max-tokens", type=positive, default=4096, metavar="N",
                        help="the longest stream (default 4096)")
    parser.add_argument("--temperatures", type=between(0, 10), nargs="+", default=[1.0], metavar="X",
                        help="to sample at (default 1)")
    parser.add_argument("--n-problems", type=positive, default=1000, metavar="N",
                        help="problems with targets that were trained on, and as many others (default 1000)")
    parser.add_argument("--samples", type=positive, default=1, metavar="N",
                        help="streams for each problem (default 1); with 5 or more, lengths.csv too")
    parser.shared("--split", "--out", "--device", "--seed")
    args = parser.parse_args()
    with parser.errors():
        model = load_model(args)
    open_folder(args.out, "streams.csv", "faults.csv")
    table, all_faults, lengths = [], [], []
    for temperature in args.temperatures:
        for targets in ("seen", "unseen"):
            with parser.errors():
                allowed = SEEN_TARGETS if targets == "seen" else UNSEEN_TARGETS
                problems = draw_problems(model, args, allowed)
            problems = [problem for problem in problems for _ in range(args.samples)]
            streams = sample_streams(model, problems, args.max_tokens, temperature, args.seed)
            about = {"checkpoint": args.init, "seed": args.seed, "temperature": temperature,
                     "targets": targets}
            rows = curve(streams, args.max_tokens, args.samples)
            table += [about | row for row in rows]
            all_faults += [about | row for row in fault_rows(problems, streams)]
            if args.samples >= 5:
                lengths += [about | row for row in by_length(streams, args.samples)]
            shown = "  ".join(f"{row['budget']}: {100 * row['accuracy']:.1f}" for row in rows)
            print(f"T = {temperature}, {targets} targets, solved within  {shown}  %", flush=True)
    save_table(os.path.join(args.out, "streams.csv"), table)
    save_table(os.path.join(args.out, "faults.csv"), all_faults)
    if lengths:
        save_table(os.path.join(args.out, "lengths.csv"), lengths)
    print(f"wrote {args.out}/streams.csv and {args.out}/faults.csv" + bool(lengths) * " and lengths.csv")


if __name__ == "__main__":
    run_script(main)
