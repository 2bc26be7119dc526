"""
Problems, the language they are written in, and the exact judge of every answer and every step.

    python verify.py            # a tour: a problem of each task, and what the verifier says to cheats (1 s)

Each task defines its steps in its own file (countdown.py, expression.py). This file has what all tasks share:
the tokens; the split into train, validation and test; and the reading of a completion, line by line. Besides
steps there are four kinds of line. `wait` takes back the last step that stands. `wait P`, where P restates
what was left before, takes back every step since then. `?6*7=42` is a check by the inverse operation; the
verifier ignores it, true or false. `?yes` or `?no` is the model's judgement of its own solution; only
experiments make models write it. A completion is judged by the steps that stand at its end:

    line                   what stands after it
                           9 3 5 2
    9-5=4,3 2 4            9 3 5 2 -> 3 2 4
    3+2=5,4 5              9 3 5 2 -> 3 2 4 -> 4 5
    wait 3 2 4>24          9 3 5 2 -> 3 2 4
    3*2=6,4 6              9 3 5 2 -> 3 2 4 -> 4 6
    4*6=24,24              9 3 5 2 -> 3 2 4 -> 4 6 -> 24

The verifier is safe for any text: nothing is ever passed to eval; a line is matched by a regular expression
that cannot backtrack far, or scanned once; numbers have at most nine digits; and time is linear in the text.
"""
import hashlib
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tiktoken
from tqdm import tqdm

import countdown
import expression
from task import MAX_VALUE, NUMBER, show

TASKS = {task.name: task for task in (countdown.TASK, expression.TASK)}      # a new task is one entry more
DEFAULT_TASK = "countdown"
HELD_OUT_SEED = 20240912                    # of the test and validation problems: the same in every script
SPLITS = ("train", "validation", "test")

# ------------------------------------------------------------------------------------------------------------
# The language: 27 tokens, a vocabulary padded to 64

PAD, EOS, NEWLINE = 0, 1, 2
VOCAB_SIZE = 64
WORDS = [*"\n0123456789+-*/()=,>? ", "wait", "yes", "no"]           # ids from 2
PIECES = r"wait|yes|no|[\s\S]"


def make_encoding():
    """
    The tokenizer, built here, so that nothing is downloaded. tiktoken requires all 256 bytes: those outside
    the language get ids from 64.
    """
    ranks = {word.encode(): NEWLINE + i for i, word in enumerate(WORDS)}
    others = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
    ranks |= {byte: VOCAB_SIZE + i for i, byte in enumerate(others)}
    unused = {f"<|unused{i}|>": i for i in range(NEWLINE + len(WORDS), VOCAB_SIZE)}
    special = {"<|pad|>": PAD, "<|eos|>": EOS} | unused
    return tiktoken.Encoding("tinyo1", pat_str=PIECES, mergeable_ranks=ranks, special_tokens=special)


ENCODING = make_encoding()


def encode(text):
    """
    Token ids of a text. Never yields <|pad|> or <|eos|>. ValueError names the first character outside the
    language.
    """
    ids = ENCODING.encode_ordinary(text)
    if ids and max(ids) >= VOCAB_SIZE:
        bad = next(piece for piece in re.findall(PIECES, text) if piece not in WORDS)
        raise ValueError(f"character {ascii(bad)} is not in the language of the traces: digits, "
                         "+ - * / ( ) = , > ?, space, newline, and the words wait, yes, no")
    return ids


def decode(ids):
    """The text of token ids; special tokens by their names. KeyError on an id the encoding does not have."""
    return ENCODING.decode(ids)


# ------------------------------------------------------------------------------------------------------------
# Problems, and their split into train, validation and test

def get_task(name, level=None):
    """The task with this name. ValueError if there is none, or not at this level."""
    if name not in TASKS:
        raise ValueError(f"no task {name!r}: there are {', '.join(TASKS)}")
    task = TASKS[name]
    if level is not None and level not in task.levels:
        raise ValueError(f"{name} has no level {level}: a level is its number of {task.unit}, "
                         f"{task.levels[0]} to {task.levels[-1]}")
    return task


