"""
The verifier is the only teacher of every model here, so a hole in it is what RL will learn: popular Countdown graders pay for
24+3//98, for 3.5*4, for digits of other scripts. Guarded here, against an oracle written apart from verify.py (`ast` with a
whitelist, Fractions, brute force): every verdict, every state value, the problems drawn, the tokens, and linear time on any text.
"""
import ast
import random
import re
import time
import unicodedata
from collections import Counter
from fractions import Fraction
from functools import lru_cache
from itertools import permutations

import numpy as np
import pytest

from verify import (DEFAULT_LEVEL, LEVELS, MAX_VALUE, VOCAB_SIZE, Verdict, decode, encode, find_hits, make_problem,
                    make_problems, max_tokens, parse_problem, solve, split_of, state_value, test_problems, verify)

C, E = "9 3 5 2>24", "(12+7)*3-5="
STEPS = {C: ["9-5=4,3 2 4\n", "3*2=6,4 6\n", "4*6=24,24\n"], E: ["19*3-5\n", "57-5\n", "52\n"]}
ALL_LEVELS = [(task, level) for task in LEVELS for level in LEVELS[task]]

# ------------------------------------------------------------------------------------------------------------------
# Cases by hand: completion, whether it is correct, first error


def cases_of_both(a, b, c):
    """Faults that know no task; a, b, c are the lines of a solution."""
    s = a + b + c
    return {
        "solution": (s, True, None), "empty": ("", False, None), "newline": ("\n", False, 0), "empty line": (a + "\n" + b, False, 1),
        "cut off": (s[:-1], False, None), "cut in the middle": (a + b + c[:1], False, None), "unfinished": (a + b, False, None),
        "then x": (s + "x\n", False, 3), "then x, cut off": (s + "x", False, None), "then empty line": (s + "\n", False, 3),
        "then itself": (s + s, False, 3), "then space": (s + " ", False, None), "last line twice": (s + c, False, 3),
        "step left out": (b + "x\nwait\n" + b, *((False, 0) if "," in b else (False, 2))), "only yes": (s + "yes\n", False, 3),
        "?yes": (s + "?yes\n", True, None), "?no": (s + "?no\n", True, None), "?no twice": ("?no\n?no\n" + s, True, None),
        "?yes, cut off": (s + "?yes", False, None), "?yes, then x": (s + "?yes\nx\n", False, None),
        "?yes, then cut off": (s + "?yes\nx", False, None), "?yes twice": (s + "?yes\n?yes\n", False, None),
        "?yes, then wait": (s + "?yes\nwait\n" + c, False, None), "?yes too early": (a + "?yes\n" + b + c, False, None),
        "?yes to a wrong line": ("x\n?yes\nwait\n" + s, False, 0), "?no, wait": ("x\n?no\nwait\n" + s, True, None),
        "wait on nothing": ("wait\n" + s, False, None), "wait on a verdict": ("?no\nwait\n" + s, False, None),
        "one wait too many": (a + "wait\nwait\n" + s, False, None), "wait on nothing, then x": (a + "wait\nwait\nx\n", False, None),
        "wait back to the start": (a + b + "wait\nwait\n" + s, True, None), "wait for one line": (a + b + "wait\n" + b + c, True, None),
        "wrong taken back": (a + "x\nwait\n" + b + c, True, None), "two wrong, one taken back": ("x\n" + a + "wait\n" + s, False, 0),
        "two wrong, two taken back": ("x\n" + a + "wait\nwait\n" + s, True, None), "solution taken back": (s + "wait\n", False, None),
        "errors count all lines": (a + "wait\n?no\n" + a + "x\n" + b, False, 4), "wait with a space": (a + "wait \n", False, 1),
        "<|eos|> as text": (s + "<|eos|>", False, None), "<|eos|> line": (s + "<|eos|>\n", False, 3),
        "<|pad|> at the end": (s[:-1] + "<|pad|>\n", False, 2), "CRLF": (s.replace("\n", "\r\n"), False, 0),
        "U+2028 lines": (s.replace("\n", "\u2028") + "\n", False, 0), "form feed": (a + b + "\f" + c, False, 2),
        "NUL": (s[:-1] + "\0\n", False, 2), "surrogate": (s[:-1] + "\ud800\n", False, 2), "space before": (a + " " + b, False, 1),
        "space after": (a[:-1] + " \n", False, 0), "comment": (a[:-1] + "#\n", False, 0), "5,000 digits": (a + "5" * 5000 + "\n", False, 1)}


