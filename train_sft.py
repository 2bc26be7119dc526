"""
Supervised fine-tuning from random weights: imitate streams, which try, go back and try again; or worked
solutions, and train the value head on the model's own attempts.

    python train_sft.py         # countdown with 3 numbers -> out/sft.pt, out/sft.csv (7 min on two CPU cores)
    python train_sft.py --no-streams        # worked solutions, the base for votes and tree search
    python train_sft.py --init out/rl.pt --data traces.jsonl    # learn from the traces of search.py --save

Each step shows fresh problems with what a teacher wrote for them, or some of the traces. The loss is on those
tokens of the completions that are to be imitated (`make_batch` and `imitation_loss` in batches.py).
streams.py says what streams show, and which of it is imitated; solutions.py does so for worked solutions,
which teach the value head, too; traces.py for traces. From streams the value head learns nothing here (RL
teaches it a little). All that is random in a step is drawn from the seed and the number of the step, so a run
that was stopped goes on exactly as it would have.
"""
import math
import signal
from argparse import BooleanOptionalAction
from functools import partial

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, between, choose_device, choose_task, positive, run_script, stop_signals, whole

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import solutions
import streams
from batches import as_example, by_length, imitation_loss, make_batch, n_learnt
from checkpoint import load_checkpoint
from model import GPT, GPTConfig, to_device
from optim import optimizer_step
from processes import average_gradients, join_processes, mean_count, mean_over_processes, share_of
from traces import introduce_words, read_traces, traces_lesson
from trainer import Run, add_run_flags, load_stopped

DECAY = 0.5             # share of the steps in which the learning rate falls to 0
DEFAULTS = {"batch_size": 64, "steps": 6800, "lr": 3e-3}
STREAM_DEFAULTS = {"batch_size": 128, "steps": 3000, "lr": 3e-3}
TRACE_DEFAULTS = {"batch_size": 64, "lr": 1e-3}


def make_parser():
    parser = Parser(description="Imitate streams, worked solutions or traces: writes sft.pt and sft.csv.")
    # the problems
    parser.shared("--task", "--level", "--max-tokens")
    # the model
    parser.add_argument("--depth", type=whole(1, 32), metavar="N",
                        help="size of a new model: layers, and a width of 32 (depth + 1) (default 3)")
    parser.shared("--init")
    # what to learn from
    parser.add_argument("--data", nargs="+", metavar="FILE",
                        help="traces to learn from instead of what a teacher writes: right ones are "
                             "imitated, all of them fit the value head; needs --init")
    parser.add_argument("--streams", action=BooleanOptionalAction,
                        help="imitate streams, which try, go back with `wait` and the problem restated, and "
                             "try again; or worked solutions only (default: streams, of a new model for "
                             "countdown with at least 3 numbers)")
    parser.add_argument("--honest", type=between(0, 1), default=0.5, metavar="X",
                        help="of the batches with whole solutions, the share that shows random steps "
                             "instead, if the task can list them (default 0.5)")
    # the optimisation
    parser.add_argument("--steps", type=positive, metavar="N",
                        help="optimizer steps (default 6800, of streams 3000; with --data as many as show "
                             "each trace once)")
    parser.add_argument("--batch-size", type=whole(1, 10 ** 5), metavar="N",
                        help="problems a step (default 64, of streams 128 pieces)")
    parser.add_argument("--lr", type=between(0, 1), metavar="X",
                        help="peak learning rate (default 3e-3, with --data 1e-3)")
    parser.add_argument("--value-coef", type=between(0, 1000), default=1.0, metavar="X",
                        help="weight of the value loss (default 1)")
    # the run
    parser.add_argument("--workers", type=whole(0, 64), metavar="N",
                        help="processes that make problems ahead; changes no result (default 0 on a CPU, "
                             "which has no core to spare, 1 with CUDA)")
    add_run_flags(parser, log_every=1000)
    parser.set_defaults(optimizer="muon")
    return parser


# ------------------------------------------------------------------------------------------------------------
# What each step learns from

def streams_lesson(args, step):
    """
    ([], examples): streams, or pieces of them. No problems: so no attempts of the model's own, and nothing
    for the value head.
    """
    n = share_of(args.batch_size, args, "--batch-size")
    rng = np.random.default_rng([args.seed, step, 0, args.rank])
    written = streams.lesson(args.task, args.level, n, rng, step, step / args.steps)
    return [], [as_example(text) for text in written]


def ignore_signals(worker):
    for signum in stop_signals():
        signal.signal(signum, signal.SIG_IGN)                           # the main process handles them


# ------------------------------------------------------------------------------------------------------------
# Training

def learning_rate(args, step):
    warmup = min(1.0, (step + 1) / (20 if args.data else 100))
    return args.lr * warmup * min(1.0, (args.steps - step) / (DECAY * args.steps))


