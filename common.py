"""
What all scripts share: flags, errors told in one line, the handling of Ctrl-C, and files that are written
whole or not at all.
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
import time
from contextlib import contextmanager, suppress
from itertools import chain


def show_error(kind, error, trace):
    """Print an uncaught exception as Python does; but nothing for Ctrl-C during the imports."""
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = show_error                 # before anything large is imported

from verify import DEFAULT_TASK, TASKS, get_task

# ------------------------------------------------------------------------------------------------------------
# Flags

def whole(low, high):
    """An argparse type: an integer from low to high."""
    def parse(text):
        if not (text.isdecimal() and len(text) < 20 and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text[:20]!r} is not an integer from {low} to {high}")
        return int(text)
    return parse


positive, count = whole(1, 10 ** 9), whole(0, 10 ** 9)


def between(low, high):
    """An argparse type: a finite number from low to high."""
    def parse(text):
        number = float(text)
        if not (low <= number <= high and math.isfinite(number)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return number
    parse.__name__ = "number"               # argparse names it in its message
    return parse


LEVELS = "; ".join(f"{task.name}: its number of {task.unit}, {task.levels[0]} to {task.levels[-1]} "
                   f"(default {task.default_level})" for task in TASKS.values())
SHARED_FLAGS = {
    "--task": dict(choices=TASKS,
                   help=f"which problems (default: the checkpoint's; for a new model {DEFAULT_TASK})"),
    "--level": dict(type=positive, metavar="N",
                    help=f"how hard they are (default: the checkpoint's). {LEVELS}"),
    "--max-tokens": dict(type=positive, metavar="N",
                         help="the longest completion (default: the checkpoint's; for a new model what a "
                              "worked solution of the level needs, or a stream that tries all there is)"),
    "--init": dict(metavar="FILE", help="checkpoint to start from"),
    "--c-puct": dict(type=between(0, 1000), default=1.0, metavar="X",
                     help="mcts: weight of the prior against the value (default 1.0)"),
    "--split": dict(default="test", choices=["test", "validation"],
                    help="which held-out problems to measure on: test for the tables, validation to choose "
                         "settings (default test)"),
    "--out": dict(default="out", metavar="DIR", help="folder for what is written (default out)"),
    "--device": dict(default="auto", choices=["auto", "cpu", "cuda"],
                     help="where to compute (default: cuda if there is one)"),
    "--seed": dict(type=whole(0, 10 ** 15), default=0, metavar="N",
                   help="same seed, same result on the same machine (default 0)"),
}


class Flags(argparse.Namespace):
    """The values of all flags. `given`, which vars() does not show, holds the flags that the user gave."""
    __slots__ = ("given",)


class Parser(argparse.ArgumentParser):
    """argparse with the shared flags, without abbreviated flags, and with errors of one line."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, words=None):
        """Also notes in args.given which flags the user gave, as --resume must know."""
        args = super().parse_args(words, Flags())
        for action in self._actions:        # parse again, without defaults: only the given flags appear
            action.default = argparse.SUPPRESS
        self._defaults.clear()
        args.given = vars(super().parse_args(words))
        for action in self._actions:
            given = args.given.get(action.dest)
            texts = given if isinstance(given, list) else [given]
            if any(text == "" or "\0" in str(text) for text in texts):
                self.error(str(argparse.ArgumentError(action, "it is empty, or has a NUL in it")))
        return args

    def shared(self, *names, **defaults):
        for name in names:
            self.add_argument(name, **SHARED_FLAGS[name])
        # choose_task and join_processes fill these in
        self.set_defaults(streams=None, rank=0, processes=1, **defaults)

    def error(self, message):
        fail(message)

    @contextmanager
    def errors(self):
        """Report a ValueError as an error of the command line."""
        try:
            yield
        except ValueError as error:
            self.error(str(error))


def choose_task(args, trained=None):
    """
    Fill in the flags task, level, max_tokens and streams where they are not given: from `trained`, the flags
    of a checkpoint, else from the defaults. A new model writes streams where there are any. ValueError if
    there is no such level, or no streams at it for a model of streams.
    """
    trained = trained or {}
    args.task = args.task or trained.get("task", DEFAULT_TASK)
    same_task = trained if args.task == trained.get("task") else {}
    args.level = args.level or same_task.get("level") or get_task(args.task).default_level
    task = get_task(args.task, args.level)
    n_stream = task.stream_tokens(args.level)
    if args.streams is None:
        args.streams = trained.get("streams", False) if trained else n_stream > 0
    if args.streams and not n_stream:
        raise ValueError(f"streams: not for {args.task} at level {args.level}, only where all steps can be "
                         "listed, as in countdown, from level 3 on; worked solutions are for all "
                         "(train_sft.py --no-streams)")
    room = n_stream if args.streams else task.max_tokens(args.level)
    if args.level == same_task.get("level") and args.streams == trained.get("streams", False):
        room = same_task.get("max_tokens", room)
    args.max_tokens = args.max_tokens or room