LAST_C = """4*6=25,24 4*6=24,25 4*6=24 4*6=24, ,24 24 4*6,24 4*6=024,24 04*6=24,24 4*6=24,024 4*6=2\u0664,24 \uff14*6=24,24 4\u00d76=24,24
    4*6=2_4,24 4*6=24,2_4 4.0*6=24,24 4*6=24.0,24 4e0*6=24,24 4*6=24,24e0 +4*6=24,24 4*+6=24,24 4*6=+24,24 4*6=24,+24 (4*6)=24,24
    4**6=24,24 24//1=24,24 124%100=24,24 4*6=24,24, 4*6==24,24 4*6=24,24,24 4*6*1=24,24 --4*6=24,24 24=4*6,24 4*6=24>24 \u00b2*6=24,24
    6-4=2,2 4-6=-2,-2 6/4=1,1 4*4=16,16 6*6=24,24 18+6=24,24 99**99**99=24,24 4*6=24,24\u2003 4*6=24,\uff12\uff14""".split(" ")
FIRST_E = """53 (12+7)*3-5 12*3-5+7*3 60-5-4+1 052 00052 19*03-5 5\u0662 \uff15\uff12 57\u22125 5_2 52**1 104//2 152%100 52.0 52e0 0x34 +52 -52
    --52 57+-5 57-+5 57-(-5) 52= =52 52,52 5(2) (5)(2) ()52 52() ( ) (52 52) )52( 52+ *52 52/0 52+0/0 52/(5-5) 1/2*104 105/2+0 3-5+54
    100-50-2 208/8/2 (2+5)*10 99**99**99 999999999+1-999999948 1000000000-999999948 99999*99999*0+52 52\u2003 \u0665\u0662""".split()
