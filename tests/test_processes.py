"""
Several processes: together they compute what one does, and where one ends, all do.
"""
import atexit
import glob
import math
import os
import random
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
import torch

import processes
from checkpoint import load_checkpoint
from model import GPT, GPTConfig
from scripts import ROOT, TINY_SFT, run, table, tiny_base
from traces import read_traces
from train_sft import gradient, make_parser
from batches import Example, make_batch
from verify import make_problems

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
    processes.average_gradients(model)
    return {name: weight.grad for name, weight in model.named_parameters()}


def torchrun(*command):
    """Two processes of a script, which torchrun starts."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    path = os.pathsep.join([ROOT, os.path.join(ROOT, "tests")])
    return subprocess.run([*start, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=170,
                          env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})


def test_two_processes_have_the_gradient_of_one(tmp_path):
    done = torchrun(__file__, tmp_path / "gradients.pt")
    assert done.returncode == 0, done.stderr
    alone, together = gradients(EXAMPLES), torch.load(tmp_path / "gradients.pt")
    assert set(alone) == set(together)
    for name, grad in alone.items():
        torch.testing.assert_close(together[name], grad, rtol=1e-9, atol=1e-12)
    half = gradients(EXAMPLES[::2])
    assert not torch.allclose(half["wte.weight"], alone["wte.weight"])


def test_a_run_of_two_is_written_once_and_can_be_resumed(tmp_path):
    flags = [*TINY_SFT, "--steps", 20, "--log-every", 10, "--batch-size", 8, "--out"]
    done = torchrun("train_sft.py", *flags, tmp_path / "a")
    assert done.returncode == 0 and done.stdout.count("wrote ") == 1, done.stderr
    assert [row["step"] for row in table(tmp_path / "a" / "sft.csv")] == ["10", "20"]
    model, checkpoint = load_checkpoint(tmp_path / "a" / "sft.pt")
    assert checkpoint["flags"]["processes"] == 2 and int(table(tmp_path / "a" / "sft.csv")[-1]["tokens"]) > 0
    done = run("train_sft.py", "--resume", "--out", tmp_path / "a")
    assert done.returncode == 2 and "was begun by 2 processes" in done.stderr
    done = torchrun("train_sft.py", "--resume", "--out", tmp_path / "a")
    assert done.returncode == 0 and done.stdout.count("wrote ") == 1, done.stderr
    done = torchrun("train_rl.py", "--init", tmp_path / "a" / "sft.pt", "--steps", 2, "--prompts", 4,
                     "--samples", 2, "--log-every", 1, "--log-problems", 10, "--test-problems", 10,
                     "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path / "b" / "rl.csv")) == 2


def test_two_processes_search_what_one_does(tmp_path_factory, tmp_path):
    """Greedy answers and searches without a model are the same; samples are each process's own."""
    base = tiny_base(tmp_path_factory) / "sft.pt"
    flags = ["--init", base, "--methods", "greedy", "majority", "single sample", "heuristic",
             "--budgets", 20, 40, "--n-problems", 31, "--out"]
    alone, together = run("search.py", *flags, tmp_path / "a"), torchrun("search.py", *flags, tmp_path / "b")
    assert alone.returncode == together.returncode == 0, together.stderr
    assert together.stdout.count("wrote ") == 1 and together.stdout.count("heuristic  ") == 2
    rows, shared = table(tmp_path / "a" / "search.csv"), table(tmp_path / "b" / "search.csv")
    assert [row["method"] for row in rows] == [row["method"] for row in shared] and len(rows) == 6
    for row, other in zip(rows, shared):
        assert other["seed"] == "0" and other["problems"] == "31"
        same = all(row[key] == other[key] for key in ("accuracy", "tokens_per_problem", "flops_per_problem"))
        assert row["method"] == "majority" or same == (row["method"] != "single sample")
    found = tmp_path / "found.jsonl"
    done = torchrun("search.py", "--init", base, "--save", found, "--methods", "majority", "--budgets", 40,
                    "--n-problems", 7)
    traces = read_traces(found)
    prompts = [trace["prompt"] for trace in traces]
    assert done.returncode == 0 and len(set(prompts)) == 7, done.stderr
    problems, _ = make_problems("countdown", 2, 7, np.random.default_rng([0, 2]))
    assert list(dict.fromkeys(prompts)) == [problem.prompt for problem in problems]


def test_shares_come_back_in_order(monkeypatch):
    def all_gather_object(parts, mine):
        assert mine == [10, 40, 70]
        parts[:] = [[10, 40, 70], [20, 50], [30, 60]]
    for name, value in (("is_initialized", True), ("get_world_size", 3), ("get_rank", 0)):
        monkeypatch.setattr(processes.dist, name, lambda value=value: value)
    monkeypatch.setattr(processes.dist, "all_gather_object", all_gather_object)
    assert processes.shared(lambda part: [10 * i for i in part], range(1, 8)) == [10, 20, 30, 40, 50, 60, 70]


def test_a_lost_process_is_told_in_one_line():
    with pytest.raises(SystemExit, match="have lost each other: connection closed$"):
        with processes.told_if_lost():
            raise RuntimeError("connection closed\nand much more")


def test_what_cannot_be_shared_is_told():
    args = make_parser().parse_args([])
    args.processes = 3
    assert processes.share_of(96, args, "--batch-size") == 32
    with pytest.raises(ValueError, match="--batch-size 64 cannot be shared by 3 processes"):
        processes.share_of(64, args, "--batch-size")


def group_threads():
    """How many threads of the group there are; one may end while it is looked at."""
    names = []
    for path in glob.glob("/proc/self/task/*/comm"):
        with suppress(OSError), open(path) as file:
            names.append(file.read())
    return sum("gloo" in name for name in names)


def check_threads():
    """End with an error if any thread of the group stays, as it would abort Python now and then."""
    until = time.monotonic() + 5            # the system lists a thread for a moment after it was joined
    while group_threads():
        if time.monotonic() > until:
            os._exit(9)
        time.sleep(0.01)


def main():
    """What each of two processes does for the first test."""
    atexit.register(check_threads)          # is called after what join_processes registers
    args = make_parser().parse_args([])
    processes.join_processes(args)
    from torch.distributed.nn import functional  # noqa: F401, as optimizers do
    found = gradients(EXAMPLES[args.rank::2])
    if args.rank == 0:
        torch.save(found, sys.argv[1])


if __name__ == "__main__":
    main()
