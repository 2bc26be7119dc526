"""
A small GPT with a value head, its optimizer, its FLOP counts, its checkpoints.

The block is the one that small models learn arithmetic fastest with: norms without gains, rotary positions (RoPE),
normed queries and keys, a ReLU-squared MLP, no biases, output layers that start at zero. And each position embeds the two
tokens before it as well, and the number that its digits make so far: that ends the plateau at which such models sit until
they have found out that digits belong together. One dial sets the size: `--depth 3` is 3 layers, 4 heads, 128 wide
(0.6M parameters).

Weights are float32. Where the processor multiplies bfloat16 natively, activations are bfloat16 and each weight is cast
where it is used: about twice as fast, and simpler than autocast.
"""
import argparse
import copy
import csv
import ctypes
import errno
import io
import math
import os
import signal
import sys
import threading
import zipfile
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass(frozen=True)
class GPTConfig:
    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 128
    vocab_size: int = 64
    block_size: int = 4096                  # longest sequence; rotary positions cost nothing until they are used
    n_gram: int = 3                         # tokens that are embedded together: this one and those just before it
    digit: int = 3                          # id of the token 0; those of 1 to 9 follow

    @classmethod
    def from_depth(cls, depth):
        """The one dial: layers, with heads of 32 and a width that grows along."""
        return cls(n_layer=depth, n_head=depth + 1, n_embd=32 * (depth + 1))


def norm(x):
    return F.layer_norm(x, (x.size(-1),))   # no gain, no bias; as good as RMSNorm here, and fused on every device


class Linear(nn.Linear):
    def __init__(self, n_in, n_out, scale=1.0):
        super().__init__(n_in, n_out, bias=False)
        nn.init.uniform_(self.weight, -scale * (3 / n_in) ** 0.5, scale * (3 / n_in) ** 0.5)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))


