"""
From rewards to a loss: the algorithms of RL, each an entry in `ALGORITHMS`.

    filter      advantage = return of a right sample, 0 of a wrong one: what is right is imitated, the rest
                ignored (STaR, Zelikman et al. 2022)
    reinforce   advantage = return - mean return of the problem's samples; one step a batch, so no ratio
    ppo         advantage = GAE over the value head; several steps on a batch, with a clipped ratio

The return at a token is the future reward: the verdict, and with a --half-life, as streams have it, the
verdict discounted by the number of tokens until then (`discounted_returns`).

A batch (batches.py) holds B completions, --samples of each problem side by side, in T columns. Beside "idx",
"next" and "mask" it has, from `rollout` in train_rl.py, "rewards" (B,); "old_logprobs" and "old_values"
(B, T) of the policy that sampled them, the values as logits; and with a --half-life "begins" (B, T) and
"was_cut_off" (B,), see `mark_attempts`. `learn` adds "returns" and "advantages" (B, T).

Deviations from the papers: advantages are not divided by the group's standard deviation (Dr. GRPO, Liu et al.
2025); groups without a gradient are dropped (DAPO, Yu et al. 2025; see `worth_learning`); the value head's
targets are the returns, lambda = 1, and only the policy's lambda is lower (VC-PPO, Yuan et al. 2025); there
is no discount but with a --half-life. The value head, too, learns only from groups that were not dropped, so
it predicts success on problems that are sometimes solved, and without a --half-life not always (the filter
keeps those, too).
"""
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F


# ------------------------------------------------------------------------------------------------------------
# Groups: the samples of a problem, which stand side by side

def sum_of_groups(x, args):
    """The sum of x (B, T) over all tokens of a problem's samples: (B, 1)."""
    return x.reshape(-1, args.samples * x.size(1)).sum(1).repeat_interleave(args.samples)[:, None]


def is_mixed(rewards, args):
    """Which groups have right and wrong samples: rewards (B,) -> (B / --samples,)."""
    groups = rewards.view(-1, args.samples)
    return groups.max(1).values > groups.min(1).values


def has_right(rewards, args):
    """Which groups have a right sample."""
    return rewards.view(-1, args.samples).max(1).values > 0


# ------------------------------------------------------------------------------------------------------------
# Returns

def discounted_returns(batch, args):
    """
    The return at each token, (B, T): the reward, halved for every --half-life tokens until it comes; without
    a --half-life, the reward. An example with a half-life of one token and two samples of a problem, of which
    the second goes back to the problem after d:

        tokens      reward      returns
        a b         1           1/2  1
        c d | e f   0           1/24  1/12 | 0  0

    A stream that goes back to the problem is where it was at the prompt: it begins a new attempt. How that
    one turns out says nothing about the attempts before it, so these get the mean value of an attempt at its
    beginning instead (`attempt_value`). Here three attempts were begun, at a, c and e, with values 1/2, 0 and
    0: the mean is 1/6. With g = 0.5 ** (1 / half-life), from the end on,

        return of the last token = reward, or the mean value if the stream was cut off: it would have gone on
        return of another = g * (the mean value if an attempt begins at the next token, else its return)

    Why a half-life: if streams were stopped after each token with the same small probability, 1 - g, the
    discounted reward would be the probability that it solves the problem before that. So no limit on the
    length has to be chosen.
    """
    if not args.half_life:
        return batch["rewards"][:, None].expand_as(batch["old_values"])
    decay, mask = 0.5 ** (1 / args.half_life), batch["mask"]
    position = mask.cumsum(1)                                           # (B, T), 1 at the first token
    mean_value = attempt_value(batch, decay ** (position[:, -1:] - position), args)[:, 0]           # (B,)
    running = mean_value.where(batch["was_cut_off"], batch["rewards"])
    returns = torch.zeros_like(batch["old_values"])
    for t in reversed(range(mask.size(1))):
        returns[:, t] = running
        before = decay * mean_value.where(batch["begins"][:, t], running)
        running = before.where(mask[:, t], running)
    return returns


