"""
Reinforcement learning against the exact verifier, REINFORCE or PPO.

    python train_rl.py                      # out/sft.pt -> out/rl.pt, out/rl.csv (85 s on two CPU cores)
    python train_rl.py --algo ppo

A step: (1) sample several completions for each of a batch of fresh problems; (2) reward 1 for a completion that ends and
that the verifier accepts, else 0; (3) drop the problems whose samples are all right or all wrong; (4) turn rewards into
an advantage for each token; (5) one or more optimizer steps on the policy loss, plus the value head's.

What differs between the algorithms is in `get_advantages`, in `policy_loss`, and in the number of epochs and minibatches:

    filter      advantage = reward: what is right is imitated, the rest ignored (STaR, Zelikman et al. 2022; expert iteration)
    reinforce   advantage = reward - mean reward of the problem's samples; one on-policy step, so no ratio and no clip
    ppo         advantage = GAE over the value head; several steps on the same samples, held by the clipped ratio

RL alone sharpens: a single sample gets better, but the policy forgets what it found only now and then, and pass@16 falls.
What slows that fall is to go on imitating worked solutions beside the policy gradient (`--sft-coef`; the PPO-ptx of
Ouyang et al. 2022). With `--sft-coef 0`, `--pass-k 4` does so too, by giving most weight to problems that are rarely solved,
at the price of a slower rise. The README has figures.

Deviations from the papers: the group's mean is not divided by its standard deviation (Dr. GRPO, Liu et al. 2025); groups
without signal are dropped (DAPO, Yu et al. 2025); the critic's targets are the outcomes themselves, lambda = 1, and only
the policy's lambda is lower (VC-PPO, Yuan et al. 2025); discount 1. The value head, too, learns from the groups that were
not dropped only, so it foretells success on problems that are neither too easy nor too hard.
"""
import math
import os
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from model import (Parser, between, catch_ctrl_c, choose_device, flops_per_token, load_checkpoint, make_optimizers, open_folder,
                   optimizer_step, positive, run_script, save_checkpoint, save_table)
from sample import evaluate, generate, value_auc
from verify import (EOS, NEWLINE, PAD, choose_task, decode, encode, labelled_states, make_judge, make_problems, max_tokens, parse_problem,
                    state_value, test_problems)


def parse_args():
    parser = Parser(description="REINFORCE or PPO against the verifier: writes rl.pt and rl.csv.")
    # the start
    parser.shared("--init", "--task", "--level", "--attempts", task=None)
    # the rollouts
    parser.add_argument("--algo", default="reinforce", choices=["filter", "reinforce", "ppo"], help="default reinforce")
    parser.add_argument("--steps", type=positive, default=80, help="rollout batches (default 80)")
    parser.add_argument("--prompts", type=positive, default=128, help="problems a step (default 128)")
    parser.add_argument("--samples", type=positive, default=8, help="completions for each problem (default 8)")
    # the loss
    parser.add_argument("--lr", type=between(0, math.inf), default=1e-3, help="peak learning rate (default 1e-3)")
    parser.add_argument("--warmup", type=positive, default=5, help="steps of linear warm-up (default 5)")
    parser.add_argument("--value-coef", type=between(0, math.inf), default=0.02, help="weight of the value loss; much more drowns the policy's gradient "
                        "(default 0.02)")
    parser.add_argument("--pass-k", type=positive, default=1, help="reinforce: maximise P(one of k samples is right) (default 1)")
    parser.add_argument("--sft-coef", type=between(0, math.inf), default=0.5, help="weight of imitating worked solutions beside (default 0.5)")
    parser.add_argument("--entropy-coef", type=between(0, math.inf), default=0.0, help="weight of an entropy bonus (default 0)")
    parser.add_argument("--kl-coef", type=between(0, math.inf), default=0.0, help="weight of the KL divergence to --init (default 0)")
    # PPO only
    parser.add_argument("--reward", default="outcome", choices=["outcome", "process", "exact-process"], help="ppo: one reward at the end, or one "
                        "after each line: by how much it changed P(this ends correct), by the value head of --init, or exactly (default outcome)")
    parser.add_argument("--lam", type=between(0, 1), default=0.95, help="ppo: lambda of GAE (default 0.95)")
    parser.add_argument("--clip", type=between(0, 1), default=0.2, help="ppo: the ratio is clipped to 1 +- this (default 0.2)")
    parser.add_argument("--epochs", type=positive, default=2, help="ppo: passes over each batch of rollouts (default 2)")
    parser.add_argument("--minibatches", type=positive, default=2, help="ppo: optimizer steps a pass (default 2)")
    # the run
    parser.add_argument("--log-every", type=positive, default=20, help="steps between rows of rl.csv (default 20)")
    parser.add_argument("--log-problems", type=positive, default=500, help="test problems for these rows (default 500)")
    parser.add_argument("--test-problems", type=positive, default=1000, help="test problems at the end (default 1000)")
    parser.add_argument("--profile", action="store_true", help="say at the end where the time of a step went, evaluation left out")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with the flags it was started with")
    parser.shared("--out", "--device", "--seed")
    return parser, parser.parse_args()