def parse_problem(text):
    """
    The problem written in a text such as "9 3 5 2>24" or "(12+7)*3-5=", newline optional. ValueError says
    what is wrong.
    """
    text = text.removesuffix("\n")
    task = next((task for task in TASKS.values() if task.looks_like_prompt(text)), None)
    if not task:
        examples = " or ".join(f'"{task.example}" ({task.name})' for task in TASKS.values())
        raise ValueError(f"{show(text)} is not a prompt: write {examples}")
    problem = task.parse(text)
    if problem.level not in task.levels:
        raise ValueError(f"{show(text)} has {problem.level} {task.unit}: "
                         f"{task.levels[0]} to {task.levels[-1]} are allowed")
    return problem


def tidy(text):
    """What a user typed, without spaces where the language has none."""
    return re.sub(" ?([-+*/()=>]) ?", r"\1", " ".join(text.split()))


def split_of(problem):
    """
    One problem in ten is for tests, one in ten for validation, by a hash: "train", "validation" or "test".
    """
    key = TASKS[problem.task].split_key(problem)
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return {0: "test", 1: "validation"}.get(int.from_bytes(digest, "big") % 10, "train")


def make_problems(task, level, n, rng, split="train", targets=None, progress=1.0, bar=None):
    """
    n problems of one split, each with a worked solution: two lists. targets, progress: see Task.draw; bar: a
    tqdm bar, updated for each problem.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}: there are {', '.join(SPLITS)}")

    def accept(problem):
        is_good = split_of(problem) == split
        if bar is not None and is_good:
            bar.update()
        return is_good

    return get_task(task, level).draw(level, n, rng, accept, progress, targets)


def make_problem(task, level, rng, split="train", targets=None):
    """One problem. See make_problems."""
    return make_problems(task, level, 1, rng, split, targets)[0][0]


def held_out_problems(task, level, n, split="test"):
    """The problems that every script measures on: the first n of a fixed sequence, in blocks of 200."""
    problems = []
    with tqdm(total=-(-n // 200) * 200, desc="problems", delay=1, leave=False) as bar:  # slow at level 6
        while len(problems) < n:
            rng = np.random.default_rng([HELD_OUT_SEED, len(problems) // 200])
            problems += make_problems(task, level, 200, rng, split, bar=bar)[0]
    return problems[:n]


def solve(problem, rng):
    """One worked solution as a completion, drawn from all of them by rng; None if there is none."""
    return TASKS[problem.task].solve(problem, rng)


def random_steps(problem, n, rng, below=MAX_VALUE + 1):
    """
    n legal steps drawn at random from those whose result is below a limit: (text, state after them). No steps
    if the task cannot list them.
    """
    task = TASKS[problem.task]
    text, state = "", task.start(problem)
    for _ in range(n if task.enumerable else 0):
        steps = task.legal_steps(state, below)
        line, state = steps[rng.integers(len(steps))]
        text += line
    return text, state


# ------------------------------------------------------------------------------------------------------------
# The verifier

@dataclass(frozen=True)
class Verdict:
    correct: bool
    first_error: int | None     # the first standing line that is a wrong step, from 0, or None
    reason: str


class Step(NamedTuple):
    """A step that stands at the end of a completion."""
    line: int                               # which line of the completion it is, from 0; -1 is the prompt
    state: object                       # what is left after it; None if it is wrong, or built on a wrong one
    error: str = ""                         # what is wrong with it


@dataclass(frozen=True)
class Replay:
    """
    The result of reading a completion. After the lines a, b, `wait`, c the steps a and c stand: standing is
    then the prompt (line -1), a (line 0) and c (line 3).
    """
    standing: list                          # of Step, the prompt first
    fault: str                              # the structural error that ended reading, or ""
    said_yes: bool                          # whether the last verdict was ?yes
    restarts: list                          # the lines, from 0, that go back to the problem itself: for RL

    @property
    def state(self):
        return self.standing[-1].state


CHECK = re.compile(r"\?(N)\*(N)=(N)".replace("N", NUMBER.pattern))


def n_kept(problem, standing, line):
    """
    How many entries of `standing` remain after a `wait` or a `wait P`. 1: only the prompt; 0: the line is
    invalid.
    """
    if line == "wait":
        return len(standing) - 1
    task, text = TASKS[problem.task], line.removeprefix("wait ")
    # Linear over the whole text: right steps are few, a `wait P` deletes all wrong ones or ends the reading
    for n in range(len(standing) - 1, 0, -1):
        state = standing[n - 1].state
        if state is not None and task.is_restated_by(problem, state, text):
            return n
    return 0


def replay(problem, completion):
    """Read a completion line by line. Text after the last newline is not a line."""
    task = TASKS[problem.task]
    standing, said_yes, restarts = [Step(-1, task.start(problem))], False, []
    for number, line in enumerate(completion.split("\n")[:-1]):
        if said_yes:
            return Replay(standing, "something follows ?yes", said_yes, restarts)
        if line == "wait" or line.startswith("wait "):
            n = n_kept(problem, standing, line)
            if not n:
                return Replay(standing, f"{show(line)} with nothing to take back", False, restarts)
            del standing[n:]
            if n == 1:                      # only the prompt stands
                restarts.append(number)
        elif line in ("?yes", "?no"):
            said_yes = line == "?yes"
        elif CHECK.fullmatch(line):
            continue
        elif standing[-1].state is None:
            standing.append(Step(number, None, "built on a wrong line"))
        else:
            standing.append(Step(number, *task.step(problem, standing[-1].state, line)))
    return Replay(standing, "", said_yes, restarts)


def verify(problem, completion):
    """
    Judge a completion by the steps that stand at its end. Exact, linear in the length of the text, never
    raises on any str. first_error counts every line of the completion; it is None for dead ends and
    structural errors.
    """
    task, read = TASKS[problem.task], replay(problem, completion)
    wrong = next((step for step in read.standing if step.state is None), None)
    if wrong:
        return Verdict(False, wrong.line, f"line {wrong.line}: {wrong.error}")
    if read.fault:
        return Verdict(False, None, read.fault)
    if not completion.endswith("\n"):
        return Verdict(False, None, "cut off in mid-line" if completion else "empty")
    if not task.is_solved(problem, read.state):
        return Verdict(False, None, task.unsolved_reason(problem, read.state))
    return Verdict(True, None, "correct")


def is_correct(problem, ids):
    """Whether a sample solves a problem: ids are its tokens before <|eos|>, None if that never came."""
    return ids is not None and verify(problem, decode(ids)).correct


def state_value(problem, prefix):
    """
    Whether the steps that stand at the end of a prefix can lead to a correct completion with none of them
    taken back. Exact. An unfinished last line is ignored.
    """
    task, read = TASKS[problem.task], replay(problem, prefix)
    if read.fault or read.state is None:
        return False
    if read.said_yes:
        return task.is_solved(problem, read.state)
    return task.is_solvable(problem, read.state)


# ------------------------------------------------------------------------------------------------------------
# The tour

SOLUTIONS = {"9 3 5 2>24": "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n", "(12+7)*3-5=": "19*3-5\n57-5\n52\n"}
CHEATS = {
    "9 3 5 2>24": {
        "a step taken back": "9+5=14,3 2 14\nwait\n9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n",
        "wrong arithmetic": "9-5=4,3 2 4\n3*2=6,4 6\n4*6=25,24\n",
        "a number dropped": "9*3=27,27 2\n27-2=25,25\n",
        "a number used twice": "9+3=12,9 5 2 12\n12*2=24,24\n",
        "only the target": "24\n",
        "a dead end": "9+3=12,5 2 12\n5+2=7,12 7\n12+7=19,19\n",
        "inexact division": "9/5=1,3 2 1\n",
        "digits of another script": "9-5=4,3 2 4\n3*2=\u0666,4 6\n4*6=24,24\n",
        "cut off": "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24",
        "nothing to take back": "wait\n9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n",
    },
    "(12+7)*3-5=": {
        "the direct answer": "52\n",
        "a wrong step, right answer": "19*3-4\n57-5\n52\n",
        "more work, not less": "(12+7)*3-5\n52\n",
        "a unary sign": "+52\n",
        "an underscore": "5_2\n",
        "a power": "19*3-5**1\n52\n",
    },
}


def main():
    from common import Parser               # not above: common needs this file
    parser = Parser(description="A tour of the tasks and of their verifier.")
    parser.shared("--seed")
    rng = np.random.default_rng(parser.parse_args().seed)
    for name, task in TASKS.items():
        problem = make_problem(name, task.default_level, rng)
        print(f"{name}, level {problem.level}\n\n{problem.prompt}{solve(problem, rng)}")
    for prompt, completions in CHEATS.items():
        print(f"what the verifier says to completions of {prompt}\n")
        for name, completion in ({"a solution": SOLUTIONS[prompt]} | completions).items():
            verdict = verify(parse_problem(prompt), completion)
            mark = "right" if verdict.correct else "WRONG"
            print(f"  {mark}  {name:27} {ascii(completion):64} {verdict.reason}")
        print()


if __name__ == "__main__":
    from common import run_script
    run_script(main)