RIGHT_E = "19*3-5 57-5 26*2 (57-5) 60-5-3 60-(5+3) 104/2/1 104/(4/2) 2+5*10 26+13*2 0/5+52 52+0*7 (((2))+((50))) 999999999-999999947".split()
CASES = [(prompt, id, *case) for prompt in STEPS for id, case in cases_of_both(*STEPS[prompt]).items()]
CASES += [(C, line.strip(), "".join(STEPS[C][:2]) + line.strip() + "\n", False, 2) for line in LAST_C if line.strip()]
CASES += [(E, line, line + "\n", False, 0) for line in FIRST_E]
CASES += [(E, "answer after " + line, line + "\n52\n", True, None) for line in RIGHT_E] + [
    (E, "direct answer", "52\n", True, None), (E, "not a plain integer", "(52)\n", False, None), (E, "(52), 52", "(52)\n52\n", False, 1),
    (E, "as many operators", "19*3-5\n20*3-8\n52\n", False, 1), (E, "wrong, right answer", "19*3-4\n57-5\n52\n", False, 0),
    (E, "answer in words", "the answer is 52\n", False, 0), (E, "two answers", "53\n52\n", False, 0), (E, "space inside", "5 2\n", False, 0),
    (E, "spaces", "57 - 5\n52\n", False, 0), (E, "5,000 parentheses", "(" * 5000 + "52" + ")" * 5000 + "\n", False, None),
    (E, "5,000 around a step", "(" * 5000 + "57-5" + ")" * 5000 + "\n52\n", True, None), (E, "5,000 open", "(" * 5000 + "\n", False, 0),
    (E, "5,000 zeros", "0" * 5000 + "52\n", False, 0), (E, "5,000 signs", "-" * 5000 + "52\n", False, 0),
    (C, "any order", "9-5=4,4 2 3\n2*3=6,6 4\n6*4=24,24\n", True, None), (C, "other tokens", "9\u22125=4,3 2 4\n", False, 0),
    (C, "dead end", "9+3=12,5 2 12\n5+2=7,12 7\n12+7=19,19\n", False, None), (C, "number reused", "9+3=12,9 5 2 12\n12*2=24,24\n", False, 0),
    (C, "reused later", "9+3=12,5 2 12\n9+3=12,5 2 12\n", False, 1), (C, "number dropped", "9*3=27,2 27\n", False, 0),
    (C, "list short", "9-5=4,3 4\n", False, 0), (C, "list long", "9-5=4,3 2 4 4\n", False, 0), (C, "list changed", "9-5=4,3 1 4\n", False, 0),
    (C, "list doubled", "9-5=4,3 3 4\n", False, 0), (C, "no result in the list", "9-5=4,3 2\n", False, 0),
    (C, "two spaces", "9-5=4,3  2 4\n", False, 0), (C, "space inside", "9-5=4,3 2 4\n3*2=6,4 6\n4*6=2 4,24\n", False, 2),
    (C, "space after the comma", "9-5=4, 3 2 4\n", False, 0), (C, "inexact", "9/5=1,3 2 1\n", False, 0), (C, "9%5", "9%5=4,3 2 4\n", False, 0),
    (C, "lands on the target", "9-5=4,3 2 4\n3*2=20,4 20\n4+20=24,24\n", False, 1), (C, "9//5", "9//5=1,3 2 1\n", False, 0),
    (C, "3**2", "3**2=9,9 5 9\n", False, 0), (C, "negative", "5-9=-4,3 2 -4\n", False, 0), (C, "absolute", "3-5=2,9 2 2\n", False, 0),
    (C, "5,000 parentheses", "(" * 5000 + "9" + ")" * 5000 + "-5=4,3 2 4\n", False, 0), (C, "list of 5,000", "9-5=4" + ",3" * 5000 + "\n", False, 0),
    (C, "5,000 digits left", "9-5=4,3 2 " + "4" * 5000 + "\n", False, 0), (C, "5,000 digits made", "9-5=" + "4" * 5000 + ",3 2 4\n", False, 0),
    ("6 6 2>18", "both of a pair", "6*2=12,6 12\n6+12=18,18\n", True, None), ("6 6 2>24", "pair too often", "6*2=12,6 12\n6+6=12,12 12\n", False, 1),
    ("6 2>36", "single used twice", "6*6=36,36\n", False, 0), ("4 4>8", "pair", "4+4=8,8\n", True, None), ("3 8 9>24", "one unused", "3*8=24,24\n", False, 0),
    ("5 5 3>3", "division by zero", "5-5=0,3 0\n3/0=3,3\n", False, 1), ("0 0>0", "0/0", "0/0=0,0\n", False, 0), ("0 5>0", "0/5", "0/5=0,0\n", True, None),
    ("999999998 1>999999999", "largest", "999999998+1=999999999,999999999\n", True, None),
    ("999999999 1 1>999999999", "too large", "999999999+1=1000000000,1 1000000000\n1000000000-1=999999999,999999999\n", False, 0),
    ("3 24 98>24", "24+3//98", "24+3//98=24,24\n", False, 0), ("24 99 98>24", "24+99**-98", "24+99**-98=24,24\n", False, 0),
    ("50 1 99 98 97>50", "50+1/99/98/97", "50+1/99/98/97=50,50\n", False, 0), ("3 4 5>14", "3.5*4", "3.5*4=14,14\n", False, 0)]


@pytest.mark.parametrize("prompt, completion, correct, first_error", [pytest.param(prompt, *case, id=ascii(f"{prompt[0]} {id}"))
                                                                      for prompt, id, *case in CASES])
def test_case(prompt, completion, correct, first_error):
    verdict = verify(parse_problem(prompt), completion)
    assert (verdict.correct, verdict.first_error) == (correct, first_error), verdict.reason
    assert verdict.reason.isprintable() and len(verdict.reason) < 300
