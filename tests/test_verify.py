"""
The verifier is the only teacher of every model here, so a hole in it is what RL will learn: popular Countdown
graders pay for 24+3//98, for 3.5*4, for digits of other scripts. Guarded here, against an oracle written
apart from the code (`ast` with a whitelist, Fractions, brute force): every verdict, every state value, the
problems drawn and the splits that they belong to, the tokens, linear time.
"""
import ast
import gc
import operator
import random
import re
import time
import unicodedata
from collections import Counter
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache
from itertools import permutations

import numpy as np
import pytest

import countdown
from countdown import find_hits, solutions, write_path
from task import Problem
from verify import (EOS, NEWLINE, PAD, SPLITS, TASKS, Verdict, decode, encode, held_out_problems,
                    make_problem, make_problems, parse_problem, random_steps, solve, split_of, state_value,
                    verify)

LEVELS = {name: TASKS[name].levels for name in ("countdown", "expression")}    # that the oracle knows

# ------------------------------------------------------------------------------------------------------------
# Cases by hand

C, E = "9 3 5 2>24", "(12+7)*3-5="
STEPS = {C: ["9-5=4,3 2 4\n", "3*2=6,4 6\n", "4*6=24,24\n"], E: ["19*3-5\n", "57-5\n", "52\n"]}

# Completions of either task by their verdict: a b c are the steps of a solution, other words are lines, ~
# cuts off the end.
BOTH = {
    (True, None): "a b c|a b c ?yes|a b c ?no|?no ?no a b c|a b wait wait a b c|a b wait b c|"
                  "a x ?no wait b c|x a wait wait a b c",
    (False, None): "a b|a b c~|a b c wait b~|a b c xx~|a b c ?yes~|a b c ?yes x|a b c ?yes xx~|"
                   "a b c ?yes ?yes|a b c <eos>~|a b c ?yes wait c|a ?yes b c|wait a b c|?no wait a b c|"
                   "a wait wait a b c|a wait wait x|a b c wait|a b c" + " wait" * 5000,
    (False, 0): "x|x ?yes wait a b c|x WAIT a b c|x a wait a b c",
    (False, 1): "a a b c|a x b c|a x x wait b c|a " + "5" * 5000,
    (False, 3): "a b c x|a b c c|a b c a b c|a b c yes|a b c <eos>",
    (False, 4): "a wait ?no a x b"}

# `wait P`: what stands behind a completion of C or E, its verdict, its first_error.
A, B, D = STEPS[C]
RESTATED = [
    (C, f"{A}wait 9 3 5 2>24\n{A}{B}{D}", True, None),                  # to the prompt, one step or several
    (C, f"{A}{B}wait 2 9 5 3>24\n{A}{B}{D}", True, None),              # in any order
    (C, f"{A}3+2=5,4 5\nwait 3 2 4>24\n{B}{D}", True, None),           # to what a step has left
    (C, f"{A}3*2=7,4 7\n4*7=24,24\nwait 4 2 3>24\n{B}{D}", True, None),     # wrong steps go too
    (C, f"9+3=13,5 2 13\nx\nwait 9 3 5 2>24\n{A}{B}{D}", True, None),
    (C, f"{A}3+2=5,4 5\nwait 3 2 4>24\n{B}{D}?no\nwait 9 3 5 2>24\n{A}{B}{D}?yes\n", True, None),
    (C, f"{A}{B}{D}wait 4 6>24\n{D}", True, None),
    (C, f"?1*1=1\n{A}{B}?6*7=41\n{D}?3*2=6\n?9*9=81\n", True, None),       # checks, which change nothing
    (C, f"{A}{B}{D}?3*2=7\n?yes\n?3*2=6\n", False, None),
    (C, f"{A}{B}{D}?3*2=6\nwait\n", False, None),
    (C, f"{A}{B}?3+2=5\n{D}", False, 2),                                    # what is none
    (C, f"{A}{B}?3*2=06\n{D}", False, 2),
    (C, f"{A}{B}?3*2=1000000000\n{D}", False, 2),
    (C, f"wait 9 3 5 2>24\n{A}{B}{D}", False, None),                    # nothing to take back
    (C, f"{A}wait 3 2 4>24\n{B}{D}", False, None),                      # that is what the last step has left
    (C, f"{A}{B}wait 4 6>24\n{D}", False, None),
    (C, f"{A}wait 9 3 5 2>25\n{A}{B}{D}", False, None),                 # another target
    (C, f"{A}wait 9 3 5>24\n{A}{B}{D}", False, None),                   # a number is missing
    (C, f"{A}wait 9 3 5 5>24\n{A}{B}{D}", False, None),
    (C, f"{A}wait 9 3 5 2\n{A}{B}{D}", False, None),
    (C, f"{A}wait  9 3 5 2>24\n{A}{B}{D}", False, None),
    (C, f"{A}wait 9 3 5 02>24\n{A}{B}{D}", False, None),
    (C, f"{A}wait 9 3 5 2>24 \n{A}{B}{D}", False, None),
    (C, f"{A}wait \n{A}{B}{D}", False, None),
    (C, f"{A}wait \u0669 3 5 2>24\n{A}{B}{D}", False, None),
    (C, f"x\nwait 3 2 4>24\n{A}{B}{D}", False, 0),                     # the wrong step is not gone back to
    (C, f"{A}wait 9 3 5 2>24\n{A}{A}{B}{D}", False, 3),
    (C, f"{A}waits\n", False, 1),
    (C, f"{A}{B}{D}wait 9 3 5 2>24\n", False, None),
    (E, "19*3-5\nwait (12+7)*3-5=\n19*3-5\n57-5\n52\n", True, None),
    (E, "19*3-5\n58-5\nwait 19*3-5=\n57-5\n52\n", True, None),
    (E, "19*3-5\n57-5\n53\nwait 19*3-5=\n57-5\n52\n", True, None),
    (E, "19*3-5\nwait 19*3-5=\n57-5\n52\n", False, None),
    (E, "19*3-5\n57-5\nwait (19*3)-5=\n57-5\n52\n", False, None),         # the same text, no other
    (E, "19*3-5\n57-5\nwait 19*3-5\n57-5\n52\n", False, None),
    # The target, said once more
    (C, "9-5=4,3 2 4>24\n3*2=6,4 6>24\n4*6=24,24>24\n", True, None),
    (C, f"9-5=4,4 3 2>24\n{B}4*6=24,24>24\n", True, None),
    (C, "9-5=4,3 2 4>25\n", False, 0),
    (C, "9-5=4,3 2 4>024\n", False, 0),
    (C, "9-5=4,3 2 4>\n", False, 0),
    (C, "9-5=4,3 2 4>24>24\n", False, 0),
    (C, f"{A}{B}4*5=20,20>24\n", False, 2),
    (C, f"{A}3+2=5,4 5>24\n4*5=20,20>24\n", False, None),
]