def get_advantages(algo, rewards, values, mask, group_size, lam, pass_k, progress=None):
    """
    The advantage of each token: rewards (B,), values (B, T) as probabilities, mask (B, T) -> (B, T).

    reinforce: A = r - mean of r over the samples of the same problem, the same for every token of a completion, times
    the slope of P(one of pass_k samples is right) = 1 - (1 - mean)^pass_k.
    ppo: A_t = sum_k lam^k delta_{t+k}, delta_t = V_{t+1} - V_t, and r - V_t at the last token (GAE, Schulman et al. 2016,
    equation 16, discount 1, one reward at the end). With process rewards, progress (B, T), A_t = sum_k lam^k progress_{t+k}.
    """
    if algo == "filter":
        # The gradient of sum(reward * log-prob) is that of the log-likelihood of the samples that are right: to imitate
        # one's own right answers is a policy gradient without a baseline.
        advantages = rewards[:, None].expand_as(values)
    elif algo == "reinforce":
        groups = rewards.view(-1, group_size)
        mean = groups.mean(1, keepdim=True)
        weight = pass_k * (1 - mean) ** (pass_k - 1)
        advantages = (weight * (groups - mean)).view(-1, 1).expand_as(values)
    else:
        if progress is None:
            deltas = F.pad(values[:, 1:], (0, 1)).where(~last_tokens(mask), rewards[:, None]) - values
        else:
            deltas = progress               # measured against what stood before: its own baseline, no critic needed
        advantages, running = torch.zeros_like(values), torch.zeros_like(rewards)
        for t in reversed(range(values.size(1))):
            running = (deltas[:, t] + lam * running) * mask[:, t]
            advantages[:, t] = running
    return advantages * mask


def last_tokens(mask):
    """Which of the completions' tokens, mask (B, T), are the last: (B, T)."""
    return mask & ~F.pad(mask[:, 1:], (0, 1))


def get_progress(batch, potentials):
    """
    Process rewards (B, T): for the token that ends a line, the potential P(this ends correct) after the line less that before
    it; for the last token, the verdict less the potential before. potentials (B, T) are of what has been read up to there.

    They are differences, so that their sum is the verdict less the prompt's potential, however many lines there are: a
    shaping that leaves the best policy what it was (Ng et al. 1999). Sums of the potentials themselves would pay for lines,
    right or not. For the same reason they say nothing new to a critic that knows as much: with lambda = 1 all of it cancels but
    verdict and baseline. So the process model stays as it was in the beginning, and lambda is lower.
    """
    idx, action = batch["idx"], batch["action"]
    column = torch.arange(idx.size(1), device=idx.device).expand_as(idx)
    before = potentials.gather(1, column.where(idx == NEWLINE, 0).cummax(1).values)     # where the last whole line ended
    is_last = last_tokens(action)
    after = F.pad(potentials[:, 1:], (0, 1)).where(~is_last, batch["rewards"][:, None])
    return (after - before) * (action & ((batch["next"] == NEWLINE) | is_last))


def exact_potentials(batch):
    """state_value of each prefix that ends in a whole line, at its newline: (B, T)."""
    potentials = torch.zeros_like(batch["old_values"])
    for row, ids in enumerate(batch["idx"].tolist()):
        prompt = ids[:ids.index(NEWLINE) + 1]
        problem = parse_problem(decode(prompt))
        for t, token in enumerate(ids):
            if token == NEWLINE:
                potentials[row, t] = float(state_value(problem, decode(ids[len(prompt):t + 1])))
    return potentials


def policy_loss(algo, logprobs, old_logprobs, advantages, clip):
    """The loss of each token (B, T), to be summed. On policy the ratio is 1, and PPO's gradient is REINFORCE's."""
    if algo != "ppo":
        return -advantages * logprobs
    ratio = (logprobs - old_logprobs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)    # Schulman et al. 2017, eq. 7


