"""
What the algorithms compute, against the formulas written out: advantages, GAE, the clipped loss, which
problems are learnt from, the gradient of it all, the bookkeeping of the rollouts.
"""
import argparse
import math
from collections import Counter

import numpy as np
import pytest
import torch

import train_rl
from algorithms import ALGORITHMS, discounted_returns, worth_learning
from model import GPT, GPTConfig
from optim import make_optimizers
from batches import by_length, pack
from train_rl import forward, forward_all, make_parser, rollout
from verify import EOS, PAD, decode, encode, parse_problem, verify

ARGS = argparse.Namespace(task="countdown", level=2, max_tokens=18, prompts=6, samples=4,
                          seed=0, rank=0, processes=1,
                          algo="reinforce", lam=0.95, clip=0.2, epochs=1, minibatches=1, value_coef=0.5,
                          entropy_coef=0.0, sft_coef=0.0, half_life=None, streams=False)


def with_flags(**flags):
    return argparse.Namespace(**vars(ARGS) | flags)


def random_model(seed=0):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


# ------------------------------------------------------------------------------------------------------------
# Advantages and losses

def advantages_of(algo, rewards, values, mask, **flags):
    """values are probabilities; what learn multiplies with the completion mask."""
    batch = {"rewards": rewards, "old_values": values.logit(), "mask": mask,
             "begins": mask & (mask.cumsum(1) == 1),
             "was_cut_off": torch.zeros(len(mask), dtype=torch.bool)}
    args = with_flags(algo=algo, **flags)
    batch["returns"] = discounted_returns(batch, args)
    return ALGORITHMS[algo].advantages(batch, args) * mask


def loss_of(algo, logprobs, old_logprobs, advantages):
    batch = {"old_logprobs": old_logprobs, "advantages": advantages}
    return ALGORITHMS[algo].loss(logprobs, batch, with_flags(algo=algo))


@pytest.mark.bugs
def test_reinforce_advantage_is_reward_minus_group_mean():
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1])
    mask = torch.tensor([[1, 1, 0]] * 6).bool()
    advantages = advantages_of("reinforce", rewards, torch.rand(6, 3), mask, samples=3)
    expected = torch.tensor([2 / 3, -1 / 3, -1 / 3, -2 / 3, 1 / 3, 1 / 3])
    torch.testing.assert_close(advantages, expected[:, None] * mask)


def test_a_reward_is_worth_half_a_half_life_later():
    mask = (torch.arange(9) > 1).expand(2, 9)
    batch = {"rewards": torch.tensor([1.0, 0.0]), "old_values": torch.zeros(2, 9), "mask": mask,
             "begins": (torch.arange(9) == 2).expand(2, 9), "was_cut_off": torch.zeros(2, dtype=torch.bool)}
    returns = discounted_returns(batch, with_flags(half_life=3, samples=2))
    assert returns[:, 2:].tolist() == [pytest.approx([0.25, 0.5 ** (5 / 3), 0.5 ** (4 / 3), 0.5,
                                                      0.5 ** (2 / 3), 0.5 ** (1 / 3), 1.0]), [0.0] * 7]
    undiscounted = discounted_returns(batch, with_flags(half_life=None))
    assert undiscounted[:, 2:].tolist() == [[1.0] * 7, [0.0] * 7]


def test_an_attempt_is_credited_with_its_own_success():
    """Two streams: three attempts, of which the third succeeds; two, the second of them cut off or lost."""
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0, 0]]).bool()
    begins = torch.tensor([[0, 1, 0, 1, 1, 0, 0], [0, 1, 0, 1, 0, 0, 0]]).bool()
    for cut in (False, True):
        batch = {"rewards": torch.tensor([1.0, 0.0]), "old_values": torch.zeros(2, 7), "mask": mask,
                 "begins": begins, "was_cut_off": torch.tensor([False, cut])}
        returns = discounted_returns(batch, with_flags(half_life=1, samples=2))
        # At five beginnings, three before success; two, 3 and 1 tokens before a cut, go on with the same
        anew = (1 / 32 + 1 / 8 + 1 / 4) / (5 - cut * (1 / 8 + 1 / 2))
        end = anew if cut else 0.0
        expected = [[anew / 4, anew / 2, anew / 2, 1 / 4, 1 / 2, 1], [anew / 4, anew / 2, end / 2, end]]
        for row, values in enumerate(expected):
            assert returns[row][mask[row]].tolist() == pytest.approx(values)


