"""
One problem of the user's: its answer, how the model came to it, and what the value head thought on the way.

A model of answers searches by MCTS, and its tree is shown; a model of streams writes one stream. In a
conversation (`search.py --ask` without a prompt) lines are shown as they come.
"""
import os
import sys
from functools import partial

import numpy as np
import torch

from best_of_n import one_stream
from budget import Settings
from common import open_folder
from page import line_of, stream_page, tree_page, write_page
from tree import mcts_searches
from verify import NEWLINE, TASKS, decode, encode, make_problem, verify

WIDTH = 40                                  # columns for a line, before what is thought of it
DEEPEST = 400                               # columns by which a line of a tree that is shown is indented


# ------------------------------------------------------------------------------------------------------------
# A tree

def print_tree(search, node, indent=""):
    """The tree below a node: the line, visits, mean value, prior, value, and the verdict on what ended."""
    for child in sorted(node.children, key=lambda child: (-child.visits, -child.value)):
        mark = ""
        if child.finished:
            mark = "  right" if verify(search.problem, search.completion(child)).correct else "  wrong"
        line = line_of(child).ljust(WIDTH - len(indent))
        print(f"{indent}{line} N {child.visits:<4} Q {child.q:.2f}  P {child.prior:.2f}  "
              f"V {child.value:.2f}{mark}")
        if len(indent) < DEEPEST:
            print_tree(search, child, indent + "    ")


def print_step(node):
    """The line that a step of the search has found, if it has, and the value head's value of all up to it."""
    if node.parent and node.visits == 1:
        indent = "    " * min(node.parent.ids.count(NEWLINE) - 1, DEEPEST // 4)
        print(f"{indent}{line_of(node).ljust(WIDTH - len(indent))} value {node.head:.2f}", flush=True)


def show_search(model, problem, args, live):
    """Solve a problem by tree search and show the tree; live: first its lines, as they are found."""
    scorer, steps = "verifier" if TASKS[problem.task].checkable else "value", []

    def watch(search, node, value):
        steps.append((node, value, search.budget.spent))
        if live:
            print_step(node)
    settings = Settings(args.max_tokens, c_puct=args.c_puct, watch=watch)
    search, = mcts_searches(model, [problem], args.budgets[-1], settings, scorer)
    result = search.result()
    legend = "N visits, Q mean value backed up, P prior of the policy, V value head (at the end: who judges)"
    print("\n" * live + f"{problem.prompt.rstrip()}    {legend}\n")
    print_tree(search, search.root)
    print(f"\n{problem.prompt}{result.completion}", end="")
    finish(problem, result, args, partial(tree_page, search, steps))


# ------------------------------------------------------------------------------------------------------------
# A stream

def print_token(line, token, value):
    """
    The next token of a stream. line: those printed since the last line that is done with; value: P(correct)
    before this token, so if that was a newline, what all up to the end of the line is worth.
    """
    if line[-1] == NEWLINE:
        print(" " * (WIDTH + 1 - len(decode(line))), f"value {value:.2f}")
        line.clear()
    line.append(token)
    print(decode([token]).rstrip("\n"), end="", flush=True)


def show_stream(model, problem, args, live):
    """Show a stream on one problem; live: token by token, with a value beside each line."""
    tokens, line = [], encode(problem.prompt)

    def watch(token, value):
        tokens.append((token, value))
        if live:
            print_token(line, token, value)
    if live:
        print(problem.prompt.rstrip(), end="")
    settings = Settings(args.max_tokens, torch.Generator().manual_seed(args.seed), watch=watch)
    result, = one_stream(model, [problem], args.budgets[-1], settings)
    print("\n" if live else f"{problem.prompt}{result.completion.rstrip()}\n", end="")
    finish(problem, result, args, partial(stream_page, problem, tokens))


# ------------------------------------------------------------------------------------------------------------
# One problem, or one after another

def finish(problem, result, args, make_page):
    """Say how it ended, and write the page if one is asked for."""
    verdict = verify(problem, result.completion)
    outcome = f"{'solved' if verdict.correct else 'not solved'} ({verdict.reason}), {result.tokens} tokens"
    print(outcome)
    if args.html:
        write_page(args.html, make_page(), problem, outcome, args.init)


def show(model, problem, args, live=False):
    if not TASKS[problem.task].is_drawn(problem):
        print("note: no problem like this one was ever trained on: its numbers are too small or too large\n")
    (show_stream if args.streams else show_search)(model, problem, args, live)


def answer(model, problem, args):
    """Answer the problem of the command line, and show how."""
    if args.html:
        open_folder(*os.path.split(args.html))          # what cannot be written is told before the search
    print(f"checkpoint {args.init}\n")
    show(model, problem, args)


def typed_lines():
    """The lines of the standard input, each asked for if somebody sits there, until Ctrl-D."""
    asks = sys.stdin and sys.stdin.isatty()
    if sys.stdin:
        sys.stdin.reconfigure(errors="replace")
    while sys.stdin:
        try:
            yield input("\nproblem> " if asks else "").strip()
        except EOFError:
            break
    if asks:
        print()


def converse(model, read, args):
    """
    Answer the problems that are typed, one a line. read(text) is the problem; its ValueError is told, and the
    next may come.
    """
    example = make_problem(args.task, args.level, np.random.default_rng(args.seed)).prompt.rstrip()
    print(f"checkpoint {args.init}: {args.task}, level {args.level}, as in {example}; Ctrl-D ends")
    for text in filter(None, typed_lines()):
        try:
            show(model, read(text), args, live=True)
        except ValueError as error:
            print(f"error: {error}")
        sys.stdout.flush()
