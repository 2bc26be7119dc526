"""
Ask a model one problem: its answer, how it got there, and the value head's estimates on the way.

    python ask.py "45 4 21>62"              # the model of out/; before any training, results/model.pt
    python ask.py "45 4 21>62" --html page.html             # and a page that goes through it step by step
    python ask.py                           # problem after problem, until Ctrl-D

A model of streams writes one stream. One of worked solutions searches by MCTS, and its tree is shown. If
problems are typed in, not given in the command line, lines are shown as they come.
"""
import os
import sys
from functools import partial

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, check_level, open_folder, positive, run_script

import numpy as np
import torch

from best_of_n import one_stream
from budget import BUDGETS, STREAM_BUDGETS, Settings
from checkpoint import check_room, load_model
from page import check_name, line_of, stream_page, tree_page, write_page
from tree import mcts_searches
from verify import NEWLINE, TASKS, decode, encode, make_problem, parse_problem, state_value, tidy, verify

SHIPPED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results", "model.pt")
WIDTH = 40                                  # columns for a line, before its values
DEEPEST = 400                               # the largest indent of a line of a tree, in columns


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
    """The line that a step of the search has found, if any, and the value head's value after it."""
    if node.parent and node.visits == 1:
        indent = "    " * min(node.parent.ids.count(NEWLINE) - 1, DEEPEST // 4)
        print(f"{indent}{line_of(node).ljust(WIDTH - len(indent))} value {node.head:.2f}", flush=True)


def show_search(model, problem, args, live):
    """
    Solve a problem by tree search and show the tree; live: first its lines, as they are found. Returns the
    Result, and a function that makes its page.
    """
    scorer, steps = "verifier" if TASKS[problem.task].checkable else "value", []

    def watch(search, node, value):
        steps.append((node, value, search.budget.spent))
        if live:
            print_step(node)
    settings = Settings(args.max_tokens, c_puct=args.c_puct, watch=watch)
    search, = mcts_searches(model, [problem], args.budget, settings, scorer)
    result = search.result()
    legend = "N visits, Q mean value backed up, P prior of the policy, V value head (at the end: who judges)"
    print("\n" * live + f"{problem.prompt.rstrip()}    {legend}\n")
    print_tree(search, search.root)
    print(f"\n{problem.prompt}{result.completion}", end="")
    return result, partial(tree_page, search, steps)


# ------------------------------------------------------------------------------------------------------------
# A stream

def print_token(line, token, value):
    """
    The next token of a stream. line: the tokens of the current line so far; value: P(correct) before this
    token, so after a newline the value of all lines up to there.
    """
    if line[-1] == NEWLINE:
        print(" " * (WIDTH + 1 - len(decode(line))), f"value {value:.2f}")
        line.clear()
    line.append(token)
    print(decode([token]).rstrip("\n"), end="", flush=True)


def show_stream(model, problem, args, live):
    """
    Show a stream on one problem; live: token by token, with a value beside each line. Returns the same as
    show_search.
    """
    tokens, line = [], encode(problem.prompt)

    def watch(token, value):
        tokens.append((token, value))
        if live:
            print_token(line, token, value)
    if live:
        print(problem.prompt.rstrip(), end="")
    settings = Settings(args.max_tokens, torch.Generator().manual_seed(args.seed), watch=watch)
    result, = one_stream(model, [problem], args.budget, settings)
    print("\n" if live else f"{problem.prompt}{result.completion.rstrip()}\n", end="")
    return result, partial(stream_page, problem, tokens)


# ------------------------------------------------------------------------------------------------------------
# One problem, or one after another

def show(model, problem, args, live=False):
    """Solve a problem, say how it ended, and write the page if one is asked for."""
    if not TASKS[problem.task].is_drawn(problem):
        print("note: no problem like this one was ever trained on: its numbers are too small or too large\n")
    solve = show_stream if args.streams else show_search
    result, make_page = solve(model, problem, args, live)
    verdict = verify(problem, result.completion)
    outcome = f"{'solved' if verdict.correct else 'not solved'} ({verdict.reason}), {result.tokens} tokens"
    print(outcome)
    if args.html:
        write_page(args.html, make_page(), problem, outcome, args.init)


def check_problem(problem, text, model, args):
    """ValueError says why this model cannot be asked a problem, which was typed as this text."""
    check_level(problem, args)
    check_room(model, [encode(problem.prompt)], args.max_tokens)
    if not state_value(problem, ""):
        raise ValueError(f"{text} has no solution that uses every number once: all ways were tried")


def take_its_level(problem, args):
    """Set args.level to that of the problem, whatever the model was trained on, unless --level is given."""
    if "level" not in args.given and problem.task == args.task:
        args.level = problem.level
        if "max_tokens" not in args.given:
            args.max_tokens = max(args.max_tokens, TASKS[args.task].max_tokens(args.level))


def typed_lines():
    """The lines of the standard input until Ctrl-D, with a prompt for each if it is a terminal."""
    if not sys.stdin:                       # closed
        return
    asks = sys.stdin.isatty()
    sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            yield input("\nproblem> " if asks else "").strip()
        except EOFError:
            break
    if asks:
        print()


def converse(model, args):
    """Answer the problems that are typed, one a line. For a bad one, say why, and go on with the next."""
    example = make_problem(args.task, args.level, np.random.default_rng(args.seed)).prompt.rstrip()
    print(f"checkpoint {args.init}: {args.task}, level {args.level}, as in {example}; Ctrl-D ends")
    for text in filter(None, typed_lines()):
        try:
            problem = parse_problem(tidy(text))
            check_problem(problem, text, model, args)
            show(model, problem, args, live=True)
        except ValueError as error:
            print(f"error: {error}")
        sys.stdout.flush()


# ------------------------------------------------------------------------------------------------------------
# The script

def make_parser():
    parser = Parser(description="Ask a model a problem, and see how it comes to its answer.")
    parser.add_argument("problem", nargs="?", metavar="PROBLEM",
                        help='in quotes, as in "45 4 21>62"; without one, those that you type or pipe in, '
                             "one a line, until Ctrl-D")
    parser.shared("--init", "--task", "--level", "--max-tokens")
    parser.add_argument("--budget", type=positive, metavar="N",
                        help="the most tokens that it may take (default 300, for a model of streams 1024)")
    parser.shared("--c-puct")
    parser.add_argument("--html", metavar="FILE",
                        help="write a page that shows how the problem was solved, step by step")
    parser.shared("--out", "--device", "--seed")
    return parser


def main():
    parser = make_parser()
    args = parser.parse_args()
    with parser.errors():
        if args.html and not args.problem:
            raise ValueError("--html shows one problem: give it, too")
        if args.html:
            check_name(args.html)
        # A given folder means the model in it
        model = load_model(args, None if "out" in args.given else SHIPPED)
        args.budget = args.budget or (STREAM_BUDGETS if args.streams else BUDGETS)[-1]
        if not args.problem:
            return converse(model, args)
        problem = parse_problem(tidy(args.problem))
        take_its_level(problem, args)
        check_problem(problem, args.problem, model, args)
    if args.html:
        open_folder(*os.path.split(args.html))          # fails before the search, not after it
    print(f"checkpoint {args.init}\n")
    show(model, problem, args)


if __name__ == "__main__":
    run_script(main)