# What can happen to the text s of a solution: name, change, correct, first_error.
TYPED = [
    ("empty", lambda s: "", False, None),
    ("lone newline", lambda s: "\n", False, 0),
    ("empty line inside", lambda s: s.replace("\n", "\n\n"), False, 1),
    ("empty line after", lambda s: s + "\n", False, 3),
    ("space after all", lambda s: s + " ", False, None),
    ("space after a line", lambda s: s[:-1] + " \n", False, 2),
    ("space before", lambda s: " " + s, False, 0),
    ("wide space", lambda s: s[:-1] + "\u2003\n", False, 2),
    ("NUL", lambda s: s[:-1] + "\0\n", False, 2),
    ("surrogate", lambda s: s[:-1] + "\ud800\n", False, 2),
    ("CRLF", lambda s: s.replace("\n", "\r\n"), False, 0),
    ("form feed", lambda s: "\f" + s, False, 0),
    ("U+2028", lambda s: s.replace("\n", "\u2028") + "\n", False, 0),
    ("?yes CRLF", lambda s: s + "?yes\r\n", False, 3),
    ("<|pad|>", lambda s: s[:-1] + "<|pad|>\n", False, 2),
    ("minus", lambda s: s.replace("-", "\u2212"), False, 0),
    ("full width", lambda s: s.replace("5", "\uff15"), False, 0),
    ("Arabic", lambda s: s.replace("5", "\u0665"), False, 0)]

# Wrong first lines; most of them are right to somebody's eval, int or split.
WRONG = {
    "6 2>36": "6*6=36,36", "3 8 9>24": "3*8=24,24", "0 0>0": "0/0=0,0", "3 24 98>24": "24+3//98=24,24",
    "999999999 1>1": "999999999+1=1000000000,1000000000", "24 99 98>24": "24+99**-98=24,24",
    "50 1 99 98 97>50": "50+1/99/98/97=50,50", "3 4 5>14": "3.5*4=14,14", C: """
    9-5=4,3 4|9-5=4,3 2 4 4|9-5=4,3 1 4|9-5=4,3 3 4|9-5=4,3 2|9-5=4|9-5=4,|9*3=27,2 27|9+3=12,9 5 2 12|
    9+3=12,12|24|9-5|9/5=1,3 2 1|9/5=2,3 2 2|9//5=1,3 2 1|9%5=4,3 2 4|3**2=9,9 5 9|9-5=5,3 2 5|3-5=-2,9 2 -2|
    3-5=2,9 2 2|8-4=4,3 2 4|9-9=0,3 5 2 0|9-5=4,3  2 4|9 - 5=4,3 2 4|9-5=4, 3 2 4|9-5=4,3 2 4,|9-5=4,3,2,4|
    9-5=04,3 2 4|09-5=4,3 2 4|9-5=4,3 2 04|9+5=1 4,3 2 14|9+5=1_4,3 2 14|9+5=14,3 2 1_4|9.0-5=4,3 2 4|
    9-5=4.0,3 2 4|9e0-5=4,3 2 4|+9-5=4,3 2 4|9-+5=4,3 2 4|9--5=14,3 2 14|9-5=+4,3 2 4|9-5=4,3 2 +4|
    (9-5)=4,3 2 4|9-5==4,3 2 4|4=9-5,3 2 4|9*3-5=22,2 22|99**99**99=4,4|9-5=4>3 2 4|9x3=27,5 2 27|
    9\u00d73=27,5 2 27|9-\uff15=4,3 2 4|9-5=\u0664,3 2 4|9-5=4,3 2 \uff14|3\u00b2=9,9 5 9|9+5=1\u0664,3 2 14|
    ?Yes|?|?yesyes|?maybe|Wait""",
    E: """
    53|(12+7)*3-5|12*3-5+7*3|60-5-4+1|052|00052|19*03-5|5_2|5 2|57 - 5|it is 52|52**1|104//2|152%100|52.0|
    52e0|0x34|+52|-52|--52|57+-5|57-+5|57-(-5)|52=|=52|52,52|5(2)|(5)(2)|()52|52()|(|)|()|(52|52)|)52(|52+|
    *52|52/0|52+0/0|52/(5-5)|(1/2)*104|105/2|3-5+54|100-50-2|208/8/2|(2+5)*10|99**99**99|
    999999999+1-999999948|1000000000-999999948|99999*99999*0+52|5\u0662|\uff15\uff12|5\u00b2|57\u22125"""}
