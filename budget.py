"""
What every search method gets and gives: a budget of tokens, settings, results.

Methods that go on until they have spent it count in `Budget`; a single sample is cut off at it, and its
length is what it cost.
"""
from dataclasses import dataclass, field

import torch


BUDGETS, STREAM_BUDGETS = (75, 150, 300), (32, 64, 128, 256, 512, 1024)         # the defaults


class Budget:
    """The tokens that may be generated for a problem, and how many were."""

    def __init__(self, limit):
        self.limit = limit
        self.spent = 0                      # generated, what was thrown away or cut off and <|eos|> included
        self.read = 0                   # read beside: the prompt, and tokens read again to go on from them

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
    score: float                            # of whoever chose it, in [0, 1]
    tokens: int                             # all that were generated for it, those thrown away too
    read: int = 0                           # all that were read beside
    finished: bool = True                   # whether the completion ended in <|eos|>
    # All that ended, and a stream that was cut off: (completion, tokens, label of each line or None)
    found: list = field(default_factory=list)


@dataclass
class Settings:
    """What methods may use beside model, problems and budget."""
    max_tokens: int                         # the longest sample
    generator: torch.Generator = None
    temperature: float = 1.0
    c_puct: float = 1.0
    samples: list = None        # for ranking: what `sample_n` drew for this budget, so that all rank the same
    # Called as it happens: with (search, node, value) at each backup of MCTS, with (token, value before it)
    # at each token of a single sample
    watch: callable = None
