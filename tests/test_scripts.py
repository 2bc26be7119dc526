"""
The scripts as a user runs them: the whole pipeline at a very small size, Ctrl-C and --resume, and every wrong input that
comes to mind, each of which must end in one clear line and exit status 2, and leave nothing half-written.
"""
import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from model import GPT, GPTConfig, load_checkpoint, save_checkpoint
from verify import test_problems

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY_SFT = ["--level", "2", "--depth", "2", "--steps", "160", "--log-every", "80", "--log-problems", "20",
            "--test-problems", "60", "--warmup", "20"]
TINY_RL = ["--steps", "4", "--prompts", "32", "--samples", "4", "--log-every", "2", "--log-problems", "20", "--test-problems", "60"]


def command(script, *flags):
    return [sys.executable, os.path.join(ROOT, script), *map(str, flags)]


def run(script, *flags):
    return subprocess.run(command(script, *flags), capture_output=True, text=True, timeout=170)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder after SFT on problems with two numbers, the smallest thing that can be learnt in seconds."""
    folder = tmp_path_factory.mktemp("out")
    done = run("train_sft.py", *TINY_SFT, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_sft_learns(out):
    rows = table(out / "sft.csv")
    assert [int(row["step"]) for row in rows] == [80, 160]
    assert float(rows[-1]["greedy"]) > 0.3 and float(rows[-1]["loss"]) < 0.5        # a uniform guess: 0 and log 64 = 4.2
    assert float(rows[0]["flops"]) < float(rows[1]["flops"])
    _, checkpoint = load_checkpoint(out / "sft.pt")
    assert checkpoint["step"] == 160 and checkpoint["flags"]["level"] == 2


@pytest.mark.parametrize("algo", ["filter", "reinforce", "ppo"])
def test_rl_runs_and_logs(out, tmp_path, algo):
    done = run("train_rl.py", "--algo", algo, "--init", out / "sft.pt", *TINY_RL, "--kl-coef", "0.01", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "rl.csv")
    for key in ("step", "tokens", "flops", "greedy", "sampled", "pass16", "reward", "mixed", "length", "entropy", "approx_kl",
                "clipfrac", "explained_variance"):
        assert all(row[key] != "" for row in rows), key
    assert float(rows[0]["tokens"]) > float(table(out / "sft.csv")[-1]["tokens"])   # the parent's are included


def test_rl_profile(out, tmp_path):
    done = run("train_rl.py", "--init", out / "sft.pt", *TINY_RL, "--profile", "--out", tmp_path)
    line, = [line for line in done.stdout.splitlines() if line.startswith("a step took")]
    assert all(name in line for name in ("sampling (", "verifying (", "learning (", "rollouts a second"))


def test_sampling_benchmark():
    done = run("sample.py", "--batch-sizes", 2, 5, "--depths", 1, 2, "--new-tokens", 4, "--repeats", 1, "--compare", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens/s") == 4 == done.stdout.count("no cache") and "peak memory" in done.stdout


def test_search_and_plot(out, tmp_path):
    done = run("search.py", "--init", out / "sft.pt", "--n-problems", 20, "--budgets", 30, 60, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "search.csv")
    assert {row["method"] for row in rows} >= {"greedy", "majority", "best-of-n (value)", "beam (value)", "mcts (verifier)", "enumeration"}
    for row in rows:
        assert float(row["ci_low"]) <= float(row["accuracy"]) <= float(row["ci_high"])
        assert float(row["tokens_per_problem"]) <= float(row["budget"])
    os.rename(tmp_path / "search.csv", out / "search.csv")
    done = run("plot.py", out)
    assert done.returncode == 0 and (out / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_search_on_own_problems(out, tmp_path):
    (tmp_path / "mine.txt").write_text("98 11>87\n25 50>75\n")
    done = run("search.py", "--init", out / "sft.pt", "--problems", tmp_path / "mine.txt", "--methods", "greedy", "--out", tmp_path)
    assert done.returncode == 0 and table(tmp_path / "search.csv")[0]["problems"] == "2"


def test_search_then_learn_from_what_was_found(out, tmp_path):
    """The closed loop, twice: search with the model, imitate what was found, search with the better model."""
    checkpoint = out / "sft.pt"
    for turn in range(2):
        traces = tmp_path / f"{turn}.jsonl"
        done = run("search.py", "--init", checkpoint, "--save", traces, "--methods", "mcts (verifier)", "--budgets", 60, "--n-problems", 40,
                   "--seed", turn)
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in open(traces)]
        assert sum(trace["correct"] for trace in found) > 10 and not {problem.prompt for problem in test_problems("countdown", 2, 1000)} & {
            trace["prompt"] for trace in found}                         # never learn from test problems
        done = run("train_sft.py", "--init", checkpoint, "--data", traces, "--test-problems", 20, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        rows = table(tmp_path / "sft.csv")
        assert int(rows[-1]["step"]) == -(-len(found) // 64) and float(rows[-1]["tokens"]) > float(table(out / "sft.csv")[-1]["tokens"])
        checkpoint = tmp_path / "sft.pt"


@pytest.mark.parametrize("what, label", [("verdicts", "rollouts"), ("composites", "given"), ("continuations", "given"), ("attempts", "exact")])
def test_traces_are_written_learnt_and_judged(out, tmp_path, what, label):
    sft, found, traces = out / "sft.pt", tmp_path / "found.jsonl", tmp_path / "traces.jsonl"
    assert run("search.py", "--init", sft, "--save", found, "--methods", "majority", "--budgets", 60, "--n-problems", 60).returncode == 0
    done = run("traces.py", "--init", sft, "--data", found, "--save", traces, "--write", what, "--label", label, "--samples", 4)
    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in open(traces)]
    assert len(written) > 5 and all(("values" in trace) for trace in written if label != "given")
    if what == "continuations":
        assert any("?no\nwait\n" in trace["completion"] and trace["correct"] for trace in written)
    cost = [sum(json.loads(line)["flops"] for line in open(path)) for path in (found, traces)]
    assert cost[1] > cost[0] if what == "continuations" else cost[1] == pytest.approx(cost[0])      # with 2 numbers no line has a successor
    done = run("train_sft.py", "--init", sft, "--data", traces, "--attempts", 2, "--test-problems", 20, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(table(tmp_path / "sft.csv")[-1]["flops"]) > float(table(out / "sft.csv")[-1]["flops"]) + cost[1]
    done = run("search.py", "--init", sft, "--judge", tmp_path / "sft.pt", "--methods", "best-of-n (verdict)", "vote (value)", "revise", "--budgets", 60,
               "--n-problems", 20, "--out", tmp_path)
    assert done.returncode == 0 and len(table(tmp_path / "search.csv")) == 3, done.stderr


def test_ask_shows_the_tree(out):
    done = run("search.py", "--init", out / "sft.pt", "--ask", "60 27>87")
    assert done.returncode == 0 and "P 0." in done.stdout and "60 27>87" in done.stdout and " tokens" in done.stdout


def test_expression_goes_through_all_four_scripts(tmp_path):
    done = run("train_sft.py", "--task", "expression", *TINY_SFT, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert run("train_rl.py", *TINY_RL, "--out", tmp_path).returncode == 0
    assert run("search.py", "--n-problems", 10, "--budgets", 30, "--out", tmp_path).returncode == 0
    rows = {row["method"]: row for row in table(tmp_path / "search.csv")}
    assert rows["mcts (verifier)"]["oracle"] == "1" and rows["mcts (value)"]["oracle"] == "0" and "enumeration" not in rows


def test_direct_answers_and_solved_examples(tmp_path):
    flags = ["--task", "expression", "--level", 1, "--depth", 1, "--steps", 20, "--log-every", 10, "--test-problems", 20, "--log-problems", 20]
    done = run("train_sft.py", *flags, "--direct", "--shots", 2, "--out", tmp_path)
    assert done.returncode == 0 and len(table(tmp_path / "sft.csv")) == 2, done.stderr


def test_same_seed_same_run(tmp_path):
    tables = []
    for name in "ab":
        flags = ["--level", "2", "--depth", "1", "--steps", "12", "--test-problems", "20"]
        assert run("train_sft.py", *flags, "--out", tmp_path / name).returncode == 0
        assert run("train_rl.py", *TINY_RL[:-2], "--test-problems", 20, "--out", tmp_path / name).returncode == 0
        tables.append([(tmp_path / name / file).read_bytes() for file in ("sft.csv", "rl.csv")])
    assert tables[0] == tables[1]


def test_workers_change_nothing(tmp_path):
    tables = []
    for workers in (0, 2):
        done = run("train_sft.py", "--level", 2, "--depth", 1, "--steps", 12, "--test-problems", 20, "--workers", workers, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        tables.append((tmp_path / "sft.csv").read_bytes())
    assert tables[0] == tables[1]


@pytest.mark.parametrize("script, flags, checkpoint", [
    ("train_sft.py", ["--level", "2", "--depth", "1", "--steps", "400", "--test-problems", "20"], "sft.pt"),
    ("train_rl.py", ["--steps", "30", "--prompts", "64", "--samples", "4", "--test-problems", "20"], "rl.pt"),
])
def test_ctrl_c_saves_and_resume_ends_where_an_undisturbed_run_ends(out, tmp_path, script, flags, checkpoint):
    if script == "train_rl.py":
        flags = [*flags, "--init", str(out / "sft.pt")]
    process = subprocess.Popen(command(script, *flags, "--out", tmp_path / "a"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith(script):         # the flags are printed, training begins
            break
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in said
    stopped = load_checkpoint(tmp_path / "a" / checkpoint)[1]["step"]
    assert 0 < stopped < int(flags[flags.index("--steps") + 1])
    assert run(script, "--resume", "--out", tmp_path / "a").returncode == 0
    assert run(script, *flags, "--out", tmp_path / "b").returncode == 0
    (one, _), (other, _) = (load_checkpoint(tmp_path / name / checkpoint) for name in "ab")
    assert all(torch.equal(x, y) for x, y in zip(one.state_dict().values(), other.state_dict().values()))


def test_overwriting_is_announced(out, tmp_path):
    flags = ["--init", out / "sft.pt", "--n-problems", 4, "--budgets", 20, "--methods", "greedy", "--out", tmp_path]
    assert "overwrites" not in run("search.py", *flags).stdout
    assert f"overwrites {tmp_path}/search.csv" in run("search.py", *flags).stdout


WRONG = {
    "unknown flag": ("train_sft.py", ["--stepz", "3"], "--stepz"),
    "unknown value": ("train_rl.py", ["--algo", "magic"], "magic"),
    "level out of range": ("train_sft.py", ["--level", "9"], "level"),
    "steps of zero": ("train_sft.py", ["--steps", "0"], "--steps"),
    "negative samples": ("train_rl.py", ["--samples", "-1"], "--samples"),
    "missing checkpoint": ("train_rl.py", ["--init", "TMP/none.pt"], "none.pt: no such file"),
    "truncated checkpoint": ("search.py", ["--init", "TMP/truncated.pt"], "truncated.pt"),
    "foreign checkpoint": ("search.py", ["--init", "TMP/foreign.pt"], "foreign.pt"),
    "foreign checkpoint for SFT": ("train_sft.py", ["--init", "TMP/foreign.pt"], "foreign.pt"),
    "another size": ("train_sft.py", ["--init", "OUT/sft.pt", "--depth", "5"], "--depth 5"),
    "nothing to resume": ("train_sft.py", ["--resume", "--out", "TMP/empty"], "sft.pt"),
    "no CUDA": ("train_sft.py", ["--device", "cuda"], "no CUDA device"),
    "malformed problem": ("search.py", ["--init", "OUT/sft.pt", "--ask", "25 8 seven>24"], "25 8 seven>24"),
    "unicode in a problem": ("search.py", ["--init", "OUT/sft.pt", "--ask", "25 \u0668>24"], "25"),
    "unsolvable problem": ("search.py", ["--init", "OUT/sft.pt", "--ask", "1 2>99"], "no solution"),
    "untrained level": ("search.py", ["--init", "OUT/sft.pt", "--ask", "25 8 7>24"], "level 3"),
    "untrained task": ("search.py", ["--init", "OUT/sft.pt", "--ask", "2+3="], "expression"),
    "bad line in a file": ("search.py", ["--init", "OUT/sft.pt", "--problems", "TMP/bad.txt"], "line 2"),
    "empty file": ("search.py", ["--init", "OUT/sft.pt", "--problems", "TMP/empty.txt"], "empty.txt"),
    "missing file": ("search.py", ["--init", "OUT/sft.pt", "--problems", "TMP/none.txt"], "none.txt"),
    "out is a file": ("search.py", ["--init", "OUT/sft.pt", "--out", "TMP/bad.txt"], "bad.txt"),
    "out below a file": ("train_sft.py", ["--out", "TMP/bad.txt/out"], "bad.txt"),
    "negative rate": ("train_sft.py", ["--lr", "-1"], "--lr"),
    "rate that is no number": ("train_sft.py", ["--lr", "nan"], "--lr"),
    "no decay": ("train_sft.py", ["--decay", "0"], "--decay"),
    "negative seed": ("train_sft.py", ["--seed", "-1"], "--seed"),
    "a single sample": ("train_rl.py", ["--init", "OUT/sft.pt", "--samples", "1"], "--samples"),
    "weights without a run": ("train_rl.py", ["--init", "TMP/weights.pt"], "lacks flags"),
    "level zero": ("train_sft.py", ["--level", "0"], "--level"),
    "empty question": ("search.py", ["--init", "OUT/sft.pt", "--ask", ""], "not a prompt"),
    "baseline on expression": ("search.py", ["--init", "OUT/sft.pt", "--task", "expression", "--methods", "enumeration"], "--methods"),
    "budget of zero": ("search.py", ["--init", "OUT/sft.pt", "--budgets", "0"], "--budgets"),
    "no tables": ("plot.py", ["TMP/empty"], "sft.csv"),
    "a folder for a picture": ("plot.py", ["OUT", "--out", "TMP/empty"], "is a folder"),
    "no chain of thought in countdown": ("train_sft.py", ["--direct"], "--direct"),
    "room beyond what the model reads": ("train_sft.py", ["--attempts", "200"], "--attempts 200"),
    "more examples than the model reads": ("train_sft.py", ["--shots", "500"], "--shots 500"),
    "solved examples before traces": ("train_sft.py", ["--init", "OUT/sft.pt", "--data", "TMP/good.jsonl", "--shots", "2"], "--shots"),
    "traces with a cost that is none": ("train_sft.py", ["--init", "OUT/sft.pt", "--data", "TMP/null.jsonl"], "null.jsonl, line 1"),
    "data without a model": ("train_sft.py", ["--data", "TMP/bad.txt"], "--init"),
    "no such data": ("train_sft.py", ["--init", "OUT/sft.pt", "--data", "TMP/none.jsonl"], "none.jsonl"),
    "data that is none": ("train_sft.py", ["--init", "OUT/sft.pt", "--data", "TMP/bad.txt"], "bad.txt, line 1"),
    "two methods to save": ("search.py", ["--init", "OUT/sft.pt", "--save", "TMP/new.jsonl"], "--save"),
    "no traces to write of": ("traces.py", ["--data", "TMP/none.jsonl", "--save", "TMP/new.jsonl"], "none.jsonl"),
    "traces that are none": ("traces.py", ["--data", "TMP/bad.txt", "--save", "TMP/new.jsonl"], "bad.txt, line 1"),
    "rollouts without a model": ("traces.py", ["--init", "TMP/none.pt", "--label", "rollouts", "--save", "TMP/new.jsonl"], "none.pt"),
    "a judge that is none": ("search.py", ["--init", "OUT/sft.pt", "--judge", "TMP/none.pt"], "none.pt"),
    "a row that is none": ("league.py", ["--rows", "magic"], "magic"),
    "an empty batch": ("sample.py", ["--batch-sizes", "0"], "--batch-sizes"),
    "too long to read": ("sample.py", ["--new-tokens", "5000"], "--new-tokens"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.skipif(sys.platform == "win32", reason="paths")
def test_wrong_input_is_one_line_and_exit_status_2(out, tmp_path, case):
    script, flags, expected = WRONG[case]
    if case == "no CUDA" and torch.cuda.is_available():
        pytest.skip("there is CUDA")
    save_checkpoint(tmp_path / "truncated.pt", GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)))
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "truncated.pt").read_bytes()[:2000])
    save_checkpoint(tmp_path / "weights.pt", GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)))
    torch.save([1, 2, 3], tmp_path / "foreign.pt")
    (tmp_path / "bad.txt").write_text("98 11>87\n98 11 > 87\n")
    trace = {"prompt": "98 11>87\n", "completion": "98-11=87,87\n", "correct": True}
    (tmp_path / "good.jsonl").write_text(json.dumps(trace) + "\n")
    (tmp_path / "null.jsonl").write_text(json.dumps(trace | {"flops": None}) + "\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "empty").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    flags = [flag.replace("TMP", str(tmp_path)).replace("OUT", str(out)) for flag in flags]
    if "--out" not in flags and script not in ("plot.py", "sample.py", "traces.py"):
        flags += ["--out", str(tmp_path / "empty")]
    done = run(script, *flags)
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
