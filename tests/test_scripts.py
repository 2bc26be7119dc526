"""
The scripts as a user runs them: the whole pipeline at a very small size, Ctrl-C and --resume, the held-out
problems that are measured on, the picture, and every wrong input that comes to mind, each of which must end
in one clear line and exit status 2, and leave nothing half-written.
"""
import json
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch

import plot
import search
import train_rl
import train_sft
from baselines import depth_first
from budget import Settings
from checkpoint import load_checkpoint, save_checkpoint
from model import GPT, GPTConfig
from scripts import ROOT, TINY_RL, command, run, run_here, table, tiny_base, write_table
from trainer import Run
from verify import held_out_problems, split_of


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tiny_base(tmp_path_factory)


# ------------------------------------------------------------------------------------------------------------
# The pipeline

def test_sft_learns(out):
    rows = table(out / "sft.csv")
    assert [int(row["step"]) for row in rows] == [100, 200]
    # A uniform guess would have 0 and log 64 = 4.2
    assert float(rows[-1]["greedy"]) > 0.3 and float(rows[-1]["loss"]) < 0.5
    assert float(rows[0]["flops"]) < float(rows[1]["flops"])
    model, checkpoint = load_checkpoint(out / "sft.pt")
    assert checkpoint["step"] == 200 and checkpoint["flags"]["level"] == 2
    assert {int(row["parameters"]) for row in rows} == {sum(weight.numel() for weight in model.parameters())}


