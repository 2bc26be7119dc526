"""
Several processes: together they compute what one does, and where one ends, all do.
"""
import math
import os
import random
import subprocess
import sys

import pytest
import torch

import trainer
from checkpoint import load_checkpoint
from model import GPT, GPTConfig
from scripts import ROOT, TINY_SFT, run, table
from train_sft import Example, gradient, make_batch, make_parser

RNG = random.Random(0)


def some_example():
    n = RNG.randint(1, 6)
    tokens = [RNG.randint(2, 20) for _ in range(n + 3)]
    return Example(tokens[:3], tokens[3:], [RNG.random() < 0.7 for _ in range(n)],
                   [RNG.choice([0.0, 1.0, math.nan])] * n)


EXAMPLES = [some_example() for _ in range(12)]


def gradients(examples):
    """Of a small model, averaged over the processes there are."""
    args = make_parser().parse_args([])
    torch.manual_seed(0)
    model = GPT(GPTConfig.from_depth(1)).double()
    torch.nn.init.normal_(model.lm_head.weight)
    gradient(model, make_batch(examples, torch.device("cpu")), args)
    trainer.average_gradients(model)
    return {name: weight.grad for name, weight in model.named_parameters()}


def processes(*command):
    """Two processes of a script, which torchrun starts."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    path = os.pathsep.join([ROOT, os.path.join(ROOT, "tests")])
    return subprocess.run([*start, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=170,
                          env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


def test_two_processes_have_the_gradient_of_one(tmp_path):
    done = processes(__file__, tmp_path / "gradients.pt")
    assert done.returncode == 0, done.stderr
    alone, together = gradients(EXAMPLES), torch.load(tmp_path / "gradients.pt")
    assert set(alone) == set(together)
    for name, grad in alone.items():
        torch.testing.assert_close(together[name], grad, rtol=1e-9, atol=1e-12)
    half = gradients(EXAMPLES[::2])
    assert not torch.allclose(half["wte.weight"], alone["wte.weight"])


def test_a_run_of_two_is_written_once_and_can_be_resumed(tmp_path):
    flags = [*TINY_SFT, "--steps", 20, "--log-every", 10, "--batch-size", 8, "--out"]
    done = processes("train_sft.py", *flags, tmp_path / "a")
    assert done.returncode == 0 and done.stdout.count("wrote ") == 1, done.stderr
    assert [row["step"] for row in table(tmp_path / "a" / "sft.csv")] == ["10", "20"]
    model, checkpoint = load_checkpoint(tmp_path / "a" / "sft.pt")
    assert checkpoint["flags"]["processes"] == 2 and int(table(tmp_path / "a" / "sft.csv")[-1]["tokens"]) > 0
    done = run("train_sft.py", "--resume", "--out", tmp_path / "a")
    assert done.returncode == 2 and "was begun by 2 processes" in done.stderr
    done = processes("train_sft.py", "--resume", "--out", tmp_path / "a")
    assert done.returncode == 0 and done.stdout.count("wrote ") == 1, done.stderr
    done = processes("train_rl.py", "--init", tmp_path / "a" / "sft.pt", "--steps", 2, "--prompts", 4,
                     "--samples", 2, "--log-every", 1, "--log-problems", 10, "--test-problems", 10,
                     "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path / "b" / "rl.csv")) == 2


def test_what_cannot_be_shared_is_told():
    args = make_parser().parse_args([])
    args.processes = 3
    assert trainer.share_of(96, args, "--batch-size") == 32
    with pytest.raises(ValueError, match="--batch-size 64 cannot be shared by 3 processes"):
        trainer.share_of(64, args, "--batch-size")


def main():
    """What each of two processes does for the first test."""
    args = make_parser().parse_args([])
    trainer.join_processes(args)
    found = gradients(EXAMPLES[args.rank::2])
    if args.rank == 0:
        torch.save(found, sys.argv[1])


if __name__ == "__main__":
    main()
