"""
Reinforcement learning against the exact verifier: REINFORCE, PPO, or the filter.

    python train_rl.py                      # out/sft.pt -> out/rl.pt, out/rl.csv (6 min on two CPU cores)
    python train_rl.py --algo ppo

A step: (1) sample several completions for each of a batch of fresh problems; (2) reward 1 for a completion
that ends and that the verifier accepts, else 0; (3) drop the problems that give no signal; (4) turn rewards
into an advantage for each token; (5) one or more optimizer steps on the policy loss, plus the value head's,
plus --sft-coef times the loss of imitating the teacher on the same problems.

Advantages and losses stand in algorithms.py.

For streams the reward is discounted: --half-life tokens later it is worth half, so that the model learns to
be quick. RL alone sharpens: single samples get better, but solutions that the policy found only now and then
are forgotten (of models of worked solutions, pass@16 falls). The imitation loss slows that down (the PPO-ptx
of Ouyang et al. 2022); --sft-coef 0 learns from the verifier alone.
"""
import math
import os
from collections import Counter

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, between, choose_device, choose_task, clock, count, positive, run_script, whole

import numpy as np
import torch
import torch.nn.functional as F

from algorithms import ALGORITHMS, discounted_returns, is_mixed, worth_learning
from batches import as_example, by_length, imitation_loss, make_batch, n_learnt, on_tokens, pack, take
from checkpoint import load_checkpoint
from optim import OPTIMIZERS, optimizer_step
from processes import average_gradients, join_processes, mean_count, mean_over_processes, share_of
from sample import generate
from solutions import worked
from streams import SEEN_TARGETS, stream
from trainer import Run, add_run_flags, load_stopped
from verify import EOS, NEWLINE, PAD, decode, encode, is_correct, make_problems, replay

WARMUP = 5                                  # steps
DEFAULTS = {"steps": 80, "prompts": 128, "half_life": 0, "sft_coef": 0.5}
STREAM_DEFAULTS = {"steps": 100, "prompts": 48, "half_life": 64, "sft_coef": 0.03}


def make_parser():
    parser = Parser(description="REINFORCE, PPO or the filter against the verifier: writes rl.pt and rl.csv.")
    # the start
    parser.shared("--init", "--task", "--level", "--max-tokens")
    # the rollouts
    parser.add_argument("--algo", default="reinforce", choices=ALGORITHMS, help="default reinforce")
    parser.add_argument("--steps", type=positive, metavar="N",
                        help="rollout batches (default 80, of streams 100)")
    parser.add_argument("--prompts", type=whole(1, 10 ** 5), metavar="N",
                        help="problems a step (default 128, of streams 48)")
    parser.add_argument("--samples", type=whole(1, 10 ** 4), default=8, metavar="N",
                        help="completions for each problem (default 8)")
    parser.add_argument("--half-life", type=count, metavar="N",
                        help="the price of thinking: a reward that comes N tokens later is worth half, 0 if "
                             "thinking is free (default 0, of streams 64)")
    # the loss
    weight = between(0, 1000)
    parser.add_argument("--optimizer", default="muon", choices=OPTIMIZERS, help="default muon")
    parser.add_argument("--lr", type=between(0, 1), default=1e-3, metavar="X",
                        help="peak learning rate (default 1e-3)")
    parser.add_argument("--value-coef", type=weight, default=0.02, metavar="X",
                        help="weight of the value loss; much more drowns the policy's gradient (default "
                             "0.02)")
    parser.add_argument("--sft-coef", type=weight, metavar="X",
                        help="weight of a loss that imitates the teacher (default 0.5, of streams 0.03)")
    parser.add_argument("--entropy-coef", type=weight, default=0.0, metavar="X",
                        help="weight of an entropy bonus (default 0)")
    # of PPO
    parser.add_argument("--lam", type=between(0, 1), default=0.95, metavar="X",
                        help="ppo: lambda of GAE (default 0.95)")
    parser.add_argument("--clip", type=between(0, 1), default=0.2, metavar="X",
                        help="ppo: the ratio is clipped to 1 +- this (default 0.2)")
    parser.add_argument("--epochs", type=positive, metavar="N",
                        help="passes over each batch of rollouts (default 1, ppo 2)")
    parser.add_argument("--minibatches", type=positive, metavar="N",
                        help="optimizer steps a pass (default 1, ppo 2)")
    # the run
    parser.add_argument("--profile", action="store_true", help="say at the end where the time of a step went")
    add_run_flags(parser)
    return parser


