"""
Nothing lost, nothing let in. A run that diverges, is stopped, is killed or meets a full disk leaves its last
good state behind; a second run does not write into the first one's folder; and what comes from outside, a
checkpoint, a trace, a table, a flag, is believed only as far as it can be checked.
"""
import errno
import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import matplotlib.pyplot as plt
import pytest
import torch

import common
import plot
import train_sft
import trainer
import tree
import verify
from budget import Settings
from checkpoint import load_checkpoint, save_checkpoint
from common import open_folder, save_table, set_aside, write_whole
from experiments import league
from model import GPT, GPTConfig
from scripts import ROOT, command, run_here, table, tiny_base
from search import METHODS
from traces import read_traces
from verify import EOS, NEWLINE, held_out_problems

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
TINY = GPTConfig(n_layer=1, n_head=2, n_embd=16)
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SHORT_SFT = ["--level", 2, "--depth", 1, "--log-problems", 2, "--test-problems", 2]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint to start from."""
    return tiny_base(tmp_path_factory) / "sft.pt"


def assert_one_line(done, *expected):
    """Exit status 2, and a last line of stderr that says what is wrong; before it only bars."""
    last = done.stderr.rstrip("\n").splitlines()[-1]
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: " in last and all(str(text) in last for text in expected), done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------------------
# Files

def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path, monkeypatch):
    """With one fixed temporary name, the first to finish took the other's half-written file."""
    path, fsync = tmp_path / "a.bin", os.fsync

    def write_another(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        write_whole(path, b"2" * 10)
        assert path.read_bytes() == b"2" * 10
    monkeypatch.setattr(os, "fsync", write_another)
    write_whole(path, b"1" * 1000)
    assert path.read_bytes() == b"1" * 1000
    assert os.listdir(tmp_path) == ["a.bin"]


def test_folders_are_tried_by_many_at_once(tmp_path):
    """The file with which it was tried had one name for all: some removed it under others' hands."""
    failed = []

    def work():
        try:
            for _ in range(50):
                open_folder(tmp_path)
        except OSError as error:
            failed.append(error)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and os.listdir(tmp_path) == []


def full_disk(*ignored):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("write", [
    lambda path: save_checkpoint(path, GPT(TINY)),
    lambda path: save_table(path, [{"a": 1}]),
    lambda path: plot.save_figure(plt.figure(), str(path)),
])
def test_a_full_disk_leaves_the_old_file_and_names_it(monkeypatch, tmp_path, write):
    path = tmp_path / "old.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(common.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left") as error:
        write(path)
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["old.png"]