def test_attempts_begin_behind_returns_to_the_problem():
    problem = parse_problem("9 3 5 2>24")
    texts = ["9-5=4,3 2 4\nwait 9 3 5 2>24\n9*3=27,5 2 27\n3",               # cut off
             "9-5=4,3 2 4\n3*2=6,4 6\nwait 3 2 4>24\nwait\nwait 9 5>24\nwait 9 3 5 2>24\n9"]     # lost
    completions = [encode(text) for text in texts]
    batch = pack([encode(problem.prompt)] * 2, completions, "cpu")
    train_rl.mark_attempts(batch, [problem] * 2, completions, [None, None], streams=True)
    assert batch["was_cut_off"].tolist() == [True, False]
    for row, text in enumerate(texts):
        found = batch["begins"][row][batch["mask"][row]].nonzero()[:, 0].tolist()
        behind = "wait 9 3 5 2>24\n" if row == 0 else "wait\n"
        assert found == [0, len(encode(text[:text.index(behind)] + behind))]


def test_with_a_price_on_tokens_what_came_late_is_blamed():
    """Returns less their mean over the tokens of all samples of the problem."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    advantages = advantages_of("reinforce", torch.tensor([1.0, 1.0]), torch.rand(2, 4), mask, samples=2,
                               half_life=1)
    mean = (1 / 8 + 1 / 4 + 1 / 2 + 1 + 1 / 2 + 1) / 6
    expected = torch.tensor([[1 / 8, 1 / 4, 1 / 2, 1], [1 / 2, 1, mean, mean]]) - mean
    torch.testing.assert_close(advantages, expected)


@pytest.mark.gae
@pytest.mark.bugs
@pytest.mark.parametrize("lam, half_life", [(0.0, None), (0.9, None), (1.0, None), (0.9, 3)])
def test_gae_is_the_sum_of_equation_16(lam, half_life):
    torch.manual_seed(0)
    values, rewards = torch.rand(3, 6), torch.tensor([1.0, 0.0, 1.0])
    lengths, starts = [4, 5, 2], [0, 1, 2]  # the mask may begin anywhere, as prompts are not equally long
    mask = torch.zeros(3, 6, dtype=torch.bool)
    for row, (start, n) in enumerate(zip(starts, lengths)):
        mask[row, start:start + n] = True
    advantages = advantages_of("ppo", rewards, values, mask, lam=lam, half_life=half_life, samples=3)
    gamma = 0.5 ** (1 / half_life) if half_life else 1
    for row, (start, n) in enumerate(zip(starts, lengths)):
        v = values[row, start:start + n].tolist() + [0.0]
        delta = [(rewards[row].item() if t == n - 1 else 0.0) + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            expected = sum((gamma * lam) ** k * delta[t + k] for k in range(n - t))
            assert advantages[row, start + t].item() == pytest.approx(expected, abs=1e-5)
    assert not advantages[~mask].any()


def test_filter_is_imitation_of_what_is_right():
    """Its gradient is that of the likelihood of the rewarded samples."""
    logprobs, mask = torch.randn(4, 5, requires_grad=True), torch.ones(4, 5, dtype=torch.bool)
    advantages = advantages_of("filter", torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.rand(4, 5), mask)
    loss = loss_of("filter", logprobs, logprobs.detach(), advantages)
    gradient = torch.autograd.grad(loss.sum(), logprobs)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(-logprobs[[0, 3]].sum(), logprobs)[0])


def test_on_policy_ppo_gradient_is_reinforces():
    logprobs = torch.randn(4, 5, requires_grad=True)
    advantages = torch.randn(4, 5)
    losses = [loss_of(algo, logprobs, logprobs.detach(), advantages) for algo in ("reinforce", "ppo")]
    torch.testing.assert_close(*[torch.autograd.grad(loss.sum(), logprobs)[0] for loss in losses])


def test_ppo_clips_only_what_goes_too_far():
    logprobs = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = loss_of("ppo", logprobs, torch.zeros(4), advantages)
    torch.testing.assert_close(loss, torch.tensor([-1.2, math.exp(0.5), -math.exp(-0.5), 0.8]))
    gradient = torch.autograd.grad(loss.sum(), logprobs)[0]
    assert (gradient == 0).tolist() == [True, False, False, True]


# ------------------------------------------------------------------------------------------------------------
# Which problems are learnt from

@pytest.mark.parametrize("algo, kept", [
    ("filter", [True, False, True, True]), ("reinforce", [False, False, True, True]),
    ("ppo", [False, False, True, True])])
def test_groups_without_signal_are_dropped(monkeypatch, algo, kept):
    """All right, all wrong, and two that are mixed: the algorithm knows them, and learn sees no others."""
    rewards, seen = torch.tensor([1.0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1]), []
    assert worth_learning(rewards, with_flags(algo=algo, samples=3)).tolist() == kept
    batch = pack([[10 + row] * 2 for row in range(12)], [[3, EOS]] * 12, "cpu") | {"rewards": rewards}

    run = argparse.Namespace(model=None, optimizers=None, steps=lambda: [0], count=lambda *args, **more: None,
                             finish=lambda step: None)

    def learn(model, optimizers, batch, demos, args, lr, seed):
        seen.extend(batch["idx"][:, 0].tolist())
        return {}

    monkeypatch.setattr(train_rl, "rollout", lambda *args: (batch, pack([[3]], [[EOS]], "cpu")))
    monkeypatch.setattr(train_rl, "learn", learn)
    train_rl.train(with_flags(algo=algo, samples=3, steps=1, lr=1e-3), run)
    assert seen == [10 + row for row in range(12) if kept[row // 3]]
    assert run.metrics["reward"] == pytest.approx(5 / 12) and run.metrics["length"] == 2


def test_an_unknown_algorithm_is_refused(capsys):
    model = random_model()
    with pytest.raises(KeyError, match="magic"):
        train_rl.learn(model, [], fixed_batch(model), None, with_flags(algo="magic"), 1e-3, seed=0)
    with pytest.raises(SystemExit) as stopped:
        make_parser().parse_args(["--algo", "magic"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "magic" in said and said.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------
# Rollouts

@pytest.mark.bugs
def test_rollout_rows_are_prompt_completion_padding():
    model = random_model()
    batch, demos = rollout(model, with_flags(sft_coef=0.5), 3, Counter())
    assert len(batch["idx"]) == ARGS.prompts * ARGS.samples
    for idx, nxt, mask, earned in zip(*(batch[key] for key in ("idx", "next", "mask", "rewards"))):
        assert idx[1:].tolist() == nxt[:-1].tolist()
        prompt = idx[:int(mask.nonzero()[0]) + 1].tolist()
        problem = parse_problem(decode(prompt))
        completion = nxt[mask].tolist()
        row = prompt + completion
        assert (idx.tolist() + nxt.tolist()[-1:])[:len(row)] == row
        assert not any((idx.tolist() + nxt.tolist()[-1:])[len(row):]) and PAD == 0
        ended = completion[-1] == EOS
        assert bool(earned) == (ended and verify(problem, decode(completion[:-1])).correct)
    assert demos["accepted"].sum(-1).equal(demos["mask"].long())
    for idx, nxt, mask in zip(demos["idx"], demos["next"], demos["mask"]):
        problem = parse_problem(decode(idx[:int(mask.nonzero()[0]) + 1].tolist()))
        completion = nxt[mask].tolist()
        assert completion[-1] == EOS and verify(problem, decode(completion[:-1])).correct


def test_rewards_belong_to_their_samples(monkeypatch):
    asked = []

    def is_correct(problem, ids):
        asked.append((problem.prompt, ids))
        return len(asked) % 3 == 0
    monkeypatch.setattr(train_rl, "is_correct", is_correct)
    batch, _ = rollout(random_model(), ARGS, 3, Counter())
    for row, (prompt, ids) in enumerate(asked):
        mask = batch["mask"][row]
        n_prompt, completion = int(mask.nonzero()[0]) + 1, batch["next"][row][mask].tolist()
        assert decode(batch["idx"][row, :n_prompt].tolist()) == prompt
        assert (completion[:-1] if completion[-1] == EOS else None) == ids
        assert batch["rewards"][row] == ((row + 1) % 3 == 0)
    assert len(asked) == ARGS.prompts * ARGS.samples


@pytest.mark.bugs
def test_rollout_keeps_log_probs_and_values_where_the_learner_has_them():
    model = random_model()
    batch, _ = rollout(model, ARGS, 5, Counter())
    logprobs, _, values = forward(model, batch)
    torch.testing.assert_close(batch["old_logprobs"], logprobs.detach() * batch["mask"], rtol=0, atol=1e-10)
    torch.testing.assert_close(batch["old_values"], values.detach() * batch["mask"], rtol=0, atol=1e-10)


def test_streams_grow_from_a_quarter_but_never_from_nothing():
    args = with_flags(streams=True, max_tokens=100, steps=10)
    assert [train_rl.longest(args, step) for step in (0, 2, 5, 9)] == [25, 55, 100, 100]
    args.max_tokens = 1
    assert [train_rl.longest(args, step) for step in range(10)] == [1] * 10


def test_same_seed_same_rollout():
    rollouts = [rollout(random_model(), ARGS, step, Counter())[0] for step in (1, 1, 2)]
    one, same, other = (batch["idx"] for batch in rollouts)
    assert torch.equal(one, same) and (one.shape != other.shape or not torch.equal(one, other))


# ------------------------------------------------------------------------------------------------------------
# Learning

def fixed_batch(model):
    """Two samples of one problem, one rewarded, as if sampled by the model."""
    torch.manual_seed(1)
    idx = torch.randint(3, 24, (2, 12))
    mask = torch.zeros(2, 11, dtype=torch.bool)
    mask[:, 5:] = True
    rewards = torch.tensor([1.0, 0.0], dtype=torch.double)
    batch = {"idx": idx[:, :-1], "next": idx[:, 1:], "mask": mask, "rewards": rewards}
    with torch.no_grad():
        batch["old_logprobs"], _, batch["old_values"] = forward(model, batch)
    return batch


def ragged_batch(model):
    """Twenty samples of five problems, of all lengths, every second one rewarded."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 24, 4 + row // 4).tolist() for row in range(20)]
    batch = pack(prompts, [rng.integers(3, 24, n).tolist() for n in rng.permutation(20) + 1], "cpu")
    batch["rewards"] = torch.arange(20, dtype=torch.double) % 2
    with torch.no_grad():
        batch["old_logprobs"], _, batch["old_values"] = forward(model, batch)
    return batch


