"""
Problems, the language they are written in, and the exact judge of every answer and every step.

    python verify.py                # a tour: a problem of each task, and what the verifier says to cheats (1 s)

Two tasks. In countdown the target must be made from all the numbers; in expression a term must be worked out:

    9 3 5 2>24                      (12+7)*3-5=
    9-5=4,3 2 4                     19*3-5
    3*2=6,4 6                       57-5
    4*6=24,24                       52

The first line is the prompt, what follows is the completion. A line `wait` takes back the last step that stands, a line
`?yes` or `?no` is the writer's own verdict. Everything is an integer from 0 to 999,999,999. Nothing is ever passed to
eval: a line is either matched by a regular expression or walked through once by a shunting-yard parser.

Problems are solved by enumerating every path, all problems of a batch at once, in numpy. So the same few lines generate
training data, and know for every partial solution whether it can still be finished (`state_value`).
"""
import argparse
import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from operator import index

import numpy as np
import tiktoken

MAX_VALUE = 999_999_999
TEST_SEED = 20240912                        # the fixed seed of the test problems, the same in every script
LEVELS = {"countdown": range(2, 7), "expression": range(1, 9)}      # how many numbers; how many operators
DEFAULT_LEVEL = {"countdown": 3, "expression": 4}

# ------------------------------------------------------------------------------------------------------------------
# The language: 27 tokens, a vocabulary padded to 64

PAD, EOS, NEWLINE = 0, 1, 2
VOCAB_SIZE = 64
_WORDS = [*"\n0123456789+-*/()=,>? ", "wait", "yes", "no"]          # ids from 2
_RANKS = {word.encode(): NEWLINE + i for i, word in enumerate(_WORDS)}
_UNUSED = {f"<|unused{i}|>": i for i in range(NEWLINE + len(_WORDS), VOCAB_SIZE)}
_OTHER_BYTES = [bytes([b]) for b in range(256) if bytes([b]) not in _RANKS]     # tiktoken wants all 256 bytes
_RANKS |= {byte: VOCAB_SIZE + i for i, byte in enumerate(_OTHER_BYTES)}
ENCODING = tiktoken.Encoding("tinyo1", pat_str=r"wait|yes|no|[\s\S]", mergeable_ranks=_RANKS,
                             special_tokens={"<|pad|>": PAD, "<|eos|>": EOS, **_UNUSED})


def encode(text):
    """Token ids of a text. Never yields <|pad|> or <|eos|>. ValueError names the first character outside the language."""
    ids = ENCODING.encode_ordinary(text)
    if ids and max(ids) >= VOCAB_SIZE:
        bad = next(piece for piece in re.findall(r"wait|yes|no|[\s\S]", text) if piece not in _WORDS)
        raise ValueError(f"character {ascii(bad)} is not in the language of the traces: digits, + - * / ( ) = , > ?, "
                         "space, newline, and the words wait, yes, no")
    return ids


def decode(ids):
    """The text of token ids; special tokens by their names. KeyError on an id the encoding does not have."""
    return ENCODING.decode(ids)


# ------------------------------------------------------------------------------------------------------------------
# Problems

@dataclass(frozen=True)
class Problem:
    task: str
    prompt: str                             # ends in a newline
    numbers: tuple                          # the numbers as they stand in the prompt
    target: int                             # countdown: the number to reach; expression: the value

    @property
    def level(self):
        return len(self.numbers) if self.task == "countdown" else len(self.numbers) - 1


_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")  # [0-9], never \d: that one takes digits of every script
_COUNTDOWN_PROMPT = re.compile(rf"({_NUMBER.pattern})(?: ({_NUMBER.pattern}))+>({_NUMBER.pattern})")
# *+ is possessive: there is nothing to try again in a list of numbers, so no memory is spent on being able to.
_COUNTDOWN_STEP = re.compile(r"(N)([-+*/])(N)=(N),(N(?: N)*+)".replace("N", f"(?:{_NUMBER.pattern})"))


