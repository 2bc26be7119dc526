"""
Independent samples, and choosing among them: a single sample, majority vote, weighted vote, best-of-N.

Those marked "-> Results" are search methods: search.py lists them in its table `METHODS`, each with its
scorer, as in

    "majority": Method(partial(vote, scorer="count"), ranks=True)
    "best-of-n (value)": Method(partial(best_of_n, scorer="value"), ranks=True)

The samples of a budget are drawn once (`settings.samples`), and all ranking methods see the same ones.
"""
from collections import Counter
from dataclasses import dataclass, field, replace

from budget import Budget, Result
from sample import generate
from traces import without_verdict
from verify import EOS, TASKS, decode, encode, verify

ROWS = 4096                                 # samples drawn at once
SAMPLES_AT_ONCE = 64                        # of these, at most so many for one problem


@dataclass
class Sample:
    completion: str
    value: float                        # P(correct) at the end, by the value head; 0 for one that was cut off
    tokens: int
    finished: bool                          # whether it ended in <|eos|>
    scores: dict = field(default_factory=dict)          # of other judges, by name


def draw(model, problems, limits, settings):
    """One sample for each problem, of at most limits[i] tokens: a list of Sample."""
    prompts, drawn = [encode(problem.prompt) for problem in problems], []
    for i in range(0, len(prompts), ROWS):
        part = slice(i, i + ROWS)
        samples = generate(model, prompts[part], limits[part], settings.temperature, stop_tokens=(EOS,),
                           generator=settings.generator, watch=settings.watch)
        last = samples.mask.sum(1)[:, None] - 1
        values = samples.values.gather(1, last)[:, 0].sigmoid().tolist()        # of all that precedes <|eos|>
        for ids, ended, value in zip(samples.completions(), samples.finished((EOS,)), values):
            if ended is None:
                drawn.append(Sample(decode(ids), 0.0, len(ids), False))
            else:
                drawn.append(Sample(decode(ended), value, len(ids), True))
    return drawn


def sample_n(model, problems, budget, settings):
    """
    Samples for each problem until its budget is spent: lists of Sample. A sample that reaches its limit is
    cut off, and counts as well.
    """
    budgets, found = [Budget(budget) for _ in problems], [[] for _ in problems]
    while waiting := [i for i, own in enumerate(budgets) if own.left > 0]:
        rows = []
        for i in waiting:
            n_fit = budgets[i].left // settings.max_tokens
            rows += [i] * min(max(1, n_fit), SAMPLES_AT_ONCE)           # the last one may be cut off
        limits = [min(settings.max_tokens, budgets[i].left) for i in rows]
        for i, sample in zip(rows, draw(model, [problems[i] for i in rows], limits, settings)):
            budgets[i].spend(sample.tokens)
            found[i].append(sample)
    return found


def result_of(problem, samples, best, score):
    """
    The best sample of a problem as a Result, with the tokens of all its samples; the prompt is read once.
    """
    found = [(sample.completion, sample.tokens, None) for sample in samples if sample.finished]
    n_tokens = sum(sample.tokens for sample in samples)
    return Result(best.completion, score, n_tokens, len(encode(problem.prompt)), best.finished, found)


def one_sample(model, problems, budget, settings):
    """A single sample, greedy at temperature 0. -> Results"""
    limits = [min(settings.max_tokens, budget)] * len(problems)
    drawn = draw(model, problems, limits, settings)
    return [result_of(problem, [sample], sample, sample.value) for problem, sample in zip(problems, drawn)]


def one_stream(model, problems, budget, settings):
    """A single sample that may use up all of the budget. -> Results"""
    readable = model.config.block_size - max(len(encode(problem.prompt)) for problem in problems)
    results = one_sample(model, problems, budget, replace(settings, max_tokens=min(budget, readable)))
    for result in results:                              # what was cut off may still be learnt from
        result.found = result.found or [(result.completion, result.tokens, None)]
    return results


def best_of_n(model, problems, budget, settings, scorer):
    """The sample with the best score. -> Results"""
    drawn, results = settings.samples or sample_n(model, problems, budget, settings), []
    for problem, samples in zip(problems, drawn):
        scores = [score(problem, sample, scorer) for sample in samples]
        best = scores.index(max(scores))
        results.append(result_of(problem, samples, samples[best], scores[best]))
    return results


def vote(model, problems, budget, settings, scorer):
    """
    The answer whose samples have the highest sum of scores, and the best-scored of these samples. If each
    counts 1 this is majority vote, else weighted vote (Li et al. 2023). -> Results
    """
    drawn, results = settings.samples or sample_n(model, problems, budget, settings), []
    for problem, samples in zip(problems, drawn):
        scores, votes = [score(problem, sample, scorer) for sample in samples], Counter()
        answers = [answer_of(problem, sample) for sample in samples]
        for answer, weight in zip(answers, scores):
            votes[answer] += weight / len(samples)
        winner = max(votes, key=votes.get)
        best = max(range(len(samples)), key=lambda i: (answers[i] == winner, scores[i]))
        results.append(result_of(problem, samples, samples[best], votes[winner]))
    return results


def answer_of(problem, sample):
    """What is voted on: in expression the answer; in countdown, where there is none, the solution itself."""
    return TASKS[problem.task].answer(without_verdict(sample.completion))


def score(problem, sample, scorer):
    """The score of a sample, in [0, 1], 0 if it was cut off. ValueError if there is no such scorer."""
    if scorer not in SCORERS:
        raise ValueError(f"no scorer {scorer!r}: there are {', '.join(SCORERS)}")
    return SCORERS[scorer](problem, sample) if sample.finished else 0.0


SCORERS = {
    "count": lambda problem, sample: 1.0,
    "value": lambda problem, sample: sample.value,
    "verifier": lambda problem, sample: float(verify(problem, sample.completion).correct),
}


def until_content(model, problems, budget, settings, scorer):
    """
    Samples, one after another, until one has a score above 0 or the budget is spent. "verifier" makes this
    best-of-N that stops at the first right sample; "count" stops at the first that ends. -> Results
    """
    budgets, found = [Budget(budget) for _ in problems], [[] for _ in problems]
    waiting, scores = list(range(len(problems))), [0.0] * len(problems)
    while waiting:
        limits = [min(settings.max_tokens, budgets[i].left) for i in waiting]
        for i, sample in zip(waiting, draw(model, [problems[i] for i in waiting], limits, settings)):
            budgets[i].spend(sample.tokens)
            found[i].append(sample)
            scores[i] = score(problems[i], sample, scorer)
        waiting = [i for i in waiting if budgets[i].left > 0 and not scores[i]]
    triples = zip(problems, found, scores)
    return [result_of(problem, samples, samples[-1], best) for problem, samples, best in triples]
