"""
What all tasks share: a problem, the numbers allowed, and the methods that every task implements.

A task is one file (countdown.py, expression.py): a subclass of `Task`, imported by verify.py and entered in
the table there. Only the teacher of streams, in streams.py and mistakes.py, is for one task, countdown. A
problem is a prompt; its solution is a text of lines, each of which is one step. After each step there is a
state, whose type each task chooses. To add a task, set the attributes and fill in the methods that raise
here; the others have defaults that fit most tasks.
"""
import re
from dataclasses import dataclass

MAX_VALUE = 999_999_999
NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")       # [0-9]: \d matches the digits of all scripts


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
    rules = ""                              # an explanation for the HTML page
    example = ""                            # of a prompt
    checkable = False                   # whether a finished solution can be checked without a hidden answer
    # Whether legal_steps lists all steps from a state, and a solution has level - 1 of them
    enumerable = False

    # The language

    def looks_like_prompt(self, text):
        """Whether a text, without its newline, looks like a prompt of this task."""
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
        """A state as a prompt, without the newline, for the line `wait P`. None if it cannot be written."""
        return None

    def in_order(self, state):
        """The same state in a canonical order."""
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
        """A worked solution, a random one if rng is given, else the first. None if there is none."""
        raise NotImplementedError

    # Problems, and the lengths of completions

    def draw(self, level, n, rng, accept, progress, targets=None):
        """
        n random problems for which accept(problem) is true, each with a worked solution: two lists. progress,
        from 0 to 1, says how far training is, for a task with a curriculum; targets, which targets are
        allowed (None: the task's own).
        """
        raise NotImplementedError

    def is_drawn(self, problem):
        """Whether draw could make this problem, so that it resembles training problems."""
        return True

    def split_key(self, problem):
        """
        The same text for equivalent problems. Its hash decides between train, validation and test.
        """
        return problem.prompt

    def max_tokens(self, level):
        """The longest worked solution, in tokens, with <|eos|>."""
        raise NotImplementedError

    def stream_tokens(self, level):
        """The longest stream, in tokens; 0 where there are no streams."""
        return 0

    def answer(self, completion):
        """What majority voting compares: the last line."""
        return completion.splitlines()[-1] if completion else ""

    # Listing all steps: for the teachers, and for searches without a model

    def legal_steps(self, state, below=MAX_VALUE + 1):
        """All (line, state after it) whose result is below a limit. Only where `enumerable`."""
        return []

    def heuristic(self, problem, state):
        """
        How far a state seems to be from the target: depth-first search tries states with low values first.
        Only where `enumerable`.
        """
        return 0.0

    # For the teachers, solutions.py and streams.py

    def hard_part(self, solution):
        """The beginning of a worked solution that is hard to learn; all of it if no part stands out."""
        return solution

    def chosen_part(self, line):
        """The part of a step that the writer chooses, such as `9-5=`. The rest follows from it."""
        return line


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