def pack(prompts, completions, device):
    """
    Lists of token ids -> {"idx" (B, T), "next" (B, T), "action" (B, T)}: prompt, completion, padding; what follows each
    token; and whether that belongs to the completion.
    """
    T = max(len(prompt) + len(completion) for prompt, completion in zip(prompts, completions))
    rows, action = np.full((len(prompts), T), PAD), np.zeros((len(prompts), T), dtype=bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions)):
        rows[row, :len(prompt) + len(completion)] = prompt + completion
        action[row, len(prompt):len(prompt) + len(completion)] = True
    rows, action = torch.from_numpy(rows).to(device), torch.from_numpy(action).to(device)
    return {"idx": rows[:, :-1], "next": rows[:, 1:], "action": action[:, 1:]}


@contextmanager
def clock(seconds, name):
    """Add the time that something takes to seconds[name]. On CUDA all that is timed here ends in waiting for the GPU."""
    start = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - start


def rollout(model, args, step, device, seconds):
    """
    Fresh problems, --samples completions of each, and their verdicts: what pack makes of them, with columns old_logprobs and
    old_values (B, T) as the sampler saw them, and rewards (B,). Also the packed worked solutions of the same problems.
    """
    rng = np.random.default_rng([args.seed, 1, step])                   # all that is random in this step
    with clock(seconds, "making problems"):
        problems, solutions = make_problems(args.task, args.level, args.prompts, rng)
        prompts = [encode(problem.prompt) for problem in problems]
    demos = pack(prompts, [encode(solution) + [EOS] for solution in solutions], device)
    generator = torch.Generator(device).manual_seed(int(rng.integers(2 ** 62)))
    with clock(seconds, "sampling"):
        samples = generate(model, prompts, max_tokens(args.task, args.level, args.attempts), 1.0, (EOS,), generator, args.samples)
    with clock(seconds, "verifying"):
        judge = make_judge(problems)
        rewards = [float(judge(row // args.samples, ids)) for row, ids in enumerate(samples.finished((EOS,)))]
    batch = pack([prompt for prompt in prompts for _ in range(args.samples)], samples.completions(), device)
    for key, column in (("old_logprobs", samples.logprobs), ("old_values", samples.values)):
        batch[key] = torch.zeros(batch["idx"].shape, dtype=column.dtype, device=device)
        batch[key][batch["action"]] = column[samples.mask]
    batch["rewards"] = torch.tensor(rewards, dtype=samples.values.dtype, device=device)
    return batch, demos


def forward(model, batch):
    """What the learner sees: log-probs of the sampled tokens (B, T), entropy (B, T), value logits (B, T)."""
    logits, values = model(batch["idx"])
    logprobs = logits.log_softmax(-1)                                   # (B, T, V)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, batch["next"][..., None]).squeeze(-1), entropy, values


@torch.no_grad()
def forward_all(model, batch):
    columns = [torch.zeros(batch["idx"].shape, dtype=batch["rewards"].dtype, device=batch["idx"].device) for _ in range(3)]
    for rows, part in split(batch):
        for column, x in zip(columns, forward(model, part)):
            column[rows, :x.size(1)] = x
    return columns


def split(batch, size=256):
    """(rows, what the batch holds of them) for a few rows at a time, of like length and without the padding behind them."""
    lengths = batch["action"].flip(1).int().argmax(1).neg() + batch["action"].size(1)       # (B,)
    for rows in lengths.argsort(stable=True).split(size):
        yield rows, {key: tensor[rows, :lengths[rows].max()] if tensor.dim() == 2 else tensor[rows] for key, tensor in batch.items()}


LEARNT = ["approx_kl", "clipfrac", "entropy", "value_loss", "grad_norm", "explained_variance"]     # what learn measures


def learn(model, reference, optimizers, batch, demos, args, lr, seed):
    """All optimizer steps on one batch of rollouts; returns the metrics of the last pass over it. Adds columns to batch."""
    if args.algo == "ppo":                  # the ratio must not see how the sampler rounds
        batch["old_logprobs"], _, batch["old_values"] = forward_all(model, batch)
    old_values, progress = batch["old_values"].sigmoid(), None
    if reference:
        batch["ref_logprobs"], _, potentials = forward_all(reference, batch)
    if args.reward != "outcome":
        progress = get_progress(batch, potentials.sigmoid() if args.reward == "process" else exact_potentials(batch))
    batch["advantages"] = get_advantages(args.algo, batch["rewards"], old_values, batch["action"], args.samples, args.lam, args.pass_k, progress)
    epochs, minibatches = (args.epochs, args.minibatches) if args.algo == "ppo" else (1, 1)
    B = len(batch["idx"])
    for epoch in range(epochs):
        totals = dict.fromkeys(["approx_kl", "clipfrac", "entropy", "value_loss"], 0.0)
        order = torch.randperm(B, generator=torch.Generator().manual_seed(seed + epoch)) if minibatches > 1 else torch.arange(B)
        for rows in order.to(batch["idx"].device).chunk(minibatches):
            minibatch = {key: tensor[rows] for key, tensor in batch.items()}
            # The sum over tokens is divided by the tokens of all completions, not of each: otherwise tokens of
            # long completions would count less, and wrong answers would pay for being long (Dr. GRPO).
            n_tokens = minibatch["action"].sum()
            for _, part in split(minibatch):                            # does not change the result
                logprobs, entropy, values = forward(model, part)
                loss = policy_loss(args.algo, logprobs, part["old_logprobs"], part["advantages"], args.clip)
                labels = part["rewards"][:, None].expand_as(values)
                value_loss = F.binary_cross_entropy_with_logits(values, labels, reduction="none")
                loss = loss + args.value_coef * value_loss - args.entropy_coef * entropy
                if args.kl_coef:                                        # Schulman's k3 estimator, never negative
                    log_ratio = part["ref_logprobs"] - logprobs
                    loss = loss + args.kl_coef * (log_ratio.exp() - 1 - log_ratio)
                (loss * part["action"]).sum().div(n_tokens).backward()
                with torch.no_grad():
                    log_ratio = logprobs - part["old_logprobs"]
                    measured = {"approx_kl": log_ratio.exp() - 1 - log_ratio, "entropy": entropy, "value_loss": value_loss,
                                "clipfrac": ((log_ratio.exp() - 1).abs() > args.clip).float()}
                    for key, per_token in measured.items():
                        totals[key] += (per_token * part["action"]).sum().item() / batch["action"].sum().item()
            if args.sft_coef:
                # To imitate is a policy gradient too: a sample that did not come from the policy, its advantage a constant.
                for _, part in split(demos):
                    logprobs, _, _ = forward(model, part)
                    (-args.sft_coef * logprobs * part["action"]).sum().div(demos["action"].sum()).backward()
            totals["grad_norm"] = optimizer_step(model, optimizers, lr)
    returns = batch["rewards"][:, None].expand_as(old_values)[batch["action"]]
    predicted = old_values[batch["action"]]
    totals["explained_variance"] = 1 - ((returns - predicted).var() / returns.var().clamp_min(1e-8)).item()
    return totals


def main():
    parser, args = parse_args()
    try:
        device = choose_device(args.device)
        source = os.path.join(args.out, "rl.pt") if args.resume else args.init or os.path.join(args.out, "sft.pt")
        needs = ("flags", "tokens", "flops", *(("step", "table", "optimizers") if args.resume else ()))
        model, checkpoint = load_checkpoint(source, device, needs)
        trained = checkpoint["flags"]
        if args.resume:
            args.__dict__.update(trained, out=args.out, device=args.device, profile=args.profile, resume=True)
        args.task, args.level, args.attempts = choose_task(args, trained)
        if args.samples < 2:
            raise ValueError("--samples must be at least 2: a problem's samples are compared with each other")
        test = test_problems(args.task, args.level, args.test_problems)
        room = max_tokens(args.task, args.level, args.attempts)
        if max(len(problem.prompt) for problem in test) + room > model.config.block_size:
            raise ValueError(f"--attempts {args.attempts} needs more than the model's {model.config.block_size} tokens")
        if trained.get("direct") and args.sft_coef:
            raise ValueError(f"{source} answers without a chain of thought, and what is imitated beside RL has one: use --sft-coef 0")
        reference = load_checkpoint(args.init or os.path.join(args.out, "sft.pt"), device)[0] if args.kl_coef or args.reward == "process" else None
        if args.reward != "outcome" and args.algo != "ppo":
            raise ValueError("--reward is for --algo ppo: the others have one advantage for all tokens of a completion")
    except ValueError as error:
        parser.error(str(error))
    open_folder(args.out, *([] if args.resume else ["rl.pt", "rl.csv"]))
    print(f"train_rl.py on {device}: {vars(args)}", flush=True)

    optimizers = make_optimizers(model, args.lr)
    tokens, flops, start, table = checkpoint["tokens"], checkpoint["flops"], 0, []
    if args.resume:
        start, table = checkpoint["step"], checkpoint["table"]
        for optimizer, state in zip(optimizers, checkpoint["optimizers"]):
            optimizer.load_state_dict(state)
    prompts = [encode(problem.prompt) for problem in test]
    states = labelled_states(args.task, args.level)

    def measure(n):
        return evaluate(model, prompts[:n], make_judge(test), room, (EOS,), seed=args.seed) | {"value_auc": value_auc(model, *states)}

    def save(step):
        save_checkpoint(os.path.join(args.out, "rl.pt"), model, optimizers, step=step, tokens=tokens, flops=flops,
                        table=table, flags=vars(args))
        if table:
            save_table(os.path.join(args.out, "rl.csv"), table)

    ctrl_c, seconds = catch_ctrl_c(), Counter()
    bar = tqdm(range(start, args.steps), initial=start, total=args.steps, desc=args.algo, mininterval=1)
    for step in bar:
        started = time.perf_counter()
        batch, demos = rollout(model, args, step, device, seconds)
        rewards, n_new = batch["rewards"], batch["action"].sum().item()
        groups = rewards.view(-1, args.samples)
        mixed = groups.min(1).values < groups.max(1).values             # (prompts,)
        useful = groups.max(1).values > 0 if args.algo == "filter" else mixed
        metrics = dict.fromkeys(LEARNT, float("nan")) | {
            "reward": rewards.mean().item(), "mixed": mixed.float().mean().item(), "length": n_new / len(rewards)}
        n_demo, n_learnt = 0, 0                                         # tokens
        if useful.any():
            kept = {key: tensor[useful.repeat_interleave(args.samples)] for key, tensor in batch.items()}
            lr = args.lr * min(1.0, (step + 1) / args.warmup) * (1 - step / args.steps)
            with clock(seconds, "learning"):
                metrics |= learn(model, reference, optimizers, kept, demos, args, lr, seed=1_000_000 * args.seed + 1_000 * step)
            n_learnt = (kept["idx"] != PAD).sum().item()
            n_demo = (demos["idx"] != PAD).sum().item() if args.sft_coef else 0
        n_read = (batch["action"].int().argmax(1) + 1)[::args.samples].sum().item()     # prompts, once for all their samples
        epochs, n_steps = (args.epochs, args.epochs * args.minibatches) if args.algo == "ppo" else (1, 1)
        n_old = n_learnt * ((args.algo == "ppo") + bool(reference))  # log-probs of the old policy and of the reference
        tokens += n_new + n_demo
        flops += flops_per_token(model.config, batch["idx"].size(1) / 2) * (
            n_read + n_new + n_old + 3 * (epochs * n_learnt + n_steps * n_demo))        # to learn is forward, and twice backward
        seconds["all"] += time.perf_counter() - started
        bar.set_postfix({key: f"{metrics.get(key, 0):.3f}" for key in ("reward", "mixed", "entropy")}, refresh=False)
        done = step + 1
        if done % args.log_every == 0 or done == args.steps:
            row = measure(args.test_problems if done == args.steps else args.log_problems)
            table.append({"step": done, "tokens": tokens, "flops": flops, **row, **metrics})
            save(done)
            bar.write("  ".join([f"step {done}", *(f"{key} {100 * value:.1f}%" for key, value in row.items() if not math.isnan(value))]))
            ids = batch["next"][0][batch["action"][0]].tolist()
            bar.write(f"  {decode(batch['idx'][0].tolist()).split(chr(10))[0]}\n{decode(ids)}  [reward {rewards[0].item():.0f}]")
        if ctrl_c.is_set():
            bar.close()
            save(done)
            print(f"stopped at step {done}; go on with: python train_rl.py --resume --out {args.out}")
            raise SystemExit(130)
    if args.profile and args.steps > start:
        n_steps = args.steps - start
        print("a step took " + ", ".join(f"{1000 * t / n_steps:.0f} ms {name} ({100 * t / seconds['all']:.0f} %)" for name, t in seconds.most_common())
              + f": {n_steps * args.prompts * args.samples / seconds['all']:.0f} rollouts a second")
    print(f"wrote {args.out}/rl.pt and {args.out}/rl.csv")


if __name__ == "__main__":
    run_script(main)
