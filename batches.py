"""
Texts as the tensors that a trainer learns from.

A batch is a dict of tensors with a row for each text, prompt and completion. Each position reads a token of
`idx` and predicts the one in `next`; `mask` says whether that one belongs to the completion. For the prompt
`8 2>6` and its solution `8-2=6,6` (nl is a newline):

    idx     8  _  2  >  6 nl  8  -  2  =  6  ,  6 nl
    next    _  2  >  6 nl  8  -  2  =  6  ,  6 nl eos
    mask    .  .  .  .  .  x  x  x  x  x  x  x  x  x

Which of the completion's tokens are learnt from is another question: see `make_batch`.
"""
import math
from dataclasses import dataclass

import numpy as np
import torch

from verify import PAD, VOCAB_SIZE, encode

TOKENS_AT_ONCE = 2048                       # of a forward pass; changes results by rounding only


@dataclass
class Example:
    """A text, and what is to be learnt from it."""
    prompt: list                            # token ids
    completion: list                        # token ids, <|eos|> included where it ended
    imitate: list                           # of bool, for each token of the completion
    labels: list = None                     # P(this ends correct) before each of them, nan where unknown
    choices: dict = None        # {position: set of tokens} for some that are not imitated: any is accepted


def as_example(text):
    """The text of a Writer (streams.py) as an Example."""
    return Example(encode(text.problem.prompt), text.ids, text.imitate, choices=text.choices)


def pack(prompts, completions, device):
    """
    Lists of token ids -> {"idx" (B, T), "next" (B, T), "mask" (B, T)}, shorter ones padded. T is one less
    than the longest text has tokens, as the last token predicts nothing.
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
    The examples as pack makes them, and what is to be learnt from them:

    accepted (B, T, V): which tokens may follow. Where a token is imitated, this one; where the choice is
    open, several; where nothing is learnt, none.
    labels (B, T): for the value head, nan where there is none
    """
    prompts, completions = zip(*((example.prompt, example.completion) for example in examples))
    batch = pack(prompts, completions, device)
    mask = batch["mask"]
    imitate = on_tokens([flag for example in examples for flag in example.imitate], mask)
    accepted = torch.zeros(*mask.shape, VOCAB_SIZE, dtype=torch.bool, device=device)
    accepted.scatter_(2, batch["next"][..., None], imitate[..., None])
    for row, example in enumerate(examples):
        for i, tokens in (example.choices or {}).items():
            accepted[row, len(example.prompt) - 1 + i, list(tokens)] = True
    labels = torch.full(mask.shape, math.nan, device=device)
    known = [example.labels or [math.nan] * len(example.completion) for example in examples]
    labels[mask] = torch.tensor([label for row in known for label in row], device=device)
    return batch | {"accepted": accepted, "labels": labels}


def n_learnt(batch):
    """How many tokens the policy learns from: those that are imitated, and those whose choice is open."""
    return batch["accepted"].any(-1).sum().item()


def imitation_loss(logits, batch):
    """
    The sum of -log P(one that is accepted follows) over the tokens that the policy learns from; where a token
    is imitated, its cross entropy. Prompts have no loss. logits: (B, T, V).
    """
    learnt = batch["accepted"].any(-1)                                  # (B, T)
    logprobs = logits[learnt].log_softmax(-1)                           # (n_learnt, V)
    return -logprobs.masked_fill(~batch["accepted"][learnt], -math.inf).logsumexp(-1).sum()


def take(batch, rows):
    """Some rows of a batch, as a batch."""
    return {key: tensor[rows] for key, tensor in batch.items()}


def by_length(batch, n_tokens=TOKENS_AT_ONCE):
    """
    Cut a batch into parts with rows of similar length: yields (rows, part) without the padding behind them.
    A part has at most n_tokens, padding included, unless a single row is longer.
    """
    mask = batch["mask"]
    columns = torch.arange(1, mask.size(1) + 1, device=mask.device)
    lengths = (mask * columns).amax(1)                                  # (B,), up to the last token
    length_of, chunks = lengths.tolist(), [[]]
    for row in lengths.argsort(stable=True).tolist():
        if chunks[-1] and (len(chunks[-1]) + 1) * length_of[row] > n_tokens:
            chunks.append([])
        chunks[-1].append(row)
    for chunk in filter(None, chunks):
        rows, T = torch.tensor(chunk, device=mask.device), length_of[chunk[-1]]
        yield rows, {key: x[rows, :T] if x.dim() > 1 else x[rows] for key, x in batch.items()}
