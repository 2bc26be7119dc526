"""
The mistakes that the teacher of streams (streams.py) makes on purpose, in countdown only: near misses, which
are legal steps; slips and false quotients, which are not. And the check of a quotient.
"""
from countdown import OPERATORS, STEP, TASK, join, pairs_of, step_to
from task import compute

NEAR = 0.2              # relative error of a near miss, at most
SLIPS = -100, -10, -2, -1, 1, 2, 10, 100       # how far off a slip is


def helpful_results(others, target):
    """The results that would reach the target: alone, or in one step with the one other number."""
    if not others:
        return [target]
    other, = others
    found = [target - other, target + other, other - target, target * other]
    found += [x // y for x, y in ((target, other), (other, target)) if y and x % y == 0]
    return [result for result in found if result >= 0]


def near_misses(problem, state):
    """
    Legal steps, (line, state after it) each. With two numbers the result is near the target; with three, near
    a number that makes the target in one step more. With more numbers there are none.
    """
    if len(state) > 3:
        return []
    return [(line, left) for line, left in TASK.legal_steps(state, 1000)
            if any(0 < abs(left[-1] - helpful) < NEAR * helpful
                   for helpful in helpful_results(left[:-1], problem.target))]


def slip(problem, state, rng):
    """
    A line that looks like a step and is wrong: a near miss with the result that would help, or any step with
    a slightly wrong result.
    """
    near = near_misses(problem, state) if rng.random() < 0.5 else []
    if near:
        line, left = near[rng.integers(len(near))]
        others, result = left[:-1], left[-1]
        helpful = set(helpful_results(others, problem.target)) - {result}
        closest = min(helpful, key=lambda other: abs(other - result))
        return f"{TASK.chosen_part(line)}{closest},{join((*others, closest))}\n"
    i, j = sorted(rng.choice(len(state), 2, replace=False))
    b, a = sorted((state[i], state[j]))
    op = OPERATORS[rng.integers(4)]
    right = compute(a, op, b)
    off = int(rng.choice(SLIPS))
    if right is None:
        result = a // max(1, b)
    else:
        result = right + off if right + off >= 0 else right - off
    return step_to(result, state, i, j, op)[0]


def false_quotients(problem, state):
    """
    Divisions with a remainder, written with a result that is off by less than 2 and from which the target
    could be reached: (line, state after it) each.
    """
    found = []
    for i, j in pairs_of(len(state)):
        b, a = sorted((state[i], state[j]))
        near = range(max(1, a // b - 1), a // b + 3) if b and a % b else ()
        found += [step_to(result, state, i, j, "/") for result in near]
    return [(line, left) for line, left in found if TASK.is_solvable(problem, left)]


def check_of(line):
    """
    The check of a division by multiplying, a line such as `?6*7=42` for `42/7=6`, and whether it agrees;
    ("", True) for any other step.
    """
    match = STEP.match(line)
    if not match or match[2] != "/":
        return "", True
    a, b, c = int(match[1]), int(match[3]), int(match[4])
    return f"?{c}*{b}={c * b}\n", c * b == a