@pytest.mark.parametrize("algo", ["filter", "reinforce", "ppo"])
def test_rl_runs_and_logs(out, tmp_path, algo):
    flags = ["--algo", algo, "--init", out / "sft.pt", "--profile"]
    done = run("train_rl.py", *flags, *TINY_RL, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    line, = [line for line in done.stdout.splitlines() if line.startswith("a step took")]
    assert all(name in line for name in ("sampling (", "verifying (", "learning (", "rollouts a second"))
    rows, base = table(tmp_path / "rl.csv"), table(out / "sft.csv")[-1]
    assert [int(row["step"]) for row in rows] == [2, 4]
    for key in ("step", "tokens", "flops", "greedy", "sampled", "pass16", "reward", "mixed", "length",
                "entropy", "approx_kl", "clipfrac", "explained_variance"):
        assert all(row[key] != "" for row in rows), key
    assert float(rows[0]["tokens"]) > float(base["tokens"])             # the parent's are included
    assert {row["parameters"] for row in rows} == {base["parameters"]}


def test_search_and_plot(out, tmp_path):
    flags = ["--init", out / "sft.pt", "--n-problems", 20, "--budgets", 30, 60]
    done = run("search.py", *flags, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "search.csv")
    assert {row["method"] for row in rows} == set(search.METHODS) - {"stream", "stream (afresh)"}
    for row in rows:
        assert float(row["ci_low"]) <= float(row["accuracy"]) <= float(row["ci_high"])
        assert float(row["tokens_per_problem"]) <= float(row["budget"])
    os.rename(tmp_path / "search.csv", out / "search.csv")
    done = run("plot.py", out)
    assert done.returncode == 0 and (out / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_search_on_own_problems(out, tmp_path):
    (tmp_path / "mine.txt").write_text("98 11>87\n25 50>75\n")
    flags = ["--init", out / "sft.pt", "--problems", tmp_path / "mine.txt", "--methods", "greedy"]
    done = run_here("search.py", *flags, "--out", tmp_path)
    assert done.returncode == 0 and table(tmp_path / "search.csv")[0]["problems"] == "2"


def test_search_then_learn_from_what_was_found(out, tmp_path):
    """The closed loop, twice: search with the model, imitate what was found, search with the better model."""
    checkpoint = out / "sft.pt"
    held_out = {problem.prompt for split in ("test", "validation")
                for problem in held_out_problems("countdown", 2, 1000, split)}
    for turn in range(2):
        traces = tmp_path / f"{turn}.jsonl"
        flags = ["--methods", "mcts (verifier)", "--budgets", 60, "--n-problems", 40, "--seed", turn]
        done = run_here("search.py", "--init", checkpoint, "--save", traces, *flags)
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in open(traces)]
        assert sum(trace["correct"] for trace in found) > 10
        assert not held_out & {trace["prompt"] for trace in found}      # never learn from these
        flags = ["--init", checkpoint, "--data", traces, "--test-problems", 20]
        done = run("train_sft.py", *flags, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        rows = table(tmp_path / "sft.csv")
        assert int(rows[-1]["step"]) == -(-len(found) // 64)
        assert float(rows[-1]["tokens"]) > float(table(out / "sft.csv")[-1]["tokens"])
        checkpoint = tmp_path / "sft.pt"


def test_ask_shows_the_tree(out):
    done = run_here("ask.py", "--init", out / "sft.pt", "60 27>87")
    assert done.returncode == 0, done.stderr
    assert "P 0." in done.stdout and "60 27>87" in done.stdout and " tokens" in done.stdout


def test_expression_goes_through_all_four_scripts(tmp_path):
    flags = ["--level", 2, "--depth", 1, "--steps", 20, "--test-problems", 20]
    done = run("train_sft.py", "--task", "expression", *flags, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert run("train_rl.py", *TINY_RL, "--out", tmp_path).returncode == 0
    assert run_here("search.py", "--n-problems", 10, "--budgets", 30, "--out", tmp_path).returncode == 0
    rows = {row["method"]: row for row in table(tmp_path / "search.csv")}
    assert rows["mcts (verifier)"]["oracle"] == "1" and rows["mcts (value)"]["oracle"] == "0"
    assert rows["greedy"]["checkpoint"] == f"{tmp_path}/rl.pt" and rows["greedy"]["task"] == "expression"
    assert not {"enumeration", "heuristic", "random steps"} & set(rows)
    assert run_here("plot.py", tmp_path).returncode == 0 and (tmp_path / "scaling.png").exists()


def test_same_seed_same_run_whatever_is_measured_on(out, tmp_path):
    """Twice on test problems, once on validation problems: others, but what is learnt from is the same."""
    first = {split: held_out_problems("countdown", 2, 1, split)[0].prompt for split in ("test", "validation")}
    tables = {}
    for name, split, other in (("a", *first), ("b", *first), ("c", *reversed(first))):
        flags = ["--test-problems", 20, "--split", split, "--seed", 3, "--out", tmp_path / name]
        sft = run("train_sft.py", "--level", 2, "--depth", 1, "--steps", 24, *flags)
        rl = run("train_rl.py", "--init", out / "sft.pt", "--steps", 3, "--prompts", 16,
                 "--log-every", 3, *flags)
        for done in (sft, rl):              # each row of the table is shown with a sample
            assert done.returncode == 0, done.stderr
            assert first[split] in done.stdout and first[other] not in done.stdout
        tables[name] = [table(tmp_path / name / file) for file in ("sft.csv", "rl.csv")]
    assert tables["a"] == tables["b"]
    for (one,), (other,) in zip(tables["a"], tables["c"]):
        for key in {"loss", "value_loss", "reward", "length", "tokens"} & set(one):
            assert one[key] == other[key], key


def test_workers_change_nothing(tmp_path):
    tables = []
    for workers in (0, 2):
        done = run("train_sft.py", "--level", 2, "--depth", 1, "--steps", 24, "--test-problems", 20,
                   "--workers", workers, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        tables.append((tmp_path / "sft.csv").read_bytes())
    assert tables[0] == tables[1]


@pytest.mark.parametrize("name, flags", [
    ("sft", ["--level", 2, "--depth", 1, "--steps", 96, "--log-every", 24, "--log-problems", 5,
             "--test-problems", 20]),
    ("rl", ["--steps", 16, "--prompts", 32, "--samples", 4, "--log-every", 4, "--log-problems", 5,
            "--test-problems", 20]),
])
def test_ctrl_c_saves_and_resume_ends_where_an_undisturbed_run_ends(out, tmp_path, name, flags):
    script, n_steps = f"train_{name}.py", flags[flags.index("--steps") + 1]
    if name == "rl":
        flags = [*flags, "--init", out / "sft.pt"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command(script, *flags, "--out", tmp_path / "a"), text=True, env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for line in process.stdout:
        if line.startswith("step "):        # the first row of the table
            break
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"to go on, run the same script with --resume --out {tmp_path}/a" in said
    stopped = load_checkpoint(tmp_path / "a" / f"{name}.pt")[1]["step"]
    assert 0 < stopped < n_steps
    assert run(script, "--resume", "--out", tmp_path / "a").returncode == 0
    assert run(script, *flags, "--out", tmp_path / "b").returncode == 0
    (one, resumed), (other, whole) = (load_checkpoint(tmp_path / folder / f"{name}.pt") for folder in "ab")
    assert all(torch.equal(x, y) for x, y in zip(one.state_dict().values(), other.state_dict().values()))
    assert resumed["samples"] == whole["samples"] and len(whole["samples"]) == len(whole["table"])
    assert table(tmp_path / "a" / f"{name}.csv") == table(tmp_path / "b" / f"{name}.csv")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
def test_a_reader_that_has_enough_is_no_error():
    pipe = subprocess.PIPE
    process = subprocess.Popen(command("verify.py"), stdout=pipe, stderr=pipe, text=True)
    process.stdout.close()                  # before a line is written: as head, but at once
    assert process.stderr.read() == "" and process.wait(60) == 128 + 13


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
def test_no_standard_output_is_no_error():
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command("verify.py")], cwd=ROOT,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


def test_overwriting_is_announced(out, tmp_path):
    flags = ["--init", out / "sft.pt", "--n-problems", 4, "--budgets", 20, "--methods", "greedy"]
    assert "overwrites" not in run_here("search.py", *flags, "--out", tmp_path).stdout
    said = run_here("search.py", *flags, "--out", tmp_path).stdout
    assert f"overwrites {tmp_path}/search.csv" in said


# ------------------------------------------------------------------------------------------------------------
# What is measured on

def test_search_measures_on_the_split_that_it_is_told(out, tmp_path):
    """Against a search without a model, whose tokens are known: other problems, other tokens."""
    tokens = {}
    for split in ("test", "validation"):
        flags = ["--methods", "enumeration", "--budgets", 500, "--n-problems", 50, "--level", 3]
        flags += ["--init", out / "sft.pt", "--split", split, "--out", tmp_path]
        assert run_here("search.py", *flags).returncode == 0
        row, = table(tmp_path / "search.csv")
        results = depth_first(None, held_out_problems("countdown", 3, 50, split), 500,
                              Settings(38, torch.Generator()))
        tokens[split] = float(row["tokens_per_problem"])
        assert tokens[split] == sum(result.tokens for result in results) / 50
    assert tokens["test"] != tokens["validation"]


def test_splits_have_no_problem_in_common():
    model, seen = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)), {}
    for split in ("test", "validation"):
        args = SimpleNamespace(task="countdown", level=2, max_tokens=17, split=split, seed=0, lr=1e-3,
                               optimizer="muon", streams=False, n_problems=200, test_problems=200,
                               log_problems=5, save=None, problems=None, out="out", resume=False)
        problems = search.load_problems(args)
        assert Run("sft", args, model).problems == problems             # all scripts measure on the same
        assert len(problems) == 200 and {split_of(problem) for problem in problems} == {split}
        seen[split] = {split_key(problem) for problem in problems}
    assert not seen["test"] & seen["validation"]


def split_key(problem):
    return tuple(sorted(problem.numbers)), problem.target


# ------------------------------------------------------------------------------------------------------------
# The picture, and the README

def test_runs_of_different_sizes_are_lines_of_their_own(tmp_path):
    """Two runs of one size are averaged; a third, of another size, is not mixed with them."""
    def write(folder, name, parameters, *accuracies):
        unit = parameters * (100.0 if name == "rl" else 1.0)
        rows = [{"step": step, "flops": unit * 10 ** step, "parameters": parameters,
                 "greedy": accuracy, "sampled": accuracy / 2, "pass16": 1.0}
                for step, accuracy in enumerate(accuracies)]
        write_table(tmp_path / folder / f"{name}.csv", rows)
    write("a", "sft", 600_000, 0.2, 0.4)
    write("b", "sft", 600_000, 0.4, 0.6)
    write("c", "sft", 3_000_000, 0.5, 0.9)

    def lines(folders, style):
        """(x, y) of each line of `greedy`, the first column; and the labels of all columns."""
        axis = plt.figure().add_subplot()
        plot.draw_training(axis, [tmp_path / folder for folder in folders])
        found = [line for line in axis.get_lines() if line.get_color() == plt.get_cmap("tab10").colors[0]]
        labels = [text.get_text() for text in axis.texts]
        plt.close("all")
        return [tuple(map(list, line.get_data())) for line in found if line.get_linestyle() == style], labels
    of_sft, labels = lines("abc", "-")
    assert of_sft == [([6e5, 6e6], [pytest.approx(0.3), 0.5]), ([3e6, 3e7], [0.5, 0.9])]
    assert len(labels) == len(set(labels)) == 6                         # the sizes are told apart
    assert lines("c", "-")[1] == ["greedy", "single sample", "pass@16"]
    write("a", "rl", 600_000, 0.6, 0.8)
    write("b", "rl", 600_000, 0.8, 1.0)
    write("c", "rl", 3_000_000, 1.0)
    assert lines("abc", "-")[0] == [([6e7 - 6e6, 6e8 - 6e6], [pytest.approx(0.7), 0.9]), ([3e8 - 3e7], [1.0])]
    assert [y for _, y in lines("abc", ":")[0]] == [[0.5, 0.5], [0.9, 0.9]]         # before RL


def test_one_stream_before_rl_is_drawn_beside_what_it_is_after_it(tmp_path):
    found = {"method": "stream", "oracle": 0, "ci_low": 0.4, "ci_high": 0.9, "tokens_per_problem": 20}
    for folder, within64, within128 in (("a", 0.2, 0.4), ("b", 0.4, 0.7)):
        start = {"step": 1, "flops": 1.0, "parameters": 9, "within64": 0.1, "within128": 0.1, "sampled": 0.1}
        end = start | {"step": 2, "within64": within64, "within128": within128}
        write_table(tmp_path / folder / "sft.csv", [start, end])
        write_table(tmp_path / folder / "rl.csv", [end | {"flops": 2.0}])
        rows = [found | {"budget": budget, "accuracy": 0.8} for budget in (64, 128)]
        write_table(tmp_path / folder / "search.csv", rows)
    axis = plt.figure().add_subplot()
    plot.draw_search(axis, [tmp_path / folder for folder in "ab"])
    after, before = axis.get_lines()
    plt.close("all")
    assert list(after.get_ydata()) == [0.8, 0.8] and before.get_linestyle() == ":"
    assert list(before.get_xdata()) == [64, 128]
    assert list(before.get_ydata()) == [pytest.approx(0.3), pytest.approx(0.55)]


def test_what_only_one_table_has_is_not_drawn(tmp_path):
    """
    Streams of RL may be shorter than those of SFT, or too short for any column; RL may be of an older SFT.
    """
    row = {"step": 1, "flops": 1.0, "parameters": 9, "sampled": 0.1}
    found = {"method": "stream", "oracle": 0, "ci_low": 0.4, "ci_high": 0.9, "tokens_per_problem": 20,
             "budget": 64, "accuracy": 0.5}
    write_table(tmp_path / "search.csv", [found])

    def n_lines(panel):
        axis = plt.figure().add_subplot()
        panel(axis, [tmp_path])
        plt.close("all")
        return len(axis.get_lines())
    for sft, rl in (({"within64": 0.2, "within128": 0.3}, {"within64": 0.4}), ({}, {})):
        write_table(tmp_path / "sft.csv", [row | {"flops": 2.0} | sft])
        write_table(tmp_path / "rl.csv", [row | {"flops": 1.0} | rl])
        assert n_lines(plot.draw_training) == 1 + len(sft) and n_lines(plot.draw_search) == 1
        write_table(tmp_path / "rl.csv", [row | {"flops": 3.0} | rl])   # each with a line of what was before
        assert n_lines(plot.draw_training) == 2 * (1 + len(rl))
        assert n_lines(plot.draw_search) == 1 + bool(sft)
        assert run_here("plot.py", tmp_path).returncode == 0


def test_without_a_search_there_is_one_panel(tmp_path):
    """As exercise 11 has it: SFT only, of several sizes."""
    rows = [{"parameters": 1000, "step": step, "flops": 1000 * step, "greedy": 0.1 * step} for step in (1, 2)]
    write_table(tmp_path / "sft.csv", rows)
    assert run_here("plot.py", tmp_path).returncode == 0
    one = plt.imread(tmp_path / "scaling.png").shape[1]
    search = {"method": "greedy", "oracle": 0, "budget": 75, "accuracy": 0.5, "ci_low": 0.4, "ci_high": 0.6,
              "tokens_per_problem": 20}
    write_table(tmp_path / "search.csv", [search])
    assert run_here("plot.py", tmp_path).returncode == 0
    assert plt.imread(tmp_path / "scaling.png").shape[1] == 2 * one


def test_the_commands_of_the_readme_name_scripts_that_exist():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    scripts = [re.findall(r"python ([a-z_]+\.py)", line) for line in lines]
    assert scripts == [["train_sft.py", "train_rl.py", "search.py", "plot.py"], []]
    assert "python -m pytest" in lines[1]
    for script in scripts[0]:
        assert os.path.isfile(os.path.join(ROOT, script))


# ------------------------------------------------------------------------------------------------------------
# Wrong input

SFT, RL, SEARCH, ASK, PLOT = "train_sft.py", "train_rl.py", "search.py", "ask.py", "plot.py"
BASES, REWARDS, JUDGES = "experiments.bases", "experiments.rewards", "experiments.judges"
REWRITE, BENCHMARK = "experiments.rewrite", "experiments.benchmark"
LEAGUE, PLOT_LEAGUE = "experiments.league", "experiments.plot_league"
INIT = ["--init", "OUT/sft.pt"]
SHIPPED = ["--init", os.path.join(ROOT, "results", "model.pt")]
WRONG = {
    # flags
    "unknown flag": (SFT, ["--stepz", "3"], "--stepz"),
    "unknown flag of the picture": (PLOT, ["--oot", "3"], "--oot"),
    "unknown flag of the league's picture": (PLOT_LEAGUE, ["--oot", "3"], "--oot"),
    "unknown value": (RL, ["--algo", "magic"], "magic"),
    "an algorithm of the experiments": (RL, ["--algo", "ppo-process"], "ppo-process"),
    "unknown algorithm of the experiments": (REWARDS, ["--algo", "magic"], "magic"),
    "unknown task": (SFT, ["--task", "magic"], "magic"),
    "unknown task to search": (SEARCH, ["--task", "magic"], "magic"),
    "unknown method": (SEARCH, [*INIT, "--methods", "greedy", "magic"], "magic"),
    "a method of the experiments": (SEARCH, [*INIT, "--methods", "revise"], "revise"),
    "unknown method of the experiments": (JUDGES, [*INIT, "--methods", "magic"], "magic"),
    "unknown split": (SFT, ["--split", "magic"], "magic"),
    "unknown split for RL": (RL, ["--split", "magic"], "magic"),
    "unknown split to search": (SEARCH, [*INIT, "--split", "magic"], "magic"),
    "the problems that are learnt from": (SFT, ["--split", "train"], "train"),
    "unknown kind": (BASES, ["--kind", "magic"], "magic"),
    "no kind": (BASES, [], "--kind"),
    "unknown rewriting": (REWRITE, ["--write", "magic", "--save", "TMP/new.jsonl"], "magic"),
    "unknown label": (REWRITE, ["--label", "magic", "--save", "TMP/new.jsonl"], "magic"),
    "level out of range": (SFT, ["--level", "9"], "level"),
    "level zero": (SFT, ["--level", "0"], "--level"),
    "level out of range for the league": (LEAGUE, ["--level", "2"], "--level"),
    "steps of zero": (SFT, ["--steps", "0"], "--steps"),
    "negative samples": (RL, ["--samples", "-1"], "--samples"),
    "a single sample": (RL, [*INIT, "--samples", "1"], "--samples"),
    "negative rate": (SFT, ["--lr", "-1"], "--lr"),
    "rate that is no number": (SFT, ["--lr", "nan"], "--lr"),
    "negative seed": (SFT, ["--seed", "-1"], "--seed"),
    "negative workers": (SFT, ["--workers", "-1"], "--workers"),
    "too much honesty": (SFT, ["--honest", "2"], "--honest"),
    "budget of zero": (SEARCH, [*INIT, "--budgets", "0"], "--budgets"),
    "completions of no token": (SEARCH, [*INIT, "--max-tokens", "0"], "--max-tokens"),
    "no samples to weigh": (REWARDS, ["--pass-k", "0"], "--pass-k"),
    "a penalty that is none": (REWARDS, ["--kl-coef", "-1"], "--kl-coef"),
    "an empty batch": (BENCHMARK, ["--batch-sizes", "0"], "--batch-sizes"),
    "a row that is none": (LEAGUE, ["--rows", "magic"], "magic"),
    "no CUDA": (SFT, ["--device", "cuda"], "no CUDA device"),
    "no CUDA to measure": (BENCHMARK, ["--device", "cuda"], "no CUDA device"),
    # checkpoints
    "missing checkpoint": (RL, ["--init", "TMP/none.pt"], "none.pt: no such file"),
    "truncated checkpoint": (SEARCH, ["--init", "TMP/truncated.pt"], "truncated.pt"),
    "foreign checkpoint": (SEARCH, ["--init", "TMP/foreign.pt"], "foreign.pt"),
    "foreign checkpoint for SFT": (SFT, ["--init", "TMP/foreign.pt"], "foreign.pt"),
    "another size": (SFT, [*INIT, "--depth", "5"], "--depth 5"),
    "nothing to resume": (SFT, ["--resume", "--out", "TMP/empty"], "sft.pt"),
    "weights without a run": (RL, ["--init", "TMP/weights.pt"], "lacks flags"),
    "a judge that is none": (JUDGES, [*INIT, "--judge", "TMP/none.pt"], "none.pt"),
    "a run of another script": (SFT, ["--resume", "--out", "TMP/direct"], "another script, with --kind"),
    "an RL run of another script": (
        RL, ["--resume", "--out", "TMP/rewards"], "another script, with --kl-coef"),
    # problems
    "malformed problem": (ASK, [*INIT, "25 8 seven>24"], "25 8 seven>24"),
    "unicode in a problem": (ASK, [*INIT, "25 \u0668>24"], "25"),
    "unsolvable problem": (ASK, [*INIT, "1 2>99"], "no solution"),
    "empty question": (ASK, [*INIT, ""], "argument PROBLEM: it is empty"),
    "untrained level": (ASK, [*INIT, "--level", "2", "25 8 7>24"], "level 3"),
    "untrained task": (ASK, [*INIT, "2+3="], "expression"),
    "streams at a level without": (SEARCH, [*SHIPPED, "--level", "2"], "streams: not for countdown"),
    "streams of a task without": (SEARCH, [*SHIPPED, "--task", "expression"], "streams: not for expression"),
    "RL on streams at a level without": (RL, [*SHIPPED, "--level", "2"], "streams: not for countdown"),
    "a method for one problem": (ASK, [*INIT, "1 2>3", "--methods", "greedy"], "--methods"),
    "problems of a file to learn from": (
        SEARCH, [*INIT, "--save", "TMP/new.jsonl", "--problems", "TMP/bad.txt"], "leave --problems out"),
    "bad line in a file": (SEARCH, [*INIT, "--problems", "TMP/bad.txt"], "line 2"),
    "empty file": (SEARCH, [*INIT, "--problems", "TMP/empty.txt"], "empty.txt"),
    "missing file": (SEARCH, [*INIT, "--problems", "TMP/none.txt"], "none.txt"),
    "baseline on expression": (
        SEARCH, [*INIT, "--task", "expression", "--methods", "enumeration"], "--methods"),
    "no chain of thought in countdown": (BASES, ["--kind", "direct"], "--kind direct"),
    "solved examples in countdown": (BASES, ["--kind", "shots"], "--kind shots"),
    "retries in expression": (BASES, ["--kind", "retries", "--task", "expression"], "--kind retries"),
    # too long
    "room beyond what the model reads": (SFT, ["--max-tokens", "9000"], "--max-tokens 9000"),
    "room beyond what the model reads in RL": (RL, [*INIT, "--max-tokens", "9000"], "--max-tokens 9000"),
    "room beyond what the model reads to search": (
        SEARCH, [*INIT, "--max-tokens", "9000", "--budgets", "9000", "--methods", "majority"],
        "--max-tokens 9000"),
    "more examples than the model reads": (
        BASES, ["--kind", "shots", "--task", "expression", "--shots", "900"], "reads fewer than 8191"),
    "a trace longer than the model reads": (SFT, [*INIT, "--data", "TMP/long.jsonl"], "long.jsonl"),
    "too long to read": (BENCHMARK, ["--new-tokens", "9000"], "--new-tokens"),
    # traces
    "data without a model": (SFT, ["--data", "TMP/bad.txt"], "--init"),
    "no such data": (SFT, [*INIT, "--data", "TMP/none.jsonl"], "none.jsonl"),
    "data that is none": (SFT, [*INIT, "--data", "TMP/bad.txt"], "bad.txt, line 1"),
    "traces with a cost that is none": (SFT, [*INIT, "--data", "TMP/null.jsonl"], "null.jsonl, line 1"),
    "two lessons": (BASES, [*INIT, "--kind", "retries", "--data", "TMP/good.jsonl"], "--data and --kind"),
    "two methods to save": (SEARCH, [*INIT, "--save", "TMP/new.jsonl"], "--save"),
    "no traces to write of": (REWRITE, ["--data", "TMP/none.jsonl", "--save", "TMP/new.jsonl"], "none.jsonl"),
    "traces that are none": (
        REWRITE, ["--data", "TMP/bad.txt", "--save", "TMP/new.jsonl"], "bad.txt, line 1"),
    "rollouts without a model": (
        REWRITE, ["--data", "TMP/good.jsonl", "--init", "TMP/none.pt", "--label", "rollouts",
                  "--save", "TMP/new.jsonl"], "none.pt"),
    # folders and tables
    "out is a file": (SEARCH, [*INIT, "--out", "TMP/bad.txt"], "bad.txt"),
    "out below a file": (SFT, ["--out", "TMP/bad.txt/out"], "bad.txt"),
    "no tables": (PLOT, ["TMP/empty"], "sft.csv"),
    "tables of something else": (PLOT, ["TMP/odd"], "TMP/odd"),
    "a line with too many cells": (PLOT, ["TMP/ragged"], "sft.csv has lines with more or fewer cells"),
    "a folder for a picture": (PLOT, ["OUT", "--out", "TMP/empty"], "is a folder"),
    "no league to draw": (PLOT_LEAGUE, ["TMP/none.csv"], "none.csv"),
    "a league that is none": (PLOT_LEAGUE, ["TMP/odd/sft.csv"], "sft.csv"),
    "a league that is none to go on with": (LEAGUE, ["--results", "TMP/odd"], "league.csv"),
}


@pytest.fixture
def wrong_files(out, tmp_path):
    """
    A folder of files that something is wrong with: a function that puts its name for TMP, and that of out for
    OUT, in a flag.
    """
    tiny = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16))
    save_checkpoint(tmp_path / "truncated.pt", tiny)
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "truncated.pt").read_bytes()[:2000])
    save_checkpoint(tmp_path / "weights.pt", tiny)
    torch.save([1, 2, 3], tmp_path / "foreign.pt")
    run = {"step": 1, "tokens": 0, "flops": 0, "table": [], "samples": []}
    for path, script, more in (("direct/sft.pt", train_sft, {"kind": "direct"}),
                               ("rewards/rl.pt", train_rl, {"kl_coef": 0.1})):
        (tmp_path / path).parent.mkdir()
        flags = vars(script.make_parser().parse_args(["--steps", "1"])) | more
        save_checkpoint(tmp_path / path, tiny, **run, flags=flags)
    (tmp_path / "bad.txt").write_text("98 11>87\n98 11,87\n")
    trace = {"prompt": "98 11>87\n", "completion": "98-11=87,87\n", "correct": True}
    (tmp_path / "good.jsonl").write_text(json.dumps(trace) + "\n")
    (tmp_path / "null.jsonl").write_text(json.dumps(trace | {"flops": None}) + "\n")
    longest = {"completion": "98+11=109,109\nwait\n" * 800 + "98-11=87,87\n"}
    (tmp_path / "long.jsonl").write_text(json.dumps(trace | longest) + "\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("sft", "search", "league"):
        write_table(tmp_path / "odd" / f"{name}.csv", [{"a": "b", "c": 1}])
        write_table(tmp_path / "ragged" / f"{name}.csv", [{"step": 1, "flops": "2,3"}])
    ragged = tmp_path / "ragged/sft.csv"
    ragged.write_text(ragged.read_text().replace('"', ""))
    return lambda text: text.replace("TMP", str(tmp_path)).replace("OUT", str(out))


def assert_told_in_one_line(done, expected):
    assert done.returncode == 2, done.stdout + done.stderr
    assert expected in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.skipif(sys.platform == "win32", reason="paths")
def test_wrong_input_is_one_line_and_exit_status_2(wrong_files, tmp_path, case):
    script, flags, expected = WRONG[case]
    if "CUDA" in case and torch.cuda.is_available():
        pytest.skip("there is CUDA")
    flags = list(map(wrong_files, flags))
    if "--out" not in flags and script not in (PLOT, PLOT_LEAGUE, BENCHMARK, REWRITE):
        flags += ["--out", f"{tmp_path}/empty"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert_told_in_one_line(run_here(script, *flags), wrong_files(expected))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("script, flags, expected", [
    (SFT, ["--stepz", "3"], "train_sft.py: error: unrecognized arguments: --stepz 3"),
    (SEARCH, [*INIT, "--problems", "TMP/none.txt"], "search.py: error: TMP/none.txt: No such file"),
    (JUDGES, [*INIT, "--judge", "TMP/none.pt"], "judges.py: error: TMP/none.pt: no such file"),
])
def test_wrong_input_in_a_process_of_its_own(wrong_files, tmp_path, script, flags, expected):
    done = run(script, *map(wrong_files, flags), "--out", tmp_path / "empty")
    assert_told_in_one_line(done, wrong_files(expected))
    assert not os.listdir(tmp_path / "empty")
