"""All completions of a small size, in short; tests/exhaustive.py has the long run."""
import subprocess
import sys
from pathlib import Path

import pytest

import countdown
import verify
from exhaustive import one_step, sequences, two_steps, wrong_verdicts
from task import compute


@pytest.mark.parametrize("cases, n, n_right", [
    (one_step, 65_536, 4), (two_steps, 9_600, 12), (lambda: sequences(3), 4_419, 128)])
def test_all_there_is_of_a_small_size(cases, n, n_right):
    assert wrong_verdicts(cases()) == (n, n_right, [])


@pytest.mark.parametrize("cases, module, name, hole", [
    (two_steps, countdown, "compute", lambda a, op, b: a // b if op == "/" and b else compute(a, op, b)),
    (one_step, countdown, "compute", lambda a, op, b: 6),
    (lambda: sequences(3), verify, "n_kept", lambda problem, standing, line: len(standing) - 1),
    (lambda: sequences(3), verify, "n_kept", lambda problem, standing, line: 1)])
def test_a_verifier_with_a_hole_is_caught(monkeypatch, cases, module, name, hole):
    monkeypatch.setattr(module, name, hole)
    assert wrong_verdicts(cases())[2]


def test_the_script_runs_from_the_root_of_the_repository():
    command = [sys.executable, "tests/exhaustive.py", "--quick"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0 and "4,419 completions, 128 right, 0 wrong" in done.stdout, done.stderr
