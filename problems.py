"""
The problems that a search is given: held-out ones, those of a file, or what a user types.
"""
import re

import numpy as np

from streams import SEEN_TARGETS
from verify import TASKS, encode, held_out_problems, make_problems, parse_problem, state_value


def load_problems(args):
    """What to measure on: a file's problems, fresh training problems for --save, else held-out ones."""
    if args.save:
        rng, targets = np.random.default_rng([args.seed, 2]), SEEN_TARGETS if args.streams else None
        return make_problems(args.task, args.level, args.n_problems, rng, targets=targets)[0]
    if not args.problems:
        return held_out_problems(args.task, args.level, args.n_problems, args.split)
    problems = []
    with open(args.problems, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                problems.append(check_level(parse_problem(tidy(line)), args))
            except ValueError as error:
                raise ValueError(f"{args.problems}, line {number}: {error}") from None
    if not problems:
        raise ValueError(f"{args.problems} holds no problems")
    return problems


def read_problem(text, model, args, at_its_level=False):
    """The problem in a text, if this model can be asked it. ValueError says why not."""
    problem = parse_problem(tidy(text))
    if at_its_level:
        allow_its_level(problem, args)
    check_level(problem, args)
    check_room(model, [problem], args.max_tokens)
    if not state_value(problem, ""):
        raise ValueError(f"{text} has no solution that uses every number once: all ways were tried")
    return problem


def allow_its_level(problem, args):
    """Ask a problem at its own level, whatever the model was trained on, unless --level says otherwise."""
    if "level" not in args.given and problem.task == args.task:
        args.level = problem.level
        if "max_tokens" not in args.given:
            args.max_tokens = max(args.max_tokens, TASKS[args.task].max_tokens(args.level))


def tidy(text):
    """What a user typed, without spaces where the language has none."""
    return re.sub(" ?([-+*/()=>]) ?", r"\1", " ".join(text.split()))


def check_level(problem, args):
    """A problem, if it is of the task and level to search on: those of the checkpoint, or of the flags."""
    if (problem.task, problem.level) != (args.task, args.level):
        raise ValueError(f"{problem.prompt.rstrip()} is {problem.task} at level {problem.level}; "
                         f"{args.init} is for {args.task} at level {args.level}")
    return problem


def check_room(model, problems, max_tokens):
    """ValueError if the longest prompt and completion are more than the model reads."""
    n_tokens = max(len(encode(problem.prompt)) for problem in problems) + max_tokens
    if n_tokens + 2 > model.config.block_size:
        raise ValueError(f"the longest prompt and --max-tokens {max_tokens} are {n_tokens} tokens: the model "
                         f"reads under {model.config.block_size - 1}")
