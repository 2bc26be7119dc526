"""
What both trainers share: the run around their steps. It begins or resumes, measures, logs and saves, and
stops when asked.

All that is random in step i depends on (seed, i) only. So resuming restores just the weights, the optimizers
and the counts, and a run that was stopped and resumed ends with the same bits as one that was not.
"""
import glob
import math
import os
import signal
import time
from functools import cached_property

import numpy as np
from tqdm import tqdm

from common import catch_signals, fail, lock_folder, open_folder, positive, save_table, set_aside
from checkpoint import check_room, is_finite, load_checkpoint, save_checkpoint
from metrics import auc, evaluate, evaluate_streams, values_of
from model import flops_per_token
from optim import make_optimizers
from processes import mean_over_processes, wait_for_all
from sample import generate
from verify import (EOS, HELD_OUT_SEED, decode, encode, get_task, held_out_problems, is_correct,
                    random_steps, state_value, verify)

SAVE_EVERY = 60                             # seconds: a step that ends later is saved
SHOWN = 10                                  # problems of which a sample is kept at each row of the table
RESUME_NEEDS = ("flags", "step", "tokens", "flops", "table", "samples", "optimizers")


def add_run_flags(parser, log_every=None):
    default = log_every or "rows after 1, 2, 4, 8, ... steps"
    parser.add_argument("--log-every", type=positive, default=log_every, metavar="N",
                        help=f"steps between rows of the table (default {default})")
    parser.add_argument("--log-problems", type=positive, default=500, metavar="N",
                        help="problems for these rows (default 500)")
    parser.add_argument("--test-problems", type=positive, default=1000, metavar="N",
                        help="problems at the end (default 1000)")
    parser.add_argument("--resume", action="store_true",
                        help="go on with the run in --out, with the flags it was started with")
    parser.shared("--split", "--out", "--device", "--seed")


def load_stopped(name, args, device):
    """
    The model and checkpoint of the stopped run in --out, whose flags replace those of args. ValueError if
    flags were given that contradict them.
    """
    path = os.path.join(args.out, f"{name}.pt")
    model, checkpoint = load_checkpoint(path, device, RESUME_NEEDS)
    step, steps = checkpoint["step"], checkpoint["flags"].get("steps") or 0
    if not 0 < step <= steps:
        raise ValueError(f"{path} is damaged: it is at step {step} of {steps}")
    different = sorted(set(checkpoint["flags"]) ^ set(vars(args)))
    if different:
        other = f"with --{different[0].replace('_', '-')} or without"
        raise ValueError(f"{path} was begun by another script, {other}: resume it there")
    # These flags may change: they do not change what is computed.
    free = ("out", "device", "workers", "profile", "rank", "resume")
    n = checkpoint["flags"]["processes"]
    if n != args.processes:
        raise ValueError(f"{path} was begun by {n} processes: resume it with torchrun --nproc_per_node {n}")
    for flag, value in args.given.items():
        if flag not in free and value != checkpoint["flags"][flag]:
            raise ValueError(f"--{flag.replace('_', '-')} {value} contradicts {path}, which was begun with "
                             f"{checkpoint['flags'][flag]}: leave it out, or begin anew without --resume")
    kept = {name: value for name, value in vars(args).items() if name in free}
    vars(args).update(checkpoint["flags"] | kept)
    return model, checkpoint


# ------------------------------------------------------------------------------------------------------------
# The run

def labelled_states(task, level, split, n=2000):
    """
    States to measure a value head on: n held-out problems, each with at least one random legal step and at
    least one left to do, and whether each can still be solved: (lists of token ids, list of bool). Empty
    where a task has no such states.
    """
    if not get_task(task).enumerable or level < 3:
        return [], []
    rng, texts, labels = np.random.default_rng(HELD_OUT_SEED), [], []
    for problem in held_out_problems(task, level, n, split):
        text, _ = random_steps(problem, rng.integers(1, level - 1), rng)
        texts.append(encode(problem.prompt + text))
        labels.append(state_value(problem, text))
    return texts, labels


