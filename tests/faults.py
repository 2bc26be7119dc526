"""
Break things on purpose, many times, and see that nothing is lost and nothing let in.

    python tests/faults.py              # all of it, as often as it says below (Linux and macOS)
    python tests/faults.py --quick      # some of each, as the tests do

kills     a training run is killed (SIGKILL), half of the time while it saves. What is left must load, and
          --resume must end with the same weights as a run that was left alone.
bits      a bit of a checkpoint is flipped. It must be refused, or hold the same weights.
disk      the disk is full when a run saves. It must stop with one line that names the file, and keep the
          checkpoint that stood there.
traces    characters of a file of traces are changed. It must be refused in one line that names file and line,
          or hold traces whose verdicts are true.
tables    characters of a table are changed. plot.py must draw it, or refuse it in one line.

Each trial runs in a child of this process, which has torch imported already.
"""
import argparse
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch

import plot
import train_sft
from checkpoint import load_checkpoint
from common import run_script, save_table
from traces import read_traces
from verify import parse_problem, verify

RUN = ["--level", "2", "--depth", "1", "--steps", "60", "--batch-size", "8", "--lr", "0.02",
       "--log-every", "5", "--log-problems", "4", "--test-problems", "4"]
HOW_OFTEN = {"kills": 200, "bits": 10_000, "disk": 20, "traces": 1000, "tables": 300}
QUICK = {"kills": 6, "bits": 60, "disk": 2, "traces": 60, "tables": 6}
TRACE = {"prompt": "98 11>87\n", "completion": "98-11=87,87\n", "correct": True, "tokens": 13, "flops": 1.0}


def in_a_child(main, flags, arm=lambda: None):
    """Run a script's main in a child: (exit status, negative if it was killed; its stderr)."""
    with tempfile.TemporaryFile("w+") as errors:
        child = os.fork()
        if not child:
            status = 1
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(errors):
                    sys.argv = ["script", *map(str, flags)]
                    arm()
                    run_script(main)
                status = 0
            except SystemExit as end:
                status = end.code or 0
            finally:
                errors.flush()
                os._exit(status)
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        return os.waitstatus_to_exitcode(status), errors.read()


def train(folder, *flags, arm=lambda: None):
    return in_a_child(train_sft.main, [*flags, "--out", folder], arm)


def weights_of(path):
    model, _ = load_checkpoint(path)
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def is_one_line(errors):
    """What a user is told: one line, and no traceback."""
    return "Traceback" not in errors and errors.strip().count("\n") == 0


# ------------------------------------------------------------------------------------------------------------
# The faults

def kill_while_saving(rng):
    """The n-th file that is written is cut in half, or is not renamed, or the end comes just after."""
    n, moment = rng.randrange(1, 25), rng.choice(("half", "before", "after"))
    real = {"fsync": os.fsync, "replace": os.replace}

    def fsync(descriptor):
        nonlocal n
        n -= 1
        if n == 0 and moment == "half":
            os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        real["fsync"](descriptor)

    def replace(*paths):
        if n == 0 and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real["replace"](*paths)
        if n == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync, os.replace = fsync, replace


def kill_at_any_time(rng, seconds):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)                       # whose default is the end
    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.4, 1.0) * seconds)        # the start takes a while


def kills(n, rng, folder):
    started = time.time()
    assert train(folder / "left alone", *RUN)[0] == 0
    seconds = time.time() - started
    wanted, n_killed, n_resumed = weights_of(folder / "left alone/sft.pt"), 0, 0
    for trial in range(n):
        out = folder / f"kill {trial}"
        arm = (lambda: kill_while_saving(rng)) if trial % 2 else (lambda: kill_at_any_time(rng, seconds))
        status, _ = train(out, *RUN, arm=arm)
        rng.random()                        # the child's draws are lost with it
        n_killed += status < 0
        if (out / "sft.pt").exists():
            load_checkpoint(out / "sft.pt")
            status, errors = train(out, "--resume")
            assert status == 0, errors
            assert torch.equal(weights_of(out / "sft.pt"), wanted), f"trial {trial}: other weights"
            n_resumed += 1
    assert n_killed > n / 4 and n_resumed > n / 4
    return f"{n_killed} of {n} runs killed, {n_resumed} resumed, all to the same bits"


