"""
The teacher of worked solutions, and the model's own attempts, which teach the value head.

The hard part of a countdown solution is to plan its first step; the rest is learnt early. So after a while
most batches show only the first step, up to its result. Every sixth batch shows whole texts: half of them
solutions, half random steps, of which only the arithmetic is imitated, so that the model still computes
correctly when a plan fails (`honest`).

The value head learns P(this ends correct) at every token (binary cross-entropy, the outcome as label: Cobbe
et al. 2021, section 3): from those random steps, and in the second half of training, at every 16th step, also
from samples of the model itself, which the verifier judges (`own_attempts`).
"""
import numpy as np
import torch

from batches import Example
from processes import share_of
from sample import generate
from verify import EOS, TASKS, encode, is_correct, make_problems, random_steps

HARD_PART_AFTER = 0.13  # after this share of the steps most batches show only the hard part of solutions
WHOLE_EVERY = 6         # and every so many steps one shows whole texts
VALUE_EVERY = 16        # in the second half, every so many steps the value head learns from own attempts


# ------------------------------------------------------------------------------------------------------------
# Examples

def worked(problem, solution, part=None):
    """A worked solution to imitate, or only a part of it, then without <|eos|>."""
    ids = encode(solution) + [EOS] if part in (None, solution) else encode(part)
    return Example(encode(problem.prompt), ids, [True] * len(ids))


def hard_part(problem, solution):
    """The part of a worked solution that is hard to learn."""
    return worked(problem, solution, TASKS[problem.task].hard_part(solution))


def arithmetic_only(task, text):
    """
    The tokens of some steps, and for each whether it follows from the writer's choice: (ids, list of bool).
    """
    ids, follows = [], []
    for line in text.splitlines(keepends=True):
        chosen = task.chosen_part(line)
        n_chosen, tokens = len(encode(chosen)), encode(line)
        ids += tokens
        follows += [False] * n_chosen + [True] * (len(tokens) - n_chosen)
    return ids, follows


def honest(problem, rng):
    """
    Random legal steps to the end, of which only what follows from each choice is imitated. The last line of a
    worked solution always ends in the target: a model that has seen nothing else writes the target in a dead
    end, too, and cannot tell wrong arithmetic from right. The label is whether the steps solve the problem.
    """
    task = TASKS[problem.task]
    text, state = random_steps(problem, problem.level - 1, rng, below=1000)    # larger is read in parts
    ids, follows = arithmetic_only(task, text)
    label = float(task.is_solved(problem, state))
    return Example(encode(problem.prompt), ids + [EOS], follows + [True], [label] * (len(ids) + 1))


def outcomes(model, problems, begun, args, rng):
    """
    A sample of the model for each problem, after the token ids begun[i]. Three lists: what was read, what was
    written, and whether the whole is right.
    """
    starts = [encode(problem.prompt) + lines for problem, lines in zip(problems, begun)]
    generator = torch.Generator().manual_seed(int(rng.integers(2 ** 62)))
    room = min(args.max_tokens, model.config.block_size - max(map(len, starts)))
    samples = generate(model, starts, room, stop_tokens=(EOS,), generator=generator)
    right = [ended is not None and is_correct(problem, lines + ended)
             for problem, lines, ended in zip(problems, begun, samples.finished((EOS,)))]
    return starts, samples.completions(), right


def own_attempts(model, problems, args, step):
    """
    At every VALUE_EVERY-th step of the second half, two samples of the model for each problem, one of them
    after random legal steps: a search also meets texts that the policy seldom writes, and the value head must
    judge these, too. Nothing of them is imitated; their verdicts are the labels.
    """
    if not problems or step < args.steps / 2 or step % VALUE_EVERY:
        return []
    rng = np.random.default_rng([args.seed, step, 1, args.rank])

    def begin(problem):
        n = rng.integers(1, problem.level - 1) if problem.level > 2 else 0
        return encode(random_steps(problem, n, rng)[0])

    begun = [[]] * len(problems) + [begin(problem) for problem in problems]
    attempts = zip(*outcomes(model, problems * 2, begun, args, rng))
    return [Example(start, ids, [False] * len(ids), [float(right)] * len(ids))
            for start, ids, right in attempts]


# ------------------------------------------------------------------------------------------------------------
# What each step learns from

def draw_problems(args, step):
    """(problems, solutions, the generator that drew them); they depend on seed, step and rank only."""
    rng = np.random.default_rng([args.seed, step, 0, args.rank])
    n = share_of(args.batch_size, args, "--batch-size")
    return *make_problems(args.task, args.level, n, rng, progress=step / args.steps), rng


def stage(args, step):
    """
    What a step shows: at the "beginning" whole solutions; later most often the "hard part"; every sixth time
    the "whole", of which a part is random steps.
    """
    if step <= HARD_PART_AFTER * args.steps:
        return "beginning"
    return "hard part" if step % WHOLE_EVERY else "whole"


def lesson(args, step):
    """(problems, examples): fresh problems, most of them with the hard part of a solution only."""
    return lesson_on(*draw_problems(args, step), args, step)


def lesson_on(problems, solutions, rng, args, step):
    """The lesson of a step on problems that were drawn already."""
    show = hard_part if stage(args, step) == "hard part" else worked
    examples = [show(problem, solution) for problem, solution in zip(problems, solutions)]
    if stage(args, step) == "whole" and TASKS[args.task].enumerable:
        n_honest = round(args.honest * len(problems))       # most hard problems come first
        examples[:n_honest] = [honest(problem, rng) for problem in problems[:n_honest]]
    return problems, examples
