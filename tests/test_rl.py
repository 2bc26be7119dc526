"""What the algorithms compute, against the formulas written out: advantages, GAE, the clipped loss, the rollouts' bookkeeping."""
import argparse
from collections import Counter

import pytest
import torch

import train_rl
from model import GPT, GPTConfig, make_optimizers
from train_rl import forward, forward_all, get_advantages, policy_loss, rollout, split
from verify import EOS, NEWLINE, PAD, decode, encode, parse_problem, verify

ARGS = argparse.Namespace(task="countdown", level=2, attempts=1, prompts=6, samples=4, seed=0, algo="reinforce", lam=0.95, clip=0.2, epochs=2,
                          minibatches=2, value_coef=0.5, entropy_coef=0.0, kl_coef=0.0, sft_coef=0.0, pass_k=1, reward="outcome")


def random_model(seed=0):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_reinforce_advantage_is_reward_minus_group_mean():
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1])
    mask = torch.tensor([[1, 1, 0]] * 6).bool()
    advantages = get_advantages("reinforce", rewards, torch.rand(6, 3), mask, 3, 0.9, 1)
    expected = torch.tensor([2 / 3, -1 / 3, -1 / 3, -2 / 3, 1 / 3, 1 / 3])
    torch.testing.assert_close(advantages, expected[:, None] * mask)


def test_pass_k_weighs_groups_by_the_slope_of_pass_at_k():
    rewards, mask = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0]), torch.ones(8, 1, dtype=torch.bool)
    advantages = get_advantages("reinforce", rewards, torch.rand(8, 1), mask, 4, 0.9, 3).view(2, 4)
    for group, p in zip(advantages, (0.25, 0.75)):
        slope = ((1 - (1 - p - 1e-4) ** 3) - (1 - (1 - p + 1e-4) ** 3)) / 2e-4
        assert group[0].item() == pytest.approx(slope * (1 - p), rel=1e-3)
        assert group[3].item() == pytest.approx(slope * -p, rel=1e-3)


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_gae_is_the_sum_of_equation_16(lam):
    torch.manual_seed(0)
    values, rewards = torch.rand(3, 6), torch.tensor([1.0, 0.0, 1.0])
    lengths, starts = [4, 5, 2], [0, 1, 2]  # the mask may begin anywhere, as prompts are not equally long
    mask = torch.zeros(3, 6, dtype=torch.bool)
    for row, (start, n) in enumerate(zip(starts, lengths)):
        mask[row, start:start + n] = True
    advantages = get_advantages("ppo", rewards, values, mask, 1, lam, 1)
    for row, (start, n) in enumerate(zip(starts, lengths)):
        v = values[row, start:start + n].tolist() + [0.0]
        delta = [(rewards[row].item() if t == n - 1 else 0.0) + v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            assert advantages[row, start + t].item() == pytest.approx(sum(lam ** k * delta[t + k] for k in range(n - t)), abs=1e-6)
    assert not advantages[~mask].any()


def test_process_rewards_are_differences_that_sum_to_the_verdict():
    """Exact ones put the blame on the line that made the problem unsolvable."""
    prompt = encode("9 3 5 2>24\n")
    completions = [encode(text) + [EOS] for text in (
        "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n",                         # right
        "9-5=4,3 2 4\n3-2=1,4 1\n4-1=3,3\n",                           # the second line is the wrong turn
        "9-5=5,3 2 5\n3*2=6,4 6\n4*6=24,24\n")]                        # the first line is wrong
    batch = train_rl.pack([prompt] * 3, completions, "cpu")
    batch |= {"rewards": torch.tensor([1.0, 0.0, 0.0]), "old_values": torch.zeros(batch["idx"].shape)}
    progress = train_rl.get_progress(batch, train_rl.exact_potentials(batch))
    ends = (batch["next"] == NEWLINE) | (batch["next"] == EOS)          # of the prompt, of three lines, of the completion
    assert [row[end].tolist() for row, end in zip(progress, ends)] == [[0, 0, 0, 0, 0], [0, 0, -1, 0, 0], [0, -1, 0, 0, 0]]
    assert progress.count_nonzero() == 2
    potentials = torch.rand(batch["idx"].shape)
    progress = train_rl.get_progress(batch, potentials)
    torch.testing.assert_close(progress.sum(1), batch["rewards"] - potentials[:, len(prompt) - 1])
    advantages = get_advantages("ppo", batch["rewards"], batch["old_values"], batch["action"], 3, 1.0, 1, progress)
    torch.testing.assert_close(advantages[:, len(prompt) - 1], progress.sum(1))         # lambda = 1: all that is still to come


def test_filter_is_imitation_of_what_is_right():
    """Its gradient is that of the likelihood of the rewarded samples."""
    logprobs, mask = torch.randn(4, 5, requires_grad=True), torch.ones(4, 5, dtype=torch.bool)
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    advantages = get_advantages("filter", rewards, torch.zeros(4, 5), mask, 2, 0.95, 1)
    gradient = torch.autograd.grad(policy_loss("filter", logprobs, logprobs.detach(), advantages, 0.2).sum(), logprobs)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(-logprobs[[0, 3]].sum(), logprobs)[0])


def test_on_policy_ppo_gradient_is_reinforces():
    logprobs = torch.randn(4, 5, requires_grad=True)
    advantages = torch.randn(4, 5)
    gradients = [torch.autograd.grad(policy_loss(algo, logprobs, logprobs.detach(), advantages, 0.2).sum(), logprobs)[0]
                 for algo in ("reinforce", "ppo")]
    torch.testing.assert_close(*gradients)