def parse_problem(text):
    """The problem written in a text such as "9 3 5 2>24" or "(12+7)*3-5=", newline optional. ValueError says what is wrong."""
    body = text.removesuffix("\n")
    if ">" in body:
        if not _COUNTDOWN_PROMPT.fullmatch(body):
            raise ValueError(f"{_show(body)} is not a countdown prompt: numbers from 0 to {MAX_VALUE} separated by single "
                             'spaces, ">", the target, as in "9 3 5 2>24"')
        left, target = body.split(">")
        problem = Problem("countdown", body + "\n", tuple(map(int, left.split(" "))), int(target))
    elif body.endswith("="):
        try:
            value, n_operators, _ = parse_expression(body[:-1])
        except ValueError as error:
            raise ValueError(f"{_show(body)} is not an expression prompt: {error}") from None
        problem = Problem("expression", body + "\n", tuple(map(int, re.findall("[0-9]+", body))), value)
    else:
        raise ValueError(f'{_show(body)} is not a prompt: write "9 3 5 2>24" (countdown) or "(12+7)*3-5=" (expression)')
    if problem.level not in LEVELS[problem.task]:
        levels, unit = LEVELS[problem.task], "numbers" if problem.task == "countdown" else "operators"
        raise ValueError(f"{_show(body)} has {problem.level} {unit}: {levels[0]} to {levels[-1]} are allowed")
    return problem


def split_of(problem):
    """ "test" for one problem in ten, by a hash in which the order of countdown's numbers does not matter, else "train"."""
    key = problem.prompt
    if problem.task == "countdown":
        key = f"{sorted(problem.numbers)}>{problem.target}"
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % 10 == 0 else "train"


def make_problems(task, level, n, rng, split="train", targets=None, hard=0.0):
    """
    n solved problems: (list of Problem, list of completions), all of one split. For countdown only: targets, the targets
    allowed, and hard, the share of problems whose solution must multiply or divide (of the others, three in ten do).
    """
    if task not in LEVELS or level not in LEVELS[task]:
        raise ValueError(f"no task {task} at level {level}: " + ", ".join(
            f"{name} has levels {levels[0]} to {levels[-1]}" for name, levels in LEVELS.items()))
    if split not in ("train", "test"):
        raise ValueError(f'no split {split!r}: "train" or "test"')
    make = _make_countdown if task == "countdown" else _make_expressions
    return make(level, n, rng, split, targets, hard)


def make_problem(task, level, rng, split="train", targets=None):
    return make_problems(task, level, 1, rng, split, targets)[0][0]


