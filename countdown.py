"""
Countdown: make the target from all the numbers, each used once, with + - * and /.

    9 3 5 2>24             the prompt: numbers, then the target
    9-5=4,3 2 4            a step: what is computed, then the numbers that are left
    3*2=6,4 6
    4*6=24,24              one number is left, and it is the target

A step may repeat the target, `9-5=4,3 2 4>24`: then the end of each line is itself a prompt, as in streams
(streams.py).
A level is how many numbers there are. Everything is an integer from 0 to 999,999,999: differences are not
negative, division is exact. The state is the tuple of the numbers left.

Problems are solved twice here: by `solutions`, a simple recursion, and by `find_hits`, which does the same in
numpy, thousands of times faster; a test compares them. The fast one draws training problems, and tells for
every state whether the target can still be reached.
"""
import math
import re
from functools import lru_cache
from itertools import combinations
from operator import index

import numpy as np

from task import MAX_VALUE, NUMBER, Problem, Task, compute, show

OPERATORS = "+-*/"
NUMBERS, TARGETS = range(1, 100), range(10, 101)        # of the problems that are drawn
MULTIPLY = 0.3                              # early in training, the share of hard problems, see draw
STEP = re.compile("(N)([-+*/])(N)=(N),([0-9 ]+)(?:>(N))?".replace("N", NUMBER.pattern))


class Countdown(Task):
    name = "countdown"
    unit = "numbers"
    levels = range(2, 7)
    default_level = 3
    rules = ("Make the number behind > from all the others, each used once, with + - * and /. A line says "
             'what is computed, then which numbers are left. `wait` takes steps back.')
    example = "9 3 5 2>24"
    checkable = True
    enumerable = True

    # The language

    def looks_like_prompt(self, text):
        return ">" in text

    def parse(self, text):
        read = read_prompt(text)
        if not read or len(read[0]) < 2:
            raise ValueError(f"{show(text)} is not a countdown prompt: numbers from 0 to {MAX_VALUE}, single "
                             'spaces between them, ">", the target, as in "9 3 5 2>24"')
        return make_problem(*read)

    def start(self, problem):
        return problem.numbers

    def step(self, problem, state, line):
        match = STEP.fullmatch(line)
        listed = match and read_numbers(match[5])
        if not listed:
            return None, "not of the form a+b=c,numbers left"
        a, op, b, c = int(match[1]), match[2], int(match[3]), int(match[4])
        rest = list(state)
        for number in (a, b):
            if number not in rest:
                return None, f"{number} is not among the numbers left, {join(state)}"
            rest.remove(number)
        if compute(a, op, b) != c:
            return None, f"{a}{op}{b} is not {c}"
        rest.append(c)
        if len(listed) != len(rest) or sorted(listed) != sorted(rest):
            return None, f"the numbers left are {join(rest)}"
        if match[6] and int(match[6]) != problem.target:
            return None, f"the target is {problem.target}, not {match[6]}"
        return tuple(rest), ""

    def restate(self, problem, state):
        return f"{join(state)}>{problem.target}"

    def in_order(self, state):
        return tuple(sorted(state, reverse=True))

    def is_restated_by(self, problem, state, text):
        numbers, target = read_prompt(text) or ((), None)
        return target == problem.target and len(numbers) == len(state) and sorted(numbers) == sorted(state)

    # What is solved, and what can be

    def is_solved(self, problem, state):
        return state == (problem.target,)

    def is_solvable(self, problem, state):
        return self.is_solved(problem, state) or is_reachable(tuple(sorted(state)), problem.target)

    def unsolved_reason(self, problem, state):
        return (f"dead end: {state[0]} is left, not {problem.target}" if len(state) == 1
                else f"unfinished: {join(state)} are left")

    def solve(self, problem, rng=None):
        hits = np.flatnonzero(find_hits(np.array([problem.numbers]), problem.target))
        if not len(hits):
            return None
        return write_path(problem.numbers, rng.choice(hits) if rng else hits[0])

    # Problems, and room for what is written

    def draw(self, level, n, rng, accept, progress, targets=None):
        """
        Draw the target, then numbers until it can be reached (Gandhi et al. 2024, section 3.1). The first 30
        % of the problems are hard: nearly all of them multiply or divide in their first solution. In the
        second half of training this share falls to 0.
        """
        wanted = rng.choice(TARGETS if targets is None else [index(target) for target in targets], n)
        n_hard = MULTIPLY * min(1.0, 2 - 2 * progress) * n
        return draw_problems(level, wanted, n_hard, rng, accept)

    def is_drawn(self, problem):
        return problem.target in TARGETS and all(number in NUMBERS for number in problem.numbers)

    def split_key(self, problem):
        return f"{sorted(problem.numbers)}>{problem.target}"        # the order of the numbers does not matter

    def max_tokens(self, level):
        # A step from k numbers: "99*99=9801," and the k - 1 numbers left, each "9801 "; then <|eos|>.
        return sum(11 + 5 * (k - 1) for k in range(2, level + 1)) + 1

    def stream_tokens(self, level):
        return 64 * 2 ** level if level > 2 else 0

    def answer(self, completion):
        return completion                   # the whole solution

    # For searches without a model

    def legal_steps(self, state, below=MAX_VALUE + 1):
        """The larger number first; no duplicates."""
        steps = (put_together(state, i, j, op) for i, j in pairs_of(len(state)) for op in OPERATORS)
        return list({line: left for line, left in filter(None, steps) if left[-1] < below}.items())

    def heuristic(self, problem, state):
        """The distances of the numbers to the nearest factor of the target (Gandhi et al. 2024), summed."""
        factors = factors_of(problem.target)
        return sum(min(abs(number - f) for f in factors) for number in state)

    # For the teachers, solutions.py and streams.py

    def hard_part(self, solution):
        return solution[:solution.index(",") + 1]               # up to the first result: the rest is easy

    def chosen_part(self, line):
        return line[:line.index("=") + 1]                           # what follows the = is determined