SAME = "19*3-5|26*2|(57-5)|60-5-3|60-(5+3)|104/2/1|104/(4/2)|2+5*10|26+13*2|0/5+52|52+0*7|(((2))+((50)))"
SAME += "|999999999-999999947"
DEEP = "(" * 5000 + "{}" + ")" * 5000

OWN = [
    (C, "any order", "9-5=4,4 2 3\n2*3=6,6 4\n6*4=24,24\n", True, None),
    (C, "dead end", "9+3=12,5 2 12\n5+2=7,12 7\n12+7=19,19\n", False, None),
    (C, "lands on the target", "9-5=4,3 2 4\n3*2=20,4 20\n4+20=24,24\n", False, 1),
    (C, "5,000 parentheses", DEEP.format(9) + "-5=4,3 2 4\n", False, 0),
    (C, "5,000 digits listed", "9-5=4,3 2 " + "4" * 5000 + "\n", False, 0),
    (C, "5,000 digits computed", "9-5=" + "4" * 5000 + ",3 2 4\n", False, 0),
    ("6 6 2>18", "both of a pair", "6*2=12,6 12\n6+12=18,18\n", True, None),
    ("4 4>8", "pair", "4+4=8,8\n", True, None),
    ("6 6 2>24", "pair used once too often", "6*2=12,6 12\n6+6=12,12 12\n12+12=24,24\n", False, 1),
    ("5 5 3>3", "3/0", "5-5=0,3 0\n3/0=3,3\n", False, 1),
    ("0 5>0", "0/5", "0/5=0,0\n", True, None),
    ("999999998 1>999999999", "largest", "999999998+1=999999999,999999999\n", True, None),
    (E, "direct answer", "52\n", True, None),
    (E, "not plain", "(52)\n", False, None),
    (E, "late", "(52)\n52\n", False, 1),
    (E, "as many operators", "19*3-5\n20*3-8\n52\n", False, 1),
    (E, "lands on 52", "19*3-4\n57-5\n52\n", False, 0),
    (E, "two answers", "53\n52\n", False, 0),
    (E, "5,000 (", "(" * 5000 + "\n", False, 0),
    (E, "5,000 parentheses", DEEP.format(52) + "\n", False, None),
    (E, "5,000 signs", "-" * 5000 + "52\n", False, 0),
    (E, "5,000 around a step", DEEP.format("57-5") + "\n52\n", True, None),
    (E, "zeros", "0" * 5000 + "52\n", False, 0)]


def write(recipe, prompt):
    lines = dict(zip("abc", STEPS[prompt]))
    text = "".join(lines.get(word, word + "\n") for word in recipe.removesuffix("~").split())
    text = text.replace("<eos>", "<|eos|>")
    return text[:-1] if recipe.endswith("~") else text


CASES = [(prompt, recipe, write(recipe, prompt), *verdict)
         for prompt in STEPS for verdict, recipes in BOTH.items() for recipe in recipes.split("|")]
CASES += [(prompt, name, change(write("a b c", prompt)), *verdict)
          for prompt in STEPS for name, change, *verdict in TYPED]
CASES += [(prompt, line.strip(), line.strip() + "\n", False, 0)
          for prompt, lines in WRONG.items() for line in lines.split("|")]
CASES += [(E, line, line + "\n52\n", True, None) for line in SAME.split("|")] + OWN


@pytest.mark.replay
@pytest.mark.parametrize("prompt, completion, correct, first_error", RESTATED)
def test_going_back_to_a_restated_problem(prompt, completion, correct, first_error):
    assert judge(parse_problem(prompt), completion) == (correct, first_error)
    assert oracle(prompt + "\n" * (prompt[-1] != "\n"), completion) == (correct, first_error)


@pytest.mark.replay
@pytest.mark.bugs
@pytest.mark.parametrize("prompt, completion, correct, first_error", [
    pytest.param(prompt, *case, id=ascii(f"{prompt} {name[:40]}")) for prompt, name, *case in CASES])
def test_case(prompt, completion, correct, first_error):
    verdict = verify(parse_problem(prompt), completion)
    assert (verdict.correct, verdict.first_error) == (correct, first_error), verdict.reason
    assert verdict.reason.isprintable() and len(verdict.reason) < 300


# ------------------------------------------------------------------------------------------------------------
# The oracle: Python's own parser and exact fractions; first the lines that stand, then the steps they make. A
# state is the Counter of the numbers left, or the text of the expression that stands.

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def is_number(word):
    return 0 < len(word) <= 9 and set(word) <= set("0123456789") and (word == "0" or word[0] != "0")