def train(args, run, lesson):
    """
    Do all steps of a run; lesson(args, step) says what each learns from: (problems, examples). run.finish
    logs and saves (trainer.py).
    """
    n_workers = args.workers if args.workers is not None else int(run.device.type == "cuda")
    # The lessons of all steps, in order; they may be made ahead in other processes
    lessons = DataLoader(range(run.start, args.steps), batch_size=None, num_workers=n_workers,
                         collate_fn=partial(lesson, args), worker_init_fn=ignore_signals)
    for step, (problems, examples) in zip(run.steps(), lessons):
        # 1. With worked solutions: now and then, add the model's own attempts, for the value head.
        own = solutions.own_attempts(run.model, problems, args, step)
        n_sampled = sum(len(example.prompt + example.completion) for example in own)
        examples = examples + own
        # 2. The gradient, of some examples at a time.
        batch = make_batch(examples, run.device)
        run.metrics = gradient(run.model, batch, args)
        # 3. Step.
        average_gradients(run.model)
        optimizer_step(run.model, run.optimizers, learning_rate(args, step))
        lengths = [len(example.prompt + example.completion) for example in examples]
        n_tokens = sum(lengths)
        context = sum(n * n for n in lengths) / 2 / n_tokens            # the mean over all tokens
        run.count(n_tokens, n_sampled, n_tokens, context)
        run.finish(step)


def gradient(model, batch, args):
    """
    Add the gradient of the losses, and return them. The policy's is a mean over the tokens that it learns
    from, the value head's over those that have a label.
    """
    n_policy = mean_count(n_learnt(batch))
    n_value = mean_count((~batch["labels"].isnan()).sum().item())
    metrics = {"loss": 0.0, "value_loss": 0.0 if n_value else math.nan}
    for _, part in by_length(batch):
        logits, values = model(part["idx"])                             # (B, T, V), (B, T)
        loss = imitation_loss(logits, part) / max(1, n_policy)
        metrics["loss"] += loss.item()
        labels = part["labels"]
        labelled = ~labels.isnan()
        if labelled.any():
            known = labels[labelled].to(values.dtype)
            value_loss = F.binary_cross_entropy_with_logits(values[labelled], known, reduction="sum")
            value_loss = value_loss / n_value
            metrics["value_loss"] += value_loss.item()
            loss = loss + args.value_coef * value_loss
        loss.backward()
    return dict(zip(metrics, mean_over_processes(list(metrics.values()))))


def begin(args):
    """
    The model to train: new, that of --init, or that of a stopped run; and its checkpoint, None for a new one.
    ValueError if the flags do not fit.
    """
    device, checkpoint = choose_device(args.device), None
    join_processes(args)
    if args.data and not (args.init or args.resume):
        raise ValueError("--data needs a model to start from: --init")
    if args.resume:
        model, checkpoint = load_stopped("sft", args, device)
    elif args.init:
        model, checkpoint = load_checkpoint(args.init, device, needs=("flags", "tokens", "flops"))
        if args.depth and GPTConfig.from_depth(args.depth) != model.config:
            raise ValueError(f"--depth {args.depth} is not the size of --init {args.init}: leave --depth out")
    else:
        torch.manual_seed(args.seed)
        model = to_device(GPT(GPTConfig.from_depth(args.depth or 3)), device)
    choose_task(args, checkpoint and checkpoint["flags"])               # and args.streams
    return model, checkpoint


def fill_in(args, traces):
    """The flags whose default depends on what there is to learn from."""
    of_streams = args.streams and not traces
    defaults = TRACE_DEFAULTS if traces else STREAM_DEFAULTS if of_streams else DEFAULTS
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    share, least = share_of(args.batch_size, args, "--batch-size"), streams.PIECES_PER_STREAM
    if of_streams and share < least:
        raise ValueError(f"--batch-size {args.batch_size}: streams need {least} for each process")
    args.steps = args.steps or -(-len(traces) // args.batch_size)       # each trace once


def main():
    parser = make_parser()
    args = parser.parse_args()
    with parser.errors():
        model, checkpoint = begin(args)
        longest = model.config.block_size
        traces = [trace for path in args.data or []
                  for trace in read_traces(path, longest, args.task, args.level)]
        fill_in(args, traces)
        run = Run("sft", args, model, checkpoint)
    if traces and not args.resume:
        introduce_words(model, traces)
        run.tokens += sum(trace.get("tokens", 0) for trace in traces)
        run.flops += sum(trace.get("flops", 0) for trace in traces)     # of the search that found them
    lesson = streams_lesson if args.streams else solutions.lesson
    train(args, run, partial(traces_lesson, traces) if traces else lesson)


if __name__ == "__main__":
    run_script(main)
