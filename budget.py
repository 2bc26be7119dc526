"""
What every search method takes and returns: a budget of tokens, settings, results.

Methods that go on until the budget is spent count tokens in a `Budget`. A single sample is cut off at the
budget, and costs its length.
"""
from dataclasses import dataclass, field

import torch


BUDGETS, STREAM_BUDGETS = (75, 150, 300), (32, 64, 128, 256, 512, 1024)         # the defaults


class Budget:
    """The tokens that may be generated for a problem, and how many were."""

    def __init__(self, limit):
        self.limit = limit
        self.spent = 0                      # generated, including discarded or cut-off ones and <|eos|>
        self.read = 0                   # only read: the prompt, and tokens read again to continue after them

    @property
    def left(self):
        return self.limit - self.spent

    def spend(self, generated, read=0):
        assert generated <= self.left, "more tokens than the budget allows"
        self.spent += generated
        self.read += read


@dataclass
class Result:
    completion: str
    score: float                            # from the scorer that chose it, in [0, 1]
    tokens: int                             # all that were generated for it, including discarded ones
    read: int = 0                           # all that were only read
    finished: bool = True                   # whether the completion ended in <|eos|>
    # All that ended, or a cut-off stream: (completion, tokens, values of its lines or None)
    found: list = field(default_factory=list)


@dataclass
class Settings:
    """What methods may use besides model, problems and budget."""
    max_tokens: int                         # the longest sample
    generator: torch.Generator = None
    temperature: float = 1.0
    c_puct: float = 1.0
    samples: list = None        # from `sample_n` for this budget: all ranking methods rank the same samples
    # A function to follow a search: MCTS calls it with (search, node, value) at each backup, a single
    # sample with (token, value before it) at each token
    watch: callable = None