def apply_rotary(x, cos, sin):
    """Turn each pair of x (B, T, nh, hs), one from either half, by its angle: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    return x * cos + x.roll(x.size(-1) // 2, dims=-1) * sin             # the first half of sin is negative


PERIODS, LOG_PERIODS = (2, 5, 10, 20, 50, 100, 200, 500, 1000), (0.5, 1, 2, 4, 8, 16)
N_CIRCLES = len(PERIODS) + len(LOG_PERIODS)


def number_circles(n):
    """
    The numbers below n as points on circles: (n, 2 * N_CIRCLES). On a circle that closes every 10 numbers, say, to add is to
    rotate, and the last digit stands out (FoNE, Zhou et al. 2025); on circles of the logarithm, to multiply is.
    """
    number = torch.arange(n, dtype=torch.float64)[:, None]
    angle = 2 * math.pi * torch.cat((number / torch.tensor(PERIODS), number.clamp_min(0.5).log() / torch.tensor(LOG_PERIODS)), dim=1)
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def number_table(config):
    """The number that the digits at the end of n_gram tokens make, for all such tokens: (V, ..., V); 10 ** n_gram for none."""
    digit = torch.arange(config.vocab_size) - config.digit
    is_digit = (digit >= 0) & (digit <= 9)
    number = torch.where(is_digit, digit, 10 ** config.n_gram)
    unbroken = is_digit                     # what is read now and all up to here are digits
    for back in range(1, config.n_gram):    # the token that stands so far before the last is the next dimension on the left
        column = (-1,) + (1,) * back
        unbroken = is_digit.view(column) & unbroken
        number = torch.where(unbroken, number + digit.view(column) * 10 ** back, number)
    return number


class Attention(nn.Module):
    """
    Multi-query attention (Shazeer 2019): all heads share one head of keys and values. The cache is a quarter as large, and
    the queries of all heads and positions are one matrix: attention is one product a row, and nothing is moved for it.
    """

    def __init__(self, config, layer):
        super().__init__()
        self.head_size, self.layer = config.n_embd // config.n_head, layer
        self.qkv = Linear(config.n_embd, config.n_embd + 2 * self.head_size)
        self.proj = Linear(config.n_embd, config.n_embd, scale=0.0)

    def forward(self, x, cos, sin, mask, cache=None):
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.head_size)                # (B, T, nh + 2, hs)
        qk, v = apply_rotary(norm(qkv[:, :, :-1]), cos, sin), qkv[:, :, -1]             # (B, T, nh + 1, hs), (B, T, hs)
        q, k = qk[:, :, :-1].reshape(B, -1, self.head_size), qk[:, :, -1]               # (B, T * nh, hs), (B, T, hs)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)                       # (B, T_all, hs) both
        scores = torch.baddbmm(mask, q, k.mT, alpha=self.head_size ** -0.5)             # (B, T * nh, T_all)
        return self.proj((scores.softmax(-1) @ v).view(B, T, C))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc = Linear(config.n_embd, 4 * config.n_embd)
        self.proj = Linear(4 * config.n_embd, config.n_embd, scale=0.0)

    def forward(self, x):
        return self.proj(F.relu(self.fc(x)).square())


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
    Keys and values of B rows that need not be equally long: row b holds length[b] tokens and grows at its own end. Attention
    reads all T_all columns; there are never many more than the longest row needs.
    """

    def __init__(self, model, B, T_all=0):
        config, weight = model.config, model.lm_head.weight
        shape = config.n_layer, B, T_all, config.n_embd // config.n_head
        self.k = torch.zeros(shape, dtype=model.compute_dtype or weight.dtype, device=weight.device)
        self.v = torch.zeros_like(self.k)
        self.length = torch.zeros(B, dtype=torch.long, device=weight.device)
        self.longest = 0                    # an upper bound of length.max(), known without asking the device
        self.before = config.n_gram - 1     # as many columns of no token stand before the first
        self.tokens = torch.zeros(B, self.before + T_all, dtype=torch.long, device=weight.device)
        self.rows, self.positions = torch.arange(B, device=weight.device)[:, None], None    # (B, 1), (B, T), of the tokens being read

    @property
    def T_all(self):
        return self.k.size(2)

    def begin(self, idx):
        """Make room for more tokens idx (B, T): these and the n_gram - 1 before them (B, n_gram - 1 + T), the positions of these (B, T)."""
        T = idx.size(1)
        self.longest += T
        if self.longest > self.T_all:       # by 32 columns, to seldom move, and because softmax is fastest on such widths
            more = -(-self.longest // 32) * 32 - self.T_all
            self.k, self.v, self.tokens = F.pad(self.k, (0, 0, 0, more)), F.pad(self.v, (0, 0, 0, more)), F.pad(self.tokens, (0, more))
        columns = self.length[:, None] + torch.arange(self.before + T, device=idx.device)
        self.tokens.scatter_(1, columns[:, self.before:], idx)
        self.positions = columns[:, :T]
        self.length += T
        return self.tokens.gather(1, columns), self.positions

    def append(self, layer, k, v):
        """Write k, v (B, T, hs) behind what is there; returns all of both, (B, T_all, hs)."""
        self.k[layer][self.rows, self.positions] = k
        self.v[layer][self.rows, self.positions] = v
        return self.k[layer], self.v[layer]

    def rewind(self, length):
        """Forget what stands behind length (B,): a mask is enough, nothing is erased."""
        self.length.copy_(length)

    def take(self, rows):
        """A cache of these rows (N,): some may be left out, some may come several times."""
        taken = copy.copy(self)
        taken.k, taken.v, taken.tokens, taken.length = self.k[:, rows], self.v[:, rows], self.tokens[rows], self.length[rows]
        taken.rows = self.rows[:len(rows)] if len(rows) <= len(self.rows) else torch.arange(len(rows), device=rows.device)[:, None]
        return taken


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.compute_dtype = None           # of the activations; None: as the weights
        self.wte = nn.ModuleList(nn.Embedding(config.vocab_size, config.n_embd) for _ in range(config.n_gram))
        circles = number_circles(10 ** config.n_gram)
        self.register_buffer("circles", F.pad(circles, (0, 0, 0, 1)).float(), persistent=False)    # the last is for no number
        self.register_buffer("numbers", number_table(config), persistent=False)
        self.number = Linear(circles.size(1), config.n_embd, scale=2 ** 0.5)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.lm_head = Linear(config.n_embd, config.vocab_size, scale=0.0)
        self.value_head = Linear(config.n_embd, 1, scale=0.0)
        frequency = 1000.0 ** -torch.linspace(0, 1, config.n_embd // config.n_head // 2, dtype=torch.float64)
        angle = torch.arange(config.block_size)[:, None] * frequency    # (block_size, hs / 2)
        rotary = torch.stack((angle.cos(), angle.cos(), -angle.sin(), angle.sin()), dim=1)
        self.register_buffer("rotary", rotary.flatten(1).unflatten(1, (2, -1)), persistent=False)     # (block_size, cos or sin, hs)

    def trunk(self, idx, cache=None):
        """Token ids (B, T) -> what the heads read, (B, T, C). With a cache, idx continues what the cache holds."""
        B, T = idx.shape
        if cache is None:
            tokens, positions, T_all = F.pad(idx, (self.config.n_gram - 1, 0)), torch.arange(T, device=idx.device)[None], T
        else:
            tokens, positions = cache.begin(idx)
            T_all = cache.T_all
        recent = [tokens[:, i:i + T] for i in range(self.config.n_gram)]                # (B, T) each; before the first token, 0
        x = sum(embedding(token) for embedding, token in zip(self.wte, recent)) + self.number(self.circles[self.numbers[tuple(recent)]])
        dtype = self.compute_dtype or x.dtype
        x = norm(x).to(dtype)                                           # (B, T, C)
        cos, sin = self.rotary[positions].to(dtype)[:, :, None].unbind(-2)              # (B or 1, T, 1, hs)
        mask = torch.zeros((), dtype=dtype, device=idx.device).where(torch.arange(T_all, device=idx.device) <= positions[..., None], float("-inf"))
        mask = mask.repeat_interleave(self.config.n_head, dim=1)        # (B or 1, T * nh, T_all), the same for each head
        for block in self.blocks:
            x = block(x, cos, sin, mask, cache)
        return norm(x)

    def forward(self, idx, cache=None):
        """
        Token ids (B, T) -> logits (B, T, V), values (B, T), both in the dtype of the weights. values are logits too:
        sigmoid(value) = P(what begins like this ends correct).
        """
        x = self.trunk(idx, cache)
        logits, values = self.lm_head(x), self.value_head(x).squeeze(-1)
        return logits.to(self.wte[0].weight.dtype), values.to(self.wte[0].weight.dtype)


def flops_per_token(config, context):
    """FLOPs of a forward pass for one token that sees `context` others; training costs three times that (Kaplan et al. 2020, 2.1)."""
    head_size = config.n_embd // config.n_head
    per_layer = 10 * config.n_embd ** 2 + 2 * config.n_embd * head_size                 # q, proj, the MLP; k and v
    matmuls = config.n_layer * per_layer + config.n_embd * (config.vocab_size + 2 * N_CIRCLES)
    return 2 * matmuls + 4 * config.n_layer * config.n_embd * context


# ------------------------------------------------------------------------------------------------------------------
# Training: the optimizers, the device

class Muon(torch.optim.Optimizer):
    """
    Momentum whose update is orthogonalised, so that rare directions are learnt as fast as common ones (Jordan et al. 2024).
    As torch.optim.Muon, but all matrices of a shape are worked on at once, which for small ones takes 60 % of the time.
    Updates have the size of AdamW's (Liu et al. 2025, eq. 4).
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        group, = self.param_groups
        by_shape = defaultdict(list)                                    # (weights, their updates), no matrix higher than wide
        for weight in group["params"]:
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
            nesterov = weight.grad.lerp(state["momentum"], group["momentum"])
            if weight.size(0) > weight.size(1):
                weight, nesterov = weight.T, nesterov.T
            by_shape[weight.shape].append((weight, nesterov))
        for shape, pairs in by_shape.items():
            weights, updates = zip(*pairs)
            for weight, update in zip(weights, orthogonalise(torch.stack(updates))):
                weight.add_(update, alpha=-0.2 * max(shape) ** 0.5 * group["lr"])


def orthogonalise(x):
    """Matrices (N, rows <= columns): their singular values moved close to 1, by five Newton-Schulz iterations in bfloat16."""
    x = x.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.float()


def make_optimizers(model, lr):
    """Muon for the matrices of the blocks, AdamW for embedding and heads, at the same learning rate."""
    matrices = list(model.blocks.parameters())
    others = [*model.wte.parameters(), *model.number.parameters(), *model.lm_head.parameters(), *model.value_head.parameters()]
    return [Muon(matrices, lr), torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def optimizer_step(model, optimizers, lr, max_norm=1.0):
    """Clip the gradient, step, and clear it. Returns its norm before clipping."""
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return grad_norm.item()


def choose_device(name="auto"):
    """The torch.device of a --device flag. ValueError if there is none of that name here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here: use --device cpu")
    return torch.device(name)


def to_device(model, device):
    """Move a model, and let it compute in bfloat16 where the hardware multiplies that natively."""
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu.get_capabilities().get("avx512_bf16", False)
    model.compute_dtype = torch.bfloat16 if native else None
    return model.to(device)


# ------------------------------------------------------------------------------------------------------------------
# What every script says and hears: flags, errors, Ctrl-C

def positive(text):
    """An argparse type: an integer from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def between(low, high):
    """An argparse type: a finite number from low to high."""
    def parse(text):
        number = float(text)
        if not (low <= number <= high and math.isfinite(number)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return number
    parse.__name__ = "number"
    return parse


def count(text):
    """An argparse type: an integer from 0."""
    return positive(text) if text != "0" else 0


SHARED_FLAGS = {
    "--task": dict(default="countdown", choices=["countdown", "expression"], help="which problems (default countdown)"),
    "--level": dict(type=positive, help="countdown: how many numbers, 2 to 6 (default 3); expression: how many operators, 1 to 8 (default 4)"),
    "--attempts": dict(type=positive, help="room for so many solutions in one stream, for models that take steps back (default: that of the "
                       "checkpoint, at first 1)"),
    "--depth": dict(type=positive, help="size of a new model: layers, and a width of 32 (depth + 1) (default 3)"),
    "--init": dict(metavar="FILE", help="checkpoint to start from"),
    "--out": dict(default="out", metavar="DIR", help="folder for what is written (default out)"),
    "--device": dict(default="auto", choices=["auto", "cpu", "cuda"], help="where to compute (default: cuda if there is one)"),
    "--seed": dict(type=count, default=0, help="same seed, same result on the same machine (default 0)"),
}


class Parser(argparse.ArgumentParser):
    """argparse with the shared flags, and with errors of one line."""

    def shared(self, *names, **defaults):
        for name in names:
            self.add_argument(name, **SHARED_FLAGS[name])
        self.set_defaults(**defaults)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def keep_memory():
    """
    Let the C library keep what is freed for the next step. By default glibc hands large blocks back to the system and asks
    for them again, page by page: some 7 % of the time here. Elsewhere than on Linux nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for parameter, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 1 << 28)):          # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
        mallopt and mallopt(parameter, value)