def test_problems(task, level, n):
    """The problems that every script measures on: the first n of an endless list, drawn in blocks of 200."""
    blocks = (make_problems(task, level, 200, np.random.default_rng([TEST_SEED, block]), "test")[0] for block in range(-(-n // 200)))
    return [problem for block in blocks for problem in block][:n]


test_problems.__test__ = False              # not a test, whatever pytest makes of the name


def choose_task(args, trained=None):
    """(task, level, attempts) of a script's flags; where they are not given those of a checkpoint's, `trained`, else the defaults."""
    trained = trained or {"task": "countdown", "level": DEFAULT_LEVEL["countdown"]}
    task = args.task or trained["task"]
    level = args.level or (trained["level"] if task == trained["task"] else DEFAULT_LEVEL[task])
    return task, level, args.attempts or trained.get("attempts", 1)


def max_tokens(task, level, attempts=1):
    """Room for so many worked solutions of a level, and <|eos|>, with a little to spare."""
    return attempts * (2 * level ** 2 + 12 * level - 14 if task == "countdown" else 2 * level ** 2 + 4 * level + 4)


def labelled_states(task, level, n=2000):
    """
    What a value head can be measured on: n test problems of countdown, each with one or more random legal steps but not all, and
    whether it can still be solved: (list of token ids, list of bool). Empty where there is no such thing.
    """
    if task != "countdown" or level < 3:
        return [], []
    rng, problems = np.random.default_rng(TEST_SEED), test_problems(task, level, n)
    steps = [random_lines(problem.numbers, rng.integers(1, level - 1), rng)[0] for problem in problems]
    return [encode(problem.prompt + lines) for problem, lines in zip(problems, steps)], [state_value(*pair) for pair in zip(problems, steps)]


def make_judge(problems):
    """The judge of samples: judge(i, ids) is whether ids, the tokens before <|eos|> (None if it never came), solve problem i."""
    return lambda i, ids: ids is not None and verify(problems[i], decode(ids)).correct


def solve(problem, rng):
    """One worked solution as a completion, drawn from all of them by rng; None if there is none. Expressions have one order."""
    if problem.task == "expression":
        return _work_out(parse_expression(problem.prompt[:-2])[2])
    hits = np.flatnonzero(find_hits(np.array([problem.numbers]), problem.target))
    return _write_path(problem.numbers, rng.choice(hits)) if len(hits) else None


# ------------------------------------------------------------------------------------------------------------------
# Countdown: every path, by brute force

@lru_cache
def _pairs(n):
    return list(combinations(range(n), 2))


def expand_pairs(states):
    """
    One step for each pair of numbers and each operator: states (n, M) -> children (n - 1, K, M), legal (K, M), where
    K = 4 n (n-1) / 2, pairs before operators. The larger number stands first; the result is the last of a child's numbers.
    M states lie side by side, so that numpy's loops are long.
    """
    n, M = states.shape
    pairs = _pairs(n)
    children = np.empty((n - 1, len(pairs), 4, M))                              # float64 is exact far beyond MAX_VALUE
    for p, (i, j) in enumerate(pairs):
        a, b = np.maximum(states[i], states[j]), np.minimum(states[i], states[j])       # (M,)
        for k, other in enumerate(k for k in range(n) if k not in (i, j)):
            children[k, p] = states[other]
        quotient = np.divide(a, b, out=np.full(M, 0.5), where=b > 0)            # 0.5 stands for no integer
        children[-1, p] = a + b, a - b, a * b, quotient                         # (4, M)
    legal = children[-1] <= MAX_VALUE                                           # (P, 4, M)
    legal[:, 3] &= children[-1, :, 3] == np.floor(children[-1, :, 3])
    return children.reshape(n - 1, -1, M), legal.reshape(-1, M)


def find_hits(numbers, targets):
    """Which of all paths end in the target: (B, n), (B,) -> (L, B) of bool; L = 4, 48, 1152, 46080, … for n = 2, 3, 4, 5, …"""
    B, n = numbers.shape
    states, legal = np.asarray(numbers, dtype=np.float64).T, np.ones((1, B), dtype=bool)
    while len(states) > 2:
        states, ok = expand_pairs(states.reshape(len(states), -1))              # (n - 1, K, L B), (K, L B)
        legal = (ok.reshape(len(ok), *legal.shape) & legal).reshape(-1, B)
    x, y = states.reshape(2, -1, B)                                             # the last step is only compared, not taken
    a, b = np.maximum(x, y), np.minimum(x, y)                                   # (L / 4, B)
    hit = np.stack([a + b == targets, a - b == targets, a * b == targets, (b * targets == a) & (b > 0)])
    return (hit & legal).reshape(-1, B)


@lru_cache(maxsize=100_000)
def _reachable(numbers, target):
    return len(numbers) > 1 and bool(find_hits(np.array([numbers]), target).any())


def _step(numbers, i, j, op):
    """Put numbers i and j together, the larger first: (line, numbers left), or None if that is not legal."""
    b, a = sorted((numbers[i], numbers[j]))
    result = compute(a, op, b)
    if result is None:
        return None
    left = [x for k, x in enumerate(numbers) if k not in (i, j)] + [result]
    return f"{a}{op}{b}={result},{' '.join(map(str, left))}\n", left


def legal_steps(numbers):
    """All (line, numbers left) that can come next in countdown, none twice; of a+b and b+a, and so on, only the larger first."""
    steps = (_step(numbers, i, j, op) for i, j in _pairs(len(numbers)) for op in "+-*/")
    return list(dict(step for step in steps if step).items())


def random_lines(numbers, n, rng, below=MAX_VALUE + 1):
    """(text, numbers left) after n steps of countdown drawn at random from the legal ones whose results are below a limit."""
    text, left = "", list(numbers)
    for _ in range(n):
        steps = [(line, after) for line, after in legal_steps(left) if after[-1] < below]
        line, left = steps[rng.integers(len(steps))]
        text += line
    return text, left


def _write_path(numbers, path):
    """The completion that takes the path with this leaf index; the first step is its lowest digit."""
    lines = []
    while len(numbers) > 1:
        pairs = _pairs(len(numbers))
        path, choice = divmod(path, 4 * len(pairs))
        line, numbers = _step(numbers, *pairs[choice // 4], "+-*/"[choice % 4])
        lines.append(line)
    return "".join(lines)


def _multiplies(paths, n):
    """Which of these leaf indices (M,) of n numbers multiply or divide on their way: (M,) of bool."""
    found = np.zeros(len(paths), dtype=bool)
    for left in range(n, 1, -1):
        paths, choice = np.divmod(paths, 2 * left * (left - 1))
        found |= choice % 4 >= 2            # the operators are +-*/
    return found


def _make_countdown(level, n, rng, split, targets, hard):
    """Target first, then numbers until it can be reached (Gandhi et al. 2024, Stream of Search, section 3.1)."""
    wanted = rng.choice(range(10, 101) if targets is None else [index(target) for target in targets], n)
    problems, solutions, open_rows, draws = [None] * n, [None] * n, np.arange(n), 0
    width = {2: 1024, 3: 512, 4: 32, 5: 4, 6: 1}[level]                         # draws at once: so that they fit the cache
    while len(open_rows):
        rows = np.resize(open_rows, width)                                      # the fewer are open, the more draws for each
        numbers = rng.integers(1, 100, (width, level))
        hits = find_hits(numbers, wanted[rows])                                 # (L, width)
        paths = hits.argmax(0)              # the first path, not a random one: fewer ways to be right are learnt faster
        gives_up = rng.random(width) < 0.02                             # with 2 numbers, some targets are sums only
        good = hits.any(0) & ((rows >= hard * n) | _multiplies(paths, level) | gives_up)
        for k in np.flatnonzero(good):
            row, drawn = rows[k], tuple(numbers[k].tolist())
            if problems[row] is None:
                prompt = f"{' '.join(map(str, drawn))}>{wanted[row]}\n"
                problem = Problem("countdown", prompt, drawn, int(wanted[row]))
                if split_of(problem) == split:
                    problems[row], solutions[row] = problem, _write_path(drawn, int(paths[k]))
        open_rows = np.array([row for row in open_rows if problems[row] is None])
        draws += width
        if draws > 100_000 * (n + 10):
            raise ValueError(f"no {level} numbers from 1 to 99 found that make {wanted[open_rows[0]]}")
    return problems, solutions


# ------------------------------------------------------------------------------------------------------------------
# Expressions. A node is (value, operator or None, left, right).

_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2}


def compute(a, op, b):
    """a op b, or None where that is not an integer from 0 to 999,999,999."""
    if op == "/":
        return a // b if b and a % b == 0 else None
    c = a + b if op == "+" else a - b if op == "-" else a * b
    return c if 0 <= c <= MAX_VALUE else None


def parse_expression(text):
    """
    (value, number of operators, tree) of a text, by Dijkstra's shunting-yard: linear, no recursion. ValueError says what
    is wrong with it.
    """
    nodes, operators, n_operators, want_operand = [], [], 0, True

    def reduce_top():
        (right, left), op = (nodes.pop(), nodes.pop()), operators.pop()
        value = compute(left[0], op, right[0])
        if value is None:
            raise ValueError(f"{left[0]}{op}{right[0]} is not an integer from 0 to {MAX_VALUE}")
        nodes.append((value, op, left, right))

    for token in re.findall(r"[0-9]+|[\s\S]", text):
        if want_operand:
            if token == "(":
                operators.append(token)
            elif _NUMBER.fullmatch(token):
                nodes.append((int(token), None, None, None))
                want_operand = False
            else:
                raise ValueError(f"a number or ( is missing before {_show(token)}")
        elif token in "+-*/":
            while operators and _PRECEDENCE[operators[-1]] >= _PRECEDENCE[token]:
                reduce_top()
            operators.append(token)
            n_operators, want_operand = n_operators + 1, True
        elif token == ")":
            while operators and operators[-1] != "(":
                reduce_top()
            if not operators:
                raise ValueError("a ) too many")
            operators.pop()
        else:
            raise ValueError(f"an operator is missing before {_show(token)}")
    if want_operand:
        raise ValueError("it ends where a number is missing")
    while operators:
        if operators[-1] == "(":
            raise ValueError("a ( is never closed")
        reduce_top()
    return nodes[0][0], n_operators, nodes[0]


def _write_tree(node, outer=0):
    """The text of a tree, with parentheses where its structure needs them."""
    value, op, left, right = node
    if op is None:
        return str(value)
    precedence = _PRECEDENCE[op]
    text = _write_tree(left, precedence) + op + _write_tree(right, precedence + 1)
    return f"({text})" if precedence < outer else text


def _work_out(tree):
    """A completion that does one operation a line, always the first that can be done."""
    def reduce_first(node):
        value, op, left, right = node
        if left[1] is not None:
            return value, op, reduce_first(left), right
        if right[1] is not None:
            return value, op, left, reduce_first(right)
        return value, None, None, None

    lines = []
    while tree[1] is not None:
        tree = reduce_first(tree)
        lines.append(_write_tree(tree) + "\n")
    return "".join(lines)


def _grow(value, n_operators, rng):
    """A random tree of this value, grown from the top down, so that every value inside is legal by construction."""
    if n_operators == 0:
        return value, None, None, None
    op = "+-*/"[rng.integers(4)]
    if op == "+":
        b = int(rng.integers(0, value + 1))
        a = value - b
    elif op == "-":
        b = int(rng.integers(1, 100))
        a = value + b
    elif op == "*":
        divisors = [d for d in range(1, value + 1) if value % d == 0] or [int(rng.integers(1, 10))]
        b = divisors[rng.integers(len(divisors))]
        a = value // b
    else:
        b = int(rng.integers(2, 10))
        a = value * b
    if a > 999:                                                                 # keep it mental arithmetic
        return _grow(value, n_operators, rng)
    n_left = int(rng.integers(n_operators))
    return value, op, _grow(a, n_left, rng), _grow(b, n_operators - 1 - n_left, rng)


def _make_expressions(level, n, rng, split, targets, hard):
    problems, solutions = [], []
    while len(problems) < n:
        tree = _grow(int(rng.integers(100)), level, rng)
        problem = parse_problem(_write_tree(tree) + "=")
        if split_of(problem) == split:
            problems.append(problem)
            solutions.append(_work_out(tree))
    return problems, solutions


# ------------------------------------------------------------------------------------------------------------------
# The verifier

@dataclass(frozen=True)
class Verdict:
    correct: bool
    first_error: int | None                 # the first standing line that is a wrong step, from 0; None if there is none
    reason: str


def _countdown_step(problem, left, line):
    """What a line leaves of the numbers left: (numbers, "") or (None, what is wrong)."""
    match = _COUNTDOWN_STEP.fullmatch(line)
    if not match:
        return None, "not of the form a+b=c,numbers left"
    a, op, b, c = int(match[1]), match[2], int(match[3]), int(match[4])
    rest = list(left)
    for number in (a, b):
        if number not in rest:
            return None, f"{number} is not among the numbers left, {' '.join(map(str, left))}"
        rest.remove(number)
    if compute(a, op, b) != c:
        return None, f"{a}{op}{b} is not {c}"
    rest.append(c)
    listed = match[5].split(" ")
    if len(listed) != len(rest) or sorted(map(int, listed)) != sorted(rest):
        return None, f"the numbers left are {' '.join(map(str, rest))}"
    return tuple(rest), ""


def _expression_step(problem, n_above, line):
    """How many operators a line leaves, -1 for a plain integer: (number, "") or (None, what is wrong)."""
    try:
        value, n_operators, _ = parse_expression(line)
    except ValueError as error:
        return None, str(error)
    if value != problem.target:
        return None, f"its value is {value}, not {problem.target}"
    if n_operators >= n_above:
        return None, "it has no fewer operators than the line above"
    return (-1 if _NUMBER.fullmatch(line) else n_operators), ""


def _replay(problem, completion):
    """
    Read a completion line by line: (the steps that stand, as (line number, state or None if wrong, what is wrong);
    a fault of structure or None; whether the last word was ?yes). The prompt itself is the first of the steps.
    """
    step = _countdown_step if problem.task == "countdown" else _expression_step
    standing = [(-1, problem.numbers if problem.task == "countdown" else problem.level, "")]
    said_yes = False
    for number, line in enumerate(completion.split("\n")[:-1]):
        if said_yes:
            return standing, "something follows ?yes", True
        if line == "wait":
            if len(standing) == 1:
                return standing, "wait with nothing to take back", False
            standing.pop()
        elif line in ("?yes", "?no"):
            said_yes = line == "?yes"
        elif standing[-1][1] is None:
            standing.append((number, None, "built on a wrong line"))
        else:
            standing.append((number, *step(problem, standing[-1][1], line)))
    return standing, None, said_yes


def _solved(problem, state):
    return state == (problem.target,) if problem.task == "countdown" else state == -1


def verify(problem, completion):
    """
    Judge a completion by the steps that stand at its end. Exact, linear in the length of the text, never raises on any str.
    first_error counts every line of the completion; dead ends and faults of structure set the reason only.
    """
    standing, fault, _ = _replay(problem, completion)
    for number, state, why in standing:
        if state is None:
            return Verdict(False, number, f"line {number}: {why}")
    if fault:
        return Verdict(False, None, fault)
    if not completion.endswith("\n"):
        return Verdict(False, None, "cut off in mid-line" if completion else "empty")
    state = standing[-1][1]
    if _solved(problem, state):
        return Verdict(True, None, "correct")
    if problem.task == "expression":
        return Verdict(False, None, "no plain integer stands at the end")
    if len(state) == 1:
        return Verdict(False, None, f"dead end: {state[0]} is left, not {problem.target}")
    return Verdict(False, None, f"unfinished: {' '.join(map(str, state))} are left")


def state_value(problem, prefix):
    """
    Whether the steps that stand at the end of a prefix can lead to a correct completion with none of them taken back.
    Exact, by enumeration. An unfinished last line is ignored.
    """
    standing, fault, said_yes = _replay(problem, prefix)
    state = standing[-1][1]
    if fault or state is None:
        return False
    if said_yes or _solved(problem, state):
        return _solved(problem, state)
    return state > 0 if problem.task == "expression" else _reachable(tuple(sorted(state)), problem.target)


def first_wrong_turn(problem, completion):
    """
    The number, from 0, of the first standing line after which the problem can no longer be solved without taking a step
    back: a wrong step, or a right one that leads nowhere. None if there is none.
    """
    standing, lines = _replay(problem, completion)[0], completion.splitlines(keepends=True)
    steps = [lines[number] for number, _, _ in standing[1:]]
    return next((standing[n][0] for n in range(1, len(steps) + 1) if not state_value(problem, "".join(steps[:n]))), None)


def standing_lines(completion):
    """The numbers, from 0, of the lines that stand at the end: no verdict, no `wait`, not taken back."""
    standing = []
    for number, line in enumerate(completion.split("\n")[:-1]):
        if line == "wait":
            standing = standing[:-1]
        elif line not in ("?yes", "?no"):
            standing.append(number)
    return standing


def without_verdict(completion):
    """A completion without the verdict at its end, if there is one."""
    return completion.removesuffix("?yes\n").removesuffix("?no\n")


def imitated_lines(completion, correct):
    """
    Which lines of a trace are worth imitating: of a correct one the steps that stand, `wait`s and verdicts; of another
    the verdicts only. A last verdict that is false is not. A list of bool, one for each line.
    """
    standing, lines = standing_lines(completion), completion.split("\n")[:-1]
    imitated = [line in ("?yes", "?no") or correct and (line == "wait" or number in standing) for number, line in enumerate(lines)]
    if lines and lines[-1] == ("?no" if correct else "?yes"):
        imitated[-1] = False
    return imitated


def read_traces(path):
    """The traces of a JSON-lines file as dicts; ValueError names the file and the line that is wrong."""
    traces = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                trace = json.loads(line)
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
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            traces.append(trace)
    if not traces:
        raise ValueError(f"{path} holds no traces")
    return traces


def _show(text, limit=40):
    """A text as one printable ASCII line of bounded length, whatever is in it."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")


# ------------------------------------------------------------------------------------------------------------------
# The tour

CHEATS = {
    "9 3 5 2>24": {
        "a solution": "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n",
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
        "text after ?yes": "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n?yes\n?yes\n",
    },
    "(12+7)*3-5=": {
        "a solution": "19*3-5\n57-5\n52\n",
        "the direct answer": "52\n",
        "a wrong step, right answer": "19*3-4\n57-5\n52\n",
        "more work, not less": "(12+7)*3-5\n52\n",
        "a unary sign": "+52\n",
        "not a plain integer": "(52)\n",
        "an underscore": "5_2\n",
        "a power": "19*3-5**1\n52\n",
    },
}


def main():
    parser = argparse.ArgumentParser(description="A tour of the tasks and of their verifier.")
    parser.add_argument("--seed", type=int, default=0, help="which problems to show (default 0)")
    rng = np.random.default_rng(parser.parse_args().seed)
    for task, level in DEFAULT_LEVEL.items():
        problem = make_problem(task, level, rng)
        print(f"{task}, level {level}\n\n{problem.prompt}{solve(problem, rng)}")
    for prompt, completions in CHEATS.items():
        print(f"what the verifier says to completions of {prompt}\n")
        for name, completion in completions.items():
            verdict = verify(parse_problem(prompt), completion)
            print(f"  {'right' if verdict.correct else 'WRONG'}  {name:27} {ascii(completion):64} {verdict.reason}")
        print()


if __name__ == "__main__":
    main()