def bits(n, rng, folder):
    train(folder / "run", *RUN)
    good, wanted = (folder / "run/sft.pt").read_bytes(), weights_of(folder / "run/sft.pt")
    path, refused = folder / "bad.pt", 0
    for _ in range(n):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            weights = weights_of(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
            continue
        assert torch.equal(weights, wanted), "other weights were loaded"
    assert refused > n / 2
    return f"{refused} of {n} refused, the others hold the same weights"


def disk(n, rng, folder):
    def fill():
        limit = rng.randrange(1000, 100_000)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)                   # so that a write says what is wrong
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    for trial in range(n):
        out = folder / f"disk {trial}"
        train(out, *RUN[:4], "--steps", "5", "--log-every", "5", *RUN[8:10], *RUN[12:])
        before = (out / "sft.pt").read_bytes()
        status, errors = train(out, *RUN, arm=fill)
        rng.random()
        told = errors.replace("\r", "\n").split("\n")[-2]              # behind what the bar has drawn
        assert status == 2 and "sft." in told and "Traceback" not in errors, errors
        kept = [path for path in out.iterdir() if path.suffix == ".pt" and path.read_bytes() == before]
        assert kept and not list(out.glob("*.tmp")), list(out.iterdir())
    return f"{n} runs stopped, and kept what there was"


def damage(text, rng):
    """Some characters changed, left out or put in."""
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(text))
        put = rng.choice(["", "\0", '"', "}", "\n", ",", "-", "9", "nan", "é", "\udcff", text[at] * 2])
        text = text[:at] + put + text[at + 1:]
    return text


def traces(n, rng, folder):
    path, n_refused = folder / "traces.jsonl", 0
    for _ in range(n):
        text = damage(f"{json.dumps(TRACE)}\n" * 3, rng)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        try:
            read = read_traces(path)
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error), error
            n_refused += 1
            continue
        for trace in read:
            assert verify(parse_problem(trace["prompt"]), trace["completion"]).correct == trace["correct"]
    assert n_refused > n / 4
    return f"{n_refused} of {n} refused, the others are true"


def tables(n, rng, folder):
    train(folder / "run", *RUN)
    row = {"task": "countdown", "level": 2, "method": "greedy", "budget": 75, "accuracy": 0.5, "ci_low": 0.4,
           "ci_high": 0.6, "tokens_per_problem": 20.0, "oracle": 0}
    save_table(folder / "run/search.csv", [row, row | {"budget": 150}])
    status, errors = in_a_child(plot.main, [folder / "run"])
    assert status == 0, errors
    n_refused = 0
    for trial in range(n):
        path = folder / "run" / rng.choice(["sft.csv", "search.csv"])
        good = path.read_bytes()
        damaged = damage(good.decode(), rng)
        path.write_bytes(damaged.encode("utf-8", "surrogateescape"))
        status, errors = in_a_child(plot.main, [folder / "run"])
        path.write_bytes(good)
        assert status == 0 or status == 2 and is_one_line(errors), (status, errors, damaged)
        n_refused += status == 2
    return f"{n_refused} of {n} refused, the others drawn"


FAULTS = {"kills": kills, "bits": bits, "disk": disk, "traces": traces, "tables": tables}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--quick", action="store_true", help="a few of each")
    parser.add_argument("--only", choices=FAULTS, help="one kind of fault")
    parser.add_argument("--seed", type=int, default=0, help="which faults (default 0)")
    args = parser.parse_args()
    torch.set_num_threads(1)                # threads would not survive the fork
    for name in [args.only] if args.only else FAULTS:
        started = time.time()
        with tempfile.TemporaryDirectory() as folder:
            n = (QUICK if args.quick else HOW_OFTEN)[name]
            said = FAULTS[name](n, random.Random(args.seed), Path(folder))
        print(f"{name}: {said} ({time.time() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
