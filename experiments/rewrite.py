"""
Turn the traces of a model, right and wrong, into traces to learn from.

    python search.py --init out/sft.pt --save out/found.jsonl --methods majority --budgets 160
    python -m experiments.rewrite --write verdicts --data out/found.jsonl --save out/traces.jsonl
    python train_sft.py --init out/sft.pt --data out/traces.jsonl --out out/judge

A file of traces comes in, another goes out. What is written into it (`--write`):

    attempts          the traces as they came in
    verdicts          each with the true verdict behind it, ?yes or ?no. In wrong ones train_sft.py imitates
                      the verdict only: that makes a generative verifier (Zhang et al. 2024)
    composites *      failed ones up to their first wrong turn, `wait`, and what a right attempt did instead:
                      the conjecture of Gwern (2024)
    continuations *   verdicts, where failed ones go on after ?no: as many `wait`s as lead back to before the
                      first wrong turn, from there a sample of the model's own that is right, and ?yes
    mended *          streams up to where they first leave what they could have solved, and from there the
                      solver's solution; failed ones without such a place are left out
    searched          for each problem that was solved one stream: what a search tried, in its order, up to
                      the first that is right, `wait` and the problem behind each of the others

and what the value head is to learn at each line (`--label`), a process reward model's labels:

    given             no new labels: the verdict is that of all tokens, except where steps are taken back
    rollouts          the share of --samples samples, from there to the end, that are right (Math-Shepherd,
                      Wang et al. 2024)
    exact *           whether the problem can still be solved, by enumeration; language tasks lack such labels

* uses an oracle: enumeration says which turn was the first wrong one, or what is still solvable. Only
`mended` uses solutions that are not the model's own. Equal attempts of a problem are written once. Composites
and continuations keep right attempts and those that could not be mended: a model that only saw mended ones
would learn to take back whatever it has written.
"""
import os
from collections import defaultdict

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, choose_device, open_folder, run_script, whole

import numpy as np
import torch
from tqdm import tqdm

from checkpoint import load_checkpoint
from experiments.streams import gives_up, moves
from model import flops_per_token
from sample import generate
from streams import Writer
from traces import read_traces, standing_lines, without_verdict, write_traces
from verify import EOS, TASKS, decode, encode, parse_problem, replay, state_value, verify

BATCH = 128                                 # prefixes that are sampled from at once


def first_wrong_turn(problem, completion):
    """
    The number, from 0, of the first standing line after which the problem can no longer be solved without
    taking a step back: a wrong step, or a right one that leads nowhere. None if there is none.
    """
    steps, text, lines = replay(problem, completion).standing[1:], "", completion.splitlines(keepends=True)
    for step in steps:
        text += lines[step.line]
        if not state_value(problem, text):
            return step.line
    return None


def new_trace(trace, completion):
    """
    A trace of the same problem. Where steps are taken back, the verdict on the whole says nothing about them:
    there a step's label is whether it stands in the end, and in one that ends wrong only those from the first
    wrong turn on have one.
    """
    problem = parse_problem(trace["prompt"])
    correct = verify(problem, completion).correct
    new = {"prompt": trace["prompt"], "completion": completion, "correct": correct,
           "tokens": len(encode(completion)) + 1, "method": trace.get("method", "")}
    if "wait" in completion:
        new["values"] = stream_labels(problem, completion, correct)
    return new


def stream_labels(problem, completion, correct):
    """A label, or None, for each line of a completion with steps that are taken back."""
    standing = standing_lines(problem, completion)
    if not correct:
        turn = first_wrong_turn(problem, completion)
        standing = [] if turn is None else [number for number in standing if number < turn]
    labels = []
    for number, line in enumerate(completion.split("\n")[:-1]):
        unknown = line.startswith(("wait", "?")) or (number in standing and not correct)
        labels.append(None if unknown else float(number in standing))
    return labels


def sample_ends(model, prefixes, n_samples, max_tokens, rng):
    """
    n_samples completions of each (prompt, lines that stand): lists of those that are right, lines included;
    and how many tokens were read and written for it.
    """
    right, n_tokens = [], 0
    generator = torch.Generator().manual_seed(int(rng.integers(2 ** 62)))
    for i in tqdm(range(0, len(prefixes), BATCH), desc="sampling"):
        batch = prefixes[i:i + BATCH]
        problems = [parse_problem(prompt) for prompt, _ in batch]
        starts = [encode(prompt + lines) for prompt, lines in batch]
        samples = generate(model, starts, max_tokens, 1.0, (EOS,), generator, n_samples)
        found = [[] for _ in batch]
        for row, ids in enumerate(samples.finished((EOS,))):
            k = row // n_samples
            completion = batch[k][1] + decode(ids or [])
            if ids is not None and "<|" not in completion and verify(problems[k], completion).correct:
                found[k].append(completion)
        right += found
        n_tokens += int(samples.mask.sum()) + sum(map(len, starts))
    return right, n_tokens


