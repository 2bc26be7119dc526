"""
Traces: what a model wrote for a problem, right or wrong, as a line of JSON. search.py writes them,
train_sft.py learns from them.

    {"prompt": "98 11>87\\n", "completion": "98-11=87,87\\n", "correct": true, "tokens": 13, "method": "mcts"}

and, where they are known, "values": P(this ends correct) after each line of the completion, a number or null;
and "flops": what it cost to find. What of a trace is worth imitating stands here too.
"""
import json

from common import write_whole
from verify import encode, parse_problem, replay

VERDICTS = ("?yes", "?no")


def standing_lines(problem, completion):
    """The numbers, from 0, of the lines that stand at the end: no verdict, no `wait`, not taken back."""
    return [step.line for step in replay(problem, completion).standing[1:]]


def without_verdict(completion):
    """A completion without the verdict at its end, if there is one."""
    for verdict in ("?yes\n", "?no\n"):
        if completion.endswith(verdict):
            return completion.removesuffix(verdict)
    return completion


def imitated_lines(problem, completion, correct):
    """
    Which lines of a trace are worth imitating, a list of bool: of a correct one the steps that stand, `wait`s
    and verdicts; of another the verdicts only. A last verdict that is false is not imitated.
    """
    standing, lines = set(standing_lines(problem, completion)), completion.split("\n")[:-1]
    imitated = []
    for number, line in enumerate(lines):
        stands = line.startswith("wait") or number in standing
        imitated.append(line in VERDICTS or correct and stands)
    if lines and lines[-1] == ("?no" if correct else "?yes"):
        imitated[-1] = False
    return imitated


def write_traces(path, traces):
    with write_whole(path) as file:
        for trace in traces:
            file.write(json.dumps(trace).encode() + b"\n")


def read_traces(path, longest=None):
    """The traces of a file as dicts; ValueError names the line that is wrong or over `longest` tokens."""
    traces = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                trace = json.loads(line)
                check(trace)
                if longest and len(encode(trace["prompt"] + trace["completion"])) > longest:
                    raise ValueError(f"more than the {longest} tokens that the model reads")
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            traces.append(trace)
    if not traces:
        raise ValueError(f"{path} holds no traces")
    return traces


def check(trace):
    """Raise what is wrong with a trace."""
    missing = {"prompt", "completion", "correct"} - set(trace)
    if missing:
        raise ValueError(f"a trace needs {', '.join(sorted(missing))}")
    parse_problem(trace["prompt"])
    encode(trace["completion"])
    if not isinstance(trace["correct"], bool):
        raise ValueError(f"correct is true or false, not {trace['correct']!r}")
    values, n_lines = trace.get("values"), trace["completion"].count("\n")
    if values is not None and len(values) != n_lines:
        raise ValueError(f"{len(values)} values for {n_lines} lines")
    if not all(value is None or 0 <= value <= 1 for value in values or []):
        raise ValueError("a value is not a number from 0 to 1, or null")
    if not 0 <= trace.get("flops", 0) < float("inf"):
        raise ValueError(f"flops is a number from 0, not {trace['flops']!r}")