@pytest.mark.bugs
def test_a_few_rows_at_a_time_are_the_whole_batch():
    model = random_model()
    batch = ragged_batch(model)
    seen, widths = [], []
    for rows, part in by_length(batch, 120):
        seen += rows.tolist()
        widths.append(part["idx"].size(1))
        assert part["mask"].any(0)[-1]    # cut, but not too short
        assert part["mask"].sum() == batch["mask"][rows].sum()
        assert part["idx"].numel() <= 120
    assert sorted(seen) == list(range(len(batch["idx"])))
    assert widths == sorted(widths) and widths[0] < widths[-1]
    for column, whole in zip(forward_all(model, batch), forward(model, batch)):
        expected = whole.detach()[batch["mask"]]
        torch.testing.assert_close(column[batch["mask"]], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("algo, epochs, minibatches", [("filter", 1, 1), ("reinforce", 1, 1), ("ppo", 2, 2)])
def test_learning_prefers_what_was_rewarded(algo, epochs, minibatches):
    model = random_model()
    batch = fixed_batch(model)
    args = with_flags(algo=algo, samples=2, epochs=epochs, minibatches=minibatches)
    optimizers = make_optimizers(model, 1e-3)

    def total():
        logprobs, _, values = forward(model, batch)
        return (logprobs * batch["mask"]).sum(1), (values * batch["mask"]).sum(1) / 6
    before, values_before = total()
    for _ in range(3):
        metrics = train_rl.learn(model, optimizers, batch, None, args, 1e-3, seed=0)
    after, values_after = total()
    # The rewarded sample gained on the other, and so did its value.
    assert after[0] - before[0] > after[1] - before[1] + 0.1
    assert values_after[0] - values_before[0] > values_after[1] - values_before[1]
    assert metrics["entropy"] > 0 and metrics["approx_kl"] >= 0 and 0 <= metrics["clipfrac"] <= 1
    assert set(metrics) == set(train_rl.METRICS)


def test_so_many_optimizer_steps_as_epochs_and_minibatches_ask_for(monkeypatch):
    model, rates = random_model(), []
    monkeypatch.setattr(train_rl, "optimizer_step", lambda model, optimizers, lr: rates.append(lr) or 0.0)
    args = with_flags(algo="ppo", samples=2, epochs=3, minibatches=2)
    train_rl.learn(model, [], fixed_batch(model), None, args, 1e-3, seed=0)
    assert rates == [1e-3] * 6


def test_minibatches_without_rows_have_no_metrics(monkeypatch):
    """Two rows in five minibatches: the last three are empty, and what was measured is not theirs."""
    model = random_model()
    monkeypatch.setattr(train_rl, "optimizer_step", lambda model, optimizers, lr: 0.0)
    args = with_flags(samples=2, minibatches=5)
    metrics = train_rl.learn(model, [], fixed_batch(model), None, args, 1e-3, seed=0)
    assert metrics["entropy"] > 0 and metrics["value_loss"] > 0


def test_a_few_rows_at_a_time_have_the_gradient_of_all(monkeypatch):
    gradients = []
    for n_tokens in (1, 10000):
        monkeypatch.setattr(train_rl, "by_length", lambda batch, n=n_tokens: by_length(batch, n))
        monkeypatch.setattr(train_rl, "optimizer_step", lambda model, optimizers, lr: 0.0)
        model = random_model()
        _, demos = rollout(model, with_flags(sft_coef=0.5), 7, Counter())
        args = with_flags(sft_coef=0.5, entropy_coef=0.1)
        train_rl.learn(model, [], ragged_batch(model), demos, args, 1e-3, seed=0)
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    torch.testing.assert_close(*gradients)
    assert gradients[0].norm() > 0.1


def test_every_token_counts_the_same_however_long_its_completion():
    """The gradient is that of the sum over all tokens, divided by how many they are."""
    model = random_model()
    batch = fixed_batch(model)
    batch["mask"][0, 8:] = False          # a short one and a long one
    args = with_flags(samples=2, value_coef=0.0)
    logprobs, _, _ = forward(model, batch)
    loss = -(torch.tensor([[0.5], [-0.5]]) * logprobs * batch["mask"]).sum() / batch["mask"].sum()
    expected = torch.autograd.grad(loss, model.lm_head.weight)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_rl, "optimizer_step", lambda model, optimizers, lr: 0.0)
        train_rl.learn(model, [], batch, None, args, 1e-3, seed=0)
    torch.testing.assert_close(model.lm_head.weight.grad, expected)


