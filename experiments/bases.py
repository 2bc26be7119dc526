"""
Base models trained on other examples: train_sft.py with another lesson. All its flags work here too.

    python -m experiments.bases --kind direct --task expression --level 2 --steps 1000 --out out/direct
    python -m experiments.bases --kind shots --task expression --level 2 --steps 1000 --out out/shots
    python -m experiments.bases --kind retries --out out/retries
    python -m experiments.bases --kind few --solutions 1000 --out out/few
    python -m experiments.bases --kind states --init out/sft.pt --steps 400 --lr 1e-3 --out out/states
    python -m experiments.bases --kind returns --share 0.05 --out out/returns

    direct     the answer alone, without a chain of thought (for tasks where the last line says it all)
    shots      direct answers, after 0 to --shots solved examples; each test problem has --shots before it
    retries    half of the examples with random steps take them back, and a solution follows
    few        the same --solutions worked solutions again and again; random steps, which need no teacher, are
               fresh
    states     besides the usual lesson, four problems begun with random legal steps for each usual one: the
               value head learns whether one sample from there is right, or, with --label exact *,
               whether they can be solved at all
    returns    streams, but only a --share of those that go back; the others are replaced by as many tokens of
               worked solutions, written as streams write them

* uses an oracle: enumeration.
"""
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

import train_sft
from batches import Example, as_example
from checkpoint import check_room
from common import between, positive, run_script, whole
from processes import share_of
from solutions import arithmetic_only, draw_problems, lesson, lesson_on, outcomes, stage, worked
from streams import SEEN_TARGETS, parts, piece
from trainer import Run
from verify import EOS, TASKS, encode, make_problem, make_problems, random_steps, state_value

STATES = 4                                  # for each problem that is solved
WAIT, = encode("wait")


def answer(solution):
    """The last line of a worked solution."""
    return solution.splitlines(keepends=True)[-1]


def direct_lesson(args, step):
    problems, solutions, _ = draw_problems(args, step)
    return problems, [worked(problem, answer(solution)) for problem, solution in zip(problems, solutions)]


def solved_examples(args, n, rng):
    """Token ids of n problems with their answers, to stand before a problem."""
    problems, solutions = make_problems(args.task, args.level, n, rng)
    texts = [problem.prompt + answer(solution) for problem, solution in zip(problems, solutions)]
    return encode("".join(texts))


def shots_lesson(args, step):
    problems, examples = direct_lesson(args, step)
    rng = np.random.default_rng([args.seed, step, 2, args.rank])
    shots = solved_examples(args, rng.integers(args.shots + 1), rng)
    return problems, [replace(example, prompt=shots + example.prompt) for example in examples]


def retry(problem, solution, rng):
    """
    One or more random legal steps, of which again only the arithmetic is imitated; `wait`s that take all of
    them back, some behind a ?no, which are not imitated at all; and a worked solution, which is. A plan that
    stands far away from the prompt has to be learnt apart from one that stands beside it.
    """
    n = int(rng.integers(1, problem.level))
    text, _ = random_steps(problem, n, rng, below=1000)
    ids, follows = arithmetic_only(TASKS[problem.task], text)
    at_end = n == problem.level - 1
    back = encode("?no\n" * (at_end and rng.random() < 0.5) + "wait\n" * n)
    again = encode(solution) + [EOS]
    completion = ids + back + again
    imitate = follows + [False] * len(back) + [True] * len(again)
    return Example(encode(problem.prompt), completion, imitate)


def retries_lesson(args, step):
    """The usual lesson; in the whole batches every second example with random steps becomes a retry."""
    problems, examples = lesson(args, step)
    if stage(args, step) == "whole":
        _, solutions, rng = draw_problems(args, step)
        for i in range(0, round(args.honest * len(problems)), 2):
            examples[i] = retry(problems[i], solutions[i], rng)
    return problems, examples


@lru_cache
def all_there_are(task, level, n, seed):
    return make_problems(task, level, n, np.random.default_rng([seed, 4]))


def few_lesson(args, step):
    """The usual lesson, on problems out of a few."""
    problems, solutions = all_there_are(args.task, args.level, args.solutions, args.seed)
    rng = np.random.default_rng([args.seed, step, 5, args.rank])
    chosen = rng.integers(args.solutions, size=share_of(args.batch_size, args, "--batch-size"))
    return lesson_on([problems[i] for i in chosen], [solutions[i] for i in chosen], rng, args, step)


