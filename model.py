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
import csv
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
    x1, x2 = x.chunk(2, dim=-1)                                         # (B, nh, T, hs / 2)
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1)


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


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.n_head, self.layer = config.n_head, layer
        self.qkv = Linear(config.n_embd, 3 * config.n_embd)
        self.proj = Linear(config.n_embd, config.n_embd, scale=0.0)

    def forward(self, x, cos, sin, cache=None):
        B, T, C = x.shape
        qk, v = self.qkv(x).view(B, T, 3 * self.n_head, -1).transpose(1, 2).split([2 * self.n_head, self.n_head], dim=1)
        q, k = apply_rotary(norm(qk), cos, sin).chunk(2, dim=1)         # (B, nh, T, hs) each, as v
        if cache is None:
            visible = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        else:
            k, v, visible = cache.append(self.layer, k, v)              # (B, nh, T_all, hs), (B, 1, T, T_all)
        scores = (q * k.size(-1) ** -0.5) @ k.transpose(-2, -1)       # (B, nh, T, T_all)
        y = scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


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

    def forward(self, x, cos, sin, cache=None):
        x = x + self.attn(norm(x), cos, sin, cache)
        return x + self.mlp(norm(x))


class KVCache:
    """Keys and values of B rows that need not be equally long: row b holds length[b] tokens and grows at its own end."""

    def __init__(self, model, B, max_T):
        config, weight = model.config, model.lm_head.weight
        shape = (config.n_layer, B, config.n_head, max_T, config.n_embd // config.n_head)
        self.k = torch.zeros(shape, dtype=model.compute_dtype or weight.dtype, device=weight.device)
        self.v = torch.zeros_like(self.k)
        self.length = torch.zeros(B, dtype=torch.long, device=weight.device)
        self.tokens = torch.zeros(B, max_T, dtype=torch.long, device=weight.device)
        self.longest = 0                    # an upper bound of length.max(), known without asking the device
        self.positions = self.visible = None            # of the tokens being read: where they stand, what they may see

    def begin(self, idx):
        """Make room for more tokens idx (B, T) in each row: their positions (B, T)."""
        B, T = idx.shape
        self.positions = self.length[:, None] + torch.arange(T, device=self.length.device)
        self.tokens.scatter_(1, self.positions, idx)
        self.longest += T
        columns = torch.arange(self.longest, device=self.length.device)
        self.visible = (columns <= self.positions[..., None])[:, None]                  # (B, 1, T, T_all)
        self.length = self.length + T
        return self.tokens, self.positions

    def append(self, layer, k, v):
        """Write k, v (B, nh, T, hs) behind what is there: all keys, all values, and which of them each query may see."""
        rows = torch.arange(len(self.length), device=k.device)[:, None]
        self.k[layer][rows, :, self.positions] = k.transpose(1, 2)
        self.v[layer][rows, :, self.positions] = v.transpose(1, 2)
        return self.k[layer][:, :, :self.longest], self.v[layer][:, :, :self.longest], self.visible

    def rewind(self, length):
        """Forget what stands behind length (B,): a mask is enough, nothing is erased."""
        self.length = length

    def fork(self, rows):
        """Row i becomes a copy of row rows[i]."""
        self.k, self.v, self.tokens, self.length = self.k[:, rows], self.v[:, rows], self.tokens[rows], self.length[rows]


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.compute_dtype = None           # of the activations; None: as the weights
        self.wte = nn.ModuleList(nn.Embedding(config.vocab_size, config.n_embd) for _ in range(config.n_gram))
        circles = number_circles(10 ** config.n_gram)
        self.register_buffer("circles", F.pad(circles, (0, 0, 0, 1)).float(), persistent=False)    # the last is for no number
        self.number = Linear(circles.size(1), config.n_embd, scale=2 ** 0.5)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.lm_head = Linear(config.n_embd, config.vocab_size, scale=0.0)
        self.value_head = Linear(config.n_embd, 1, scale=0.0)
        frequency = 1000.0 ** -torch.linspace(0, 1, config.n_embd // config.n_head // 2, dtype=torch.float64)
        angle = torch.arange(config.block_size)[:, None] * frequency    # (block_size, hs / 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, idx, cache=None):
        """
        Token ids (B, T) -> logits (B, T, V), values (B, T), both in the dtype of the weights. values are logits too:
        sigmoid(value) = P(what begins like this ends correct). With a cache, idx continues what the cache holds.
        """
        B, T = idx.shape
        tokens, positions = (idx, torch.arange(T, device=idx.device).expand(B, T)) if cache is None else cache.begin(idx)
        x, number, in_number = 0, 0, True
        for back, embedding in enumerate(self.wte):
            # where there is nothing before, the first token stands in for it
            recent = tokens.gather(1, (positions - back).clamp_min(0))                  # (B, T)
            x = x + embedding(recent)                                   # (B, T, C)
            digit = recent - self.config.digit
            in_number = in_number & (digit >= 0) & (digit <= 9) & (positions >= back)
            number = torch.where(in_number, number + digit * 10 ** back, number if back else len(self.circles) - 1)
        x = x + self.number(self.circles[number])
        dtype = self.compute_dtype or x.dtype
        x = norm(x).to(dtype)
        cos, sin = self.cos[positions][:, None].to(dtype), self.sin[positions][:, None].to(dtype)   # (B, 1, T, hs / 2)
        for block in self.blocks:
            x = block(x, cos, sin, cache)
        x = norm(x)
        logits, values = self.lm_head(x), self.value_head(x).squeeze(-1)
        return logits.to(self.lm_head.weight.dtype), values.to(self.lm_head.weight.dtype)


def flops_per_token(config, context):
    """FLOPs of a forward pass for one token that sees `context` others; training costs three times that (Kaplan et al. 2020, 2.1)."""
    matmuls = 12 * config.n_layer * config.n_embd ** 2 + config.n_embd * (config.vocab_size + 2 * N_CIRCLES)
    return 2 * matmuls + 4 * config.n_layer * config.n_embd * context


# ------------------------------------------------------------------------------------------------------------------
# Training: the optimizers, the device

class Muon(torch.optim.Optimizer):
    """
    Momentum whose update is orthogonalised, so that rare directions are learnt as fast as common ones (Jordan et al. 2024).
    As torch.optim.Muon, but all matrices of a shape are worked on at once, which for small ones takes 60 % of the time;
    and queries, keys and values are three matrices, not one. Updates have the size of AdamW's (Liu et al. 2025, eq. 4).
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
            n_parts = 3 if weight.size(0) == 3 * weight.size(1) else 1                  # qkv
            for part, update in zip(weight.chunk(n_parts), nesterov.chunk(n_parts)):
                if part.size(0) > part.size(1):
                    part, update = part.T, update.T
                by_shape[part.shape].append((part, update))
        for shape, pairs in by_shape.items():
            parts, updates = zip(*pairs)
            for part, update in zip(parts, orthogonalise(torch.stack(updates))):
                part.add_(update, alpha=-0.2 * max(shape) ** 0.5 * group["lr"])


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


def seed(text):
    """An argparse type: an integer from 0."""
    return positive(text) if text != "0" else 0


SHARED_FLAGS = {
    "--task": dict(default="countdown", choices=["countdown", "expression"], help="which problems (default countdown)"),
    "--level": dict(type=positive, help="countdown: how many numbers, 2 to 6 (default 3); expression: how many operators, 1 to 8 (default 4)"),
    "--depth": dict(type=positive, help="size of a new model: layers, and a width of 32 (depth + 1) (default 3)"),
    "--init": dict(metavar="FILE", help="checkpoint to start from"),
    "--out": dict(default="out", metavar="DIR", help="folder for what is written (default out)"),
    "--device": dict(default="auto", choices=["auto", "cpu", "cuda"], help="where to compute (default: cuda if there is one)"),
    "--seed": dict(type=seed, default=0, help="same seed, same result on the same machine (default 0)"),
}


class Parser(argparse.ArgumentParser):
    """argparse with the shared flags, and with errors of one line."""

    def shared(self, *names, **defaults):
        for name in names:
            self.add_argument(name, **SHARED_FLAGS[name])
        self.set_defaults(**defaults)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def run_script(main):
    """Call main; what the disk refuses is told in one line, with exit status 2. Ctrl-C ends quietly."""
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
    os.makedirs(folder, exist_ok=True)
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