# ------------------------------------------------------------------------------------------------------------
# Rollouts. A batch is a dict of tensors: the samples (B, T), and their rewards.

def rollout(model, args, step, seconds):
    """
    Fresh problems, --samples completions of each, and their verdicts: a batch as pack makes it, with
    old_logprobs and old_values (B, T) of the sampler, rewards (B,), and with a --half-life what mark_attempts
    adds. And with --sft-coef the teacher's completions of the same problems, a batch to imitate, else None.
    """
    device = model.wte.weight.device
    rng = np.random.default_rng([args.seed, 1, step, args.rank])        # all that is random in the rollout
    with clock(seconds, "making problems"):
        n = share_of(args.prompts, args, "--prompts")
        problems, solutions = make_problems(args.task, args.level, n, rng,
                                            targets=SEEN_TARGETS if args.streams else None)
        prompts = [encode(problem.prompt) for problem in problems]
        demos = demonstrations(problems, solutions, rng, device, args) if args.sft_coef else None
    generator = torch.Generator().manual_seed(int(rng.integers(2 ** 62)))
    with clock(seconds, "sampling"):
        samples = generate(model, prompts, longest(args, step), 1.0, (EOS,), generator, args.samples)
    with clock(seconds, "verifying"):
        completions, finished = samples.completions(), samples.finished((EOS,))
        rewards = [float(is_correct(problems[row // args.samples], ids)) for row, ids in enumerate(finished)]
    batch = pack_samples(prompts, samples, completions, args.samples, device)
    batch["rewards"] = torch.tensor(rewards, dtype=samples.values.dtype, device=device)
    if args.half_life:
        with clock(seconds, "verifying"):
            of_rows = [problem for problem in problems for _ in range(args.samples)]
            mark_attempts(batch, of_rows, completions, finished, args.streams)
    return batch, demos


def pack_samples(prompts, samples, completions, n_samples, device):
    """What pack makes of n_samples completions of each prompt; with old_logprobs and old_values (B, T)."""
    batch = pack([prompt for prompt in prompts for _ in range(n_samples)], completions, device)
    for key, column in (("old_logprobs", samples.logprobs), ("old_values", samples.values)):
        batch[key] = torch.zeros(batch["idx"].shape, dtype=column.dtype, device=device)
        batch[key][batch["mask"]] = column[samples.mask]
    return batch


def mark_attempts(batch, problems, completions, finished, streams):
    """
    Add "begins" (B, T), which tokens begin an attempt: the first, and each after a return to the problem; and
    "was_cut_off" (B,), which streams were cut off without a fault, so that they would have gone on. For
    `discounted_returns`.
    """
    begins, was_cut_off = [], []
    for problem, ids, ended in zip(problems, completions, finished):
        read = replay(problem, decode(ids))
        ends = [i for i, token in enumerate(ids) if token == NEWLINE]
        first = {0} | {ends[line] + 1 for line in read.restarts}
        begins += [i in first for i in range(len(ids))]
        was_cut_off.append(streams and ended is None and not read.fault)
    batch["begins"] = on_tokens(begins, batch["mask"])
    batch["was_cut_off"] = torch.tensor(was_cut_off, device=batch["mask"].device)


def demonstrations(problems, solutions, rng, device, args):
    """The same problems solved by the teacher, in worked solutions or streams: a batch to imitate."""
    if args.streams:
        examples = [as_example(stream(problem, rng)) for problem in problems]
    else:
        examples = [worked(problem, solution) for problem, solution in zip(problems, solutions)]
    return make_batch(examples, device)


def longest(args, step):
    """The longest completion of a step; for streams it grows from a quarter of --max-tokens to all of it."""
    share = min(1.0, 0.25 + 1.5 * step / args.steps) if args.streams else 1.0
    return max(1, round(share * args.max_tokens))


# ------------------------------------------------------------------------------------------------------------
# Learning

MEASURED = ["approx_kl", "clipfrac", "entropy", "value_loss"]           # on each token
METRICS = [*MEASURED, "grad_norm", "explained_variance"]


def forward(model, batch):
    """What the learner sees: log-probs of the sampled tokens (B, T), entropy (B, T), value logits (B, T)."""
    logits, values = model(batch["idx"])
    logprobs = logits.log_softmax(-1)                                   # (B, T, V)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, batch["next"][..., None]).squeeze(-1), entropy, values


@torch.no_grad()
def forward_all(model, batch):
    columns = [torch.zeros_like(batch["old_values"]) for _ in range(3)]
    for rows, part in by_length(batch):
        for column, x in zip(columns, forward(model, part)):
            column[rows, :x.size(1)] = x
    return columns


def learn(model, optimizers, batch, demos, args, lr, seed):
    """
    All optimizer steps on one batch of rollouts; returns the metrics of the last one. Adds columns to batch.
    """
    algorithm = ALGORITHMS[args.algo]
    old_values = batch["old_values"]        # when they were sampled: for explained_variance
    if algorithm.uses_ratio:                # the sampler rounds differently: so the ratio starts at 1
        batch["old_logprobs"], _, batch["old_values"] = forward_all(model, batch)
    batch["returns"] = discounted_returns(batch, args)
    batch["advantages"] = algorithm.advantages(batch, args) * batch["mask"]
    generator, grad_norm = torch.Generator().manual_seed(seed), 0.0
    metrics = dict.fromkeys(MEASURED, 0.0)
    for _ in range(args.epochs):
        order = torch.randperm(len(batch["idx"]), generator=generator)
        for rows in order.to(batch["idx"].device).tensor_split(args.minibatches):
            minibatch = take(batch, rows)
            n_tokens = mean_count(minibatch["mask"].sum().item())
            if not n_tokens:                # fewer rows than minibatches
                continue
            metrics = gradient(model, minibatch, n_tokens, args)
            if args.sft_coef:
                imitate_teacher(model, demos, args.sft_coef)
            average_gradients(model)
            grad_norm = optimizer_step(model, optimizers, lr)
    return {**metrics, "grad_norm": grad_norm, "explained_variance": explained_variance(batch, old_values)}


def gradient(model, batch, n_tokens, args):
    """
    Add the gradient of the losses, and return what was measured, both means over tokens.

    The sum over tokens is divided by n_tokens, those of all completions together (as in DAPO): each token
    weighs the same. Were it divided by the length of each completion, a long wrong one would be
    penalised less per token, and wrong answers would grow (Dr. GRPO).
    """
    metrics = dict.fromkeys(MEASURED, 0.0)
    for _, part in by_length(batch):
        loss, measured = losses(model, part, args)
        (loss * part["mask"]).sum().div(n_tokens).backward()
        for key, x in measured.items():
            metrics[key] += ((x * part["mask"]).sum() / n_tokens).item()
    return metrics


def losses(model, batch, args):
    """The loss of each token, and what is measured on the way: (B, T), dict of (B, T)."""
    logprobs, entropy, values = forward(model, batch)
    loss = ALGORITHMS[args.algo].loss(logprobs, batch, args)
    value_loss = F.binary_cross_entropy_with_logits(values, batch["returns"], reduction="none")
    loss = loss + args.value_coef * value_loss - args.entropy_coef * entropy
    logratio = (logprobs - batch["old_logprobs"]).detach()
    approx_kl = logratio.exp() - 1 - logratio                           # Schulman's estimator, never negative
    clipfrac = ((logratio.exp() - 1).abs() > args.clip).float()
    measured = {"approx_kl": approx_kl, "clipfrac": clipfrac, "entropy": entropy, "value_loss": value_loss}
    return loss, measured


def imitate_teacher(model, demos, coef):
    """Add the gradient of coef times the mean imitation loss."""
    n = mean_count(n_learnt(demos))
    for _, part in by_length(demos):
        logits, _ = model(part["idx"])
        (coef * imitation_loss(logits, part) / n).backward()


def explained_variance(batch, values):
    """How much of the returns' variance the old values explain: 1 is all, 0 is none."""
    mask = batch["mask"]
    if not mask.any():                      # of a process that kept no group
        return 0.0
    returns, predicted = batch["returns"][mask], values.sigmoid()[mask]
    return 1 - ((returns - predicted).var() / returns.var().clamp_min(1e-8)).item()


# ------------------------------------------------------------------------------------------------------------
# The run

def train(args, run):
    """Do all steps of a run; run.finish logs and saves. Returns the seconds that each part took."""
    seconds = Counter()
    for step in run.steps():
        with clock(seconds, "all"):
            # 1, 2. Sample, and ask the verifier.
            batch, demos = rollout(run.model, args, step, seconds)
            rewards = batch["rewards"]
            # 3. Drop the groups without signal.
            useful = worth_learning(rewards, args)
            kept = take(batch, useful.repeat_interleave(args.samples))
            # 4, 5. Advantages, losses, steps: see learn.
            metrics = dict.fromkeys(METRICS, math.nan)
            n_useful = mean_count(useful.sum().item())
            if n_useful:
                lr = args.lr * min(1.0, (step + 1) / WARMUP) * (1 - step / args.steps)
                with clock(seconds, "learning"):
                    seed = 1000 * args.seed + step
                    metrics = learn(run.model, run.optimizers, kept, demos, args, lr, seed)
            count_tokens(run, args, batch, kept, demos, learnt=n_useful > 0)
            metrics = {"reward": rewards.mean().item(),
                       "mixed": is_mixed(rewards, args).float().mean().item(),
                       "length": batch["mask"].sum().item() / len(rewards), **metrics}
            run.metrics = dict(zip(metrics, mean_over_processes(list(metrics.values()))))
        run.finish(step)
    return seconds


def count_tokens(run, args, batch, kept, demos, learnt):
    """What a step cost. Each prompt is read once for all its samples."""
    prompt_lengths = batch["mask"].int().argmax(1) + 1                  # (B,)
    n_read = prompt_lengths[::args.samples].sum().item()
    n_new, n_kept = batch["mask"].sum().item(), (kept["idx"] != PAD).sum().item()
    n_demo = (demos["idx"] != PAD).sum().item() if args.sft_coef and learnt else 0
    n_old = n_kept if ALGORITHMS[args.algo].uses_ratio else 0           # one more forward pass
    n_trained = args.epochs * (n_kept + args.minibatches * n_demo)
    lengths = (batch["idx"] != PAD).sum(1).float()
    context = (lengths.square().sum() / lengths.sum() / 2).item()       # the mean over all tokens
    run.count(n_new + n_demo, n_read + n_new + n_old, n_trained, context)


def begin(args):
    """
    The model to train and its checkpoint: that of --init, or of the stopped run. ValueError if the flags do
    not fit.
    """
    device = choose_device(args.device)
    join_processes(args)
    if args.resume:
        model, checkpoint = load_stopped("rl", args, device)
    else:
        source = args.init or os.path.join(args.out, "sft.pt")
        model, checkpoint = load_checkpoint(source, device, needs=("flags", "tokens", "flops"))
    choose_task(args, checkpoint["flags"])                  # and args.streams
    if args.samples < 2:
        raise ValueError("--samples must be at least 2: a problem's samples are compared with each other")
    for name, default in (STREAM_DEFAULTS if args.streams else DEFAULTS).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    share_of(args.prompts, args, "--prompts")                           # or say why not
    passes = ALGORITHMS[args.algo].passes
    args.epochs, args.minibatches = args.epochs or passes, args.minibatches or passes
    return model, checkpoint


def main(parser=None):
    parser = parser or make_parser()
    args = parser.parse_args()
    with parser.errors():
        run = Run("rl", args, *begin(args))
    seconds = train(args, run)
    if args.profile and seconds and args.rank == 0:
        n_steps, total = args.steps - run.start, seconds["all"]
        parts = [f"{1000 * t / n_steps:.0f} ms {name} ({100 * t / total:.0f} %)"
                 for name, t in seconds.most_common()]
        per_second = n_steps * args.prompts * args.samples / total
        print(f"a step took {', '.join(parts)}: {per_second:.0f} rollouts a second")


if __name__ == "__main__":
    run_script(main)
