"""
Texts as the tensors that a trainer learns from.

A batch is a dict of tensors with a row for each text, prompt and completion. Each position reads a token of
`idx` and predicts the one in `next`; `mask` says whether that is the completion's. For the prompt
`8 2>6` and its solution `8-2=6,6` (nl is a newline):

    idx     8  _  2  >  6 nl  8  -  2  =  6  ,  6 nl
    next    _  2  >  6 nl  8  -  2  =  6  ,  6 nl eos
    mask    .  .  .  .  .  x  x  x  x  x  x  x  x  x
"""
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from verify import PAD, VOCAB_SIZE, encode

TOKENS_AT_ONCE = 2048                       # so many go through the model at a time; changes no result


@dataclass
class Example:
    """A text, and what is to be learnt from it."""
    prompt: list                            # token ids
    completion: list                        # token ids, <|eos|> included where it ended
    imitate: list                           # of bool, for each token of the completion
    labels: list = None     # P(this ends correct) of what stands before each of them, nan where unknown
    allowed: dict = None    # {position: set of tokens} for some that are not imitated: any of these will do


def as_example(text):
    """What a teacher has written, a Writer of streams.py, as an Example."""
    return Example(encode(text.problem.prompt), text.ids, text.imitate, allowed=text.allowed)


def pack(prompts, completions, device):
    """
    Lists of token ids -> {"idx" (B, T), "next" (B, T), "mask" (B, T)}, shorter ones padded. T is one less
    than the longest text has tokens, as nothing follows the last.
    """
    T = max(len(prompt) + len(completion) for prompt, completion in zip(prompts, completions))
    rows, mask = np.full((len(prompts), T), PAD), np.zeros((len(prompts), T), dtype=bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions)):
        end = len(prompt) + len(completion)
        rows[row, :end] = prompt + completion
        mask[row, len(prompt):end] = True
    rows, mask = torch.from_numpy(rows).to(device), torch.from_numpy(mask).to(device)
    return {"idx": rows[:, :-1], "next": rows[:, 1:], "mask": mask[:, 1:]}


def on_tokens(flags, mask):
    """A bool for each token of all completions, row after row -> (B, T), False elsewhere."""
    marked = torch.zeros_like(mask)
    marked[mask] = torch.tensor(flags, dtype=torch.bool, device=mask.device)    # fills it row by row
    return marked


def make_batch(examples, device):
    """
    What pack makes of the examples, and what is to be learnt from them:

    targets (B, T): what follows each token, where that is to be imitated, -1 elsewhere
    allowed (B, T, V): which tokens would do, where that is left open; is_open (B, T): whether it is
    labels (B, T): for the value head, nan where there is none
    """
    prompts, completions = zip(*((example.prompt, example.completion) for example in examples))
    batch = pack(prompts, completions, device)
    mask = batch["mask"]
    imitate = on_tokens([flag for example in examples for flag in example.imitate], mask)
    allowed = torch.zeros(*mask.shape, VOCAB_SIZE, dtype=torch.bool, device=device)
    for row, example in enumerate(examples):
        for i, tokens in (example.allowed or {}).items():
            allowed[row, len(example.prompt) - 1 + i, list(tokens)] = True
    labels = torch.full(mask.shape, math.nan, device=device)
    known = [example.labels or [math.nan] * len(example.completion) for example in examples]
    labels[mask] = torch.tensor([label for row in known for label in row], device=device)
    return batch | {"targets": batch["next"].where(imitate, -1), "allowed": allowed,
                    "is_open": allowed.any(-1), "labels": labels}


def n_learnt(batch):
    """How many tokens the policy learns from: those that are imitated, and those left open."""
    return ((batch["targets"] >= 0) | batch["is_open"]).sum().item()


def imitation_loss(logits, batch):
    """
    The sum of -log P(token) over the tokens that are imitated, and of -log P(any that would do) over those
    left open. It is no prompt's. logits: (B, T, V).
    """
    targets, is_open = batch["targets"], batch["is_open"]
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    if is_open.any():
        logprobs = logits[is_open].log_softmax(-1)                      # (those left open, V)
        loss = loss - logprobs.masked_fill(~batch["allowed"][is_open], -math.inf).logsumexp(-1).sum()
    return loss


def take(batch, rows):
    """Some rows of a batch, as a batch."""
    return {key: tensor[rows] for key, tensor in batch.items()}


def by_length(batch, n_tokens=TOKENS_AT_ONCE):
    """
    (rows, what the batch holds of them) for some rows at a time, of like length and without the padding
    behind them: no more than n_tokens, padding included, unless a single row is longer.
    """
    # The column behind the last token of each row: argmax finds the first True from the end.
    lengths = batch["mask"].size(1) - batch["mask"].flip(1).int().argmax(1)             # (B,)
    order = lengths.argsort(stable=True)
    start, longest = 0, lengths[order].tolist()
    for end in range(1, len(order) + 1):
        if end == len(order) or (end + 1 - start) * longest[end] > n_tokens:
            rows, T = order[start:end], longest[end - 1]
            part = take(batch, rows)
            yield rows, {key: tensor[:, :T] if tensor.dim() > 1 else tensor for key, tensor in part.items()}
            start = end