# ------------------------------------------------------------------------------------------------------------
# What is written

def write_verdicts(traces):
    """Each attempt with the true verdict, in place of the model's own where it wrote one."""
    def judged(trace):
        verdict = "?yes\n" if trace["correct"] else "?no\n"
        return new_trace(trace, without_verdict(trace["completion"]) + verdict)
    return [judged(trace) for trace in traces]


def failures(traces):
    """
    For each failed attempt its number, lines, those of them that stand, and how many of these come before the
    first wrong turn.
    """
    for i, trace in enumerate(traces):
        if trace["correct"]:
            continue
        problem, lines = parse_problem(trace["prompt"]), trace["completion"].splitlines(keepends=True)
        read = replay(problem, trace["completion"])
        if read.fault:                      # the verifier stopped reading: what follows would not be read
            continue
        standing = [step.line for step in read.standing[1:]]
        turn = first_wrong_turn(problem, trace["completion"])
        yield i, lines, standing, len(standing) if turn is None else standing.index(turn)


def write_composites(traces, rng):
    """
    Each failed attempt up to its first wrong turn, `wait`, and what a right attempt that began alike did
    instead.
    """
    composites, right = list(traces), defaultdict(list)
    for trace in traces:
        if trace["correct"]:
            problem, lines = parse_problem(trace["prompt"]), trace["completion"].splitlines(keepends=True)
            standing = standing_lines(problem, trace["completion"])
            right[trace["prompt"]].append([lines[number] for number in standing])
    for i, lines, standing, n_good in failures(traces):
        good = [lines[number] for number in standing[:n_good]]
        fitting = [steps[n_good:] for steps in right[traces[i]["prompt"]] if steps[:n_good] == good]
        if fitting and n_good < len(standing):
            wrong_turn = lines[:standing[n_good] + 1]
            instead = fitting[rng.integers(len(fitting))]
            mended = new_trace(traces[i], "".join([*wrong_turn, "wait\n", *instead]))
            composites[i] = mended if mended["correct"] else traces[i]
    return composites


def write_continuations(model, traces, n_samples, max_tokens, rng):
    """
    Each failed attempt, ?no, `wait`s that lead back to before its first wrong turn, and from there a sample
    that is right.
    """
    judged, failed = write_verdicts(traces), list(failures(traces))
    goods = ["".join(lines[number] for number in standing[:n_good]) for _, lines, standing, n_good in failed]
    prefixes = [(traces[i]["prompt"], good) for (i, *_), good in zip(failed, goods)]
    right, n_tokens = sample_ends(model, prefixes, n_samples, max_tokens, rng)
    for (i, _, standing, n_good), good, ends in zip(failed, goods, right):
        if ends:
            waits = "wait\n" * (len(standing) - n_good)
            end = without_verdict(ends[0].removeprefix(good)) + "?yes\n"
            mended = new_trace(traces[i], judged[i]["completion"] + waits + end)
            judged[i] = mended if mended["correct"] else judged[i]
    return judged, n_tokens


def mended(problem, completion):
    """
    A stream up to the first line, no opening, that leaves a state from which the problem could be solved, and
    from there the solver's solution and its checks; None if there is no such line.
    """
    kept = checks = ""                      # checks are kept with the return behind them
    for move in moves(problem, completion):
        if move.depth and gives_up(problem, move):
            written, lines = Writer(problem), kept.splitlines(keepends=True)
            solution = written.solution(move.before)
            written.steps(solution)
            written.check("".join(lines[number] for number in standing_lines(problem, kept)) + solution)
            return kept + decode(written.ids)
        if move.checks:
            checks += move.line + "\n"
        else:
            kept += checks + move.line + "\n"
            checks = ""
    return None


def write_mended(traces):
    """Streams mended where they can be, and right ones that need it not as they are."""
    found = []
    for trace in traces:
        completion = mended(parse_problem(trace["prompt"]), trace["completion"])
        if completion or trace["correct"]:
            found.append(new_trace(trace, completion or trace["completion"]))
    return found


