"""
Everything there is, at a small size, and a million cases at random: what the verifier accepts, held against
what it has to.

    python tests/exhaustive.py              # all of it (some 5 minutes on one core)
    python tests/exhaustive.py --quick      # what the tests run

Single lines over two numbers and paths of two steps over three are held against fractions: what is right is
listed, and no other text of that form may pass. Sequences of lines with `wait`, `wait P` and verdicts, and
the million, are held against the oracle of test_verify.py. Exit status 1 if a verdict is wrong.
"""
import argparse
import sys
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tqdm import tqdm

from test_verify import LEVELS, fuzz_cases, judge, oracle
from verify import parse_problem, verify

# What a sequence is made of: steps that are right, lead nowhere, or are wrong; all ways back; verdicts
LINES = {"2 3>6": ["3*2=6,6", "2*3=6,6>6", "3+2=5,5", "3+2=6,6", "6", "wait", "wait 2 3>6", "wait 3 2>6",
                   "wait 5>6", "wait 6>6", "wait 2 3>5", "?yes", "?no", "?3*2=6"],
         "2*3+1=": ["6+1", "7", "6+2", "(7)", "2*3+1", "wait", "wait 2*3+1=", "wait 6+1=", "wait 7=", "?yes",
                    "?no"]}


def results(a, b):
    """What each operator comes to, as a fraction; None where it is not defined."""
    a, b = Fraction(a), Fraction(b)
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}


def one_step():
    """All single lines `a+b=c,d` over small numbers, also with a target or a second number behind."""
    problem, numbers = parse_problem("2 3>6"), range(8)
    right = {f"{a}{op}{b}=6,6{end}\n" for a, b in ((2, 3), (3, 2)) for op in "+-*/" for end in ("", ">6")
             if results(a, b)[op] == 6}
    for a, op, b, c, d in product(numbers, "+-*/", numbers, numbers, numbers):
        for end in ("", ">6", ">5", f" {c}"):
            text = f"{a}{op}{b}={c},{d}{end}\n"
            yield problem, text, text in right


def two_steps():
    """All paths over three numbers whose steps claim any result from 0 to 24, and 24 in the end."""
    for numbers in ((2, 3, 4), (2, 7, 8)):              # without remainders 7/2 would help
        problem = parse_problem(f"{' '.join(map(str, numbers))}>24")
        for (a, b, other), op, c in product(permutations(numbers), "+-*/", range(25)):
            first = f"{a}{op}{b}={c},{other} {c}\n"
            for (x, y), last in product(((other, c), (c, other)), "+-*/"):
                right = results(a, b)[op] == c and results(x, y)[last] == 24
                yield problem, f"{first}{x}{last}{y}=24,24\n", right


def sequences(longest):
    """All sequences of up to so many of the LINES."""
    for prompt, lines in LINES.items():
        problem = parse_problem(prompt)
        for n in range(longest + 1):
            for chosen in product(lines, repeat=n):
                text = "".join(line + "\n" for line in chosen)
                yield problem, text, oracle(problem.prompt, text)[0]


def at_random(n_rounds):
    for seed in range(n_rounds):
        for task in LEVELS:
            for problem, text, verdict in fuzz_cases.__wrapped__(task, seed):           # too many to keep
                yield problem, text, verdict[0] if judge(problem, text) == verdict else None


def wrong_verdicts(cases, accepts=lambda problem, text: verify(problem, text).correct):
    """(how many cases there are, how many are right, those with a wrong verdict)"""
    n, n_right, wrong = 0, 0, []
    for problem, text, right in cases:
        n, n_right = n + 1, n_right + bool(right)
        if accepts(problem, text) is not right:
            wrong.append((problem.prompt, text))
    return n, n_right, wrong


def main():
    parser = argparse.ArgumentParser(description="Hold the verifier against all there is at a small size.")
    parser.add_argument("--quick", action="store_true", help="no million, and shorter sequences")
    quick = parser.parse_args().quick
    kinds = {"single lines": one_step(), "paths of two steps": two_steps(),
             "sequences of lines": sequences(3 if quick else 5), "at random": at_random(0 if quick else 10)}
    all_good = True
    for name, cases in kinds.items():
        n, n_right, wrong = wrong_verdicts(tqdm(cases, desc=name, leave=False))
        print(f"{name}: {n:,} completions, {n_right:,} right, {len(wrong)} wrong verdicts {wrong[:3]}")
        all_good &= not wrong
    sys.exit(0 if all_good else 1)


if __name__ == "__main__":
    main()
