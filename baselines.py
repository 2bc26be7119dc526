"""
Search without a model: random legal steps, and depth-first search, plain, in the order of a heuristic, or in
random order with a look at the result of the next step.

They have the signature and the budgets of every search method, in tokens of what they write down; the
verifier tells them when a problem is solved. The search of a model is useful only if it beats them. They work
where a task can list its steps.
"""
import numpy as np

from budget import Budget, Result
from sample import draw_seed
from verify import TASKS, encode, random_steps


def random_paths(model, problems, budget, settings):
    """Sequences of random legal steps, until one is right or the budget is spent. -> Results"""
    rng, results = np.random.default_rng(draw_seed(settings.generator)), []
    for problem in problems:
        own, solution = Budget(budget), ""
        while own.left > 0 and not solution:
            text, state = random_steps(problem, problem.level - 1, rng)
            n_tokens = len(encode(text)) + 1
            if n_tokens <= own.left and TASKS[problem.task].is_solved(problem, state):
                solution = text
            own.spend(min(n_tokens, own.left))
        results.append(Result(solution, float(bool(solution)), own.spent))
    return results


def depth_first(model, problems, budget, settings, order=lambda problem, steps, rng: steps):
    """
    Every path, depth first, each line written once, until one hits the target or the budget is spent.
    order(problem, steps, rng) returns the steps to try from a state, in order. -> Results
    """
    rng = np.random.default_rng(draw_seed(settings.generator))          # tasks draw with numpy

    def visit(problem, state, own):
        """The rest of a solution from a state, "" if there is none or the budget is spent."""
        task = TASKS[problem.task]
        for line, after in order(problem, task.legal_steps(state), rng):
            n_tokens = len(line)            # every character of a step is a token
            if n_tokens >= own.left:        # one is kept for <|eos|>
                own.spend(own.left)
                return ""
            own.spend(n_tokens)
            if task.is_solved(problem, after):
                own.spend(1)
                return line
            rest = visit(problem, after, own)
            if rest:
                return line + rest
        return ""

    results = []
    for problem in problems:
        own = Budget(budget)
        solution = visit(problem, TASKS[problem.task].start(problem), own)
        results.append(Result(solution, float(bool(solution)), own.spent))
    return results


def by_heuristic(problem, steps, rng):
    """First the steps to states that the task's heuristic finds closest to the target."""
    return sorted(steps, key=lambda step: TASKS[problem.task].heuristic(problem, step[1]))


def looking_ahead(problem, steps, rng):
    """Random order; but a step that solves the problem is tried alone, and other last steps are left out."""
    task = TASKS[problem.task]
    right = [step for step in steps if task.is_solved(problem, step[1])]
    if right:
        return right[:1]
    return [steps[i] for i in rng.permutation(len(steps)) if task.legal_steps(steps[i][1])]
