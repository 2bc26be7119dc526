"""
What holds a stream back: how much more it would solve if one kind of mistake were never made; and how much
less without its checks.

    python -m experiments.bounds                    # out/rl.pt -> out/bounds.csv

Streams are sampled once, and each cure is applied to what was written. Enumeration says what can be solved,
so all cures but the first and the last are oracles:

    no repeats      an attempt with an opening that was tried before takes no tokens, unless it succeeds
    legal steps     after an opening, no step computes wrongly where the target can be reached
    no giving up    the stream does not go back from such a place
    right plans     no legal step there makes the target unreachable
    all             all of these
    no checks       no cure: the stream ends before its first check, with what stands there

At the first mistake that one of the middle three forbids, the solver writes the rest, and its tokens count.
Openings are not cured: the stream itself chooses which to try, and when. A stream that was cut off does not
go on, so what the first cure gives is a lower bound. ended_wrong is the share that ended and is not right.
"""
import os

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, open_folder, run_script, save_table

from experiments.streams import curve, gives_up, moves, read_flags, sample_streams
from streams import Writer
from verify import TASKS, encode

MISTAKES = ("legal steps", "no giving up", "right plans")
CURES = {"as it is": (), "no repeats": ("no repeats",), **{cure: (cure,) for cure in MISTAKES},
         "all": ("no repeats", *MISTAKES), "no checks": ("no checks",)}


def n_tokens(text):
    return len(encode(text + "\n"))


def cure_for(problem, move):
    """What would have kept a move from turning away from what can be solved, None if it does not."""
    if not gives_up(problem, move):
        return None
    if move.returns:
        return "no giving up"
    return "legal steps" if move.after is None else "right plans"


def rest_of_solution(problem, attempt, state):
    """How many tokens the solver needs behind the lines of an attempt, from a state on, <|eos|> included."""
    written = Writer(problem)
    solution = written.solution(state)
    written.steps(solution)
    return len(written.end(attempt + solution).ids)


def cured(problem, stream, cures):
    """
    A stream (completion, tokens, whether it is right) as it would have been: its tokens, whether right, and
    whether it ends where it did not.
    """
    completion, total, correct = stream
    start, openings = TASKS[problem.task].start(problem), []
    spent, saved, attempt = 0, 0, ""
    for move in moves(problem, completion):
        if move.checks and "no checks" in cures:
            solved = move.before is not None and TASKS[problem.task].is_solved(problem, move.before)
            return spent - saved + 1, solved, True                  # 1 for <|eos|>
        if move.depth > 0 and cure_for(problem, move) in cures:
            return spent - saved + rest_of_solution(problem, attempt, move.before), True, True
        if move.depth == 0 and not move.checks:     # an attempt begins
            before_attempt, attempt = spent, ""
            opening = sorted(move.after) if move.after else move.line
        spent += n_tokens(move.line)
        attempt += move.line + "\n"
        if move.returns and move.after == start:
            if "no repeats" in cures and opening in openings:
                saved += spent - before_attempt
            openings.append(opening)
    return total - saved, correct, False


def main():
    parser = Parser(description="What a stream would solve without one kind of mistake.")
    args, model, problems = read_flags(parser, 4096, "the longest stream")
    open_folder(args.out, "bounds.csv")
    streams, table = sample_streams(model, problems, args.max_tokens, args.temperature, args.seed), []
    for name, cures in CURES.items():
        better = [cured(problem, stream, cures) for problem, stream in zip(problems, streams)]
        rows = curve([("", n, right) for n, right, _ in better], args.max_tokens)
        ended_wrong = sum(not right and (ends or n < args.max_tokens)
                          for (_, n, _), (_, right, ends) in zip(streams, better)) / len(streams)
        about = {"checkpoint": args.init, "seed": args.seed, "temperature": args.temperature, "cure": name,
                 "ended_wrong": ended_wrong}
        table += [about | row for row in rows]
        shown = "  ".join(f"{row['budget']}: {100 * row['accuracy']:.1f}" for row in rows)
        print(f"{name:14} solved within  {shown}  %; ended wrong {100 * ended_wrong:.1f} %", flush=True)
    save_table(os.path.join(args.out, "bounds.csv"), table)
    print(f"wrote {args.out}/bounds.csv")


if __name__ == "__main__":
    run_script(main)