def write_searched(traces):
    """For each problem all attempts up to the first that is right, in one stream; others are left out."""
    attempts = defaultdict(list)
    for trace in traces:
        attempts[trace["prompt"]].append(trace)
    found = []
    for prompt, tried in attempts.items():
        right = next((i for i, trace in enumerate(tried) if trace["correct"]), None)
        if right is not None:
            completions = [trace["completion"] for trace in tried[:right + 1]]
            found.append(new_trace(tried[0], f"wait {prompt}".join(completions)))
    return [trace for trace in found if trace["correct"]]


def label(model, traces, how, n_samples, max_tokens, rng):
    """
    Add values: for each line the share of rollouts from there that are right, or whether it can still be
    solved. Returns tokens.
    """
    places = []                             # (trace, line number, prompt and lines up to there)
    for trace in traces:
        lines = trace["completion"].splitlines(keepends=True)[:trace["completion"].count("\n")]  # whole ones
        trace["values"] = [float(trace["correct"])] * len(lines)        # the last line's is the verdict
        n = without_verdict(trace["completion"]).count("\n")
        places += [(trace, number, "".join(lines[:number + 1])) for number in range(n - 1)]
    if how == "exact":
        for trace, number, prefix in places:
            trace["values"][number] = float(state_value(parse_problem(trace["prompt"]), prefix))
        return 0
    distinct = list(dict.fromkeys((trace["prompt"], prefix) for trace, _, prefix in places))
    right, n_tokens = sample_ends(model, distinct, n_samples, max_tokens, rng)
    shares = {key: len(ends) / n_samples for key, ends in zip(distinct, right)}
    for trace, number, prefix in places:
        trace["values"][number] = shares[trace["prompt"], prefix]
    return n_tokens


# ------------------------------------------------------------------------------------------------------------
# The script

def parse_args():
    parser = Parser(description="Turn traces into traces to learn from: verdicts, corrections, labels.")
    parser.add_argument("--data", metavar="FILE", default="out/found.jsonl",
                        help="traces, as search.py --save writes them (default out/found.jsonl)")
    parser.add_argument("--save", metavar="FILE", default="out/traces.jsonl",
                        help="where the new ones go (default out/traces.jsonl)")
    kinds = ["attempts", "verdicts", "composites", "continuations", "mended", "searched"]
    parser.add_argument("--write", default="attempts", choices=kinds,
                        help="what to write of them (default attempts: as they are)")
    parser.add_argument("--label", default="given", choices=["given", "rollouts", "exact"],
                        help="what the value head is to learn at each line (default given)")
    parser.add_argument("--samples", type=whole(1, 10 ** 4), default=8, metavar="N",
                        help="samples for each continuation or label (default 8)")
    parser.shared("--init", "--device", "--seed", init="out/sft.pt")
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    model = None
    with parser.errors():
        traces = read_traces(args.data)
        problem = parse_problem(traces[0]["prompt"])
        max_tokens = TASKS[problem.task].max_tokens(problem.level)
        if args.write == "continuations" or args.label == "rollouts":
            model, checkpoint = load_checkpoint(args.init, choose_device(args.device), needs=("flags",))
            max_tokens = checkpoint["flags"].get("max_tokens", max_tokens)
            read_traces(args.data, model.config.block_size - max_tokens)        # what is sampled fits behind
    open_folder(*os.path.split(args.save))
    rng, n_tokens = np.random.default_rng([args.seed, 3]), 0
    flops = sum(trace.get("flops", 0) for trace in traces)
    # Each different one once
    traces = list({(trace["prompt"], trace["completion"]): trace for trace in traces}.values())
    if args.write == "verdicts":
        traces = write_verdicts(traces)
    elif args.write == "composites":
        traces = write_composites(traces, rng)
    elif args.write == "mended":
        traces = write_mended(traces)
    elif args.write == "searched":
        traces = write_searched(traces)
    elif args.write == "continuations":
        traces, n_tokens = write_continuations(model, traces, args.samples, max_tokens, rng)
    if args.label != "given":
        n_tokens += label(model, traces, args.label, args.samples, max_tokens, rng)
    if n_tokens:
        context = len(encode(traces[0]["prompt"] + traces[0]["completion"])) / 2
        flops += n_tokens * flops_per_token(model.config, context)
    share = flops / len(traces)             # what it cost to make them all is shared by those that are left
    write_traces(args.save, [trace | {"flops": share} for trace in traces])
    n_right = sum(trace["correct"] for trace in traces)
    print(f"wrote {args.save}: {len(traces)} traces, {n_right} of them right")


if __name__ == "__main__":
    run_script(main)
