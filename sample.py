"""
Batched sampling with a key-value cache, and what is measured on samples: accuracy and pass@k.

All rows advance together, one token a step, each at its own position: prompts need not be equally long, nothing is padded
on the left, and a row's result does not depend on its neighbours. A prompt is read once, however many samples it gets.
The sampled stop token belongs to the sample: it has a log-prob, it is inside the mask, so that stopping can be learnt.

This file knows no task. Token ids go in, token ids come out; a judge is passed in.
"""
import math
from dataclasses import dataclass

import torch

from model import KVCache


@dataclass
class Samples:
    tokens: torch.Tensor                    # (B, T_new), 0 after the stop token
    mask: torch.Tensor                      # (B, T_new), true up to and including the stop token
    logprobs: torch.Tensor                  # (B, T_new), of each token at the sampling temperature (greedy: at 1)
    values: torch.Tensor                    # (B, T_new), of what stood before each token
    end_values: torch.Tensor                # (B,), of the whole row, its last token included
    top_logprobs: torch.Tensor              # (B, T_new, n_top), the likeliest tokens' at temperature 1, and
    top_tokens: torch.Tensor                # (B, T_new, n_top), which they were

    def completions(self):
        """For each row its token ids, up to and including the stop token."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.mask.sum(1).tolist())]

    def finished(self, stop_tokens):
        """For each row its token ids before the stop token, or None if it never came."""
        return [row[:-1] if row and row[-1] in stop_tokens else None for row in self.completions()]


def sample_token(logits, temperature, generator=None):
    """
    One token for each row by the Gumbel-max trick: logits (B, V) -> tokens (B,), their log-probs (B,). argmax(logits + g)
    is a sample of softmax(logits) when g is Gumbel noise, -log of an exponential. Temperature 0 takes the likeliest.
    """
    logprobs = (logits / (temperature or 1.0)).log_softmax(-1)          # (B, V)
    scores = logprobs
    if temperature > 0:
        exponential = torch.empty_like(logprobs).exponential_(generator=generator)
        scores = logprobs - exponential.clamp_min(1e-20).log()          # it can draw 0: that would let anything win
    tokens = scores.argmax(-1)                                          # (B,)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def prefill(model, prompts, max_new_tokens, n_rows=1):
    """
    Read each prompt (a list of token ids) once, for n_rows rows: the cache, the logits (B, V) and values (B,) at the
    prompts' ends, B = len(prompts) * n_rows, the rows of a prompt side by side. ValueError if a prompt is empty or too long.
    """
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token")
    T = max(map(len, prompts))
    if T + max_new_tokens > model.config.block_size:
        raise ValueError(f"{T} + {max_new_tokens} tokens are more than the model's block_size, {model.config.block_size}")
    device = model.lm_head.weight.device
    idx = torch.tensor([prompt + [0] * (T - len(prompt)) for prompt in prompts], device=device)     # (P, T)
    length = torch.tensor([len(prompt) for prompt in prompts], device=device)
    cache = KVCache(model, len(prompts), T + max_new_tokens)
    logits, values = model(idx, cache)                                  # (P, T, V), (P, T)
    cache.rewind(length)                    # what was written behind a shorter prompt is never seen, and soon overwritten
    prompt = torch.arange(len(prompts), device=device)
    logits, values = logits[prompt, length - 1], values[prompt, length - 1]
    if n_rows > 1:
        rows = prompt.repeat_interleave(n_rows)
        cache.fork(rows)
        logits, values = logits[rows], values[rows]
    return cache, logits, values


@torch.no_grad()
def generate(model, prompts, max_new_tokens, temperature=1.0, stop_tokens=(), generator=None, n_samples=1, n_top=0):
    """
    n_samples continuations of each prompt (a list of token ids): Samples of B = len(prompts) * n_samples rows, those of a
    prompt side by side, T_new <= max_new_tokens, which may also be a list with a number (at least 1) for each row.
    """
    limit = max_new_tokens if isinstance(max_new_tokens, int) else max(max_new_tokens)
    cache, logits, values = prefill(model, prompts, limit, n_samples)
    stops = torch.tensor(list(stop_tokens), dtype=torch.long, device=logits.device)
    room = torch.tensor(max_new_tokens, device=logits.device).expand(len(logits))
    alive = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    end_values, steps = torch.zeros_like(values), []
    for t in range(limit):
        tokens, logprobs = sample_token(logits, temperature, generator)
        top = logits.log_softmax(-1).topk(n_top)                        # (B, n_top)
        steps.append((tokens.where(alive, 0), alive, logprobs.where(alive, 0), values.where(alive, 0), *top))
        ended = alive & (torch.isin(tokens, stops) | (room == t + 1))
        alive = alive & ~ended
        logits, values = model(tokens[:, None], cache)
        logits, values = logits[:, 0], values[:, 0]                     # (B, V), (B,)
        end_values = torch.where(ended, values, end_values)
        if not alive.any():
            break
    tokens, mask, logprobs, values, top_logprobs, top_tokens = (torch.stack(column, 1) for column in zip(*steps))
    return Samples(tokens, mask, logprobs, values, end_values, top_logprobs, top_tokens)


def pass_at_k(n, n_correct, k):
    """The unbiased estimate of P(one of k samples is correct) from n samples (Chen et al. 2021, equation 1)."""
    return 1.0 - math.comb(n - n_correct, k) / math.comb(n, k)


@torch.no_grad()
def evaluate(model, prompts, judge, max_new_tokens, stop_tokens, seed=0, k=16, batch_size=1024):
    """
    Accuracy on prompts: {"greedy", "sampled" (at temperature 1, the mean of k samples), f"pass{k}"}, fractions.
    judge(i, ids) is asked about prompt i and the tokens before the stop token, None if it never came.
    """
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(seed)

    def count_correct(n_samples, temperature):
        counts, per_batch = [], batch_size // n_samples
        for start in range(0, len(prompts), per_batch):
            batch = prompts[start:start + per_batch]
            samples = generate(model, batch, max_new_tokens, temperature, stop_tokens, generator, n_samples)
            verdicts = [judge(start + row // n_samples, ids) for row, ids in enumerate(samples.finished(stop_tokens))]
            counts += [sum(verdicts[row:row + n_samples]) for row in range(0, len(verdicts), n_samples)]
        return counts

    greedy, sampled = count_correct(1, 0.0), count_correct(k, 1.0)
    return {"greedy": sum(greedy) / len(greedy), "sampled": sum(sampled) / len(sampled) / k,
            f"pass{k}": sum(pass_at_k(k, c, k) for c in sampled) / len(sampled)}
