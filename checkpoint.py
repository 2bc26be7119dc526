"""
Models on disk: written whole or not at all, and checked when read, as a file may come from anyone.
"""
import io
import os
import zipfile
from dataclasses import asdict

import torch

from common import choose_device, choose_task, write_whole
from model import GPT, GPTConfig, to_device
from verify import VOCAB_SIZE

KINDS = {"flags": dict, "step": int, "tokens": int, "flops": (int, float), "table": list, "samples": list,
         "optimizers": list}
FLAGS = {"task": str, "level": int, "max_tokens": int, "steps": int, "lr": float | int, "seed": int}
LARGEST = {"n_layer": 256, "n_gram": 4, "block_size": 2 ** 17}          # what a checkpoint may ask for


def save_checkpoint(path, model, optimizers=(), **state):
    """
    Save weights, config, optimizers and, in state, whatever else a run needs to go on (numbers, strings,
    tensors, lists, dicts).
    """
    checkpoint = {"config": asdict(model.config), "model": model.state_dict(),
                  "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
    buffer = io.BytesIO()
    torch.save(checkpoint | state, buffer)  # not to the file: torch would hide the disk's errors
    write_whole(path, buffer.getbuffer())


def is_finite(model):
    """Whether no weight is inf or nan: a sum is finite only if all its terms are."""
    return torch.stack([weight.detach().sum() for weight in model.parameters()]).isfinite().all().item()


def load_checkpoint(path, device="cpu", needs=()):
    """
    (model, all that was saved). ValueError, in one line, for a file that is missing, damaged, not a
    checkpoint, or lacks one of the keys in needs, and for weights that are not finite.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file; train_sft.py and train_rl.py write checkpoints")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()     # the CRC of every part; torch.load ignores it
        if damaged:
            raise ValueError(f"{damaged} does not match its checksum")
        # To the CPU first: AdamW's step count must stay there; on the GPU, every step would wait for it.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config, weights = GPTConfig(**checkpoint["config"]), checkpoint["model"]
        for name, most in LARGEST.items():
            if not 1 <= getattr(config, name) <= most:
                raise ValueError(f"{name} is not from 1 to {most}")
        if config.vocab_size != VOCAB_SIZE or config.n_embd % config.n_head:
            raise ValueError("its vocabulary or its heads have another size")
        with torch.device("meta"):          # takes no memory, however much the config asks for
            shapes = {name: weight.shape for name, weight in GPT(config).state_dict().items()}
        if shapes != {name: weight.shape for name, weight in weights.items()}:
            raise ValueError("its weights are not of the shapes that its config says")
        model = GPT(config)
        model.load_state_dict(weights)
        if not is_finite(model):
            raise ValueError("some weights are nan or inf")
        for key in needs:
            if key not in checkpoint:
                raise ValueError(f"it lacks {key}")
            if not isinstance(checkpoint[key], KINDS[key]):
                raise ValueError(f"{key} is a {type(checkpoint[key]).__name__}")
        flags = checkpoint.get("flags", {})
        for name, kind in FLAGS.items():
            if not isinstance(flags.get(name), kind | None):
                raise ValueError(f"its flag {name} is {str(flags[name])[:20]!r}")
    except Exception as error:              # pickle, zip and torch raise a dozen kinds
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: damaged, or not a checkpoint of tinyo1 ({reason[:120]})") from None
    return to_device(model, torch.device(device)), checkpoint


def load_model(args, fallback=None):
    """
    The model of --init, by default the one trained last in --out, else that of the file fallback. Fills in
    the task in args. ValueError if there is no such file.
    """
    paths = [os.path.join(args.out, name) for name in ("rl.pt", "sft.pt")]
    last = max(filter(os.path.exists, paths), key=os.path.getmtime, default=fallback or paths[0])
    args.init = args.init or last
    model, checkpoint = load_checkpoint(args.init, choose_device(args.device), needs=("flags",))
    choose_task(args, checkpoint["flags"])
    return model


def check_room(model, prompts, max_tokens):
    """ValueError if the longest prompt (token ids) and max_tokens more are too long for the model."""
    n_tokens, limit = max(map(len, prompts)) + max_tokens, model.config.block_size - 1    # see read_last
    if n_tokens >= limit:
        raise ValueError(f"the longest prompt and --max-tokens {max_tokens} are {n_tokens} tokens: the model "
                         f"reads fewer than {limit}")
