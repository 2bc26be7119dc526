"""
Measurements on samples: accuracy, pass@k, confidence intervals; and the AUC of the value head.

This file does not depend on the task: callers pass in a judge.
"""
import math

import torch

from sample import generate, pad


def pass_at_k(n, n_correct, k):
    """
    The unbiased estimate of P(one of k samples is correct) from n samples (Chen et al. 2021, equation 1).
    """
    return 1.0 - math.comb(n - n_correct, k) / math.comb(n, k)


def mean_pass_at_k(n, counts, k):
    """The mean of pass@k over problems. counts: how many of the n samples of each problem are correct."""
    return sum(pass_at_k(n, n_correct, k) for n_correct in counts) / len(counts)


def wilson(k, n, z=1.96):
    """The 95 % interval of a fraction k / n (Wilson 1927)."""
    p, z2 = k / n, z * z
    centre = p + z2 / (2 * n)
    half = z * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return min(p, max(0.0, low)), max(p, min(1.0, high))


def evaluate(model, prompts, judge, max_new_tokens, stop_tokens, seed=0, k=16, batch_size=1024):
    """
    Accuracy on prompts: {"greedy", "sampled" (at temperature 1, the mean of k samples), f"pass{k}"},
    fractions. judge(i, ids) says whether ids solve prompt i: the tokens before the stop token, None if there
    was none.
    """
    generator = torch.Generator().manual_seed(seed)

    def count_correct(n_samples, temperature):
        counts, per_batch = [], batch_size // n_samples
        for start in range(0, len(prompts), per_batch):
            batch = prompts[start:start + per_batch]
            samples = generate(model, batch, max_new_tokens, temperature, stop_tokens, generator, n_samples)
            finished = samples.finished(stop_tokens)
            verdicts = [judge(start + row // n_samples, ids) for row, ids in enumerate(finished)]
            counts += [sum(verdicts[row:row + n_samples]) for row in range(0, len(verdicts), n_samples)]
        return counts

    greedy, sampled = count_correct(1, 0.0), count_correct(k, 1.0)
    return {"greedy": sum(greedy) / len(greedy), "sampled": sum(sampled) / len(sampled) / k,
            f"pass{k}": mean_pass_at_k(k, sampled, k)}


def evaluate_streams(model, prompts, judge, max_new_tokens, stop_tokens, seed=0, batch_size=512):
    """
    Accuracy of one sample at temperature 1 by its length: {"within64", "within128", ...}, the share of
    prompts solved within so many tokens, the stop token included; "sampled", the share solved within
    max_new_tokens. judge as in evaluate.
    """
    generator, solved = torch.Generator().manual_seed(seed), []         # lengths of right samples
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start:start + batch_size]
        samples = generate(model, batch, max_new_tokens, 1.0, stop_tokens, generator)
        for i, ids in enumerate(samples.finished(stop_tokens), start):
            if ids is not None and judge(i, ids):
                solved.append(len(ids) + 1)
    budgets = [2 ** k for k in range(6, 20) if 2 ** k < max_new_tokens]
    shares = {f"within{budget}": sum(n <= budget for n in solved) / len(prompts) for budget in budgets}
    return shares | {"sampled": len(solved) / len(prompts)}


@torch.no_grad()
def values_of(model, texts, batch_size=1024):
    """texts: lists of token ids -> a list, the value head's logit at the last token of each."""
    values = []
    for i in range(0, len(texts), batch_size):
        idx, length = pad(texts[i:i + batch_size], model.wte.weight.device)
        values += model(idx)[1].gather(1, length[:, None] - 1)[:, 0].tolist()
    return values


def auc(values, labels):
    """P(a value with label true is above one with label false), ties count half; nan if all labels agree."""
    values, labels = torch.tensor(values, dtype=torch.float64), torch.tensor(labels, dtype=torch.bool)
    better = values[labels][:, None] - values[~labels]                  # (positives, negatives)
    return ((better > 0) + 0.5 * (better == 0)).mean().item()
