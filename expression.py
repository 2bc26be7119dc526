"""
Expression: work out a term, an operation a line.

    (12+7)*3-5=            the prompt
    19*3-5                 a step: the same value, with at least one operation done
    57-5
    52                     the last line is a plain integer: the answer

A level is how many operators there are. Usual precedence, left to right, no unary signs; every value inside
is an integer from 0 to 999,999,999. Going straight to `52` is legal: that is the direct answer, without a
chain of thought. Every right step leads to the answer, so no search is needed, only correct arithmetic; and
as the answer is unique, a vote over answers makes sense. The state is the text of the last line.

eval is never called: a shunting-yard parser walks through each line once and computes as it reads.
"""
import re
from dataclasses import dataclass

from task import MAX_VALUE, NUMBER, Problem, Task, compute, show

VALUES = range(100)                         # of the problems that are drawn
PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(slots=True)
class Node:
    """A number, or an operation on two nodes."""
    value: int
    op: str = ""
    left: "Node" = None
    right: "Node" = None
    n_operators: int = 0


class Expression(Task):
    name = "expression"
    unit = "operators"
    levels = range(1, 9)
    default_level = 4
    rules = "Work it out: each line has the same value and fewer operators. `wait` takes steps back."
    example = "(12+7)*3-5="

    def looks_like_prompt(self, text):
        return text.endswith("=")

    def parse(self, text):
        try:
            tree = parse(text[:-1])
        except ValueError as error:
            raise ValueError(f"{show(text)} is not an expression prompt: {error}") from None
        return make_problem(text, tree)

    def start(self, problem):
        return problem.prompt.removesuffix("=\n")

    def step(self, problem, state, line):
        try:
            tree = parse(line)
        except ValueError as error:
            return None, str(error)
        if tree.value != problem.target:
            return None, f"its value is {tree.value}, not {problem.target}"
        if tree.n_operators >= count_operators(state):
            return None, "it has no fewer operators than the line above"
        return line, ""

    def restate(self, problem, state):
        return state + "="

    def is_solved(self, problem, state):
        return NUMBER.fullmatch(state) is not None

    def is_solvable(self, problem, state):
        # (52) has no operator left to do, and is no plain integer
        return self.is_solved(problem, state) or count_operators(state) > 0

    def unsolved_reason(self, problem, state):
        return "no plain integer stands at the end"

    def solve(self, problem, rng=None):
        return work_out(parse(problem.prompt[:-2]))

    def max_tokens(self, level):
        # A line with k operators: k + 1 numbers and the character after each, "123+"; k - 1 bracket pairs.
        return sum(4 * (k + 1) + 2 * max(0, k - 1) for k in range(level)) + 1

    def is_drawn(self, problem):
        return problem.target in VALUES

    def draw(self, level, n, rng, accept, progress, targets=None):
        problems, solutions = [], []
        while len(problems) < n:
            value = int(rng.integers(len(VALUES)) if targets is None else rng.choice(targets))
            tree = grow(value, level, rng)
            problem = make_problem(write(tree) + "=", tree)
            if accept(problem):
                problems.append(problem)
                solutions.append(work_out(tree))
        return problems, solutions


def make_problem(text, tree):
    numbers = tuple(map(int, re.findall("[0-9]+", text)))
    return Problem("expression", tree.n_operators, text + "\n", numbers, tree.value)


def count_operators(text):
    return sum(map(text.count, "+-*/"))


def parse(text):
    """
    The tree of a text, by Dijkstra's shunting-yard: linear, no recursion. ValueError says what is wrong with
    the text.
    """
    nodes, operators, want_operand = [], [], True
    for token in re.findall(r"[0-9]+|[\s\S]", text):
        if want_operand:
            if token == "(":
                operators.append(token)
            elif NUMBER.fullmatch(token):
                nodes.append(Node(int(token)))
                want_operand = False
            else:
                raise ValueError(f"a number or ( is missing before {show(token)}")
        elif token in "+-*/":
            while operators and PRECEDENCE[operators[-1]] >= PRECEDENCE[token]:
                reduce_top(nodes, operators)
            operators.append(token)
            want_operand = True
        elif token == ")":
            while operators and operators[-1] != "(":
                reduce_top(nodes, operators)
            if not operators:
                raise ValueError("a ) too many")
            operators.pop()
        else:
            raise ValueError(f"an operator is missing before {show(token)}")
    if want_operand:
        raise ValueError("it ends where a number is missing")
    while operators:
        if operators[-1] == "(":
            raise ValueError("a ( is never closed")
        reduce_top(nodes, operators)
    return nodes[0]


def reduce_top(nodes, operators):
    """Apply the last operator to the last two nodes."""
    right, left, op = nodes.pop(), nodes.pop(), operators.pop()
    nodes.append(join(left, op, right))


def join(left, op, right):
    value = compute(left.value, op, right.value)
    if value is None:
        raise ValueError(f"{left.value}{op}{right.value} is not an integer from 0 to {MAX_VALUE}")
    return Node(value, op, left, right, left.n_operators + right.n_operators + 1)


def write(node, outer=0):
    """The text of a tree, with parentheses where its structure needs them."""
    if not node.op:
        return str(node.value)
    precedence = PRECEDENCE[node.op]
    text = write(node.left, precedence) + node.op + write(node.right, precedence + 1)
    return f"({text})" if precedence < outer else text


def work_out(tree):
    """The completion that does one operation a line, always the first that can be done."""
    lines = []
    while tree.op:
        tree = reduce_first(tree)
        lines.append(write(tree) + "\n")
    return "".join(lines)


def reduce_first(node):
    if node.left.op:
        return join(reduce_first(node.left), node.op, node.right)
    if node.right.op:
        return join(node.left, node.op, reduce_first(node.right))
    return Node(node.value)


def grow(value, n_operators, rng):
    """
    A random tree of this value, grown from the top down, so that every value inside is legal by construction.
    """
    if n_operators == 0:
        return Node(value)
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
    if a > 999:                             # keep the numbers small
        return grow(value, n_operators, rng)
    n_left = int(rng.integers(n_operators))
    return join(grow(a, n_left, rng), op, grow(b, n_operators - 1 - n_left, rng))


TASK = Expression()
