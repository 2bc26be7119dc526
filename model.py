"""
A small GPT with a value head, a key-value cache and a count of FLOPs.

Of the blocks that were tried this one learns arithmetic fastest: norms without gains, rotary positions
(RoPE), normed queries and keys, a ReLU-squared MLP, no biases; the last layer of each block and both heads
start at zero. Each position embeds the two tokens before it as well, and the number that the last digits
make: without it, training stalls until the model has discovered that digits belong together. `--depth` sets
the size: 3 is 3 layers, 4 heads, 128 wide (0.55M parameters).

Weights are float32. Where the processor multiplies bfloat16 natively, activations are bfloat16 and each
weight is cast where it is used: about twice as fast, and simpler than autocast.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

SHARPNESS = 1.4         # of attention: a scale, as normed queries and keys have bounded products
LONG = 64               # beyond so many tokens sharpness grows with the logarithm of their number
SPAN = 128                                  # positions of a long text whose attention is computed together


@dataclass(frozen=True)
class GPTConfig:
    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 128
    vocab_size: int = 64
    block_size: int = 8192                  # longest sequence; no weights depend on it
    n_gram: int = 3                     # tokens that are embedded together: this one and those just before it
    digit: int = 3                          # id of the token "0"; those of "1" to "9" follow

    @classmethod
    def from_depth(cls, depth):
        """So many layers, with heads of 32 and a width of 32 (depth + 1)."""
        return cls(n_layer=depth, n_head=depth + 1, n_embd=32 * (depth + 1))

    @property
    def head_size(self):
        return self.n_embd // self.n_head


# ------------------------------------------------------------------------------------------------------------
# The embedding of numbers

PERIODS = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
LOG_PERIODS = (0.5, 1, 2, 4, 8, 16)
N_CIRCLES = len(PERIODS) + len(LOG_PERIODS)


def number_circles(n):
    """
    The numbers below n as points on circles: (n, 2 * N_CIRCLES). On a circle of period 10, say, the angle is
    the last digit, and to add is to rotate (FoNE, Zhou et al. 2025). On circles of log n, to multiply is to
    rotate.
    """
    number = torch.arange(n, dtype=torch.float64)[:, None]
    turns = number / torch.tensor(PERIODS)
    log_turns = number.clamp_min(0.5).log() / torch.tensor(LOG_PERIODS)
    angle = 2 * math.pi * torch.cat((turns, log_turns), dim=1)
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def number_table(n):
    """
    The number at the end of each sequence of n digits, where 10 stands for any other token: 7 6 0 gives 760,
    10 6 0 gives 60; if the last is no digit, 10 ** n, for no number. (11 ** n,), by the sequence read in base
    11.
    """
    digits = torch.cartesian_prod(*[torch.arange(11)] * n).view(-1, n)  # all sequences
    is_digit = (digits < 10).long()
    at_the_end = is_digit.flip(1).cumprod(1).flip(1)                    # 1 if only digits follow
    number = (digits * at_the_end * 10 ** torch.arange(n - 1, -1, -1)).sum(1)
    return number.where(is_digit[:, -1] > 0, 10 ** n)


# ------------------------------------------------------------------------------------------------------------
# The model

def norm(x):
    # No gain, no bias; as good as RMSNorm here, and fused on every device
    return F.layer_norm(x, (x.size(-1),))


class Linear(nn.Linear):
    def __init__(self, n_in, n_out, scale=1.0):
        super().__init__(n_in, n_out, bias=False)
        bound = scale * (3 / n_in) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


def rotary_table(config):
    """
    Cosine and sine of the angle by which each position turns each pair of dimensions (RoPE, Su et al. 2021):
    (block_size, 2, 1, hs), the same for all heads, as `apply_rotary` wants them.
    """
    frequency = 1000.0 ** -torch.linspace(0, 1, config.head_size // 2, dtype=torch.float64)
    # The slowest quarter is not turned: these dimensions match by content at any distance
    frequency[3 * len(frequency) // 4:] = 0
    angle = torch.arange(config.block_size)[:, None] * frequency        # (block_size, hs / 2)
    cos, sin = torch.cat((angle.cos(), angle.cos()), 1), torch.cat((-angle.sin(), angle.sin()), 1)
    return torch.stack((cos, sin), dim=1)[:, :, None].float()


def sharpness_table(config):
    """
    How much each position scales its queries, and so its attention scores: (block_size, 1, nh + 1, 1), a
    factor for each head's queries, and a last one for the keys, 1. In a long text a softmax spreads over more
    and more positions that do not matter; a scale of log n counters that (Nakanishi 2025, Scalable-Softmax).
    """
    n_seen = torch.arange(1, config.block_size + 1).clamp_min(LONG)
    of_queries = (SHARPNESS * n_seen.log() / math.log(LONG))[:, None].expand(-1, config.n_head)
    return F.pad(of_queries, (0, 1), value=1.0)[:, None, :, None].clone()


def apply_rotary(x, cos, sin):
    """
    Turn each pair of x (B, T, n, hs), one from either half, by its angle: (x1, x2) -> (x1 cos - x2 sin, x2
    cos + x1 sin). cos and sin are (B or 1, T, 1 or n, hs), and the first half of sin is negative.
    """
    return x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin


class Attention(nn.Module):
    """
    Multi-query attention (Shazeer 2019): all heads share one head of keys and values. So the cache is n_head
    times smaller, and the queries of all heads and positions are one matrix: one product for each row.
    """

    def __init__(self, config, layer):
        super().__init__()
        self.head_size, self.layer = config.head_size, layer
        self.qkv = Linear(config.n_embd, config.n_embd + 2 * config.head_size)
        self.proj = Linear(config.n_embd, config.n_embd, scale=0.0)

    def forward(self, x, cos, sin, mask, cache=None):
        B, T, C = x.shape
        # The queries of all heads, then the key, then the value
        qkv = self.qkv(x).view(B, T, -1, self.head_size)                # (B, T, nh + 2, hs)
        qk = apply_rotary(norm(qkv[:, :, :-1]), cos, sin)               # (B, T, nh + 1, hs)
        q = qk[:, :, :-1].reshape(B, -1, self.head_size)                # (B, T * nh, hs)
        k, v = qk[:, :, -1], qkv[:, :, -1]                              # (B, T, hs)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)                       # (B, T_all, hs)
        if T <= SPAN:
            y = attend(q, k, v, mask)
        else:
            assert k.size(1) == T, "so many tokens can only be read with an empty cache"
            # A few positions at a time. Later ones are masked anyway: to skip them saves half of the work.
            n_head, y = q.size(1) // T, []
            for t in range(0, T, SPAN):
                rows, seen = slice(t * n_head, (t + SPAN) * n_head), t + SPAN
                y.append(attend(q[:, rows], k[:, :seen], v[:, :seen], mask[:, rows, :seen]))
            y = torch.cat(y, dim=1)
        return self.proj(y.view(B, T, C))


def attend(q, k, v, mask):
    """
    softmax(q k' / sqrt(hs) + mask) v: q (B, M, hs), k and v (B, N, hs), mask (B or 1, M or 1, N).
    """
    scores = torch.baddbmm(mask, q, k.mT, alpha=q.size(-1) ** -0.5)     # (B, M, N)
    return torch.bmm(scores.softmax(-1), v)                             # (B, M, hs)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc = Linear(config.n_embd, 4 * config.n_embd)
        self.proj = Linear(4 * config.n_embd, config.n_embd, scale=0.0)

    def forward(self, x):
        return self.proj(self.fc(x).relu_().square())


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x, cos, sin, mask, cache=None):
        x = x + self.attn(norm(x), cos, sin, mask, cache)
        return x + self.mlp(norm(x))


class KVCache:
    """
    Keys and values of B rows in T_all columns. Rows need not be equally long: masks say what a token sees and
    positions where it stands in its text, so a column may be left empty.
    """

    def __init__(self, model, B, T_all):
        config, weight = model.config, model.lm_head.weight
        shape = config.n_layer, B, T_all, config.head_size
        self.k = torch.zeros(shape, dtype=model.compute_dtype or weight.dtype, device=weight.device)
        self.v = torch.zeros_like(self.k)
        self.columns = None                 # (T,), set by the sampler: those that are written next
        self.T = T_all                      # attention looks at so many columns

    def look_at(self, T):
        """Let attention look at the first T columns; those that are missing are added."""
        self.T = T
        more = T - self.k.size(2)
        if more > 0:
            self.k, self.v = F.pad(self.k, (0, 0, 0, more)), F.pad(self.v, (0, 0, 0, more))

    def copy(self, other, rows, T):
        """
        Take the first T columns of rows (n,) of another cache as the first n rows, and look at these.
        """
        self.look_at(T)
        n = len(rows)
        self.k[:, :n, :T] = other.k[:, rows, :T]
        self.v[:, :n, :T] = other.v[:, rows, :T]

    def append(self, layer, k, v):
        """
        Write k, v (B, T, hs) of a layer to self.columns; returns all that attention looks at, (B, self.T,
        hs).
        """
        keys, values = self.k[layer], self.v[layer]                     # (B, T_all, hs)
        keys.index_copy_(1, self.columns, k)
        values.index_copy_(1, self.columns, v)
        return keys[:, :self.T], values[:, :self.T]


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.compute_dtype = None           # of the activations; None: that of the weights
        # Row V * place + id is that of a token at a place of its window, the last n_gram tokens
        self.wte = nn.Embedding(config.n_gram * config.vocab_size, config.n_embd)
        places = torch.arange(config.n_gram)
        digits = torch.arange(config.vocab_size) - config.digit
        digits = digits.where((digits >= 0) & (digits <= 9), 10)
        in_base_11 = (11 ** places.flip(0)[:, None] * digits).flatten()
        circles = F.pad(number_circles(10 ** config.n_gram), (0, 0, 0, 1))      # the last row: no number
        circles = circles[number_table(config.n_gram)]
        self.register_buffer("row_offsets", places * config.vocab_size, persistent=False)
        self.register_buffer("in_base_11", in_base_11, persistent=False)
        self.register_buffer("circles", circles.float(), persistent=False)
        self.number = Linear(circles.size(1), config.n_embd, scale=2 ** 0.5)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.lm_head = Linear(config.n_embd, config.vocab_size, scale=0.0)
        self.value_head = Linear(config.n_embd, 1, scale=0.0)
        # To scale a query's cosines and sines is to scale the query
        rotary = rotary_table(config) * sharpness_table(config)         # (block_size, 2, nh + 1, hs)
        self.register_buffer("rotary", rotary, persistent=False)

    def embed(self, windows):
        """
        Each position embeds its token, the n_gram - 1 before it, and the number that they make: windows
        (B, T, n_gram) -> (B, T, C).
        """
        rows = windows + self.row_offsets
        digits = self.in_base_11[rows].sum(-1)                          # (B, T)
        return self.wte(rows).sum(-2) + self.number(self.circles[digits])

    def run(self, windows, positions, mask, cache=None):
        """
        windows (B, T, n_gram) as for embed; positions (B or 1, T), where in its text each token stands; mask
        (B or 1, T * nh or 1, T_all), 0 where a token may look and -inf where not -> logits (B, T, V), values
        (B, T), in the dtype of the embedding's weights.
        """
        x = self.embed(windows)
        x = norm(x).to(self.compute_dtype or x.dtype)
        cos, sin = self.rotary[positions].to(x.dtype).unbind(2)         # each (B or 1, T, nh + 1, hs)
        for block in self.blocks:
            x = block(x, cos, sin, mask, cache)                         # (B, T, C)
        x = norm(x)
        logits, values = self.lm_head(x), self.value_head(x).squeeze(-1)
        return logits.to(self.wte.weight.dtype), values.to(self.wte.weight.dtype)

    def forward(self, idx, cache=None):
        """
        Token ids (B, T) -> logits (B, T, V), values (B, T). values are logits too: sigmoid(value) is the
        expected return of this prefix, which without --half-life is P(it ends correct). A cache, if given, is
        empty and has these T columns; to go on from it, use `run`.
        """
        B, T = idx.shape
        # Padded with 0 before the first token
        windows = F.pad(idx, (self.config.n_gram - 1, 0)).unfold(1, self.config.n_gram, 1)
        positions = torch.arange(T, device=idx.device)
        dtype = self.compute_dtype or self.wte.weight.dtype
        mask = torch.full((T, T), float("-inf"), dtype=dtype, device=idx.device).triu(1)
        mask = mask.repeat_interleave(self.config.n_head, dim=0)        # (T * nh, T), the same for each head
        return self.run(windows, positions[None], mask[None], cache)


def flops_per_token(config, context):
    """
    FLOPs of a forward pass for one token that sees `context` others; training costs three times that (Kaplan
    et al. 2020, 2.1).
    """
    per_layer = 10 * config.n_embd ** 2 + 2 * config.n_embd * config.head_size  # q, proj, the MLP; k and v
    matmuls = config.n_layer * per_layer + config.n_embd * (config.vocab_size + 2 * N_CIRCLES)
    return 2 * matmuls + 4 * config.n_layer * config.n_embd * context


def to_device(model, device):
    """Move a model, and let it compute in bfloat16 where the hardware multiplies that natively."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()   # old versions of torch cannot tell
        native = capabilities.get("avx512_bf16", False)
    model.compute_dtype = torch.bfloat16 if native else None
    return model.to(device)
