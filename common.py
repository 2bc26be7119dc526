"""
What every script does alike: read flags, tell an error in one line, hear Ctrl-C, write a file whole or not at
all.
"""
import argparse
import csv
import ctypes
import errno
import io
import math
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress

from verify import DEFAULT_TASK, TASKS, get_task

# ------------------------------------------------------------------------------------------------------------
# Flags

def positive(text):
    """An argparse type: an integer from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def count(text):
    """An argparse type: an integer from 0."""
    return 0 if text == "0" else positive(text)


def between(low, high):
    """An argparse type: a finite number from low to high."""
    def parse(text):
        number = float(text)
        if not (low <= number <= high and math.isfinite(number)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return number
    parse.__name__ = "number"               # argparse names it in its message
    return parse


STREAM_TOKENS = 1024                        # room for a stream
LEVELS = "; ".join(f"{task.name}: its number of {task.unit}, {task.levels[0]} to {task.levels[-1]} "
                   f"(default {task.default_level})" for task in TASKS.values())
SHARED_FLAGS = {
    "--task": dict(choices=TASKS,
                   help=f"which problems (default: the checkpoint's; for a new model {DEFAULT_TASK})"),
    "--level": dict(type=positive, metavar="N",
                    help=f"how hard they are (default: the checkpoint's). {LEVELS}"),
    "--max-tokens": dict(type=positive, metavar="N",
                         help="the longest completion (default: the checkpoint's; for a new model what a "
                              "worked solution of the level needs)"),
    "--init": dict(metavar="FILE", help="checkpoint to start from"),
    "--split": dict(default="test", choices=["test", "validation"],
                    help="which held-out problems to measure on: test for the tables, validation to choose "
                         "settings (default test)"),
    "--out": dict(default="out", metavar="DIR", help="folder for what is written (default out)"),
    "--device": dict(default="auto", choices=["auto", "cpu", "cuda"],
                     help="where to compute (default: cuda if there is one)"),
    "--seed": dict(type=count, default=0, help="same seed, same result on the same machine (default 0)"),
}


class Parser(argparse.ArgumentParser):
    """argparse with the shared flags, and with errors of one line."""

    def shared(self, *names, **defaults):
        for name in names:
            self.add_argument(name, **SHARED_FLAGS[name])
        self.set_defaults(streams=False, **defaults)                    # the checkpoint knows better

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    @contextmanager
    def errors(self):
        """Tell a ValueError as an error of the command line."""
        try:
            yield
        except ValueError as error:
            self.error(str(error))


def choose_task(args, trained=None):
    """
    Fill in the task, level and max_tokens of a script's flags where they are not given: from a checkpoint's
    flags, `trained`, else the defaults; and whether its model writes streams. ValueError if there is no such
    level.
    """
    trained = trained or {}
    args.task = args.task or trained.get("task", DEFAULT_TASK)
    same_task = trained if args.task == trained.get("task") else {}
    args.level = args.level or same_task.get("level") or get_task(args.task).default_level
    task = get_task(args.task, args.level)
    same_level = same_task if args.level == same_task.get("level") else {}
    args.streams = args.streams or trained.get("streams", False)
    room = STREAM_TOKENS if args.streams else task.max_tokens(args.level)
    args.max_tokens = args.max_tokens or same_level.get("max_tokens", room)


def choose_device(name="auto"):
    """The torch.device of a --device flag. ValueError if there is none of that name here."""
    import torch                            # not above: plot.py need not wait for it
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here: use --device cpu")
    return torch.device(name)


# ------------------------------------------------------------------------------------------------------------
# Running a script

def run_script(main):
    """Call main. What the disk refuses is told in one line, with exit status 2; Ctrl-C ends quietly."""
    keep_memory()
    try:
        main()
    except OSError as error:
        fail(f"{error.filename or 'output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def fail(message):
    """End the script with exit status 2 and one line that says why."""
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    sys.exit(2)


def keep_memory():
    """
    Let the C library keep what is freed for the next step. By default glibc hands large blocks back to the
    system and asks for them again, page by page: some 7 % of the time here. Elsewhere than on Linux nothing
    happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-3, 1 << 30)                # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)          # M_TRIM_THRESHOLD
        mallopt(-2, 1 << 28)                # M_TOP_PAD


def catch_ctrl_c():
    """
    An event that the first Ctrl-C sets, so that a step can be finished and saved; the second Ctrl-C ends the
    program.
    """
    pressed = threading.Event()

    def on_interrupt(signum, frame):
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGINT, on_interrupt)
    return pressed


@contextmanager
def clock(seconds, name):
    """Add the time that a block takes to seconds[name]. On CUDA each block ends by waiting for the GPU."""
    start = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start


# ------------------------------------------------------------------------------------------------------------
# Files

def check_plain(path):
    """OSError if something stands under a path that must not be replaced by a file."""
    if os.path.exists(path) and not os.path.isfile(path):
        reason = "is a folder or a device, and a file of that name is to be written"
        raise OSError(errno.EINVAL, reason, str(path))


@contextmanager
def write_whole(path):
    """
    A binary file that appears under its name only when all of it is on the disk. If the name is a link, the
    file that it points to is written. An OSError names the path; what stood there before is still there then.
    """
    check_plain(path)
    target = os.path.realpath(path)
    temporary = f"{target}.{secrets.token_hex(4)}.tmp"      # a name of its own, whoever else writes here
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        error.filename = str(path)          # a full disk names no file
        raise
    finally:
        with suppress(OSError):             # it is gone where all went well
            os.remove(temporary)


def open_folder(folder, *names):
    """Make sure files can be written in a folder, and say which of these names it already holds."""
    folder = folder or "."
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    paths = [os.path.join(folder, name) for name in names]
    for path in paths:
        check_plain(path)
    existing = [path for path in paths if os.path.exists(path)]
    if existing:
        print(f"overwrites {', '.join(existing)}")


def save_table(path, rows):
    """Write a list of dicts with the same keys as CSV."""
    with write_whole(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        text.flush()
        text.detach()


def read_table(path):
    """The rows of a CSV file as dicts of strings; none if there is no such file."""
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
