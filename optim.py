"""
The optimizers: Muon for the matrices of the blocks and AdamW for the rest, or AdamW for all.
"""
from collections import defaultdict

import torch
import torch.nn as nn


class Muon(torch.optim.Optimizer):
    """
    Momentum whose update is orthogonalised, so that rare directions are learnt as fast as common ones (Jordan
    et al. 2024). Like torch.optim.Muon, but matrices of one shape are computed together, which takes 60 % of
    the time if they are small. Updates have the size of AdamW's (Liu et al. 2025, eq. 4). dtype: of the
    orthogonalisation; bfloat16 is precise enough, but a processor that has to emulate it takes thirty times
    as long.
    """

    def __init__(self, params, lr, momentum=0.95, dtype=torch.bfloat16):
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        group, = self.param_groups
        by_shape = defaultdict(list)                            # {shape: [(weight, update)]}, rows <= columns
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
            for weight, update in zip(weights, orthogonalise(torch.stack(updates).to(self.dtype))):
                weight.add_(update.float(), alpha=-0.2 * max(shape) ** 0.5 * group["lr"])


def orthogonalise(x):
    """
    Move the singular values of matrices (N, rows <= columns) close to 1, by five Newton-Schulz iterations.
    """
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


OPTIMIZERS = "muon", "adamw"


def make_optimizers(model, lr, kind="muon"):
    """
    "muon": Muon for the matrices of the blocks, AdamW for embedding and heads, at the same learning rate.
    "adamw": AdamW for all. Muon moves a matrix as far in noisy directions as in others. It learns fastest
    where the gradient has little noise; in RL, where most of it is noise, AdamW is as good.
    """
    def adamw(weights):
        return torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)

    if kind == "adamw":
        return [adamw(model.parameters())]
    muon = Muon(model.blocks.parameters(), lr, dtype=model.compute_dtype or torch.float32)
    others = [weight for name, weight in model.named_parameters() if not name.startswith("blocks.")]
    return [muon, adamw(others)]


def optimizer_step(model, optimizers, lr, max_norm=1.0):
    """Clip the gradient, step, and clear it. Returns its norm before clipping."""
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return grad_norm.item()
