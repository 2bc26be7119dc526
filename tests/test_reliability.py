"""
Nothing lost, nothing let in. A run that diverges, is stopped, is killed or meets a full disk leaves its last
good state behind; a second run does not write into the first one's folder; and what comes from outside, a
checkpoint, a trace, a table, a flag, is believed only as far as it can be checked.
"""
import errno
import os
import stat
import subprocess
import sys
import threading

import matplotlib.pyplot as plt
import pytest
import torch

import common
import plot
from common import open_folder, save_table, write_whole
from model import GPT, GPTConfig, load_checkpoint, save_checkpoint
from scripts import ROOT, command, run_here, table, tiny_base

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
TINY = GPTConfig(n_layer=1, n_head=2, n_embd=16)
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

def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    """With one fixed temporary name, the first to finish took the other's half-written file."""
    path = tmp_path / "a.bin"
    with write_whole(path) as one:
        one.write(b"1" * 1000)
        with write_whole(path) as other:
            other.write(b"2" * 10)
        assert path.read_bytes() == b"2" * 10
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


def limited(limit, script, *flags):
    """A script in a process of its own that can write no file of more than so many bytes."""
    import resource
    words = command(script, *flags)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))


@POSIX
def test_a_checkpoint_that_does_not_fit_is_one_line(base, tmp_path):
    """torch.save tells what the disk refuses in a RuntimeError that names no file."""
    done = limited(10_000, "train_sft.py", *SHORT_SFT, "--steps", 1, "--out", tmp_path)
    assert_one_line(done, f"{tmp_path}/sft.pt: File too large")
    assert not list(tmp_path.glob("*.pt")) and not list(tmp_path.glob("*.tmp"))


@POSIX
def test_a_picture_that_does_not_fit_is_one_line(tmp_path):
    row = {"step": 1, "flops": 1.0, "parameters": 1, "greedy": 0.5}
    save_table(tmp_path / "sft.csv", [row])
    row = {"method": "a", "oracle": 0, "budget": 9, "accuracy": 0.5, "ci_low": 0.1, "ci_high": 0.9}
    save_table(tmp_path / "search.csv", [row | {"tokens_per_problem": 30.0}])
    (tmp_path / "scaling.png").write_bytes(b"old")
    done = limited(1000, "plot.py", tmp_path)
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