def run_limited(limit, script, *flags):
    """A script that can write no file of more than so many bytes."""
    import resource
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        return run_here(script, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@POSIX
def test_a_checkpoint_that_does_not_fit_is_one_line(base, tmp_path):
    """torch.save tells what the disk refuses in a RuntimeError that names no file."""
    done = run_limited(10_000, "train_sft.py", *SHORT_SFT, "--steps", 1, "--out", tmp_path)
    assert_one_line(done, f"{tmp_path}/sft.pt: File too large")
    assert not list(tmp_path.glob("*.pt")) and not list(tmp_path.glob("*.tmp"))


@POSIX
def test_a_picture_that_does_not_fit_is_one_line(tmp_path):
    row = {"step": 1, "flops": 1.0, "parameters": 1, "greedy": 0.5}
    save_table(tmp_path / "sft.csv", [row])
    row = {"method": "a", "oracle": 0, "budget": 9, "accuracy": 0.5, "ci_low": 0.1, "ci_high": 0.9}
    save_table(tmp_path / "search.csv", [row | {"tokens_per_problem": 30.0}])
    (tmp_path / "scaling.png").write_bytes(b"old")
    done = run_limited(1000, "plot.py", tmp_path)
    assert_one_line(done, f"{tmp_path}/scaling.png: File too large")
    assert sorted(os.listdir(tmp_path)) == ["scaling.png", "search.csv", "sft.csv"]
    assert (tmp_path / "scaling.png").read_bytes() == b"old"
    assert run_here("plot.py", tmp_path).returncode == 0
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


@POSIX
def test_a_device_is_not_replaced_and_what_a_link_points_to_is_written(base, tmp_path):
    """As root, --save /dev/null once made /dev/null an ordinary file."""
    device, link = tmp_path / "pipe", tmp_path / "link.jsonl"
    os.mkfifo(device)
    search = ["--init", base, "--methods", "greedy", "--budgets", 20, "--n-problems", 2]
    done = run_here("search.py", *search, "--save", device)
    assert_one_line(done, device, "is a folder or a device")
    with pytest.raises(OSError, match="is a folder or a device"):
        plot.save_figure(plt.figure(), str(device))
    assert stat.S_ISFIFO(os.stat(device).st_mode)
    (tmp_path / "elsewhere").mkdir()
    os.symlink("elsewhere/real.jsonl", link)
    for _ in range(2):                      # the target is made, then written again
        done = run_here("search.py", *search, "--save", link)
        assert done.returncode == 0, done.stderr
        assert os.readlink(link) == "elsewhere/real.jsonl" and (tmp_path / "elsewhere/real.jsonl").is_file()


# ------------------------------------------------------------------------------------------------------------
# Numbers that are none

def poison(monkeypatch, at_step, where):
    """From a step on, training meets a number that is none."""
    real, steps = train_sft.gradient, []

    def gradient(model, batch, args):
        metrics = real(model, batch, args)
        steps.append(0)
        if len(steps) >= at_step:
            if where == "loss":
                metrics["loss"] = math.inf
            elif where == "gradient":
                model.lm_head.weight.grad[5, 3] = math.nan
            else:
                with torch.no_grad():
                    model.lm_head.weight[5, 3] = math.inf
        return metrics
    monkeypatch.setattr(train_sft, "gradient", gradient)


def train_here(monkeypatch, capsys, module, *flags):
    """A trainer's run_script in this process; undoes what it does about signals."""
    handlers = {signum: signal.getsignal(signum) for signum in STOPS}
    monkeypatch.setattr(sys, "argv", [module.__name__.split(".")[-1] + ".py", *map(str, flags)])
    status = 0
    try:
        common.run_script(module.main)
    except SystemExit as end:
        status = end.code or 0
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    said = capsys.readouterr()
    return subprocess.CompletedProcess(flags, status, said.out, said.err)


@pytest.mark.parametrize("where", ["loss", "gradient", "weight"])
def test_a_run_that_diverges_stops_and_keeps_its_last_good_state(monkeypatch, capsys, tmp_path, where):
    """A model of nan alone once ended with exit status 0, over the good checkpoint."""
    poison(monkeypatch, 6, where)
    flags = [*SHORT_SFT, "--steps", 10, "--log-every", 2, "--out", tmp_path]
    done = train_here(monkeypatch, capsys, train_sft, *flags)
    assert_one_line(done, "step 6:", f"{tmp_path}/sft.pt holds step 4")
    model, checkpoint = load_checkpoint(tmp_path / "sft.pt")
    assert checkpoint["step"] == 4 and [row["step"] for row in table(tmp_path / "sft.csv")] == ["2", "4"]
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_a_run_that_diverges_at_once_says_that_nothing_is_saved(monkeypatch, capsys, tmp_path):
    poison(monkeypatch, 1, "gradient")
    done = train_here(monkeypatch, capsys, train_sft, *SHORT_SFT, "--steps", 10, "--out", tmp_path)
    assert_one_line(done, "step 1:", "nothing had been saved yet")
    assert not list(tmp_path.glob("sft*"))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_loaded(base, tmp_path, bad):
    checkpoint = torch.load(base, weights_only=True)
    checkpoint["model"]["lm_head.weight"][5, 3] = bad
    path = tmp_path / "sft.pt"
    torch.save(checkpoint, path)
    for script, flags in (("train_rl.py", ["--init", path]), ("search.py", ["--init", path]),
                          ("train_sft.py", ["--init", path]), ("train_sft.py", ["--resume"]),
                          ("experiments.judges", ["--init", base, "--judge", path])):
        done = run_here(script, *flags, "--out", tmp_path)
        assert_one_line(done, path, "some weights are nan or inf")


# ------------------------------------------------------------------------------------------------------------
# Signals

@pytest.fixture
def hangups():
    """SIGHUP as a terminal has it: where the tests run under nohup, it is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@POSIX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_save_as_ctrl_c_does(hangups, monkeypatch, capsys, tmp_path, name):
    """With rows far apart, a thousand steps were lost."""
    signum = getattr(signal, name)
    real, steps = train_sft.gradient, []

    def gradient(*args):
        steps.append(0)
        if len(steps) == 3:
            os.kill(os.getpid(), signum)
        return real(*args)
    monkeypatch.setattr(train_sft, "gradient", gradient)
    done = train_here(monkeypatch, capsys, train_sft, *SHORT_SFT, "--steps", 10, "--out", tmp_path)
    assert done.returncode == 128 + signum and "stopped at step 3" in done.stdout
    assert load_checkpoint(tmp_path / "sft.pt")[1]["step"] == 3


@POSIX
def test_nohup_is_respected(hangups):
    assert signal.SIGHUP in common.stop_signals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in common.stop_signals()


def test_a_checkpoint_is_saved_at_least_every_minute(monkeypatch, capsys, tmp_path):
    """Between the rows, and it changes nothing: the same weights, the same table."""
    class Clock:
        seconds = 0.0

        def monotonic(self):
            self.seconds += 25.0            # at each look
            return self.seconds
    flags = [*SHORT_SFT, "--steps", 12, "--log-every", 10, "--out"]
    real, steps = trainer.save_checkpoint, []

    def save_checkpoint(*args, **state):
        steps.append(state["step"])
        return real(*args, **state)
    monkeypatch.setattr(trainer, "save_checkpoint", save_checkpoint)
    assert train_here(monkeypatch, capsys, train_sft, *flags, tmp_path / "a").returncode == 0
    assert steps == [10, 12]
    monkeypatch.setattr(trainer, "time", Clock())
    assert train_here(monkeypatch, capsys, train_sft, *flags, tmp_path / "b").returncode == 0
    assert len(steps) > 5 and steps[-2:] == [10, 12]
    (one, _), (other, _) = (load_checkpoint(tmp_path / folder / "sft.pt") for folder in "ab")
    assert all(torch.equal(x, y) for x, y in zip(one.state_dict().values(), other.state_dict().values()))
    assert (tmp_path / "a" / "sft.csv").read_bytes() == (tmp_path / "b" / "sft.csv").read_bytes()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@POSIX
def test_a_league_that_is_stopped_leaves_no_child(tmp_path):
    """SIGTERM ended the league and left its child training; a league begun again collided with it."""
    folders = ["--out", tmp_path / "work", "--results", tmp_path / "results"]
    parent = subprocess.Popen(command("experiments.league", "--quick", "--rows", "base", *folders), cwd=ROOT,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    base, other = tmp_path / "work/level3_seed0/base", None
    try:
        wait_for(lambda: (base / ".lock").exists() and (base / ".lock").read_text())
        child = int((base / ".lock").read_text())
        other = run_here("train_sft.py", *SHORT_SFT, "--steps", 1, "--out", base)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=60) == 128 + signal.SIGTERM
    finally:
        parent.kill()
        subprocess.run(["kill", "-9", str(child)], capture_output=True)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert load_checkpoint(base / "sft.pt")[1]["step"] > 0
    # And while it was training, no other run could write there.
    assert_one_line(other, base, f"process {child} is training there")


# ------------------------------------------------------------------------------------------------------------
# One run in a folder

@POSIX
def test_the_lock_ends_with_its_process_and_stale_files_go(monkeypatch, capsys, tmp_path):
    hold = "import common, os, sys, time; lock = common.lock_folder(sys.argv[1]); print('held', flush=True); "
    holder = subprocess.Popen([sys.executable, "-c", hold + "time.sleep(60)", tmp_path], cwd=ROOT, text=True,
                              stdout=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    for name in ("sft.pt.12ab34cd.tmp", "sft.csv.12ab34cd.tmp", "other.tmp"):
        (tmp_path / name).write_bytes(b"half")
    flags = [*SHORT_SFT, "--steps", 1, "--out", tmp_path]
    done = train_here(monkeypatch, capsys, train_sft, *flags)
    assert_one_line(done, tmp_path, f"process {holder.pid} is training there")
    assert len(list(tmp_path.glob("*.tmp"))) == 3                       # they may be the other's
    holder.kill()
    holder.communicate()
    assert train_here(monkeypatch, capsys, train_sft, *flags).returncode == 0
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["other.tmp"]


def test_without_locks_a_run_does_without(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert common.lock_folder(tmp_path) is None


# ------------------------------------------------------------------------------------------------------------
# Going on

def test_nothing_that_was_set_aside_is_overwritten(tmp_path):
    path = tmp_path / "sft.pt"
    assert set_aside(path) is None
    for text, name in (("a", "sft.old.pt"), ("b", "sft.old2.pt"), ("c", "sft.old3.pt")):
        path.write_text(text)
        assert set_aside(path) == str(tmp_path / name) and not path.exists()
    assert [(tmp_path / f"sft.old{n}.pt").read_text() for n in ("", 2, 3)] == ["a", "b", "c"]


def test_what_an_earlier_run_left_is_set_aside(monkeypatch, capsys, base, tmp_path):
    """--resume once went on with an older run, where the new one had been killed before its first save."""
    for name in ("sft.pt", "sft.csv"):
        (tmp_path / name).write_bytes((base.parent / name).read_bytes())
    poison(monkeypatch, 1, "loss")          # it ends before its first save
    done = train_here(monkeypatch, capsys, train_sft, *SHORT_SFT, "--steps", 4, "--out", tmp_path)
    assert f"{tmp_path}/sft.pt is of an earlier run: it is {tmp_path}/sft.old.pt now" in done.stdout
    assert (tmp_path / "sft.old.pt").read_bytes() == base.read_bytes()
    assert (tmp_path / "sft.old.csv").exists() and not (tmp_path / "sft.csv").exists()
    assert_one_line(run_here("train_sft.py", "--resume", "--out", tmp_path), "sft.pt: no such file")


def test_a_run_may_start_from_the_file_that_it_sets_aside(base, tmp_path):
    """The reference of --algo kl is read when it is needed: it must not be looked for where it was."""
    (tmp_path / "rl.pt").write_bytes(base.read_bytes())
    flags = ["--algo", "kl", "--steps", 2, "--prompts", 8, "--samples", 2, "--log-problems", 2,
             "--test-problems", 2, "--init", tmp_path / "rl.pt", "--out", tmp_path]
    done = run_here("experiments.rewards", *flags)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "rl.pt")[1]["flags"]["init"] == f"{tmp_path}/rl.old.pt"


def test_resume_writes_the_table_of_the_checkpoint(base, tmp_path):
    """Killed between the two files, a run was said to be written, and its table lacked the last row."""
    (tmp_path / "sft.pt").write_bytes(base.read_bytes())
    whole = (base.parent / "sft.csv").read_bytes()
    (tmp_path / "sft.csv").write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    done = run_here("train_sft.py", "--resume", "--out", tmp_path)
    assert done.returncode == 0 and (tmp_path / "sft.csv").read_bytes() == whole


@pytest.mark.parametrize("flags, named", [
    (["--lr", 0.5], "--lr 0.5 contradicts"),
    (["--steps", 300], "--steps 300"),
    (["--seed", 1], "--seed 1"),
    (["--init", "BASE"], "--init"),
    (["--level", 3], "--level 3"),
    (["--log-every", 1000], "--log-every 1000"),                        # the default, but given
])
def test_flags_that_contradict_the_run_to_resume_are_errors(base, tmp_path, flags, named):
    (tmp_path / "sft.pt").write_bytes(base.read_bytes())
    flags = [str(flag).replace("BASE", str(base)) for flag in flags]
    done = run_here("train_sft.py", "--resume", "--out", tmp_path, *flags)
    assert_one_line(done, named, tmp_path / "sft.pt")
    agreeing = ["--lr", 0.02, "--steps", 200, "--level", 2, "--workers", 0, "--device", "cpu"]
    assert run_here("train_sft.py", "--resume", "--out", tmp_path, *agreeing).returncode == 0


# ------------------------------------------------------------------------------------------------------------
# What comes from outside: traces

TRACE = {"prompt": "98 11>87\n", "completion": "98-11=87,87\n", "correct": True, "tokens": 13, "flops": 1.0}
WRONG = {"completion": "98+11=109,109\n"}
WORKED = {"prompt": "2*3+1=\n", "completion": "6+1\n7\n"}
BAD_TRACES = {
    "false verdict": (WRONG, "correct is True, but the verifier says: dead end"),
    "false verdict on a solution": ({"correct": False}, "correct is False, but the verifier says: correct"),
    "false verdict on expression": (
        WORKED | {"completion": "6+1\n8\n"}, "correct is True, but the verifier says: line 1"),
    "a verdict of text": ({"correct": "true"}, "correct is true or false"),
    "another level": ({"prompt": "9 3 5>17\n", "completion": "9+3=12,5 12\n12+5=17,17\n"},
                      "it is countdown at level 3, and what is learnt is countdown at level 2"),
    "another task": (WORKED, "it is expression at level 2"),
    "a test problem": ({"prompt": "69 18>87\n", "completion": "69+18=87,87\n"},
                       "a test problem, which nothing may be learnt from"),
    "a validation problem": ({"prompt": "81 6>87\n", "completion": "81+6=87,87\n"},
                             "a validation problem, which nothing may be learnt from"),
    "no newline behind the prompt": ({"prompt": "98 11>87"}, "a prompt ends in a newline"),
    "a prompt that is none": ({"prompt": None}, "prompt is a text"),
    "negative tokens": ({"tokens": -5}, "tokens is a number from 0"),
    "tokens of nan": ({"tokens": math.nan}, "tokens is a whole number"),
    "tokens of null": ({"tokens": None}, "tokens is a whole number"),
    "tokens of text": ({"tokens": "13"}, "tokens is a whole number"),
    "huge tokens": ({"tokens": 10 ** 400}, "tokens is a number from 0"),
    "huge flops": ({"flops": 10 ** 400}, "flops is a number from 0"),
    "flops of nan": ({"flops": math.nan}, "flops is a number from 0"),
    "values of text": ({"values": "1"}, "values is a list"),
    "a value of text": ({"values": ["1"]}, "a value is not a number"),
    "deep nesting": ('{"prompt": ' + "[" * 100_000, "recursion"),
    "a list": ("[]", "a trace stands in braces"),
    "longer than the model reads": (
        {"completion": "98+11=109,109\nwait\n" * 800 + "98-11=87,87\n"}, "more than the 8192 tokens"),
}


@pytest.mark.parametrize("case", BAD_TRACES)
def test_traces_are_not_believed(base, tmp_path, case):
    changed, reason = BAD_TRACES[case]
    line = changed if isinstance(changed, str) else json.dumps(TRACE | changed)
    path = tmp_path / "traces.jsonl"
    path.write_text(f"{json.dumps(TRACE)}\n{line}\n")
    done = run_here("train_sft.py", "--init", base, "--data", path, "--out", tmp_path)
    assert_one_line(done, f"{path}, line 2: {reason}" if reason != "recursion" else f"{path}, line 2: ")
    assert reason in done.stderr and done.stderr.count("\n") == 1 and len(done.stderr) < 400


def test_traces_that_leave_no_room_for_samples_are_named(base, tmp_path):
    path = tmp_path / "traces.jsonl"
    long = TRACE | {"completion": "98+11=109,109\nwait\n" * 540 + "98-11=87,87\n"}
    path.write_text(f"{json.dumps(TRACE)}\n{json.dumps(long)}\n")
    read_traces(path)
    done = run_here("experiments.rewrite", "--init", base, "--data", path, "--label", "rollouts",
                    "--save", tmp_path / "new.jsonl")
    assert_one_line(done, f"{path}, line 2: more than the 8175 tokens")


# ------------------------------------------------------------------------------------------------------------
# Flags

@pytest.mark.parametrize("script, flags, named", [
    ("train_sft.py", ["--init", ""], "--init"),
    ("train_sft.py", ["--out", ""], "--out"),
    ("train_sft.py", ["--init", "BASE", "--data", "BASE", ""], "--data"),
    ("train_rl.py", ["--init", ""], "--init"),
    ("search.py", ["--save", "", "--methods", "greedy", "--budgets", 20], "--save"),
    ("search.py", ["--problems", ""], "--problems"),
    ("search.py", ["--problems", "a\0b"], "--problems"),
    ("search.py", ["--out", "a\0b"], "--out"),
    ("experiments.judges", ["--judge", ""], "--judge"),
    ("experiments.rewrite", ["--data", ""], "--data"),
    ("experiments.league", ["--results", ""], "--results"),
    ("plot.py", [""], "folders"),
    ("plot.py", ["OUT", "--out", ""], "--out"),
    ("experiments.plot_league", [""], "table"),
])
def test_empty_arguments_are_errors(base, tmp_path, script, flags, named):
    """--init "" once trained from scratch, --problems "" measured on the test set."""
    flags = [str(flag).replace("BASE", str(base)).replace("OUT", str(base.parent)) for flag in flags]
    if script == "search.py":
        flags += ["--init", base, "--n-problems", 2]
    if "--out" not in flags and script in ("train_sft.py", "train_rl.py", "search.py", "experiments.judges"):
        flags += ["--out", tmp_path]
    assert_one_line(run_here(script, *flags), f"argument {named}: it is empty, or has a NUL in it")


HUGE = 10 ** 20


@pytest.mark.parametrize("script, flag, value", [
    ("train_sft.py", "--lr", 1e9), ("train_sft.py", "--lr", 1e38), ("train_rl.py", "--lr", 1e9),
    ("train_sft.py", "--value-coef", 1e30), ("train_rl.py", "--sft-coef", 1e30),
    ("train_rl.py", "--entropy-coef", 1e30), ("train_sft.py", "--depth", 1000),
    ("train_sft.py", "--batch-size", 10 ** 8), ("train_rl.py", "--prompts", 10 ** 8),
    ("train_rl.py", "--samples", 10 ** 8), ("train_sft.py", "--workers", 10 ** 4),
    ("train_sft.py", "--seed", HUGE), ("train_rl.py", "--seed", HUGE), ("search.py", "--seed", HUGE),
    ("experiments.league", "--seeds", HUGE), ("experiments.benchmark", "--depths", 1000),
    ("verify.py", "--seed", -1), ("verify.py", "--seed", HUGE), ("train_sft.py", "--steps", HUGE),
    ("train_sft.py", "--log-every", "9" * 5000), ("search.py", "--c-puct", 1e30),
])
def test_numbers_beyond_all_sense_are_errors(script, flag, value):
    done = run_here(script, flag, value)
    assert_one_line(done, f"argument {flag}: ")
    assert len(done.stderr) < 150 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_too_little_memory_is_one_line(monkeypatch, capsys, tmp_path, error):
    def gradient(*args):
        raise error
    monkeypatch.setattr(train_sft, "gradient", gradient)
    done = train_here(monkeypatch, capsys, train_sft, *SHORT_SFT, "--steps", 2, "--out", tmp_path)
    assert_one_line(done, "not enough memory", "--batch-size")
    monkeypatch.setattr(train_sft, "gradient", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):                              # a bug is not told as something else
        train_here(monkeypatch, capsys, train_sft, *SHORT_SFT, "--steps", 2, "--out", tmp_path)


# ------------------------------------------------------------------------------------------------------------
# Checkpoints, tables, problems

def test_a_model_shares_no_memory_with_its_checkpoint(base):
    model, checkpoint = load_checkpoint(base)
    for name, weight in model.state_dict().items():
        assert weight.data_ptr() != checkpoint["model"][name].data_ptr() and weight.dtype == torch.float32


@pytest.mark.parametrize("changed, reason", [
    ({"flags": [1]}, "flags is a list"),
    ({"step": "1"}, "step is a str"),
    ({"step": -1}, "at step -1 of 200"),
    ({"step": 201}, "at step 201 of 200"),
    ({"optimizers": {"a": 1}}, "optimizers is a dict"),
    ({"optimizers": []}, "its optimizers are not those"),
    ({"optimizers": [1, 2]}, "its optimizers are not those"),
    ({"table": "a"}, "table is a str"),
    ({"config": {"n_embd": 10 ** 7, "n_head": 1}}, "its weights are not of the shapes"),
    ({"config": {"n_layer": 10 ** 7}}, "n_layer is not from 1 to"),
    ({"config": {"block_size": 10 ** 12}}, "block_size is not from 1 to"),
    ({"config": {"vocab_size": 10 ** 12}}, "its vocabulary or its heads"),
    ({"config": {"n_head": 3}}, "its vocabulary or its heads"),
    ({"config": {"n_gram": 10 ** 6, "vocab_size": 1}}, "n_gram is not from 1 to"),
    ({"config": {"n_embd": "64"}}, "not a checkpoint of tinyo1"),
    ({"config": 3}, "not a checkpoint of tinyo1"),
    ({"model": 3}, "not a checkpoint of tinyo1"),
    ({"flags": {"level": "two"}}, "its flag level is 'two'"),
    ({"flags": {"lr": "much"}}, "its flag lr is 'much'"),
])
def test_checkpoints_of_the_wrong_shape_are_one_line(base, tmp_path, changed, reason):
    checkpoint = torch.load(base, weights_only=True)
    for key, value in changed.items():
        merged = isinstance(value, dict) and key != "optimizers"
        checkpoint[key] = checkpoint[key] | value if merged else value
    torch.save(checkpoint, tmp_path / "sft.pt")
    done = run_here("train_sft.py", "--resume", "--out", tmp_path)
    assert_one_line(done, tmp_path / "sft.pt", reason)
    assert done.stderr.count("\n") == 1


LEAGUE_ROW = {key: "1" for key in (*league.WHOLE, *league.NUMBERS, *league.TEXTS)} | {"level": "3"}


@pytest.mark.parametrize("change, is_good", [
    (lambda text: text, True),
    (lambda text: b"\xef\xbb\xbf" + text, True),                        # as a spreadsheet saves it
    (lambda text: text.replace(b"greedy", b"greedily", 1), False),
    (lambda text: text.replace(b"\n3,", b"\nmany,"), False),
    (lambda text: text.replace(b"\n3,", b"\n"), False),
    (lambda text: text.rstrip() + b",1\n", False),
    (lambda text: b"\x89PNG\xff\xfe" + text, False),
    (lambda text: b"greetings\nto all\n", False),
])
def test_a_league_that_is_none_is_told_before_any_work(monkeypatch, tmp_path, change, is_good):
    save_table(tmp_path / "league.csv", [LEAGUE_ROW])
    (tmp_path / "league.csv").write_bytes(change((tmp_path / "league.csv").read_bytes().replace(b"\r", b"")))
    if is_good:
        assert league.read_league(tmp_path / "league.csv") == [LEAGUE_ROW]
    else:
        flags = ["--results", tmp_path, "--out", tmp_path / "out", "--rows", "base", "--seeds", 0]
        done = run_here("experiments.league", *flags)
        assert_one_line(done, tmp_path / "league.csv", "is not a table that the league wrote")


def test_the_league_of_this_repository_is_one():
    assert len(league.read_league(os.path.join(ROOT, "results/league.csv"))) > 9


def test_a_prompt_that_is_too_long_is_told_before_the_search(base, tmp_path):
    prompt = "(" * 3000 + "1+1" + ")" * 3000 + "="
    (tmp_path / "mine.txt").write_text(prompt + "\n")
    search = ["--init", base, "--out", tmp_path, "--task", "expression", "--level", 1]
    mine = ["--problems", tmp_path / "mine.txt", "--methods", "greedy"]
    for script, flags in (("search.py", mine), ("ask.py", [prompt])):
        assert_one_line(run_here(script, *search, *flags, "--max-tokens", 3000), "--max-tokens 3000")
    problems = tmp_path / "fair.txt"
    problems.write_text("2+3=\n")
    assert_one_line(run_here("search.py", *search, "--problems", problems, "--max-tokens", 8187), "8187")
    search += ["--methods", "greedy", "--problems", problems]
    assert run_here("search.py", *search, "--max-tokens", 80).returncode == 0


class Chatty(GPT):
    """Random, but with a taste for newlines: its texts have many lines and no end."""

    def run(self, windows, positions, mask, cache=None):
        logits, values = super().run(windows, positions, mask, cache)
        taste = torch.zeros(64, dtype=logits.dtype)
        taste[NEWLINE], taste[EOS] = 8.0, -8.0
        return logits + taste, values


@pytest.mark.parametrize("name", [
    "mcts (value)", "mcts (rollouts)", "beam (value)", "depth-1 (value)", "stream", "best-of-n (verifier)"])
def test_a_budget_beyond_what_the_model_reads_ends_at_its_edge(name):
    torch.manual_seed(0)
    model = Chatty(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=60))
    problems = held_out_problems("countdown", 2, 2)
    settings = Settings(20, torch.Generator().manual_seed(0), temperature=1.0)
    for result in METHODS[name].run(model, problems, 500, settings):
        assert 20 < result.tokens <= 500


def test_a_path_of_thousands_of_lines_is_searched(monkeypatch):
    """The bound on what can still be found was worked out by recursion."""
    search = tree.Search(held_out_problems("countdown", 2, 1)[0], 20_000, "value", [], 20)
    node = search.root
    for _ in range(5000):
        child = tree.Node(node.ids + [NEWLINE], prior=0.999, path=node.path * 0.999, parent=node)
        node.branches = []
        node.children.append(child)
        node = child
    assert search.bound(search.root) == node.path > 0
    node.closed = True
    assert search.bound(search.root) == 0


def test_slow_problems_have_a_bar(monkeypatch, capsys):
    """At level 6, two minutes passed in silence."""
    drawn = []
    real = verify.make_problems

    def make_problems(*args, bar=None, **others):
        bar.delay = 0
        drawn.append(bar.n)
        return real(*args, bar=bar, **others)
    monkeypatch.setattr(verify, "make_problems", make_problems)
    assert len(held_out_problems("countdown", 2, 300)) == 300 and drawn == [0, 200]


@POSIX
@pytest.mark.parametrize("script", ["train_sft.py", "train_rl.py", "search.py", "experiments.judges"])
def test_ctrl_c_while_importing_is_quiet(tmp_path, script):
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(command(script), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)},
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and said == ""


# ------------------------------------------------------------------------------------------------------------
# Many faults, at random

@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_a_few_of_the_faults(tmp_path):
    """All of them: python tests/faults.py"""
    done = subprocess.run([sys.executable, os.path.join(ROOT, "tests", "faults.py"), "--quick"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "kills", "bits", "disk", "traces", "tables"]