def read_numbers(text):
    """The numbers of a list such as "3 2 4", None if it is malformed."""
    words = text.split(" ")
    return tuple(map(int, words)) if all(map(NUMBER.fullmatch, words)) else None


def read_prompt(text):
    """(numbers, target) of a text such as "3 2 4>24", one number or more; None if it is of another form."""
    left, _, target = text.partition(">")
    numbers = read_numbers(left)
    return (numbers, int(target)) if numbers and NUMBER.fullmatch(target) else None


def make_problem(numbers, target):
    return Problem("countdown", len(numbers), f"{join(numbers)}>{target}\n", numbers, target)


def join(numbers):
    return " ".join(map(str, numbers))


@lru_cache
def factors_of(n):
    """The factors of n from 2 to n itself."""
    small = [f for f in range(1, math.isqrt(n) + 1) if n % f == 0]
    return sorted({*small, *(n // f for f in small)} - {1}) or [n]


@lru_cache
def pairs_of(n):
    return list(combinations(range(n), 2))


def put_together(numbers, i, j, op):
    """Compute with two of the numbers: (line, numbers left), or None if that is not legal."""
    b, a = sorted((numbers[i], numbers[j]))
    result = compute(a, op, b)
    return None if result is None else step_to(result, numbers, i, j, op)


def step_to(result, numbers, i, j, op):
    """A step with two of the numbers, the larger first, and the given result, right or wrong."""
    b, a = sorted((numbers[i], numbers[j]))
    left = (*(x for k, x in enumerate(numbers) if k not in (i, j)), result)
    return f"{a}{op}{b}={result},{join(left)}\n", left


# ------------------------------------------------------------------------------------------------------------
# All solutions: plainly, by recursion

def solutions(numbers, target):
    """Every way to make the target from all the numbers, as completions."""
    if len(numbers) == 1 and numbers[0] == target:
        yield ""
    for line, left in TASK.legal_steps(numbers):
        for rest in solutions(left, target):
            yield line + rest


# ------------------------------------------------------------------------------------------------------------
# The fast solver, for many problems at once: may be skipped on a first reading. find_hits says which paths
# hit the target, write_path writes one out. A path is the pair and operator of each step, as an index whose
# lowest digit is the first step: path = choice_1 + n_1 * (choice_2 + n_2 * ...), n_1 the choices of the first
# step. With 3 numbers n_1 is 12, and path 17 is 5 + 12 * 1: first choice 5, the second pair, (0, 2), with the
# second operator, -; then choice 1, the only pair that is left with -.

def draw_problems(level, wanted, n_hard, rng, accept):
    """Numbers for each wanted target, the first n_hard problems hard: problems and solutions. See draw."""
    problems, solutions = [None] * len(wanted), [None] * len(wanted)
    width = {2: 1024, 3: 512, 4: 32, 5: 4, 6: 1}[level]                 # draws a round, for the CPU's cache
    waiting, n_draws = np.arange(len(wanted)), 0
    while len(waiting):
        rows = np.resize(waiting, width)                        # those that are missing share the draws
        numbers = rng.integers(NUMBERS[0], NUMBERS[-1] + 1, (width, level))
        hits = find_hits(numbers, wanted[rows])                         # (L, width)
        paths = hits.argmax(0)              # always the first: one kind of solution is learnt faster
        may_be_easy = rng.random(width) < 0.02                          # some targets only sums reach
        good = hits.any(0) & ((rows >= n_hard) | multiplies(paths, level) | may_be_easy)
        for k in np.flatnonzero(good):
            if problems[rows[k]] is None:
                problem = make_problem(tuple(numbers[k].tolist()), int(wanted[rows[k]]))
                if accept(problem):
                    problems[rows[k]] = problem
                    solutions[rows[k]] = write_path(problem.numbers, int(paths[k]))
        waiting = np.array([row for row in waiting if problems[row] is None])
        n_draws += width
        if n_draws > 100_000 * (len(wanted) + 10):
            raise ValueError(f"no {level} numbers from 1 to 99 found that make {wanted[waiting[0]]}")
    return problems, solutions


def find_hits(numbers, targets):
    """Which of all paths hit the target: (B, n), (B,) -> (L, B); L is 4, 48, 1152, 46080 for n = 2 to 5."""
    B, n = numbers.shape
    # (n, L B): a column for each of the L paths so far of each of the B problems. The new choice is the
    # outermost of a column's digits, so the first step stays the lowest one of a path.
    states = np.asarray(numbers, dtype=np.float64).T
    legal = np.ones((1, B), dtype=bool)
    while len(states) > 2:
        states, ok = all_steps(states.reshape(len(states), -1))     # (n - 1, K, L B), (K, L B)
        legal = (ok.reshape(len(ok), *legal.shape) & legal).reshape(-1, B)
    x, y = states.reshape(2, -1, B)                             # the last step: only test equality
    a, b = np.maximum(x, y), np.minimum(x, y)                       # (L / 4, B)
    hit = np.stack([a + b == targets, a - b == targets, a * b == targets, (b * targets == a) & (b > 0)])
    return (hit & legal).reshape(-1, B)


def all_steps(states):
    """All K = 2 n (n - 1) steps in each of M states: (n, M) -> children (n - 1, K, M), legal (K, M)."""
    n, M = states.shape
    pairs = pairs_of(n)
    children = np.empty((n - 1, len(pairs), 4, M))                  # float64: exact far beyond MAX_VALUE
    for p, (i, j) in enumerate(pairs):
        a, b = np.maximum(states[i], states[j]), np.minimum(states[i], states[j])       # (M,)
        others = [k for k in range(n) if k not in (i, j)]
        children[:-1, p] = states[others][:, None]
        quotient = np.divide(a, b, out=np.full(M, 0.5), where=b > 0)            # 0.5 marks division by 0
        children[-1, p] = a + b, a - b, a * b, quotient
    legal = children[-1] <= MAX_VALUE                               # (pairs, 4, M)
    legal[:, 3] &= children[-1, :, 3] == np.floor(children[-1, :, 3])
    return children.reshape(n - 1, -1, M), legal.reshape(-1, M)


def write_path(numbers, path):
    """The completion that takes the path with this index."""
    lines = []
    while len(numbers) > 1:
        pairs = pairs_of(len(numbers))
        path, choice = divmod(path, 4 * len(pairs))
        i, j = pairs[choice // 4]
        line, numbers = put_together(numbers, i, j, OPERATORS[choice % 4])
        lines.append(line)
    return "".join(lines)


def multiplies(paths, n):
    """Which of these paths (M,) of n numbers multiply or divide on their way: (M,) of bool."""
    found = np.zeros(len(paths), dtype=bool)
    for left in range(n, 1, -1):
        paths, choice = np.divmod(paths, 2 * left * (left - 1))
        found |= choice % 4 >= 2
    return found


@lru_cache(maxsize=100_000)
def is_reachable(numbers, target):
    return len(numbers) > 1 and bool(find_hits(np.array([numbers]), target).any())


TASK = Countdown()