def states_lesson(run, args, step):
    """The usual lesson; and of problems begun with random steps the value head learns what comes of them."""
    problems, examples = lesson(args, step)
    rng = np.random.default_rng([args.seed, step, 6, args.rank])
    others, _ = make_problems(args.task, args.level, STATES * len(problems), rng)
    begun = [random_steps(problem, rng.integers(1, problem.level - 1), rng)[0] for problem in others]
    if args.label == "exact":
        texts = [encode(problem.prompt + steps) for problem, steps in zip(others, begun)]
        right = [state_value(problem, steps) for problem, steps in zip(others, begun)]
    else:
        texts, written, right = outcomes(run.model, others, [encode(steps) for steps in begun], args, rng)
        run.count(0, sum(map(len, texts + written)), 0, len(texts[0]))
    # One label, of what stands before <|eos|>
    return problems, examples + [Example(ids, [EOS], [False], [float(r)]) for ids, r in zip(texts, right)]


def returns_lesson(args, step):
    """The lesson of streams; of those that go back only some, and straight ones in place of the others."""
    _, examples = train_sft.streams_lesson(args, step)
    rng = np.random.default_rng([args.seed, step, 7, args.rank])
    shown, n_missing = [], 0
    for example in examples:
        if WAIT in example.completion and rng.random() >= args.share:
            n_missing += len(example.completion)
        else:
            shown.append(example)
    while n_missing > 0:
        problem = make_problem(args.task, args.level, rng, targets=SEEN_TARGETS)
        for part in parts(problem, rng):
            shown.append(as_example(piece(*part, whole=True, level=args.level)))
            n_missing -= len(shown[-1].completion)
    return [], shown


LESSONS = {"direct": direct_lesson, "shots": shots_lesson, "retries": retries_lesson, "few": few_lesson,
           "states": states_lesson, "returns": returns_lesson}


def check_task(args):
    if not args.kind:
        raise ValueError(f"--kind is missing: one of {', '.join(LESSONS)}")
    task = TASKS[args.task]
    if args.kind == "retries" and not task.enumerable:
        raise ValueError(f"--kind retries takes random steps back, and {args.task} cannot list its steps")
    if args.kind == "states" and (not task.enumerable or args.level < 3):
        raise ValueError("--kind states goes on behind random steps: not for "
                         f"{args.task} at level {args.level}")
    if args.kind in ("direct", "shots") and task.answer("1\n2\n") != "2":
        raise ValueError(f"--kind {args.kind} is not for {args.task}: there every line is part of the answer")
    if args.data:
        raise ValueError("--data and --kind are two different lessons: leave one out")


def main():
    parser = train_sft.make_parser()
    parser.add_argument("--kind", choices=LESSONS, help="what the base is shown; needed but with --resume")
    parser.add_argument("--shots", type=positive, default=3, metavar="N",
                        help="shots: solved examples (default 3)")
    parser.add_argument("--solutions", type=whole(1, 10 ** 7), default=1000, metavar="N",
                        help="few: worked solutions there are (default 1000)")
    parser.add_argument("--label", default="outcome", choices=["outcome", "exact"],
                        help="states: what the value head learns of them (default outcome)")
    parser.add_argument("--share", type=between(0, 1), default=0.05, metavar="X",
                        help="returns: share of the streams that go back which are shown (default 0.05)")
    args = parser.parse_args()
    args.streams = args.kind == "returns"   # whatever --streams says
    with parser.errors():
        model, checkpoint = train_sft.begin(args)
        check_task(args)
        train_sft.fill_in(args, [])
        run = Run("sft", args, model, checkpoint)
        if args.kind == "shots":
            shots = solved_examples(args, args.shots, np.random.default_rng(args.seed))
            run.prompts = [shots + prompt for prompt in run.prompts]
            check_room(model, run.prompts, args.max_tokens)
    shown = LESSONS[args.kind]
    if args.kind == "states":
        args.workers = 0                    # they are sampled from the model as it is at this step
        shown = partial(shown, run)
    train_sft.train(args, run, shown)


if __name__ == "__main__":
    run_script(main)
