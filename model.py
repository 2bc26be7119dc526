"""
A small GPT with a value head; its cache, its FLOPs.

The block is the one that small models learn arithmetic fastest with: norms without gains, rotary positions
(RoPE), normed queries and keys, a ReLU-squared MLP, no biases, output layers that start at zero. And each
position embeds the two tokens before it as well, and the number that its digits make so far: that ends the
plateau at which such models sit until they have found out that digits belong together. One dial sets the
size: `--depth 3` is 3 layers, 4 heads, 128 wide (0.6M parameters).

Weights are float32. Where the processor multiplies bfloat16 natively, activations are bfloat16 and each
weight is cast where it is used: about twice as fast, and simpler than autocast.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

SHARPNESS = 1.4         # of attention: queries and keys are normed, which bounds their products
LONG = 64               # from so many tokens on sharpness grows with the logarithm of their number
SPAN = 128                                  # positions of a long text that attend side by side


@dataclass(frozen=True)
class GPTConfig:
    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 128
    vocab_size: int = 64
    block_size: int = 8192              # longest sequence; rotary positions cost nothing until they are used
    n_gram: int = 3                     # tokens that are embedded together: this one and those just before it
    digit: int = 3                          # id of the token "0"; those of "1" to "9" follow

    @classmethod
    def from_depth(cls, depth):
        """The one dial: layers, with heads of 32 and a width that grows along."""
        return cls(n_layer=depth, n_head=depth + 1, n_embd=32 * (depth + 1))

    @property
    def head_size(self):
        return self.n_embd // self.n_head


# ------------------------------------------------------------------------------------------------------------
# Numbers, read whole

PERIODS = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
LOG_PERIODS = (0.5, 1, 2, 4, 8, 16)
N_CIRCLES = len(PERIODS) + len(LOG_PERIODS)


def number_circles(n):
    """
    The numbers below n as points on circles: (n, 2 * N_CIRCLES). On a circle that closes every 10 numbers,
    say, to add is to rotate, and the last digit stands out (FoNE, Zhou et al. 2025); on circles of the
    logarithm, to multiply is.
    """
    number = torch.arange(n, dtype=torch.float64)[:, None]
    turns = number / torch.tensor(PERIODS)
    log_turns = number.clamp_min(0.5).log() / torch.tensor(LOG_PERIODS)
    angle = 2 * math.pi * torch.cat((turns, log_turns), dim=1)
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def number_table(config):
    """
    A table over all sequences of n_gram tokens, of the number that the digits at their end make: at the ids
    of "7", "6", "0" 760, of ">", "6", "0" 60, and 10 ** n_gram, which stands for no number, where the last
    token is no digit. (V, ..., V), with as many dimensions as n_gram.
    """
    digit = torch.arange(config.vocab_size) - config.digit
    is_digit = (digit >= 0) & (digit <= 9)
    number = torch.where(is_digit, digit, 10 ** config.n_gram)
    unbroken = is_digit                     # whether all tokens from here to the last are digits
    for back in range(1, config.n_gram):    # an earlier token's dimension stands further left
        column = (-1,) + (1,) * back
        unbroken = is_digit.view(column) & unbroken
        number = torch.where(unbroken, number + digit.view(column) * 10 ** back, number)
    return number


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
    # The slowest quarter stands still: there, what is far away is found by what it says, not where it stands
    frequency[-config.head_size // 8:] = 0
    angle = torch.arange(config.block_size)[:, None] * frequency        # (block_size, hs / 2)
    cos, sin = torch.cat((angle.cos(), angle.cos()), 1), torch.cat((-angle.sin(), angle.sin()), 1)
    return torch.stack((cos, sin), dim=1)[:, :, None].float()


def sharpness_table(config):
    """
    How much each position multiplies its queries, and so its attention scores: (block_size, 1, nh + 1, 1), a
    factor for each head's queries, and a last one for the keys, 1. The more there is to attend to, the more
    of it is beside the point: were scores equally sharp everywhere, what is looked for would drown in a long
    text (Nakanishi 2025, Scalable-Softmax).
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
    Multi-query attention (Shazeer 2019): all heads share one head of keys and values. The cache is smaller by
    the number of heads, and the queries of all heads and positions are one matrix: one product a row.
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
        is_whole_text = k.size(1) == T      # no column stands before the first of these positions
        if T <= SPAN or not is_whole_text:
            y = attend(q, k, v, mask)
        else:
            # A few positions at a time: those up to them are all they see, so half of the products are
            # spared, and no matrix of all positions by all is held.
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
    Keys and values of B rows in T_all columns. Rows need not be equally long: what a token may look at is the
    mask's business, and where it stands in its text that of its position, so a column may be left empty.
    """

    def __init__(self, model, B, T_all):
        config, weight = model.config, model.lm_head.weight
        shape = config.n_layer, B, T_all, config.head_size
        self.k = torch.zeros(shape, dtype=model.compute_dtype or weight.dtype, device=weight.device)
        self.v = torch.zeros_like(self.k)
        self.columns = None                 # (T,), set by the sampler: where the tokens that are read go
        self.T = T_all                      # so many columns are looked at

    def look_at(self, T):
        """Let attention look at the first T columns, which may be more than there are."""
        self.T = T
        more = T - self.k.size(2)
        if more > 0:
            self.k, self.v = F.pad(self.k, (0, 0, 0, more)), F.pad(self.v, (0, 0, 0, more))

    def copy(self, other, rows, T):
        """
        Take the first T columns of rows (n,) of another cache as the first n rows, and look at these. There
        may be fewer columns here.
        """
        self.look_at(T)
        n = len(rows)
        self.k[:, :n, :T] = other.k[:, rows, :T]
        self.v[:, :n, :T] = other.v[:, rows, :T]

    def append(self, layer, k, v):
        """
        Write k, v (B, T, hs) of a layer in their columns; returns those of all columns that are looked at,
        (B, self.T, hs).
        """
        keys, values = self.k[layer], self.v[layer]                     # (B, T_all, hs)
        keys.index_copy_(1, self.columns, k)
        values.index_copy_(1, self.columns, v)
        return keys[:, :self.T], values[:, :self.T]


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.compute_dtype = None           # of the activations; None: as the weights
        # A table for each of n_gram tokens
        self.wte = nn.Embedding(config.n_gram * config.vocab_size, config.n_embd)
        circles = number_circles(10 ** config.n_gram)
        # The last is for no number
        self.register_buffer("circles", F.pad(circles, (0, 0, 0, 1)).float(), persistent=False)
        self.register_buffer("numbers", number_table(config), persistent=False)
        self.register_buffer("tables", torch.arange(config.n_gram) * config.vocab_size, persistent=False)
        self.number = Linear(circles.size(1), config.n_embd, scale=2 ** 0.5)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.lm_head = Linear(config.n_embd, config.vocab_size, scale=0.0)
        self.value_head = Linear(config.n_embd, 1, scale=0.0)
        self.register_buffer("rotary", rotary_table(config), persistent=False)
        self.register_buffer("sharpness", sharpness_table(config), persistent=False)

    def embed(self, windows):
        """
        What is embedded at a position is its token and the n_gram - 1 before it: windows (B, T, n_gram) ->
        (B, T, C).
        """
        tokens = self.wte(windows + self.tables).sum(-2)
        return tokens + self.number(self.circles[self.numbers[windows.unbind(-1)]])

    def run(self, windows, positions, mask, cache=None):
        """
        windows (B, T, n_gram) as for embed; positions (B or 1, T), where in its text each token stands; mask
        (B or 1, T * nh or 1, T_all), 0 where a token may look and -inf where not -> logits (B, T, V), values
        (B, T), as float32 or whatever the weights of the embedding are in.
        """
        x = self.embed(windows)
        x = norm(x).to(self.compute_dtype or x.dtype)
        # To scale the cosines and sines of a query is to scale the query
        rotary = self.rotary[positions] * self.sharpness[positions]     # (B or 1, T, 2, nh + 1, hs)
        cos, sin = rotary.to(x.dtype).unbind(2)
        for block in self.blocks:
            x = block(x, cos, sin, mask, cache)                         # (B, T, C)
        x = norm(x)
        logits, values = self.lm_head(x), self.value_head(x).squeeze(-1)
        return logits.to(self.wte.weight.dtype), values.to(self.wte.weight.dtype)

    def forward(self, idx, cache=None):
        """
        Token ids (B, T) -> logits (B, T, V), values (B, T). values are logits too: sigmoid(value) is the
        return that is expected of what begins like this, P(it ends correct) where there is no price on
        thinking. A cache, if there is one, is empty, and has these T columns; to go on from it, use `run`.
        """
        B, T = idx.shape
        # Before the first token, 0
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
