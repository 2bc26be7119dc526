"""The scripts, as the tests run them."""
import csv
import io
import os
import runpy
import signal
import subprocess
import sys
import warnings
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from unittest.mock import patch

import best_of_n
import search
from algorithms import ALGORITHMS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What experiments add to
TABLES = search.METHODS, best_of_n.SCORERS, ALGORITHMS
TINY_SFT = ["--level", 2, "--depth", 1, "--steps", 200, "--lr", 0.02, "--log-every", 100,
            "--log-problems", 20, "--test-problems", 60]
TINY_RL = ["--steps", 4, "--prompts", 32, "--samples", 4, "--log-every", 2, "--log-problems", 20,
           "--test-problems", 60]


def command(script, *flags):
    """search.py is run as it is, experiments.judges as a module, from the root of the repository."""
    start = [os.path.join(ROOT, script)] if script.endswith(".py") else ["-m", script]
    return [sys.executable, *start, *map(str, flags)]


def run(script, *flags):
    """In a process of its own, as a user does."""
    return subprocess.run(command(script, *flags), cwd=ROOT, capture_output=True, text=True, timeout=170)


def run_here(script, *flags):
    """
    In this process, which saves the two seconds of importing torch. What a script does about signals is
    undone.
    """
    out, err, status = io.StringIO(), io.StringIO(), 0
    argv = [os.path.join(ROOT, script), *map(str, flags)]
    with ExitStack() as stack:
        for signum in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            stack.callback(signal.signal, signum, signal.getsignal(signum))
        for table in TABLES:
            stack.enter_context(patch.dict(table))
        stack.callback(os.chdir, os.getcwd())
        os.chdir(ROOT)
        argument, warned = patch.object(sys, "argv", argv), warnings.catch_warnings()
        for context in (argument, warned, redirect_stdout(out), redirect_stderr(err)):
            stack.enter_context(context)
        warnings.simplefilter("ignore")                                 # that a module was imported before
        try:
            if script.endswith(".py"):
                runpy.run_path(argv[0], run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code or 0
    return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())


def tiny_base(tmp_path_factory, made=[]):
    """
    A folder after SFT on problems with two numbers, the smallest thing that can be learnt in seconds. It is
    made once for all tests.
    """
    if not made:
        folder = tmp_path_factory.mktemp("base")
        done = run("train_sft.py", *TINY_SFT, "--out", folder)
        assert done.returncode == 0, done.stderr
        made.append(folder)
    return made[0]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_table(path, rows):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
