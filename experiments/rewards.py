"""
More algorithms for train_rl.py: each is a function or two, and an entry in the table of algorithms.py. All
flags of train_rl.py work here too.

    python -m experiments.rewards --algo ppo-process        # out/sft.pt -> out/rl.pt (45 s on two CPU cores)

    ppo-process   PPO with a reward after each line: its change of P(this ends correct), by the value head of
                  --init
    ppo-exact     the same, but enumeration says whether the problem can still be solved (an oracle)
    pass-k        REINFORCE that maximises P(one of --pass-k samples is right)
    kl            REINFORCE with a KL penalty that holds the policy close to that of --init
"""
import os
from functools import lru_cache

# First, so that Ctrl-C while torch is imported ends quietly
from common import between, positive, run_script

import torch
import torch.nn.functional as F

import train_rl
from algorithms import (ALGORITHMS, Algorithm, clipped_loss, lambda_sums, last_tokens, policy_gradient_loss,
                        reinforce_advantages)
from checkpoint import load_checkpoint
from train_rl import forward, forward_all
from verify import NEWLINE, decode, parse_problem, state_value


@lru_cache(maxsize=1)
def load_reference(path, device):
    return load_checkpoint(path, device)[0]


def reference_of(batch, args):
    """The model that the run started from, as it was then."""
    return load_reference(args.init or os.path.join(args.out, "sft.pt"), batch["idx"].device)


# ------------------------------------------------------------------------------------------------------------
# Process rewards

def line_rewards(batch, potentials):
    """
    For the token that ends a line, the potential P(this ends correct) after the line less that before it; for
    the last token, the verdict less the potential before. potentials (B, T) are of what has been read up to
    there -> (B, T).

    They are differences, so that their sum is the verdict less the prompt's potential, however many lines
    there are: a shaping that leaves the best policy what it was (Ng et al. 1999). Sums of the potentials
    themselves would pay for lines, right or not.
    """
    idx, mask = batch["idx"], batch["mask"]
    column = torch.arange(idx.size(1), device=idx.device).expand_as(idx)
    line_end = column.where(idx == NEWLINE, 0).cummax(1).values         # where the last whole line ended
    before = potentials.gather(1, line_end)
    after = F.pad(potentials[:, 1:], (0, 1)).where(~last_tokens(mask), batch["rewards"][:, None])
    ends_line = (batch["next"] == NEWLINE) | last_tokens(mask)
    return (after - before) * (mask & ends_line)


def process_advantages(batch, args):
    """
    A_t = sum_k lam^k r_{t+k}. Each reward is measured against what stood before, so no critic is needed. At
    lambda = 1 the sum is the verdict less one potential, as with an outcome reward: lambda must be lower.
    """
    _, _, values = forward_all(reference_of(batch, args), batch)
    return lambda_sums(line_rewards(batch, values.sigmoid()), batch["mask"], args.lam)


def exact_advantages(batch, args):
    return lambda_sums(line_rewards(batch, exact_potentials(batch)), batch["mask"], args.lam)


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


# ------------------------------------------------------------------------------------------------------------
# Variants of REINFORCE

def pass_k_advantages(batch, args):
    """
    Those of REINFORCE times the slope of P(one of k samples is right) = 1 - (1 - mean)^k: most weight to what
    is rare.
    """
    mean = batch["rewards"].view(-1, args.samples).mean(1, keepdim=True)
    slope = args.pass_k * (1 - mean) ** (args.pass_k - 1)
    return reinforce_advantages(batch, args) * slope.expand(-1, args.samples).reshape(-1, 1)


def kl_loss(logprobs, batch, args):
    """
    The penalty's gradient is, on policy, that of KL(policy || reference). That of the popular "k3" estimate,
    used as a loss, would be that of KL(reference || policy).
    """
    with torch.no_grad():
        reference, _, _ = forward(reference_of(batch, args), batch)
    return policy_gradient_loss(logprobs, batch, args) + args.kl_coef * 0.5 * (logprobs - reference) ** 2


ALGORITHMS |= {"ppo-process": Algorithm(process_advantages, clipped_loss, uses_ratio=True, passes=2),
               "ppo-exact": Algorithm(exact_advantages, clipped_loss, uses_ratio=True, passes=2),
               "pass-k": Algorithm(pass_k_advantages, policy_gradient_loss),
               "kl": Algorithm(reinforce_advantages, kl_loss)}


def main():
    parser = train_rl.make_parser()
    parser.add_argument("--pass-k", type=positive, default=4, metavar="N", help="pass-k: samples (default 4)")
    parser.add_argument("--kl-coef", type=between(0, 1e6), default=0.05, metavar="X",
                        help="kl: weight (default 0.05)")
    train_rl.main(parser)


if __name__ == "__main__":
    run_script(main)