def test_worked_solutions_are_imitated_beside():
    """With no other signal: all samples are as good as their mean."""
    gained = []
    for sft_coef in (0.0, 0.5):
        model = random_model()
        batch, demos = rollout(model, with_flags(sft_coef=0.5), 7, Counter())
        batch["rewards"] = torch.zeros_like(batch["rewards"])
        before = (forward(model, demos)[0] * demos["mask"]).sum().item()
        args = with_flags(sft_coef=sft_coef, value_coef=0.0)
        for _ in range(3):
            train_rl.learn(model, make_optimizers(model, 1e-3), batch, demos, args, 1e-3, seed=0)
        gained.append((forward(model, demos)[0] * demos["mask"]).sum().item() - before)
    assert gained[0] == 0 and gained[1] > 1


def test_beside_streams_the_teachers_streams_are_imitated_but_not_their_wrong_choices():
    model, args = random_model(), with_flags(level=4, streams=True, sft_coef=0.5, max_tokens=20, steps=9)
    assert rollout(model, with_flags(level=4, streams=True, max_tokens=20, steps=9), 7, Counter())[1] is None
    _, demos = rollout(model, args, 7, Counter())
    n_hidden = 0
    for idx, nxt, mask, accepted in zip(*(demos[key] for key in ("idx", "next", "mask", "accepted"))):
        problem = parse_problem(decode(idx[:int(mask.nonzero()[0]) + 1].tolist()))
        assert verify(problem, decode(nxt[mask][:-1].tolist())).correct and not accepted[~mask].any()
        n_hidden += (mask & ~accepted.any(-1)).sum().item()
    assert n_hidden > 10 and (demos["accepted"].sum(-1) > 1).any()
    train_rl.imitate_teacher(model, demos, 0.5)
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    logprobs = model(demos["idx"])[0].log_softmax(-1)
    learnt = demos["accepted"].any(-1)
    (-0.5 * (logprobs.exp() * demos["accepted"]).sum(-1)[learnt].log().mean()).backward()
    torch.testing.assert_close(model.lm_head.weight.grad, gradient)