def test_ppo_clips_only_what_goes_too_far():
    old = torch.zeros(4)
    logprobs = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = policy_loss("ppo", logprobs, old, advantages, 0.2)
    torch.testing.assert_close(loss, torch.tensor([-1.2, 0.5 ** 0 * 2.718281828 ** 0.5, -2.718281828 ** -0.5, 0.8]))
    gradient = torch.autograd.grad(loss.sum(), logprobs)[0]
    assert (gradient == 0).tolist() == [True, False, False, True]


def test_rollout_rows_are_prompt_completion_padding():
    model = random_model()
    batch, demos = rollout(model, ARGS, 3, torch.device("cpu"), Counter())
    assert len(batch["idx"]) == ARGS.prompts * ARGS.samples
    for idx, nxt, action, reward in zip(*(batch[key] for key in ("idx", "next", "action", "rewards"))):
        assert idx[1:].tolist() == nxt[:-1].tolist()
        prompt = idx[:int(action.nonzero()[0]) + 1].tolist()
        problem = parse_problem(decode(prompt))
        completion = nxt[action].tolist()
        assert idx.tolist()[:len(prompt) + len(completion)] + [PAD] * 0 == (prompt + completion)[:len(idx)]
        ended = completion[-1] == EOS
        assert bool(reward) == (ended and verify(problem, decode(completion[:-1])).correct)
    for idx, nxt, action in zip(*demos.values()):
        problem = parse_problem(decode(idx[:int(action.nonzero()[0]) + 1].tolist()))
        assert nxt[action][-1] == EOS and verify(problem, decode(nxt[action][:-1].tolist())).correct


def test_rollout_keeps_log_probs_and_values_where_the_learner_has_them():
    model = random_model()
    batch, _ = rollout(model, ARGS, 5, torch.device("cpu"), Counter())
    logprobs, _, values = forward(model, batch)
    torch.testing.assert_close(batch["old_logprobs"], logprobs.detach() * batch["action"], rtol=0, atol=1e-10)
    torch.testing.assert_close(batch["old_values"], values.detach() * batch["action"], rtol=0, atol=1e-10)


def test_a_few_rows_at_a_time_are_the_whole_batch():
    model = random_model()
    batch, _ = rollout(model, ARGS, 7, torch.device("cpu"), Counter())
    seen, widths = [], []
    for rows, part in split(batch, 5):
        seen += rows.tolist()
        widths.append(part["idx"].size(1))
        assert part["action"].any(0)[-1] and part["action"].sum() == batch["action"][rows].sum()       # cut, but not too short
    assert sorted(seen) == list(range(len(batch["idx"]))) and widths == sorted(widths) and widths[0] < widths[-1]
    for column, whole in zip(forward_all(model, batch), forward(model, batch)):
        torch.testing.assert_close(column[batch["action"]], whole[batch["action"]].detach(), rtol=0, atol=1e-10)


def test_same_seed_same_rollout():
    one, same, other = (rollout(random_model(), ARGS, step, torch.device("cpu"), Counter())[0]["idx"] for step in (1, 1, 2))
    assert torch.equal(one, same) and (one.shape != other.shape or not torch.equal(one, other))


def fixed_batch(model):
    """Two samples of one problem, one rewarded, as if sampled by the model."""
    torch.manual_seed(1)
    idx = torch.randint(3, 24, (2, 12))
    action = torch.zeros(2, 11, dtype=torch.bool)
    action[:, 5:] = True
    batch = {"idx": idx[:, :-1], "next": idx[:, 1:], "action": action, "rewards": torch.tensor([1.0, 0.0], dtype=torch.double)}
    with torch.no_grad():
        batch["old_logprobs"], _, batch["old_values"] = forward(model, batch)
    return batch


@pytest.mark.parametrize("algo", ["reinforce", "ppo"])
def test_learning_prefers_what_was_rewarded(algo):
    model = random_model()
    batch = fixed_batch(model)
    args = argparse.Namespace(**{**vars(ARGS), "algo": algo, "samples": 2})
    optimizers = make_optimizers(model, 1e-3)

    def total():
        logprobs, _, values = forward(model, batch)
        return (logprobs * batch["action"]).sum(1), (values * batch["action"]).sum(1) / 6
    (before, values_before) = total()
    for _ in range(3):
        metrics = train_rl.learn(model, None, optimizers, batch, None, args, 1e-3, seed=0)
    (after, values_after) = total()
    assert after[0] - before[0] > after[1] - before[1] + 0.1        # the rewarded sample gained on the other
    assert values_after[0] - values_before[0] > values_after[1] - values_before[1]      # and so did its value
    assert metrics["entropy"] > 0 and metrics["approx_kl"] >= 0 and 0 <= metrics["clipfrac"] <= 1


def test_kl_penalty_holds_the_policy_back():
    moved = []
    for kl_coef in (0.0, 5.0):
        model, reference = random_model(), random_model()
        batch = fixed_batch(model)
        args = argparse.Namespace(**{**vars(ARGS), "samples": 2, "kl_coef": kl_coef})
        optimizers = make_optimizers(model, 1e-3)
        for _ in range(8):
            train_rl.learn(model, reference if kl_coef else None, optimizers, batch, None, args, 1e-3, seed=0)
        with torch.no_grad():
            log_ratio = forward(reference, batch)[0] - forward(model, batch)[0]
            moved.append((log_ratio.exp() - 1 - log_ratio)[batch["action"]].mean().item())
    assert moved[1] < 0.7 * moved[0]
