"""An example of how to add a task: long multiplication. A level is how many digits the longer factor has.

    47*36?                 the prompt
    47*6=282               the first factor times each digit of the second, at its place;
    47*30=1410
    282+1410=1692          what that adds up to;
    1692                   the answer
"""
from task import NUMBER, Problem, Task, show


class Multiplication(Task):
    name, unit, levels, default_level = "multiplication", "digits", range(1, 4), 2

    def looks_like_prompt(self, text):
        return text.endswith("?")

    def parse(self, text):
        a, _, b = text[:-1].partition("*")
        if not NUMBER.fullmatch(a) or not NUMBER.fullmatch(b):
            raise ValueError(f'{show(text)} is not a multiplication prompt, as is "47*36?"')
        return Problem(self.name, max(len(a), len(b)), text + "\n", (int(a), int(b)), int(a) * int(b))

    def draw(self, level, n, rng, accept, progress, targets=None):
        problems = []
        while len(problems) < n:
            a, b = rng.integers(10 ** (level - 1), 10 ** level, 2)
            problems += filter(accept, [self.parse(f"{a}*{b}?")])
        return problems, [self.solve(problem, rng) for problem in problems]

    def start(self, problem):               # all lines of the solution, which is the only one:
        a, b = problem.numbers              # the state is simply what is still to come
        units = [10 ** i for i in range(len(str(b)))]                   # b = 36: 1, 10
        parts = [b // unit % 10 * unit for unit in units]               # 6, 30
        sums = [f"{a * (b % unit)}+{a * part}={a * (b % unit + part)}" for unit, part in zip(units, parts)]
        return (*[f"{a}*{part}={a * part}" for part in parts], *sums[1:], str(a * b))

    def step(self, problem, state, line):
        return (state[1:], "") if line in state[:1] else (None, f"next is {' '.join(state[:1]) or 'the end'}")

    def is_solved(self, problem, state):
        return state == ()

    def is_solvable(self, problem, state):
        return True

    def unsolved_reason(self, problem, state):
        return f"unfinished: next is {state[0]}"

    def solve(self, problem, rng=None):
        return "\n".join(self.start(problem)) + "\n"

    def max_tokens(self, level):
        return len(self.solve(self.parse(f"{'9' * level}*{'9' * level}?"))) + 1

    def split_key(self, problem):
        return str(sorted(problem.numbers))


TASK = Multiplication()