class Run:
    """
    A training run: its model, its counts, its files name.pt and name.csv in --out. ValueError if its flags do
    not fit.
    """

    def __init__(self, name, args, model, checkpoint=None):
        """checkpoint: the one it starts from, whose tokens and FLOPs count; with --resume the run's own."""
        self.name, self.args, self.model, self.metrics = name, args, model, {}
        self.path, self.device = os.path.join(args.out, name), model.wte.weight.device
        self.saved, self.saved_at = None, time.monotonic()              # the last saved step; when
        n = max(args.test_problems, args.log_problems)
        self.problems = held_out_problems(args.task, args.level, n, args.split)
        self.prompts = [encode(problem.prompt) for problem in self.problems]
        check_room(model, self.prompts, args.max_tokens)
        counted = checkpoint or {}
        self.tokens, self.flops = counted.get("tokens", 0), counted.get("flops", 0)
        self.start, self.table, self.samples = 0, [], []
        self.optimizers = make_optimizers(model, args.lr, args.optimizer)
        if args.resume:
            self.start = self.saved = checkpoint["step"]
            self.table, self.samples = checkpoint["table"], checkpoint["samples"]
            try:
                for optimizer, state in zip(self.optimizers, checkpoint["optimizers"], strict=True):
                    optimizer.load_state_dict(state)
            except Exception:               # there are many ways in which nested dicts can be wrong
                raise ValueError(f"{self.path}.pt: its optimizers are not those of its model") from None

    @cached_property
    def states(self):                       # made only when a measurement needs them
        return labelled_states(self.args.task, self.args.level, self.args.split)

    def count(self, tokens, forward, learnt, context):
        """
        Add to the counts. tokens: what was sampled or imitated. forward: tokens that only went forward
        through the model. learnt: tokens that were learnt from, which cost three times as much. context: to
        how many other tokens each attends, on average.
        """
        flops = flops_per_token(self.model.config, context) * (forward + 3 * learnt)
        tokens, flops = mean_over_processes([tokens, flops])
        self.tokens += round(tokens * self.args.processes)
        self.flops += flops * self.args.processes

    def steps(self):
        """The steps still to do; the trainer ends each by calling `finish`."""
        args, self.heard = self.args, catch_signals()
        wait_for_all()                                      # all have read --init: it may be renamed now
        if args.rank == 0:                                  # the other processes learn, and write nothing
            self.take_folder()
            print(f"train_{self.name}.py on {self.device}: {vars(args)}", flush=True)
        steps = range(self.start, args.steps)
        self.bar = tqdm(steps, initial=self.start, total=args.steps, desc=self.name, mininterval=1,
                        disable=args.rank > 0)
        yield from self.bar
        wait_for_all()
        if args.rank == 0:
            print(f"wrote {args.out}/{self.name}.pt and {args.out}/{self.name}.csv")

    def finish(self, step):
        """
        After a step: show the metrics, now and then add a row to the table, and save. Ctrl-C, SIGTERM and
        SIGHUP save too, and end the program.
        """
        args, done = self.args, step + 1
        first_three = list(self.metrics.items())[:3]
        self.bar.set_postfix({key: f"{value:.3f}" for key, value in first_three}, refresh=False)
        self.check_finite(done)
        at_power = done & (done - 1) == 0                       # a power of two: even spacing on a log axis
        is_row = done == args.steps or (done % args.log_every == 0 if args.log_every else at_power)
        stop, = mean_over_processes([float(len(self.heard))])
        if args.rank == 0 and is_row:
            self.log(done)
        if args.rank == 0 and (is_row or stop or time.monotonic() - self.saved_at > SAVE_EVERY):
            self.save(done)
        if stop:
            self.bar.close()
            wait_for_all()                                      # no process ends before all is written
            if args.rank == 0:
                print(f"stopped at step {done}; to go on, run the same script with --resume --out {args.out}")
            raise SystemExit(128 + (self.heard or [signal.SIGINT])[0])      # [] if another process got it

    def take_folder(self):
        """Lock --out, remove temporary files of killed runs, and rename the files of earlier runs."""
        open_folder(self.args.out)
        self.lock = lock_folder(self.args.out)
        for temporary in glob.glob(f"{glob.escape(self.path)}.*.tmp") if self.lock else []:
            os.remove(temporary)            # with the lock, it can only be of a run that was killed
        if not self.args.resume:
            init = os.path.realpath(self.args.init or "")
            aside = set_aside(f"{self.path}.pt")
            if aside and init == os.path.realpath(f"{self.path}.pt"):
                self.args.init = aside      # the new name: it may be read again
            set_aside(f"{self.path}.csv")
        elif self.table:                    # the run may have been killed before it wrote the table
            save_table(f"{self.path}.csv", self.table)

    def check_finite(self, done):
        """End a run that has diverged, before any of it is saved."""
        if not (math.isfinite(self.metrics.get("loss", 0.0)) and is_finite(self.model)):
            self.bar.close()
            if self.args.rank > 0:
                raise SystemExit(2)
            kept = f"{self.path}.pt holds step {self.saved}" if self.saved else "nothing had been saved yet"
            fail(f"step {done}: the loss or some weights are nan or inf now; {kept}. Try a lower --lr")

    def log(self, done):
        """Add a row to the table, show it with a sample, keep more samples for experiments/samples.py."""
        row = self.measure(self.args.test_problems if done == self.args.steps else self.args.log_problems)
        n_parameters = sum(weight.numel() for weight in self.model.parameters())
        counts = {"step": done, "tokens": self.tokens, "flops": self.flops, "parameters": n_parameters}
        self.table.append(counts | row | self.metrics)
        figures = [f"{key} {100 * value:.1f}%" for key, value in row.items() if not math.isnan(value)]
        self.bar.write("  ".join([f"step {done}", *figures]))
        samples = generate(self.model, self.prompts[:SHOWN], self.args.max_tokens, 0.0, (EOS,))
        completions = [decode(ids) for ids in samples.completions()]
        self.samples.append({"step": done, "prompts": [problem.prompt for problem in self.problems[:SHOWN]],
                             "completions": completions})
        completion, ended, _ = completions[0].partition("<|eos|>")
        reason = verify(self.problems[0], completion).reason if ended else "cut off"
        self.bar.write(f"  {self.problems[0].prompt}{completions[0]}  [{reason}]")

    def measure(self, n):
        """Accuracy on n held-out problems; without streams also the AUC of the value head on `states`."""
        def judge(i, ids):
            return is_correct(self.problems[i], ids)
        args = self.args
        if args.streams:
            return evaluate_streams(self.model, self.prompts[:n], judge, args.max_tokens, (EOS,), args.seed)
        accuracy = evaluate(self.model, self.prompts[:n], judge, args.max_tokens, (EOS,), args.seed)
        texts, labels = self.states
        return accuracy | {"value_auc": auc(values_of(self.model, texts), labels)}

    def save(self, done):
        save_checkpoint(f"{self.path}.pt", self.model, self.optimizers, step=done, tokens=self.tokens,
                        flops=self.flops, table=self.table, samples=self.samples, flags=vars(self.args))
        self.saved, self.saved_at = done, time.monotonic()
        if self.table:
            save_table(f"{self.path}.csv", self.table)