def test_a_process_without_a_useful_group_learns_nothing_by_itself():
    """Others may have one, and wait for it to take part in the step."""
    for algo in ALGORITHMS:
        for half_life in (None, 8):
            model, args = random_model(), with_flags(algo=algo, half_life=half_life, max_tokens=9)
            batch, _ = rollout(model, args, 7, Counter())
            none = {key: column[:0] for key, column in batch.items()}
            metrics = train_rl.learn(model, make_optimizers(model, 1e-3), none, None, args, 1e-3, seed=0)
            assert metrics["explained_variance"] == 0 and all(w.grad is None for w in model.parameters())


def test_entropy_bonus_raises_the_entropy():
    def entropy(model, batch):
        return forward(model, batch)[1][batch["mask"]].mean().item()
    ends = []
    for coef in (0.0, 1.0):
        model = random_model()
        batch = fixed_batch(model)
        for _ in range(3):
            args = with_flags(samples=2, entropy_coef=coef)
            train_rl.learn(model, make_optimizers(model, 1e-3), batch, None, args, 1e-3, seed=0)
        ends.append(entropy(model, batch))
    assert ends[1] > ends[0] + 0.01


def test_explained_variance():
    mask, rewards = torch.ones(2, 3, dtype=torch.bool), torch.tensor([1.0, 0.0])
    batch = {"mask": mask, "returns": rewards[:, None].expand(2, 3)}
    known = torch.tensor([[50.0] * 3, [-50.0] * 3])
    assert train_rl.explained_variance(batch, known) == pytest.approx(1)
    assert train_rl.explained_variance(batch, torch.zeros(2, 3)) == pytest.approx(0)
    assert train_rl.explained_variance(batch, -known) == pytest.approx(-3)
