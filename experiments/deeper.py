"""
Make a trained model larger without changing what it says (Net2Net: Chen et al. 2016, 1511.05641).

    python -m experiments.deeper                    # out/rl.pt -> out/deeper.pt, with two layers more
    python -m experiments.deeper --layers 0 --n-gram 4      # or one that reads numbers of four digits whole
    python train_sft.py --init out/deeper.pt --streams --lr 2e-3 --out out/deep

The new layers stand between the old ones. The matrices by which they add to the residual stream are zero, as
those of every new model are, so at first they add nothing; training goes on from what was learnt already. A
larger --n-gram changes the outputs for longer numbers only.
"""
import os
from dataclasses import replace

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, open_folder, run_script, whole

import torch
import torch.nn.functional as F

from checkpoint import load_checkpoint, save_checkpoint
from model import GPT


def deeper(model, n_new):
    """A model with a new layer behind each of the first n_new ones, and the same logits and values."""
    config = replace(model.config, n_layer=model.config.n_layer + n_new)
    deep = GPT(config).to(model.lm_head.weight)
    blocks = iter(model.blocks)
    for i, block in enumerate(deep.blocks):
        is_new = i % 2 and i < 2 * n_new
        if not is_new:
            block.load_state_dict(next(blocks).state_dict())
    others = {name: weight for name, weight in model.state_dict().items() if not name.startswith("blocks.")}
    deep.load_state_dict(others, strict=False)
    return deep


def with_n_gram(model, n_gram):
    """A model that embeds n_gram tokens together, no fewer than before; the new ones at first add nothing."""
    config = replace(model.config, n_gram=n_gram)
    larger, weights = GPT(config).to(model.lm_head.weight), model.state_dict()
    n_rows = (n_gram - model.config.n_gram) * config.vocab_size
    weights["wte.weight"] = F.pad(weights["wte.weight"], (0, 0, n_rows, 0))             # earlier places first
    larger.load_state_dict(weights)
    return larger


def main():
    parser = Parser(description="Make a trained model larger without changing what it says.")
    parser.add_argument("--layers", type=whole(0, 32), default=2, metavar="N",
                        help="new layers, one behind each of the first N old ones (default 2)")
    parser.add_argument("--n-gram", type=whole(1, 4), metavar="N",
                        help="tokens that are embedded together, and so the digits of a number that is read "
                             "whole (default: as before)")
    parser.shared("--init", "--out", "--seed", init="out/rl.pt")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    with parser.errors():
        model, parent = load_checkpoint(args.init, needs=("flags", "tokens", "flops"))
        if args.layers > model.config.n_layer:
            raise ValueError(f"--layers {args.layers}: {args.init} has {model.config.n_layer} layers, and "
                             "each is followed by one new layer at most")
        n_gram = args.n_gram or model.config.n_gram
        if n_gram < model.config.n_gram:
            raise ValueError(f"--n-gram {n_gram}: {args.init} has {model.config.n_gram} already")
    open_folder(args.out, "deeper.pt")
    deep = with_n_gram(deeper(model, args.layers), n_gram)
    path = os.path.join(args.out, "deeper.pt")
    kept = {name: parent[name] for name in ("flags", "tokens", "flops")}
    save_checkpoint(path, deep, step=0, **kept)
    n_weights = sum(weight.numel() for weight in deep.parameters())
    print(f"wrote {path}: {deep.config.n_layer} layers, {n_weights:,} weights")


if __name__ == "__main__":
    run_script(main)
