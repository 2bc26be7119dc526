"""
Several processes, started by `torchrun --nproc_per_node 2 train_sft.py`.

In training each takes its share of a batch, and before each optimizer step the gradients are averaged over
all processes, so their weights stay equal to the last bit. In a search each takes its share of the problems.
Only the first, of rank 0, prints and writes files.
"""
import atexit
import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from common import choose_device


def join_processes(args):
    """Note in args which process this is, and of how many."""
    if not dist.is_torchelastic_launched():
        return
    if choose_device(args.device).type == "cuda":
        if int(os.environ["LOCAL_RANK"]) >= torch.cuda.device_count():
            raise ValueError("more processes than CUDA devices: use fewer, or --device cpu")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Import this before there is a group, as optimizers will import it anyway. Its functions take the group
    # as a default argument and would keep it for ever, with threads that may abort Python at its end.
    from torch.distributed.nn import functional  # noqa: F401
    dist.init_process_group(timeout=timedelta(hours=3))                 # rank 0 may measure for long
    atexit.register(dist.destroy_process_group)
    args.rank, args.processes = dist.get_rank(), dist.get_world_size()


def share_of(n, args, flag):
    """How many of the n items of a flag this process makes. ValueError if they cannot be shared equally."""
    if n % args.processes:
        raise ValueError(f"{flag} {n} cannot be shared by {args.processes} processes: choose a multiple")
    return n // args.processes


@contextmanager
def told_if_lost():
    """End the script with a one-line message if another process is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise SystemExit(f"the processes of this run have lost each other: {reason}") from None


def mean_over_processes(numbers):
    """The mean over all processes of a list of numbers, or of a tensor, which is changed in place."""
    if not dist.is_initialized():
        return numbers
    tensor = torch.tensor(numbers, dtype=torch.float64) if isinstance(numbers, list) else numbers
    with told_if_lost():
        dist.all_reduce(tensor)
    tensor /= dist.get_world_size()
    return tensor if tensor is numbers else tensor.tolist()


def wait_for_all():
    """Wait until all processes have called this."""
    mean_over_processes([0.0])


def mean_count(n):
    """
    The mean of a count over all processes. Each process divides its sum of losses by it: the mean over the
    processes is then the sum of all losses divided by the count of all.
    """
    return mean_over_processes([n])[0]


def average_gradients(model):
    """Replace each gradient by its mean over all processes, before the optimizer step."""
    if not dist.is_initialized():
        return
    weights = list(model.parameters())
    learnt = mean_over_processes([float(weight.grad is not None) for weight in weights])
    weights = [weight for weight, share in zip(weights, learnt) if share]       # with a gradient anywhere
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    mean = mean_over_processes(torch.cat([gradient.flatten() for gradient in gradients]))
    for weight, part in zip(weights, mean.split([weight.numel() for weight in weights])):
        weight.grad = part.view_as(weight)


def shared(function, items):
    """
    function(items), a list with one entry for each item. Every process works on its share of the items, and
    gets the whole list.
    """
    if not dist.is_initialized():
        return function(items)
    n = dist.get_world_size()
    parts, answers = [None] * n, [None] * len(items)
    mine = function(items[dist.get_rank()::n])
    with told_if_lost():
        dist.all_gather_object(parts, mine)
    for rank, part in enumerate(parts):
        answers[rank::n] = part
    return answers
