"""
Traces: what a model wrote for a problem, right or wrong, as a line of JSON. search.py writes them,
train_sft.py learns from them.

    {"prompt": "98 11>87\\n", "completion": "98-11=87,87\\n", "correct": true, "tokens": 13, "method": "mcts"}

and, where they are known, "values": P(this ends correct) after each line of the completion, a number or null;
and "flops": what it cost to find. This file also says what is learnt from a trace.
"""
import json
import math
import re

import numpy as np
import torch

from batches import Example
from common import write_whole
from task import show
from verify import CHECK, EOS, encode, parse_problem, replay, split_of, verify

VERDICTS = ("?yes", "?no")
KINDS = {"prompt": (str, "a text"), "completion": (str, "a text"), "correct": (bool, "true or false"),
         "tokens": (int, "a whole number"), "flops": ((int, float), "a number"),
         "values": ((list, type(None)), "a list")}
MOST = 1e30                                 # tokens or FLOPs, more than anyone has spent


def standing_lines(problem, completion):
    """The numbers, from 0, of the lines that are steps and were not taken back."""
    return [step.line for step in replay(problem, completion).standing[1:]]


def without_verdict(completion):
    """A completion without the verdict at its end, if there is one."""
    return re.sub(r"\?(yes|no)\n\Z", "", completion)


# ------------------------------------------------------------------------------------------------------------
# What search.py writes, and what is read again

def traces_of(problems, results, row):
    """
    All that a method found, right and wrong, as traces. Each bears an equal share of the cost of the search.
    """
    found = [(problem, *solution) for problem, result in zip(problems, results) for solution in result.found
             if "<|" not in solution[0]]  # a special token inside, which cannot be encoded again
    flops = row["flops_per_problem"] * row["problems"] / max(1, len(found))
    traces = []
    for problem, completion, tokens, values in found:
        correct = verify(problem, completion).correct
        trace = {"prompt": problem.prompt, "completion": completion, "correct": correct, "tokens": tokens,
                 "method": row["method"], "flops": flops}
        traces.append(trace if values is None else trace | {"values": values})
    return traces


def write_traces(path, traces):
    write_whole(path, "".join(json.dumps(trace) + "\n" for trace in traces).encode())


def read_traces(path, longest=None, task=None, level=None):
    """
    The traces of a file as dicts. ValueError names a line that is wrong, has more than `longest` tokens or,
    if task and level are given, is of another task or level, or of a held-out problem.
    """
    traces = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                trace = json.loads(line)
                problem = check(trace)
                if longest and len(encode(trace["prompt"] + trace["completion"])) > longest:
                    raise ValueError(f"more than the {longest} tokens that the model reads")
                if task and (problem.task, problem.level) != (task, level):
                    raise ValueError(f"it is {problem.task} at level {problem.level}, and what is learnt is "
                                     f"{task} at level {level}")
                if task and split_of(problem) != "train":
                    raise ValueError(f"a {split_of(problem)} problem, which nothing may be learnt from")
            except (ValueError, RecursionError) as error:               # the second if nested too deeply
                raise ValueError(f"{path}, line {number}: {error}") from None
            traces.append(trace)
    if not traces:
        raise ValueError(f"{path} holds no traces")
    return traces


def check(trace):
    """The problem of a trace, after its fields and its verdict are checked. ValueError says what is wrong."""
    if not isinstance(trace, dict):
        raise ValueError("a trace stands in braces")
    missing = {"prompt", "completion", "correct"} - set(trace)
    if missing:
        raise ValueError(f"a trace needs {', '.join(sorted(missing))}")
    for key, (kind, name) in KINDS.items():
        if key in trace and not isinstance(trace[key], kind):
            raise ValueError(f"{key} is {name}, not {show(repr(trace[key]))}")
    problem = parse_problem(trace["prompt"])
    if trace["prompt"] != problem.prompt:
        raise ValueError("a prompt ends in a newline")
    encode(trace["completion"])
    verdict = verify(problem, trace["completion"])
    if trace["correct"] != verdict.correct:
        raise ValueError(f"correct is {trace['correct']}, but the verifier says: {verdict.reason}")
    values, n_lines = trace.get("values"), trace["completion"].count("\n")
    if values is not None and len(values) != n_lines:
        raise ValueError(f"{len(values)} values for {n_lines} lines")
    for value in values or []:
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise ValueError("a value is not a number from 0 to 1, or null")
    for key in ("tokens", "flops"):
        if not 0 <= trace.get(key, 0) <= MOST:
            raise ValueError(f"{key} is a number from 0 to {MOST:.0e}, not {show(repr(trace[key]))}")
    return problem


# ------------------------------------------------------------------------------------------------------------
# What there is to learn from them

def imitated_lines(problem, completion, correct):
    """
    Which lines of a trace are imitated, a list of bool: of a correct one the steps that stand, `wait`s,
    verdicts, and checks that are true; of a wrong one the verdicts only. A false verdict at the end is never
    imitated.
    """
    standing, lines = set(standing_lines(problem, completion)), completion.split("\n")[:-1]
    imitated = []
    for number, line in enumerate(lines):
        check = CHECK.fullmatch(line)
        is_true = check and int(check[1]) * int(check[2]) == int(check[3])
        stands = line.startswith("wait") or number in standing
        imitated.append(line in VERDICTS or correct and bool(stands or is_true))
    if lines and lines[-1] == ("?no" if correct else "?yes"):
        imitated[-1] = False
    return imitated


def from_trace(trace):
    """
    A trace as an Example. The lines of imitated_lines are imitated, and <|eos|> after a correct one. The
    value head learns the values at the ends of lines, or if there are none the verdict at every token.
    """
    lines = trace["completion"].splitlines(keepends=True)
    correct, values = trace["correct"], trace.get("values")
    imitated = imitated_lines(parse_problem(trace["prompt"]), trace["completion"], correct)
    imitated.append(False)                  # the last line may be cut off
    everywhere = math.nan if values else float(correct)
    ids, imitate, labels = [], [], [everywhere]
    for number, line in enumerate(lines):
        tokens = encode(line)
        ids += tokens
        imitate += [imitated[number]] * len(tokens)
        labels += [everywhere] * len(tokens)
        if values and line.endswith("\n") and values[number] is not None:
            labels[-1] = values[number]     # the label before the next token
    return Example(encode(trace["prompt"]), ids + [EOS], imitate + [correct], labels)


def traces_lesson(traces, args, step):
    """(no problems, examples): traces in a fixed random order, from the start again when all were seen."""
    order = np.random.default_rng(args.seed).permutation(len(traces))
    chosen = order.take(range(step * args.batch_size, (step + 1) * args.batch_size), mode="wrap")
    return [], [from_trace(traces[i]) for i in chosen[args.rank::args.processes]]


@torch.no_grad()
def introduce_words(model, traces):
    """
    Words that the model was never trained to write are some twenty nats less likely than any other, and most
    files of traces are too short to change that. `?` and `wait` come where a text might end: so they start as
    likely as <|eos|>.
    """
    rows, words = model.lm_head.weight, set()                           # (V, C)
    for trace in traces:
        problem, lines = parse_problem(trace["prompt"]), trace["completion"].split("\n")
        for line, imitated in zip(lines, imitated_lines(problem, trace["completion"], trace["correct"])):
            words |= set(encode(line)) if imitated else set()
    for word in words:
        if torch.equal(rows[word], rows[-1]):                       # untrained, as that of an unused id
            rows[word] = rows[EOS]
