"""
Texts as the tensors that a trainer learns from.

A batch is a dict of tensors with a row for each text, prompt and completion. Each position reads a token of
`idx` and predicts the one in `next`; `mask` says whether that is the completion's. For the prompt
`8 2>6` and its solution `8-2=6,6` (nl is a newline):

    idx     8  _  2  >  6 nl  8  -  2  =  6  ,  6 nl
    next    _  2  >  6 nl  8  -  2  =  6  ,  6 nl eos
    mask    .  .  .  .  .  x  x  x  x  x  x  x  x  x
"""
from dataclasses import dataclass

import numpy as np
import torch

from verify import PAD

TOKENS_AT_ONCE = 2048                       # so many go through the model at a time; changes no result


@dataclass
class Example:
    """A text, and what is to be learnt from it."""
    prompt: list                            # token ids
    completion: list                        # token ids, <|eos|> included where it ended
    imitate: list                           # of bool, for each token of the completion
    labels: list = None     # P(this ends correct) of what stands before each of them, nan where unknown
    allowed: dict = None    # {position: set of tokens} for some that are not imitated: any of these will do


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
