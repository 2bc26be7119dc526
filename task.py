"""
What all tasks share: a problem, the numbers allowed, and the methods behind which a task hides.

A task is one file (countdown.py, expression.py): a subclass of `Task`, imported by verify.py and entered in
the table there. Nothing else names a task, but streams.py, whose targets are countdown's. A problem is a
prompt; its solution is a text of lines, each of which is one step. What a step leaves is a state, whose form
is the task's own business. To add a task, set the attributes and fill in the methods that raise here (slip
only where `enumerable`); the others have defaults that fit most tasks.
"""
import re
from dataclasses import dataclass

MAX_VALUE = 999_999_999
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")       # [0-9], never \d: that one takes digits of every script


@dataclass(frozen=True)
class Problem:
    task: str
    level: int                              # how hard: the unit is the task's
    prompt: str                             # ends in a newline
    numbers: tuple                          # the numbers as they stand in the prompt
    target: int                             # countdown: the number to reach; expression: the value


class Task:
    name = ""
    unit = ""                               # what a level counts, in the plural
    levels = range(0)
    default_level = 0
    rules = ""                              # for whoever sees a page of it for the first time
    example = ""                            # of a prompt
    checkable = False                   # whether a finished solution can be checked without a hidden answer
    # Whether all steps from a state can be listed (legal_steps), and level - 1 of them make a completion.
    enumerable = False

    # The language

    def looks_like_prompt(self, text):
        """Whether a text, without its newline, is meant as a prompt of this task."""
        raise NotImplementedError

    def parse(self, text):
        """The Problem written in a text that looks like one. ValueError says what is wrong with it."""
        raise NotImplementedError

    def start(self, problem):
        """The state before the first step."""
        raise NotImplementedError

    def step(self, problem, state, line):
        """
        The state after a line: (state, ""), or (None, what is wrong with the line). Never raises, linear in
        the line.
        """
        raise NotImplementedError

    def restate(self, problem, state):
        """A state as a prompt without its newline: `wait` and this goes back to it. None: there is no way."""
        return None

    def in_order(self, state):
        """The same state, in an order that does not depend on how one came to it."""
        return state

    def is_restated_by(self, problem, state, text):
        """Whether a text restates a state. Never raises, linear in the text."""
        return text == self.restate(problem, state)

    # What is solved, and what can be

    def is_solved(self, problem, state):
        raise NotImplementedError

    def is_solvable(self, problem, state):
        """Exactly: whether a state is solved, or legal steps lead from it to a solved one."""
        raise NotImplementedError

    def unsolved_reason(self, problem, state):
        """What is missing, in words, where all steps are right but the state is not solved."""
        raise NotImplementedError

    def solve(self, problem, rng=None):
        """One worked solution, drawn by rng where there are several, else the first; None if none is."""
        raise NotImplementedError

    # Problems, and room for what is written

    def draw(self, level, n, rng, accept, progress, targets=None):
        """
        n random problems for which accept(problem) is true, each with a worked solution: two lists. progress,
        from 0 to 1, says how far training is, for a task with a curriculum; targets, which targets are
        allowed (None: the task's own).
        """
        raise NotImplementedError

    def is_drawn(self, problem):
        """Whether a problem could be one that draw makes, so that a model may have learnt its kind."""
        return True

    def split_key(self, problem):
        """
        The same text for problems that are one problem in disguise: what decides between train and test.
        """
        return problem.prompt

    def max_tokens(self, level):
        """Room for one worked solution and <|eos|>."""
        raise NotImplementedError

    def stream_tokens(self, level):
        """Room for a stream, which tries one way after the other; 0 where there are none."""
        return 0

    def answer(self, completion):
        """What a vote counts: the last line."""
        return completion.splitlines()[-1] if completion else ""

    # Listing all steps: for the teachers, and for searches without a model

    def legal_steps(self, state, below=MAX_VALUE + 1):
        """All (line, state after it) whose result is below a limit. Only where `enumerable`."""
        return []

    def heuristic(self, problem, state):
        """
        How far a state seems to be from the target: depth-first search tries low ones first. Only where
        `enumerable`.
        """
        return 0.0

    # For the teachers, solutions.py and streams.py: on a first reading, come back when they are met there

    def hard_part(self, solution):
        """The beginning of a worked solution that is hard to learn; all of it if no part stands out."""
        return solution

    def chosen_part(self, line):
        """The beginning of a step that the writer chooses; the rest follows from it."""
        return line

    def near_misses(self, problem, state):
        """Of the legal_steps those that come near to what would help."""
        return []

    def slip(self, problem, state, rng):
        """A line that looks like a step and is wrong, as a writer might err. Only where `enumerable`."""
        raise NotImplementedError

    def wishful_steps(self, problem, state):
        """
        Wrong steps of the kind that `check` finds out, with a result from which the target could be reached:
        (line, state after it) each.
        """
        return []

    def check(self, line):
        """
        A step's result seen in another way, a line such as `?6*7=42` for `42/7=6`, and whether it agrees;
        ("", True) if the step needs no check.
        """
        return "", True


def compute(a, op, b):
    """a op b, or None where that is not an integer from 0 to 999,999,999."""
    if op == "/":
        return a // b if b and a % b == 0 else None
    if op == "+":
        c = a + b
    elif op == "-":
        c = a - b
    else:
        c = a * b
    return c if 0 <= c <= MAX_VALUE else None


def show(text, limit=40):
    """A text as one printable ASCII line of bounded length, whatever is in it."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")
