"""
A task is one file and one entry of a table, so a third one, long multiplication, must go through every script
as it is. Guarded here: scripts that name a task, or that ask all tasks for what only countdown has, such as a
list of the steps; and the example of how to add a task, which readers will copy.
"""
import csv
import os
import subprocess
import sys

import numpy as np
import pytest

import multiplication
import verify
from checkpoint import load_checkpoint
from search import METHODS
from verify import encode, held_out_problems, make_problems, parse_problem, solve, split_of, state_value

pytestmark = pytest.mark.multiplication
REGISTER = """
import multiplication, verify
verify.TASKS["multiplication"] = multiplication.TASK        # before the scripts read the table
"""
TINY = ["--log-problems", 5, "--test-problems", 10]
TINY_SFT = ["--level", 1, "--depth", 1, "--steps", 4, "--batch-size", 16, *TINY]
TINY_RL = ["--steps", 2, "--prompts", 8, "--samples", 2, *TINY]
WORK = "47*6=282\n47*30=1410\n282+1410=1692\n1692\n"


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(verify.TASKS, "multiplication", multiplication.TASK)


def run(script, *flags, before=REGISTER):
    """A script of the repository with these flags, and some lines of Python before it."""
    name = script.removesuffix(".py")
    start = f"import sys\nsys.argv[0] = {script!r}\nsys.path[:] = {sys.path!r}\n"           # as it is here
    call = f"import common, {name}\ncommon.run_script({name}.main)\n"
    command = [sys.executable, "-c", start + before + call, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=170)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------------
# Through the scripts