def run_script(main):
    """Call main; what the disk refuses is told in one line, with exit status 2. Ctrl-C ends quietly."""
    keep_memory()
    try:
        main()
    except OSError as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def catch_ctrl_c():
    """An event that the first Ctrl-C sets, so that a step can be finished and saved; the second Ctrl-C ends the program."""
    pressed = threading.Event()

    def on_interrupt(signum, frame):
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGINT, on_interrupt)
    return pressed


# ------------------------------------------------------------------------------------------------------------------
# Files: written whole or not at all

@contextmanager
def write_whole(path):
    """A binary file that appears under its name only when all of it is on the disk."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def open_folder(folder, *names):
    """Make sure files can be written in a folder, and say which of these names it already holds."""
    os.makedirs(folder or ".", exist_ok=True)
    with write_whole(os.path.join(folder, ".writable")):
        pass
    os.remove(os.path.join(folder, ".writable"))
    for name in names:
        if os.path.isdir(os.path.join(folder, name)):
            raise IsADirectoryError(errno.EISDIR, "is a folder, and a file of that name is to be written", os.path.join(folder, name))
    existing = [os.path.join(folder, name) for name in names if os.path.exists(os.path.join(folder, name))]
    if existing:
        print(f"overwrites {', '.join(existing)}")


def save_table(path, rows):
    """Write a list of dicts with the same keys as CSV."""
    with write_whole(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        text.flush()
        text.detach()


def save_checkpoint(path, model, optimizers=(), **state):
    """Weights, config, optimizers and whatever else a run must know to go on (numbers, strings, tensors, lists, dicts)."""
    with write_whole(path) as file:
        torch.save({"config": asdict(model.config), "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers], **state}, file)


def load_checkpoint(path, device="cpu", needs=()):
    """
    (model, all that was saved). ValueError, in one line, for a file that is missing, damaged, not a checkpoint, or lacks one
    of the keys in needs.
    """
    path, device = str(path), torch.device(device)
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()     # the CRC of every part: torch.load would not look
        if damaged:
            raise ValueError(f"{damaged} does not match its checksum")
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        model = GPT(GPTConfig(**checkpoint["config"]))
        model.load_state_dict(checkpoint["model"])
        missing = [key for key in needs if key not in checkpoint]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except Exception as error:              # pickle, zip and torch raise a dozen kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: damaged, or not a checkpoint of tinyo1 ({reason[:120]})") from None
    return to_device(model, device), checkpoint
