"""
Traces: what a model wrote for a problem, right or wrong, as a line of JSON. search.py writes them,
train_sft.py learns from them.

    {"prompt": "98 11>87\\n", "completion": "98-11=87,87\\n", "correct": true, "tokens": 13, "method": "mcts"}

and, where they are known, "values": P(this ends correct) after each line of the completion, a number or null;
and "flops": what it cost to find. What there is to learn from a trace stands here too.
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
    """The numbers, from 0, of the lines that stand at the end: no verdict, no `wait`, not taken back."""
    return [step.line for step in replay(problem, completion).standing[1:]]


def without_verdict(completion):
    """A completion without the verdict at its end, if there is one."""
    return re.sub(r"\?(yes|no)\n\Z", "", completion)


# ------------------------------------------------------------------------------------------------------------
# What search.py writes, and what is read again

def traces_of(problems, results, row):
    """
    All that a method found, right and wrong, as traces. What the search has cost is shared by all of them.
    """
    found = [(problem, *solution) for problem, result in zip(problems, results) for solution in result.found
             if "<|" not in solution[0]]  # a special token amid the text: the language has no way to write it
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
    The traces of a file as dicts. ValueError names the line that is wrong, over `longest` tokens, or, if they
    are to be learnt from, of another task or level than is learnt, or of a problem that is held out.
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
            except (ValueError, RecursionError) as error:               # the second of what is nested deeply
                raise ValueError(f"{path}, line {number}: {error}") from None
            traces.append(trace)
    if not traces:
        raise ValueError(f"{path} holds no traces")
    return traces


def check(trace):
    """The problem of a trace, whose verdict is not believed but checked. ValueError says what is wrong."""
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
    Which lines of a trace are worth imitating, a list of bool: of a correct one the steps that stand,
    `wait`s, verdicts, and checks that are true; of another the verdicts only. A last verdict that is false is
    not imitated.
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
    A trace: the lines worth imitating are imitated, <|eos|> after a correct one. The value head learns the
    labels of its lines, or without these the verdict, everywhere.
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
            labels[-1] = values[number]     # of what stands when the line has ended
    return Example(encode(trace["prompt"]), ids + [EOS], imitate + [correct], labels)


def traces_lesson(traces, args, step):
    """(no problems, examples): traces in an order of their own, again from the start when all were seen."""
    order = np.random.default_rng(args.seed).permutation(len(traces))
    chosen = order.take(range(step * args.batch_size, (step + 1) * args.batch_size), mode="wrap")
    return [], [from_trace(traces[i]) for i in chosen[args.rank::args.processes]]


@torch.no_grad()
def introduce_words(model, traces):
    """
    Words that the model has never had to write are some twenty nats less likely to it than any other, and to
    undo that takes longer than most files of traces last. `?` and `wait` come where a text might end: let
    them begin as likely as <|eos|>.
    """
    rows, words = model.lm_head.weight, set()                           # (V, C)
    for trace in traces:
        problem, lines = parse_problem(trace["prompt"]), trace["completion"].split("\n")
        for line, imitated in zip(lines, imitated_lines(problem, trace["completion"], trace["correct"])):
            words |= set(encode(line)) if imitated else set()
    for word in words:
        if torch.equal(rows[word], rows[-1]):                       # as the last id, which is no word at all
            rows[word] = rows[EOS]