@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder after SFT on the third task: too short to learn anything."""
    folder = tmp_path_factory.mktemp("out")
    done = run("train_sft.py", "--task", "multiplication", *TINY_SFT, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_sft_runs(out):
    row, = table(out / "sft.csv")
    assert row["step"] == "4" and float(row["loss"]) > 0 and row["value_auc"] == "nan"
    flags = load_checkpoint(out / "sft.pt")[1]["flags"]
    assert (flags["task"], flags["level"]) == ("multiplication", 1)
    assert flags["max_tokens"] == len("9*9=81\n81\n") + 1


def test_rl_runs(out, tmp_path):
    done = run("train_rl.py", "--init", out / "sft.pt", *TINY_RL, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "rl.csv")
    assert [row["step"] for row in rows] == ["1", "2"] and float(rows[-1]["length"]) > 0
    assert load_checkpoint(tmp_path / "rl.pt")[1]["flags"]["task"] == "multiplication"


def test_search_leaves_out_what_needs_a_list_of_steps(out, tmp_path):
    flags = ["--init", out / "sft.pt", "--n-problems", 4, "--out", tmp_path]
    done = run("search.py", *flags, "--budgets", 12, 24)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "search.csv")
    of_a_model = {name for name, method in METHODS.items() if method.needs_model}
    assert {row["method"] for row in rows} == of_a_model - {"stream", "stream (afresh)"}
    assert {row["task"] for row in rows} == {"multiplication"}
    assert {row["budget"] for row in rows} == {"12", "24"}
    for row in rows:                        # its answer cannot be checked without knowing it
        assert row["oracle"] == str(int(METHODS[row["method"]].verifies))
        assert float(row["tokens_per_problem"]) <= float(row["budget"])
    done = run("search.py", *flags, "--methods", "greedy", "enumeration")
    assert done.returncode == 2 and "enumeration" in done.stderr and done.stderr.count("\n") == 1


def test_search_then_learn_from_what_was_found(out, tmp_path):
    traces = tmp_path / "traces.jsonl"
    flags = ["--methods", "best-of-n (verifier)", "--budgets", 400, "--n-problems", 4]
    done = run("search.py", "--init", out / "sft.pt", *flags, "--save", traces)
    assert done.returncode == 0, done.stderr
    flags = ["--data", traces, "--test-problems", 5, "--out", tmp_path]
    done = run("train_sft.py", "--init", out / "sft.pt", *flags)
    assert done.returncode == 0 and len(table(tmp_path / "sft.csv")) == 1, done.stderr


def test_ask_shows_the_tree(out):
    done = run("ask.py", "--init", out / "sft.pt", "--budget", 12, "7*8?")
    assert done.returncode == 0 and "P 0." in done.stdout and "7*8?" in done.stdout, done.stderr


def test_a_checkpoint_of_a_task_that_is_not_there_is_told_in_one_line(out, tmp_path):
    # A student may have added it
    unregister = "import verify\nverify.TASKS.pop('multiplication', None)\n"
    done = run("search.py", "--init", out / "sft.pt", "--out", tmp_path, before=unregister)
    assert done.returncode == 2 and "no task 'multiplication'" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not os.listdir(tmp_path)


# ------------------------------------------------------------------------------------------------------------
# The task itself

@pytest.mark.parametrize("completion, correct, first_error", [
    (WORK, True, None),
    (WORK + "?yes\n", True, None),
    ("47*6=282\n47*30=1400\nwait\n" + WORK[9:], True, None),
    ("wait\n" + WORK, False, None),
    ("", False, None),
    (WORK[:-1], False, None),               # cut off
    (WORK[:-5], False, None),               # no answer
    ("1692\n", False, 0),                   # no work
    ("47*36\n", False, 0),
    ("47*36=1692\n1692\n", False, 0),
    (WORK.replace("282", "283"), False, 0),
    (WORK.replace("282+1410=1692", "1692"), False, 2),
    (WORK.replace("1692", "1693"), False, 2),
    (WORK[:-5] + "1693\n", False, 3),
    (WORK[:-5] + "01692\n", False, 3),
    (WORK + "1692\n", False, 4),
    (WORK + "\n", False, 4),
    (WORK.replace("\n", " \n"), False, 0),
    (WORK.replace("6", "\u0666"), False, 0),
])
def test_verdicts(registered, completion, correct, first_error):
    verdict = verify.verify(parse_problem("47*36?"), completion)
    assert (verdict.correct, verdict.first_error) == (correct, first_error), verdict.reason
    assert verdict.reason.isprintable()


def test_state_values(registered):
    problem, lines = parse_problem("47*36?"), WORK.splitlines(keepends=True)
    for n in range(len(lines) + 1):
        begun = "".join(lines[:n])
        assert state_value(problem, begun) and not state_value(problem, begun + "7\n")


@pytest.mark.parametrize("level", multiplication.TASK.levels)
@pytest.mark.parametrize("split", verify.SPLITS)
def test_problems_and_their_solutions(registered, level, split):
    problems, solutions = make_problems("multiplication", level, 300, np.random.default_rng(level), split)
    assert len(problems) == len(solutions) == 300
    for problem, solution in zip(problems, solutions):
        assert problem == parse_problem(problem.prompt)
        assert problem.level == level and split_of(problem) == split
        assert solution == solve(problem, None) and verify.verify(problem, solution).correct
        a, b = map(int, problem.prompt.removesuffix("?\n").split("*"))
        assert len(str(a)) == len(str(b)) == level and split_of(parse_problem(f"{b}*{a}?")) == split
        *steps, answer = solution.splitlines()
        assert answer == str(a * b) and len(steps) == 2 * level - 1
        for step in steps:                  # each is an expression with its value
            left, right = step.split("=")
            assert parse_problem(left + "=").target == int(right)
    nines = "9" * level
    longest = solve(parse_problem(f"{nines}*{nines}?"), None)
    lengths = [len(encode(solution)) + 1 for solution in [*solutions, longest]]
    assert max(lengths) == multiplication.TASK.max_tokens(level)


def test_a_prompt_belongs_to_one_task(registered):
    for name, task in verify.TASKS.items():
        for problem in held_out_problems(name, task.default_level, 20):
            text = problem.prompt.removesuffix("\n")
            assert [other.name for other in verify.TASKS.values() if other.looks_like_prompt(text)] == [name]
            assert parse_problem(text) == problem


@pytest.mark.parametrize("text", [
    "?", "*?", "9?", "9*?", "*9?", "9*9*9?", "09*9?", "9 * 9?", "-9*9?", "9*9??", "9*\u0663?", "9+9?",
    "(9)*9?", "1000*2?", "9*1" + "0" * 5000 + "?"], ids=lambda text: ascii(text)[:20])
def test_parse_problem_refuses(registered, text):
    with pytest.raises(ValueError, match="is not a multiplication prompt|has 4 digits: 1 to 3 are allowed"):
        parse_problem(text)