@lru_cache(maxsize=None)
def work_out(text):
    """(value, number of operators) of an expression; None if it is none, or something in it is not legal."""
    def walk(node):
        if type(node) is ast.Constant:
            return Fraction(node.value), 0
        if type(node) is not ast.BinOp or type(node.op) not in OPERATORS:
            raise ValueError
        (a, m), (b, n) = walk(node.left), walk(node.right)
        c = OPERATORS[type(node.op)](a, b)
        if c.denominator != 1 or not 0 <= c <= 999_999_999:
            raise ValueError
        return c, m + n + 1

    if not set(text) <= set("0123456789+-*/()") or not all(map(is_number, re.findall("[0-9]+", text))):
        return None
    try:
        return walk(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def start(prompt):
    return Counter(map(int, prompt.split(">")[0].split(" "))) if ">" in prompt else prompt[:-2]


def follow(prompt, state, line, lists=True):
    """The state after a line, None if the line is wrong."""
    if isinstance(state, str):
        above, here = work_out(state), work_out(line)
        return line if here and here[0] == above[0] and here[1] < above[1] else None
    computed, _, rest = line.partition("=")
    result, _, listed = rest.partition(",")
    listed, says_target, target = listed.partition(">")
    if says_target and target + "\n" != prompt.split(">")[1]:
        return None
    worked, listed = work_out(computed), listed.split(" ")
    if not worked or worked[1] != 1 or "(" in computed or not is_number(result) or worked[0] != int(result):
        return None
    used = Counter(map(int, re.findall("[0-9]+", computed)))
    left = state - used + Counter([int(result)])
    is_listed = all(map(is_number, listed)) and Counter(map(int, listed)) == left
    return left if used <= state and (is_listed or not lists) else None


def is_solved(prompt, state):
    return is_number(state) if isinstance(state, str) else state == Counter([int(prompt.split(">")[1])])


def states(prompt, lines, lists=True):
    """The state before and after each of these lines, None from the first wrong one on."""
    found = [start(prompt)]
    for line in lines:
        found.append(None if found[-1] is None else follow(prompt, found[-1], line, lists))
    return found


def is_named(prompt, state, text):
    """Whether `wait` and this text goes back to a state."""
    if state is None or isinstance(state, str):
        return state is not None and text == state + "="
    left, _, target = text.partition(">")
    numbers = left.split(" ")
    return target + "\n" == prompt.split(">")[1] and all(map(is_number, numbers)) and (
        Counter(map(int, numbers)) == state)


def is_check(line):
    """Whether a line is of the form ?a*b=c, true or not."""
    factor, times, rest = line[1:].partition("*")
    other, equals, product = rest.partition("=")
    return bool(line[:1] == "?" and times and equals) and all(map(is_number, (factor, other, product)))


def replay(prompt, text, lists=True):
    """(state, first error, is there a fault of structure)"""
    lines, standing, fault = text.split("\n")[:-1], [], False
    for i, line in enumerate(lines):
        fault = i > 0 and lines[i - 1] == "?yes"
        if not fault and line[:5] == "wait ":
            before = states(prompt, [lines[k] for k in standing], lists)[:-1]
            named = [n for n, state in enumerate(before) if is_named(prompt, state, line[5:])]
            fault = not named
            standing = standing[:named[-1]] if named else standing
        elif not fault and line == "wait":
            fault = not standing
            standing = standing[:-1]
        elif not fault and line != "?yes" and line != "?no" and not is_check(line):
            standing.append(i)
        if fault:
            break
    found = states(prompt, [lines[k] for k in standing], lists)
    return found[-1], standing[found.index(None) - 1] if None in found else None, fault


def oracle(prompt, text, lists=True):
    state, first_error, fault = replay(prompt, text, lists)
    return first_error is None and not fault and text[-1:] == "\n" and is_solved(prompt, state), first_error


@lru_cache(maxsize=None)
def reachable(numbers, target):
    """Depth first, through every order of the numbers (a sorted tuple)."""
    for a, b, *rest in set(permutations(numbers)) if len(numbers) > 1 else ():
        results = [a + b, a - b, a * b, a // b if b and a % b == 0 else -1]
        if any(0 <= c <= 999_999_999 and reachable(tuple(sorted([*rest, c])), target) for c in results):
            return True
    return numbers == (target,)


def oracle_value(prompt, prefix):
    state, first_error, fault = replay(prompt, prefix)
    if first_error is not None or fault:
        return False
    if is_solved(prompt, state) or prefix.split("\n")[-2:-1] == ["?yes"]:
        return is_solved(prompt, state)
    if isinstance(state, str):
        return work_out(state)[1] > 0
    return reachable(tuple(sorted(state.elements())), int(prompt.split(">")[1]))


# ------------------------------------------------------------------------------------------------------------
# The fuzz

LETTERS = [*"0123456789+-*/()=,>? \n", "wait", "yes", "no"]
LETTERS += ["\u0663", "\uff13", "\u2212", "\r", "\0", "\ud800", "_", "."]
LINES = ["wait", "wait", "wait", "?yes", "?no", "?6*7=42", "?6*7=4", "", "x", "0"]


def go_back(prompt, lines, rnd):
    """`wait` and what was left at some line or in the beginning, sometimes not quite."""
    state = rnd.choice([state for state in states(prompt, lines) if state is not None])
    if isinstance(state, str):
        return "wait " + state + rnd.choice("====-")
    numbers, target = [str(number) for number in state.elements()], prompt.split(">")[1][:-1]
    rnd.shuffle(numbers)
    if rnd.random() < 0.2:
        target, numbers = rnd.choice([("25", numbers), (target, numbers[1:]), (target, [*numbers, "1"])])
    return f"wait {' '.join(numbers)}>{target}"


def mutate(prompt, text, rnd):
    """One random edit of a completion; some do no harm."""
    if rnd.random() < 0.4:
        k, letters = rnd.randrange(len(text) + 1), "".join(rnd.choices(LETTERS, k=rnd.randint(1, 3)))
        return rnd.choice([
            text[:k] + letters + text[k:],
            text[:k] + text[k + 1:],
            text[:k] + letters + text[k + len(letters):],
            text[:k] + text[k:k + 2][::-1] + text[k + 2:], text[:-1], text.replace("3", "\uff13", 1)])
    lines = text.split("\n")
    i, new = rnd.randrange(len(lines)), rnd.choice(LINES)
    line, (computed, comma, listed) = lines[i], lines[i].partition(",")
    swapped = re.sub("^([0-9]+)([+*])([0-9]+)=", r"\3\2\1=", computed)
    other_order = swapped + comma + " ".join(listed.split(" ")[::-1])
    back, rest = go_back(prompt, lines[:i], rnd), lines[i:]
    if rnd.random() < 0.2:
        lines[i:] = rnd.choice([[back, *rest], [new, back, *rest], [line, back, *rest],
                                [*rest[:-1], back, *lines]])
        return "\n".join(lines)
    lines[i:i + 1] = rnd.choice([
        [new], [new, line], [line, new], [new, "wait", line], [line, "wait", line], [line, line],
        [rnd.choice(lines)], [], [f"({line})"], [f"{line}+0"], [other_order],
        [line + ">" + rnd.choice([*prompt.split(">")[1:], "25"]).strip()]])
    return "\n".join(lines)


@lru_cache(maxsize=None)
def fuzz_cases(task, seed=1):
    """50,000 of (problem, completion, what the oracle says): solutions with up to three edits."""
    rng, rnd, cases = np.random.default_rng(seed), random.Random(seed), []
    pool = [pair for level in LEVELS[task][:-1] for pair in zip(*make_problems(task, level, 200, rng))]
    for _ in range(50_000):
        problem, text = rnd.choice(pool)
        for _ in range(rnd.choice([0, 1, 1, 2, 3])):
            text = mutate(problem.prompt, text, rnd)
        cases.append((problem, text, oracle(problem.prompt, text)))
    return cases


def judge(problem, text):
    verdict = verify(problem, text)
    return verdict.correct, verdict.first_error


@pytest.mark.replay
@pytest.mark.parametrize("task", LEVELS)
def test_fuzz(task):
    cases = fuzz_cases(task)
    wrong = [(problem.prompt, text, verdict) for problem, text, verdict in cases
             if judge(problem, text) != verdict]
    assert not wrong, f"{len(wrong)} verdicts differ from the oracle's: {wrong[:3]}"
    kinds = Counter("correct" if correct else "fault" if error is None else "error"
                    for _, _, (correct, error) in cases)
    assert min(kinds["correct"], kinds["fault"], kinds["error"]) > 2_500 and kinds["correct"] < 25_000, kinds
    for problem, prefix, _ in cases[:2000]:
        if len(problem.numbers) < 4 or task == "expression":
            value = oracle_value(problem.prompt, prefix)
            assert state_value(problem, prefix) is value, (problem.prompt, prefix)


BROKEN = {
    "ignores the numbers listed": lambda problem, text: oracle(problem.prompt, text, lists=False),
    "reads digits of every script": lambda problem, text: judge(problem, unicodedata.normalize("NFKC", text)),
    "strips": lambda problem, text: judge(problem, text.strip() + "\n"),
    "forgives a wait on nothing": lambda problem, text: judge(problem, re.sub("^(wait\n)+", "", text)),
    "stops at ?yes": lambda problem, text: judge(problem, re.sub("(?s)([?]yes\n).*", r"\1", text))}


@pytest.mark.parametrize("name", BROKEN)
def test_fuzz_catches_a_verifier_that(name):
    for task in LEVELS if "listed" not in name else ["countdown"]:
        cases = fuzz_cases(task)[:10_000]
        assert any(BROKEN[name](problem, text) != verdict for problem, text, verdict in cases)


# ------------------------------------------------------------------------------------------------------------
# Any text at all, and fast

def blow_up(n):
    """Texts of about n characters that may trip a parser."""
    units = ["5", "(", ")", "-", "\n", "\0", "\ud800", "wait\n", "?no\n", "?yes\n", "x\n", "x\nwait\n", "1+",
             "52\nwait\n", STEPS[C][0] + "wait\n", STEPS[C][0] + f"wait {C}\n",
             f"x\nx\nwait {C}\n"]
    texts = [unit * (n // len(unit)) for unit in units]
    texts += ["(" * (n // 2) + "52" + ")" * (n // 2), "0+(" * (n // 4) + "52" + ")" * (n // 4)]
    texts += ["52" + "-0" * (n // 2), "9-5=4," + "3 " * (n // 2) + "4", "9-5=" + "4" * n + ",3 2 4"]
    return [text + "\n" for text in texts]


def seconds(function, *args):
    """
    CPU time of this process, in which other programs on the machine do not count, without the garbage
    collector, which now and then walks all that other tests have left in memory.
    """
    gc.collect()
    gc.disable()
    try:
        begin = time.process_time()
        function(*args)
        return time.process_time() - begin
    finally:
        gc.enable()


@pytest.mark.replay
@pytest.mark.parametrize("prompt", STEPS)
def test_any_text_is_judged_in_linear_time(prompt):
    problem = parse_problem(prompt)
    for half, whole in zip(blow_up(100_000), blow_up(200_000)):
        assert seconds(verify, problem, whole) < 2, ascii(whole[:20])
        pairs = ((seconds(verify, problem, half), seconds(verify, problem, whole)) for _ in range(5))
        assert any(long < 3 * short + 0.01 for short, long in pairs), ascii(whole[:20])
    others = ["", "\udfff", "<|eos|>", STEPS[C][0] + "\ud800", "\u0663>\u0663", "5" * 5000 + "="]
    for text in blow_up(5000) + others:
        assert type(verify(problem, text)) is Verdict and type(state_value(problem, text)) is bool
        for parse in parse_problem, encode:
            with suppress(ValueError):
                parse(text)


def test_speed():
    """Loose, for slow machines."""
    problems, solutions = make_problems("countdown", 4, 1000, np.random.default_rng(0))
    assert min(seconds(lambda: list(map(verify, problems, solutions))) for _ in range(5)) < 1000 * 100e-6
    rngs = map(np.random.default_rng, range(3))
    assert min(seconds(make_problems, "countdown", 4, 1000, rng) for rng in rngs) < 1


# ------------------------------------------------------------------------------------------------------------
# State values

@pytest.mark.parametrize("level", [2, 3, 4])
def test_state_value_of_countdown(level):
    rnd, seen = random.Random(level), Counter()
    for problem, solution in zip(*make_problems("countdown", level, 60, np.random.default_rng(level))):
        numbers = [rnd.choice([0, 1, rnd.randint(1, 99)]) for _ in range(level)]
        other = parse_problem(f"{' '.join(map(str, numbers))}>{rnd.randint(0, 100)}")
        hits = find_hits(np.array([problem.numbers, other.numbers]), np.array([problem.target, other.target]))
        assert hits.any(0).tolist() == [True, reachable(tuple(sorted(numbers)), other.target)]
        begun = "".join(solution.splitlines(True)[:rnd.randrange(level)])
        prefixes = [(problem, mutate(problem.prompt, solution, rnd)), (problem, begun)]
        for wanderer in problem, other:
            left, text = wanderer.numbers, ""
            for _ in range(rnd.randrange(level)):
                line, left = rnd.choice(countdown.TASK.legal_steps(left))
                text += line
            prefixes.append((wanderer, text + rnd.choice(["", "1+", "wait", "?no\n"])))
        for problem, prefix in prefixes:
            value = state_value(problem, prefix)
            assert value is oracle_value(problem.prompt, prefix), (problem.prompt, prefix)
            seen[value] += 1
    assert min(seen[True], seen[False]) > 60, seen


@pytest.mark.replay
@pytest.mark.parametrize("prompt, prefix, value", [
    (E, "", True),
    (E, "19*3-5\n", True),
    (E, "52\n", True),
    (E, "(52)\n", False),
    (E, "19*3-4\n", False),
    (E, "?no\n", True),
    (E, "(52)\nwait\n", True),
    (E, "53\nwait\n", True),
    (E, "wait\n", False),
    (E, "(52)\nwait", False),
    (E, "57-5\n53", True),
    (E, "52\n52\n", False),
    (E, "57-5\n?yes\n", False),
    (E, "52\n?yes\nx", True),
    (E, "52\n?yes\nx\n", False),
    (C, "24\n", False),
    (C, "24\nwait\n", True),
    (C, "9-5=4,3 2 4\n?yes\n", False),
    (C, "9-5=4,3 2 4\n3*2=7", True),
    (C, write("a b c ?yes", C), True),
    (C, write("a b c a", C), False),
    (C, "9+3=12,5 2 12\n5+2=7,12 7\n12+7=19,19\n", False),
    ("9 3 5 2>9999", "", False),
    ("99999 99999 0>0", "", True),
    ("999999999 2 2>999999999", "", True),
    ("40000 29997 30>39996000", "", False),             # 40000*29997 is too large
    ("40000 2997 30>3996000", "", True),
])
def test_state_value(prompt, prefix, value):
    assert state_value(parse_problem(prompt), prefix) is value is oracle_value(prompt + "\n", prefix)


# ------------------------------------------------------------------------------------------------------------
# Problems

@pytest.mark.parametrize("task, level", [(task, level) for task in LEVELS for level in LEVELS[task]])
@pytest.mark.parametrize("split", SPLITS)
def test_problems_and_their_solutions(task, level, split):
    n = 2 if (task, level) == ("countdown", 6) else 50
    problems, worked = make_problems(task, level, n, np.random.default_rng(level), split)
    assert (problems, worked) == make_problems(task, level, n, np.random.default_rng(level), split)
    assert problems != make_problems(task, level, n, np.random.default_rng(99), split)[0]
    assert len(problems) == len(worked) == n
    for problem, solution in zip(problems, worked):
        assert problem == parse_problem(problem.prompt) and (problem.task, problem.level) == (task, level)
        assert len(re.findall("[0-9]+", problem.prompt.split(">")[0])) == level + (task == "expression")
        assert split_of(problem) == split and (task == "expression" or 10 <= problem.target <= 100)
        assert task == "expression" or all(1 <= number <= 99 for number in problem.numbers)
        assert TASKS[task].is_drawn(problem)
        for text in [solution, solve(problem, np.random.default_rng(0))][:1 + (n > 2)]:
            assert judge(problem, text) == oracle(problem.prompt, text) == (True, None)
            assert text.count("\n") == level - (task == "countdown")
            assert decode(encode(problem.prompt + text)) == problem.prompt + text
            assert min(encode(text)) >= NEWLINE


def chain(level):
    """The longest expression of a level that can be drawn, or nearly: 173-(173-(173-95))."""
    text = "95"
    for n in range(level):
        text = f"173-({text})" if n else f"173-{text}"
    return text + "="


@pytest.mark.parametrize("task, level", [(task, level) for task in LEVELS for level in LEVELS[task]])
def test_a_worked_solution_fits_the_room_for_it(task, level):
    n = {("countdown", 5): 300, ("countdown", 6): 10}.get((task, level), 3000)
    problems, worked = make_problems(task, level, n, np.random.default_rng(level))
    rng = np.random.default_rng(0)
    if task == "countdown":                 # any of its solutions, too
        worked += [solve(problem, rng) for problem in problems[:min(n, 300)]]
    else:
        worked.append(solve(parse_problem(chain(level)), rng))
    longest = max(worked, key=len)
    assert len(encode(longest)) + 1 <= TASKS[task].max_tokens(level), longest       # and <|eos|>


@pytest.mark.solver
@pytest.mark.parametrize("level, n", [(2, 300), (3, 100), (4, 4)])
def test_the_plain_recursion_finds_what_the_fast_search_finds(level, n):
    rng, found = np.random.default_rng(level), Counter()
    numbers, targets = rng.integers(0, 13, (n, level)), rng.integers(0, 30, n)
    hits = find_hits(numbers, targets)
    for row in range(n):
        own = tuple(numbers[row].tolist())
        plain = set(solutions(own, int(targets[row])))
        assert plain == {write_path(own, path) for path in np.flatnonzero(hits[:, row]).tolist()}
        found[bool(plain)] += 1
    assert min(found[True], found[False]) >= 1, found


def test_legal_steps_are_all_there_are_and_none_comes_twice():
    rnd = random.Random(0)
    for _ in range(200):
        numbers = tuple(rnd.choices([0, 1, 2, 6, 6, 12, 99_999, 999_999_999], k=rnd.randint(2, 4)))
        steps, expected = countdown.TASK.legal_steps(numbers), set()
        for line, left in steps:
            assert follow("", Counter(numbers), line[:-1]) == Counter(left) and line[-1] == "\n"
        for a, b in permutations(numbers, 2):
            for op in "+-*/" if a >= b else "":
                worked = work_out(f"{a}{op}{b}")
                expected |= {f"{a}{op}{b}={worked[0]}"} if worked else set()
        assert {line.split(",")[0] for line, _ in steps} == expected
        assert len({line for line, _ in steps}) == len(steps)
        assert countdown.TASK.legal_steps(numbers, below=7) == [step for step in steps if step[1][-1] < 7]


def test_splits_are_disjoint_whatever_the_order_of_numbers():
    keys = {split: set() for split in SPLITS}
    for split in SPLITS:
        held_out = [held_out_problems("countdown", level, 100, split) for level in (2, 3, 4)]
        for problem in sum(held_out, []):
            orders = [" ".join(map(str, order)) for order in permutations(problem.numbers)]
            assert {split_of(parse_problem(f"{order}>{problem.target}")) for order in orders} == {split}
            keys[split].add((tuple(sorted(problem.numbers)), problem.target))
    assert len(set.union(*keys.values())) == sum(map(len, keys.values())) > 800
    assert held_out_problems("expression", 4, 9) == held_out_problems("expression", 4, 500)[:9]


@pytest.mark.parametrize("form", ["{0} 7>{1}", "{0}+{1}="])
def test_one_problem_in_ten_is_for_tests_and_one_for_validation(form):
    splits = Counter(split_of(parse_problem(form.format(a, b))) for a in range(7, 57) for b in range(40))
    assert sum(splits.values()) == 2000 and set(splits) == set(SPLITS)
    assert 150 < splits["test"] < 250 and 150 < splits["validation"] < 250


def test_a_problem_is_in_the_same_split_in_every_process():
    """Python's own hash of a text is another in each; and what was a test problem once is one for ever."""
    known = {"9 3 5 2>24": "train", "98 11>87": "train", "25 8 7>24": "train", "1+1=": "train",
             "1 2 3>6": "test", "45 4 21>62": "test"}
    problems = held_out_problems("countdown", 3, 400) + held_out_problems("expression", 4, 400)
    assert {text: split_of(parse_problem(text)) for text in known} == known
    assert [problem.prompt for problem in problems[::400]] == ["45 4 21>62\n", "1*((101-61)/5+63)=\n"]
    assert len(set(problems)) > 790         # drawn in blocks, of which none is like another


def test_targets_are_uniform_and_can_be_held_out():
    problems = make_problems("countdown", 2, 9100, np.random.default_rng(0))[0]
    counts = np.bincount([problem.target for problem in problems])
    assert counts[:10].sum() == 0
    assert ((counts[10:] - 100) ** 2 / 100).sum() < 150                 # chi-squared, 90 degrees of freedom
    for task in "countdown", "expression":
        held_out = make_problems(task, 3, 50, np.random.default_rng(0), targets=[17, 23])[0]
        assert {problem.target for problem in held_out} == {17, 23}
        assert make_problem(task, 3, np.random.default_rng(0), "test", targets=[71]).target == 71


def test_in_the_first_half_more_problems_need_a_product():
    def share(progress):
        worked = make_problems("countdown", 3, 2000, np.random.default_rng(0), progress=progress)[1]
        return sum(bool(re.search("[0-9][*/][0-9]", solution)) for solution in worked) / 2000
    shares = [share(progress) for progress in (0.0, 0.5, 0.75, 1.0)]
    assert shares[0] == shares[1] > shares[2] + 0.05 and shares[2] > shares[3] + 0.05, shares
    assert 0.2 < shares[3] < 0.4, shares


@pytest.mark.solver
def test_solve_draws_from_all_solutions_and_knows_when_there_is_none():
    rng = np.random.default_rng(0)
    drawn = {solve(parse_problem("1 2 3>6"), rng) for _ in range(500)}
    assert drawn == set(solutions((1, 2, 3), 6)) and len(drawn) > 5
    assert solve(parse_problem("1 1 1>100"), rng) is None
    assert solve(parse_problem("((1+2))*3="), rng) == "3*3\n9\n"


def test_random_steps_are_legal_and_small():
    rng = np.random.default_rng(0)
    for problem in held_out_problems("countdown", 4, 100):
        for n in range(4):
            text, state = random_steps(problem, n, rng, below=200)
            left, error, fault = replay(problem.prompt, text)
            assert text.count("\n") == n and left == Counter(state) and error is None and not fault
            assert all(int(line.split("=")[1].split(",")[0]) < 200 for line in text.splitlines())
    assert random_steps(parse_problem(E), 3, rng) == ("", E[:-1])       # its steps cannot be listed


@pytest.mark.parametrize("task, level, split, complaint", [
    ("chess", 3, "train", "no task 'chess'"),
    ("countdown", 1, "train", "countdown has no level 1"),
    ("countdown", 7, "train", "countdown has no level 7"),
    ("expression", 0, "train", "expression has no level 0"),
    ("expression", 9, "train", "expression has no level 9"),
    ("countdown", 3, "dev", "no split 'dev'"),
])
def test_no_such_task_level_or_split(task, level, split, complaint):
    for make in make_problem, lambda *args: make_problems(*args[:2], 1, *args[2:]):
        with pytest.raises(ValueError, match=complaint):
            make(task, level, np.random.default_rng(0), split)
    with pytest.raises(ValueError, match=complaint):
        held_out_problems(task, level, 1, split)


@pytest.mark.parametrize("text, numbers, target", [
    (C, (9, 3, 5, 2), 24),
    (E, (12, 7, 3, 5), 52),
    ("1 1>100", (1, 1), 100),
    ("0 999999999>0", (0, 999999999), 0),
    ("1 2 3 4 5 6>7", (1, 2, 3, 4, 5, 6), 7),
    ("1+1+1+1+1+1+1+1+1=", (1,) * 9, 9),
    ("((1+2))=", (1, 2), 3),
])
def test_parse_problem(text, numbers, target):
    task, level = ("countdown", len(numbers)) if ">" in text else ("expression", len(numbers) - 1)
    problem = parse_problem(text)
    assert problem == parse_problem(text + "\n") == Problem(task, level, text + "\n", numbers, target)
    with pytest.raises(AttributeError):
        problem.target = 0


BAD = (
    "|\n|9|24|9>24|>24|9 3>|9 3|9 3 24|1 2 3 4 5 6 7>8|09 3>24|9 3>024|9  3>24| 9 3>24|9 3 >24|9 3> 24|"
    "9 3>24 |9,3>24|9 -3>24|9 3>-24|9 3>1000000000|1000000000 3>9|9 3.0>24|9 3>24\r\n|9 3>24\r|9 3>24\n\n|"
    "\n9 3>24|9 3>24x|9 3>24>24|9 3>24=|9 \u0663>24|\uff19 3>24|9\t3>24|1_0 3>24|52=|(52)=|=|+=|"
    "1+1+1+1+1+1+1+1+1+1=|3-5=|7/2=|7/0=|-3+5=|+3+5=|3+-5=|3+(-5)=|3+5|3+5=8|3+5=x|3+5= |3 +5=|3+5==|"
    "3+5=\r\n|3+5=\n\n|03+5=|(3+5=|3+5)=|999999999+1=|()+3=|3()+5=|3**5=|3//3=|3%5=|3.0+5=|3_0+5=|3+\u0665=|"
    "3\u22121=|1000000000-1=|1e1+1=|3\n+5=|\ud800+1=|?yes|wait|<eos>").split("|")
BAD += ["9 3>" + "1" * 5000, "1+" + "1" * 5000 + "=", "(" * 5000 + "3+5=", "<|eos|>"]


@pytest.mark.parametrize("text", BAD, ids=lambda text: ascii(text)[:20])
def test_parse_problem_refuses(text):
    with pytest.raises(ValueError, match="(is not an? |has [0-9]+ (numbers|operators))"):
        parse_problem(text)


def test_parse_problem_fuzz():
    """Random expressions have the value that the oracle says, most of them none."""
    rnd, legal = random.Random(0), 0
    for _ in range(20_000):
        numbers = [*"01234569", "12", "24", "40000", "999999999", "07"]
        text = "".join(rnd.choice(["", "", "("]) + number + rnd.choice(["", "", ")"]) + rnd.choice("+-*/")
                       for number in rnd.choices(numbers, k=rnd.choice([1, 2, 3, 4, 5, 9, 10])))[:-1]
        worked = work_out(text)
        if worked and 1 <= worked[1] <= 8:
            legal += 1
            assert parse_problem(text + "=").target == worked[0], text
        else:
            with pytest.raises(ValueError):
                parse_problem(text + "=")
    assert legal > 500


# ------------------------------------------------------------------------------------------------------------
# Tokens

def test_tokens():
    words = [*"\n0123456789+-*/()=,>? ", "wait", "yes", "no"]
    assert (PAD, EOS, NEWLINE) == (0, 1, 2) == (PAD, EOS, *encode("\n"))
    assert decode([PAD, EOS]) == "<|pad|><|eos|>"
    assert sorted(token for word in words for token in encode(word)) == list(range(2, 2 + len(words)))
    assert len(encode("wait\nwaitwait?yes\n?no\n")) == 10 and encode("") == []


@pytest.mark.parametrize("text, character", [
    ("x", "x"), ("wai", "w"), ("1\n\u0663", "\u0663"), ("<|eos|>", "<"), ("24\n<|pad|>", "<"),
    ("1\r\n", "\r"), ("1_0", "_"), ("1\ud800", "\ud800"), ("\0", "\0"), ("\U0001f600", "\U0001f600"),
    ("Wait", "W"), ("yes no ye", "y"), ("\t", "\t")])
def test_encode_names_what_is_outside(text, character):
    with pytest.raises(ValueError, match=re.escape(ascii(character))):
        encode(text)