def attempt_value(batch, to_the_end, args):
    """
    What an attempt is worth where it begins, (B, 1): the mean over all n attempts in a problem's samples, v =
    sum(to_the_end * (the reward, or v where the stream was cut off)) / n, where to_the_end (B, T) is the
    discount from each token to the end of its sample. Solved for v,

        v = sum(to_the_end * reward) / (n - sum(to_the_end where the stream was cut off))
    """
    begins, was_cut_off = batch["begins"], batch["was_cut_off"][:, None]
    known = sum_of_groups(batch["rewards"][:, None] * to_the_end * begins, args)
    return known / (sum_of_groups(begins, args) - sum_of_groups(was_cut_off * to_the_end * begins, args))


# ------------------------------------------------------------------------------------------------------------
# Advantages: (batch, args) -> (B, T)

def filter_advantages(batch, args):
    """
    The return where the sample is right. The gradient of sum(reward * log-prob) is that of the log-likelihood
    of the samples that are right: to imitate one's own right answers is a policy gradient without a baseline.
    """
    is_right = batch["rewards"] > 0         # with a half-life wrong streams have returns above 0, too
    return batch["returns"] * is_right[:, None]


def reinforce_advantages(batch, args):
    """
    The return less its mean over the problem's samples; with a --half-life, where each token has its own,
    over all their tokens. An attempt that led back to the problem is mostly below that mean, so it becomes
    less likely even if the stream succeeds later.
    """
    returns, counted = batch["returns"], batch["mask"]
    if not args.half_life:                  # each sample counts once, however long it is
        counted = last_tokens(counted)
    return returns - sum_of_groups(returns * counted, args) / sum_of_groups(counted, args)


def gae_advantages(batch, args):
    """
    A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = gamma V_{t+1} - V_t, and at the last token the return
    less V_t (GAE, Schulman et al. 2016, equation 16, one reward at the end); gamma is 1 without a
    --half-life.
    """
    values, mask = batch["old_values"].sigmoid(), batch["mask"]
    gamma = 0.5 ** (1 / args.half_life) if args.half_life else 1.0
    after = (gamma * F.pad(values[:, 1:], (0, 1))).where(~last_tokens(mask), batch["returns"])
    return lambda_sums(after - values, mask, gamma * args.lam)


def lambda_sums(deltas, mask, decay):
    """sum_k decay^k delta_{t+k} over the tokens of a completion: (B, T) -> (B, T)."""
    sums, running = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.size(1))):
        running = (deltas[:, t] + decay * running) * mask[:, t]
        sums[:, t] = running
    return sums


def last_tokens(mask):
    """Which of the completions' tokens, mask (B, T), are the last: (B, T)."""
    return mask & ~F.pad(mask[:, 1:], (0, 1))


# ------------------------------------------------------------------------------------------------------------
# Losses: (logprobs, batch, args) -> (B, T), to be summed

def policy_gradient_loss(logprobs, batch, args):
    return -batch["advantages"] * logprobs


def clipped_loss(logprobs, batch, args):
    """Schulman et al. 2017, equation 7. On policy the ratio is 1, and the gradient REINFORCE's."""
    ratio = (logprobs - batch["old_logprobs"]).exp()
    clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
    return -torch.minimum(ratio * batch["advantages"], clipped * batch["advantages"])


# ------------------------------------------------------------------------------------------------------------
# The table

class Algorithm(NamedTuple):
    advantages: Callable
    loss: Callable
    learns_if_all_right: bool = False       # whether a group teaches something if all samples are right
    uses_ratio: bool = False                # P(token) now over P(token) when it was sampled
    passes: int = 1                         # default of both --epochs and --minibatches


ALGORITHMS = {"filter": Algorithm(filter_advantages, policy_gradient_loss, learns_if_all_right=True),
              "reinforce": Algorithm(reinforce_advantages, policy_gradient_loss),
              "ppo": Algorithm(gae_advantages, clipped_loss, uses_ratio=True, passes=2)}


def worth_learning(rewards, args):
    """
    Which groups are learnt from, (B / --samples,). If no sample is right there is nothing to learn; if all
    are, the filter can still imitate them, and with a --half-life their returns differ by length.
    """
    learns_if_all_right = args.half_life or ALGORITHMS[args.algo].learns_if_all_right
    return has_right(rewards, args) if learns_if_all_right else is_mixed(rewards, args)
