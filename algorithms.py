"""
From rewards to a loss: the algorithms of RL, each an entry in `ALGORITHMS`.

    filter      advantage = return of a right sample, 0 of a wrong one: what is right is imitated, the rest
                ignored (STaR, Zelikman et al. 2022)
    reinforce   advantage = return - mean return of the problem's samples; one on-policy step, so no ratio
    ppo         advantage = GAE over the value head; several steps on a batch, held by the clipped ratio

The return at a token is what is still to come: the reward, and with a --half-life, as streams have it, the
reward discounted by the time until then (`discounted_returns`).

A batch (batches.py) holds B completions, --samples of each problem side by side, in T columns. Beside "idx",
"next" and "mask" it has, from `rollout` in train_rl.py, "rewards" (B,); "old_logprobs" and "old_values"
(B, T) of the policy that sampled them, the values as logits; and with a --half-life "begins" (B, T) and
"was_cut_off" (B,), see `mark_attempts`. `learn` adds "returns" and "advantages" (B, T).

Deviations from the papers: the group's mean is not divided by its standard deviation (Dr. GRPO, Liu et al.
2025); groups that teach nothing are dropped (DAPO, Yu et al. 2025; see `worth_learning`); the critic's
targets are the outcomes themselves, lambda = 1, and only the policy's lambda is lower (VC-PPO, Yuan et al.
2025); discount 1, but for streams. The value head, too, learns only from groups that were not dropped, so it
predicts success on problems that are not too hard, and without a --half-life not too easy either.
"""
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F

NEVER = 10 ** 9                             # a position that no text has


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
    What is still to come at each token, (B, T): the reward, halved for every --half-life tokens until it
    comes; without a --half-life, the reward. An example with a half-life of one token and two samples of a
    problem, of which the second goes back to the problem behind d:

        tokens      reward      returns
        a b         1           1/2  1
        c d | e f   0           1/24  1/12 | 0  0

    Who goes back to the problem begins again, as good as from the prompt. So in an attempt that was not the
    last, what comes behind the return is replaced by what an attempt is worth on the mean, `attempt_value`:
    it is credited with its own success, and the luck of those behind it, which is noise to it, is left out.
    Here three attempts were begun, at a, c and e, which turned out to be worth 1/2, 0 and 0: on the mean 1/6.
    With g = 0.5 ** (1 / half-life), the return is

        in the last attempt     g ** (tokens to the end) * reward
        in the others           g ** (tokens to the next attempt) * attempt_value

    A stream that was cut off would have gone on: there attempt_value stands in place of the reward.

    Why a half-life: if streams were stopped behind each token with the same small probability, 1 - g, the
    discounted reward would be the probability that one is solved before. No ceiling has to be chosen.
    """
    rewards = batch["rewards"][:, None]                                 # (B, 1)
    if not args.half_life:
        return rewards.expand_as(batch["old_values"])
    decay, begins = 0.5 ** (1 / args.half_life), batch["begins"]
    position = batch["mask"].cumsum(1)                                  # (B, T), 1 at the first token
    to_the_end = decay ** (position[:, -1:] - position)                 # the factor from here to the end
    per_attempt = attempt_value(batch, to_the_end, args)                # (B, 1)
    # Where the next attempt begins: the smallest such position on the right
    next_begin = F.pad(position.where(begins, NEVER)[:, 1:], (0, 1), value=NEVER)
    next_begin = next_begin.flip(1).cummin(1).values.flip(1)
    in_others = per_attempt * decay ** (next_begin - position)
    at_the_end = per_attempt.where(batch["was_cut_off"][:, None], rewards)
    return in_others.where(next_begin < NEVER, at_the_end * to_the_end)


def attempt_value(batch, to_the_end, args):
    """
    What an attempt is worth where it begins, (B, 1): the mean over all n attempts that a problem's samples
    began, v = sum(to_the_end * (the reward, or v where the stream was cut off)) / n. Solved for v,

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
    is_right = batch["rewards"] > 0         # attempts of other streams have a return, too
    return batch["returns"] * is_right[:, None]


def reinforce_advantages(batch, args):
    """
    The return less its mean over the problem's samples; with a --half-life, where each token has its own,
    over all their tokens. An attempt that led back to the problem is mostly below that mean: then it is made
    less likely, even if the stream succeeds later.
    """
    returns, counted = batch["returns"], batch["mask"]
    if not args.half_life:                  # the same at all tokens: each sample counts once, however long
        counted = last_tokens(counted)
    return returns - sum_of_groups(returns * counted, args) / sum_of_groups(counted, args)


def gae_advantages(batch, args):
    """
    A_t = sum_k (gamma lam)^k delta_{t+k}, delta_t = gamma V_{t+1} - V_t, and r - V_t at the last token (GAE,
    Schulman et al. 2016, equation 16, one reward at the end); gamma is 1 without a --half-life.
    """
    values, mask = batch["old_values"].sigmoid(), batch["mask"]
    gamma = 0.5 ** (1 / args.half_life) if args.half_life else 1.0
    after = (gamma * F.pad(values[:, 1:], (0, 1))).where(~last_tokens(mask), batch["returns"])
    return lambda_sums(after - values, mask, gamma * args.lam)


def lambda_sums(deltas, mask, lam):
    """sum_k lam^k delta_{t+k} over the tokens of a completion: (B, T) -> (B, T)."""
    sums, running = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.size(1))):
        running = (deltas[:, t] + lam * running) * mask[:, t]
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
    has_signal: Callable = is_mixed         # which groups there is something to learn from
    uses_ratio: bool = False                # of the policy that learns to the one that sampled
    passes: int = 1             # both --epochs and --minibatches, where they are not given


ALGORITHMS = {"filter": Algorithm(filter_advantages, policy_gradient_loss, has_signal=has_right),
              "reinforce": Algorithm(reinforce_advantages, policy_gradient_loss),
              "ppo": Algorithm(gae_advantages, clipped_loss, uses_ratio=True, passes=2)}


def worth_learning(rewards, args):
    """
    Which groups are learnt from, (B / --samples,). The filter learns from those with a right sample, the
    others from those that are mixed; with a --half-life also from those that are all right, as there is
    something to learn about being quick.
    """
    has_signal = has_right if args.half_life else ALGORITHMS[args.algo].has_signal
    return has_signal(rewards, args)