def check_level(problem, args):
    """ValueError if a problem is not of the task and level in args."""
    if (problem.task, problem.level) != (args.task, args.level):
        raise ValueError(f"{problem.prompt.rstrip()} is {problem.task} at level {problem.level}; "
                         f"{args.init} is for {args.task} at level {args.level}")


def choose_device(name="auto"):
    """The torch.device of a --device flag. ValueError if there is none of that name here."""
    import torch                            # not at the top: plot.py does not need it
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here: use --device cpu")
    return torch.device(name)


# ------------------------------------------------------------------------------------------------------------
# Running a script

def run_script(main):
    """
    Call main. Errors of the disk and a lack of memory are reported in one line, with exit status 2. The
    script ends without a message on Ctrl-C, on other signals, and when a reader such as head has closed the
    pipe; half-written files are removed.
    """
    keep_memory()
    for signum in stop_signals()[1:]:
        signal.signal(signum, end_quietly)
    try:
        main()
        print(end="", flush=True)           # works without a standard output, too
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # or Python flushes once more
        sys.exit(128 + 13)                  # as SIGPIPE would
    except OSError as error:
        fail(f"{error.filename or 'output'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:            # torch raises the second, for other errors too
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        fail("not enough memory: ask for less at a time, as with a smaller --batch-size, --prompts, --depth")
    except KeyboardInterrupt:
        sys.exit(130)


def end_quietly(signum, frame):
    sys.exit(128 + signum)


def fail(message):
    """End the script with exit status 2 and one line that says why."""
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    sys.exit(2)


def keep_memory():
    """
    Let the C library keep freed memory for the next step. By default glibc returns large blocks to the system
    and asks for them again, page by page: some 7 % of the time here. Does nothing except on Linux.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-3, 1 << 30)                # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)          # M_TRIM_THRESHOLD
        mallopt(-2, 1 << 28)                # M_TOP_PAD


def stop_signals():
    """The signals that ask a program to end: Ctrl-C, SIGTERM, and SIGHUP unless nohup ignores it."""
    hangup = getattr(signal, "SIGHUP", None)                            # not on Windows
    is_heard = hangup and signal.getsignal(hangup) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([hangup] if is_heard else [])]


def catch_signals():
    """
    A list that collects the signals that ask the program to end, so that a step can be finished and saved
    first. After any of them, Ctrl-C ends the program at once.
    """
    heard = []

    def on_signal(signum, frame):
        heard.append(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in stop_signals():
        signal.signal(signum, on_signal)
    return heard


@contextmanager
def clock(seconds, name):
    """Add the time of a block to seconds[name]. On CUDA the block must wait for the GPU at its end."""
    start = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start


# ------------------------------------------------------------------------------------------------------------
# Files

def check_plain(path):
    """OSError if a path is a folder or a device, which a file must not replace."""
    if os.path.exists(path) and not os.path.isfile(path):
        reason = "is a folder or a device, and a file of that name is to be written"
        raise OSError(errno.EINVAL, reason, str(path))


def write_whole(path, data):
    """
    Write bytes to a file, which gets its name only when all of it is on the disk. If the path is a link, the
    file that it points to is written. An OSError names the path; an older file there is then unchanged.
    """
    check_plain(path)
    target = os.path.realpath(path)
    temporary = f"{target}.{secrets.token_hex(4)}.tmp"      # unique, as others may write here, too
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        error.filename = str(path)          # the error of a full disk names no file
        raise
    finally:
        with suppress(OSError):             # if all went well, it is gone already
            os.remove(temporary)


def open_folder(folder, *names):
    """Make sure files can be written in a folder, and say which of these names it already holds."""
    folder = folder or "."
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
    for name in names:
        path = os.path.join(folder, name)
        check_plain(path)
        if os.path.exists(path):
            print(f"overwrites {path}")


def set_aside(path):
    """
    Rename the file that an earlier run left at a path: sft.pt to sft.old.pt, or if that exists to
    sft.old2.pt, and so on. Returns the new name, None if there was no file.
    """
    check_plain(path)
    target = os.path.realpath(path)
    if not os.path.exists(target):
        return None
    stem, extension = os.path.splitext(target)
    names = (f"{stem}.old{n}{extension}" for n in chain([""], range(2, 10 ** 6)))
    aside = next(name for name in names if not os.path.exists(name))
    os.rename(target, aside)
    print(f"{path} is of an earlier run: it is {aside} now")
    return aside


def lock_folder(folder):
    """
    Lock a folder against other runs until this process ends in any way. Returns the open file that holds the
    lock, None where the system has no such locks. OSError names the process that holds it already.
    """
    try:
        import fcntl
    except ImportError:                     # Windows
        return None
    file = open(os.path.join(folder, ".lock"), "a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        reason = f"process {file.read()} is training there: wait for its end, or name another folder"
        raise OSError(errno.EAGAIN, reason, folder) from None
    except OSError:                         # a file system without locks
        return None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def save_table(path, rows):
    """Write a list of dicts with the same keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())


def read_table(path):
    """The rows of a CSV file as dicts of strings; none if there is no such file."""
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8-sig") as file:          # spreadsheets may add a BOM
        return list(csv.DictReader(file))
