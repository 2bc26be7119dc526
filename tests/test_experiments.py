"""
The experiments beside the league: process rewards, pass@k and the KL penalty against the formulas written
out; what other bases are shown, token by token; judges, and streams that go on after a judgement; and all of
them as scripts, at a very small size. They add to tables of the scripts, which no other test may notice.
"""
import argparse
import json
from collections import Counter
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import pytest
import torch

import train_rl
from algorithms import ALGORITHMS
from best_of_n import Sample
from budget import Settings
from checkpoint import load_checkpoint, save_checkpoint
from model import GPT, GPTConfig, to_device
from optim import make_optimizers
from sample import Samples
from scripts import TABLES, TINY_RL, run, run_here, table, tiny_base
from search import METHODS, run_method
from solutions import stage
from batches import pack
from test_rl import fixed_batch
from train_rl import forward
from verify import (ENCODING, EOS, NEWLINE, TASKS, decode, encode, held_out_problems, parse_problem, solve,
                    state_value, verify)

with ExitStack() as stack:
    BEFORE = [dict(entries) for entries in TABLES]
    for entries in TABLES:
        stack.enter_context(patch.dict(entries))
    from experiments import bases, coverage, judges, rewards
    from experiments.deeper import deeper, with_n_gram
    from experiments.values import calibration_rows, value_rows
    MORE = [{key: full[key] for key in full if key not in old} for full, old in zip(TABLES, BEFORE)]

ARGS = argparse.Namespace(samples=2, lam=0.95, clip=0.2, epochs=1, minibatches=1, value_coef=0.5,
                          sft_coef=0.0, entropy_coef=0.0, pass_k=3, kl_coef=0.05, init=None, out="nowhere",
                          half_life=None)
SHORT = parse_problem("98 11>87")
SOLUTION = "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n"


@pytest.fixture(autouse=True)
def full_tables(monkeypatch):
    for entries, more in zip(TABLES, MORE):
        for name, entry in more.items():
            monkeypatch.setitem(entries, name, entry)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tiny_base(tmp_path_factory)


def with_flags(**flags):
    return argparse.Namespace(**vars(ARGS) | flags)


def random_model(seed=0, kind=GPT, n_layer=1):
    torch.manual_seed(seed)
    model = kind(GPTConfig(n_layer=n_layer, n_head=2, n_embd=32)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_tables_have_what_the_experiments_add():
    algorithms = {"ppo-process", "ppo-exact", "pass-k", "kl"}
    scorers = {"judge", "lines", "verdict"}
    assert [set(more) for more in MORE] == [set(JUDGED), scorers, algorithms]


# ------------------------------------------------------------------------------------------------------------
# Rewards

def test_pass_k_weighs_groups_by_the_slope_of_pass_at_k():
    rewarded = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0])
    batch = {"rewards": rewarded, "returns": rewarded[:, None].expand(8, 2),
             "mask": torch.ones(8, 2, dtype=torch.bool)}
    advantages = rewards.pass_k_advantages(batch, with_flags(samples=4, pass_k=3))
    assert advantages.shape == (8, 2) and torch.equal(advantages[:, 0], advantages[:, 1])
    for group, p in zip(advantages[:, 0].view(2, 4), (0.25, 0.75)):
        slope = ((1 - (1 - p - 1e-4) ** 3) - (1 - (1 - p + 1e-4) ** 3)) / 2e-4
        assert group[0].item() == pytest.approx(slope * (1 - p), rel=1e-3)
        assert group[3].item() == pytest.approx(slope * -p, rel=1e-3)


def three_attempts():
    prompt = encode("9 3 5 2>24\n")
    completions = [encode(text) + [EOS] for text in (
        SOLUTION,
        "9-5=4,3 2 4\n3-2=1,4 1\n4-1=3,3\n",                            # the second line is the wrong turn
        "9-5=5,3 2 5\n3*2=6,4 6\n4*6=24,24\n")]                         # the first line is wrong
    batch = pack([prompt] * 3, completions, "cpu")
    more = {"rewards": torch.tensor([1.0, 0.0, 0.0]), "old_values": torch.zeros(batch["idx"].shape)}
    return len(prompt), batch | more


def test_process_rewards_are_differences_that_sum_to_the_verdict():
    """Exact ones put the blame on the line that made the problem unsolvable."""
    n_prompt, batch = three_attempts()
    progress = rewards.line_rewards(batch, rewards.exact_potentials(batch))
    ends = (batch["next"] == NEWLINE) | (batch["next"] == EOS)          # of prompt, three lines, completion
    assert [row[end].tolist() for row, end in zip(progress, ends)] == [
        [0, 0, 0, 0, 0], [0, 0, -1, 0, 0], [0, -1, 0, 0, 0]]
    assert progress.count_nonzero() == 2
    potentials = torch.rand(batch["idx"].shape)
    progress = rewards.line_rewards(batch, potentials)
    torch.testing.assert_close(progress.sum(1), batch["rewards"] - potentials[:, n_prompt - 1])


def test_the_advantage_of_a_process_reward_is_all_that_is_still_to_come():
    n_prompt, batch = three_attempts()
    progress = rewards.line_rewards(batch, rewards.exact_potentials(batch))
    advantages = rewards.exact_advantages(batch, with_flags(lam=1.0))
    torch.testing.assert_close(advantages[:, n_prompt - 1], progress.sum(1))
    turn = (progress[1] == -1).nonzero().item()
    advantages = rewards.exact_advantages(batch, with_flags(lam=0.5))[1]
    assert advantages[turn + 1:].eq(0).all() and advantages[turn] == -1 and advantages[turn - 3] == -0.125
    assert advantages[:n_prompt - 1].eq(0).all()                        # the prompt was not chosen


def test_process_rewards_are_by_the_value_head_of_the_start(monkeypatch, tmp_path):
    """Not by that of the model that learns: its critic would know all that they say."""
    start = random_model(1)
    save_checkpoint(tmp_path / "sft.pt", start)
    _, batch = three_attempts()
    values = start.float()(batch["idx"])[1].sigmoid()
    for flags in ({"init": str(tmp_path / "sft.pt")}, {"out": str(tmp_path)}):
        rewards.load_reference.cache_clear()
        reference = rewards.reference_of(batch, with_flags(**flags))
        reference.compute_dtype = None
        found = rewards.process_advantages(batch, with_flags(lam=0.0, **flags))
        expected = rewards.line_rewards(batch, values)
        assert expected.count_nonzero() == 4 * 3                        # three lines and the end
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_kl_penalty_holds_the_policy_back(monkeypatch):
    moved = []
    for kl_coef in (0.0, 5.0):
        model, reference = random_model(), random_model()
        monkeypatch.setattr(rewards, "reference_of", lambda batch, args: reference)
        batch = fixed_batch(model)
        optimizers = make_optimizers(model, 1e-3)
        for _ in range(8):
            args = with_flags(algo="kl", kl_coef=kl_coef)
            train_rl.learn(model, optimizers, batch, None, args, 1e-3, seed=0)
        with torch.no_grad():
            log_ratio = forward(reference, batch)[0] - forward(model, batch)[0]
            moved.append((log_ratio.exp() - 1 - log_ratio)[batch["mask"]].mean().item())
    assert moved[1] < 0.7 * moved[0]


@pytest.mark.bugs
def test_kl_penalty_has_the_gradient_of_the_divergence_from_the_reference(monkeypatch):
    """On policy: the mean over all tokens, each as often as the policy writes it. Reverse, not forward."""
    torch.manual_seed(0)
    logits, reference = torch.randn(9).double().requires_grad_(), torch.randn(9).double().log_softmax(0)
    monkeypatch.setattr(rewards, "reference_of", lambda batch, args: None)
    monkeypatch.setattr(rewards, "forward", lambda model, batch: (reference, None, None))
    logprobs = logits.log_softmax(0)
    args = with_flags(algo="kl", kl_coef=0.3)
    loss = ALGORITHMS["kl"].loss(logprobs, {"advantages": torch.zeros(9).double()}, args)
    found, = torch.autograd.grad((logprobs.exp().detach() * loss).sum(), logits, retain_graph=True)
    divergence = (logprobs.exp() * (logprobs - reference)).sum()
    torch.testing.assert_close(found, 0.3 * torch.autograd.grad(divergence, logits)[0])


@pytest.mark.parametrize("algo", ["ppo-process", "ppo-exact", "pass-k", "kl"])
def test_rewards_run_and_log(out, tmp_path, algo):
    flags = ["--algo", algo, "--init", out / "sft.pt", *TINY_RL, "--kl-coef", 0.01]
    done = run("experiments.rewards", *flags, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "rl.csv")
    assert [int(row["step"]) for row in rows] == [2, 4]
    for key in ("tokens", "flops", "greedy", "sampled", "pass16", "reward", "mixed", "length", "entropy",
                "approx_kl", "clipfrac", "explained_variance"):
        assert all(row[key] != "" for row in rows), key
    assert float(rows[0]["tokens"]) > float(table(out / "sft.csv")[-1]["tokens"])
    flags = load_checkpoint(tmp_path / "rl.pt")[1]["flags"]
    n = 2 if algo.startswith("ppo") else 1
    assert (flags["algo"], flags["epochs"], flags["minibatches"]) == (algo, n, n)
    refused = run_here("train_rl.py", "--resume", "--out", tmp_path)    # it lacks the algorithm
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "another script" in refused.stderr


# ------------------------------------------------------------------------------------------------------------
# Bases

def lines_of(example):
    return decode(example.prompt).splitlines()


def taught(example):
    return decode([token for token, flag in zip(example.completion, example.imitate) if flag])


def test_a_retry_is_right_and_teaches_the_arithmetic_and_what_follows_the_waits():
    rng, taken_back = np.random.default_rng(0), set()
    for problem in held_out_problems("countdown", 3, 100):
        solution = solve(problem, rng)
        example = bases.retry(problem, solution, rng)
        text = decode(example.completion[:-1])
        first, n_waits = text.removesuffix(solution).replace("?no\n", ""), text.count("wait\n")
        assert text.endswith("wait\n" + solution) and verify(problem, text).correct
        assert first.count("\n") == 2 * n_waits
        assert example.completion[-1] == EOS and example.labels is None
        assert decode(example.prompt) == problem.prompt
        arithmetic = "".join(line.split("=")[1] + "\n" for line in first.splitlines()[:n_waits])
        assert taught(example) == arithmetic + solution + "<|eos|>"
        taken_back.add((n_waits, "?no" in text))
    assert taken_back == {(1, False), (2, False), (2, True)}


def test_solved_examples_are_prompts_with_their_answers():
    args = argparse.Namespace(task="expression", level=3)
    lines = decode(bases.solved_examples(args, 2, np.random.default_rng(0))).splitlines()
    assert len(lines) == 4
    for prompt, answer in zip(lines[::2], lines[1::2]):
        assert verify(parse_problem(prompt), answer + "\n").correct
    assert bases.answer("19*3-5\n57-5\n52\n") == "52\n"


LESSON = argparse.Namespace(task="expression", level=3, seed=0, steps=600, batch_size=16, shots=3, honest=0.5,
                            rank=0, processes=1)


def test_a_direct_lesson_shows_answers_alone():
    problems, examples = bases.direct_lesson(LESSON, 7)
    assert len(problems) == len(examples) == 16
    for problem, example in zip(problems, examples):
        assert decode(example.prompt) == problem.prompt and taught(example) == f"{problem.target}\n<|eos|>"


def test_shots_stand_before_the_problem_and_are_not_imitated():
    numbers = set()
    for step in range(12):
        for problem, example in zip(*bases.shots_lesson(LESSON, step)):
            *shots, prompt = lines_of(example)
            assert prompt + "\n" == problem.prompt and taught(example) == f"{problem.target}\n<|eos|>"
            for question, answer in zip(shots[::2], shots[1::2]):
                assert verify(parse_problem(question), answer + "\n").correct and question != prompt
            numbers.add(len(shots) / 2)
    assert numbers == {0, 1, 2, 3}


def test_of_the_mixed_batches_a_share_are_retries():
    """As many as are honest otherwise, every second of them; no other batch has any."""
    args = argparse.Namespace(**vars(LESSON) | {"task": "countdown"})
    n_retries = {"beginning": set(), "hard part": set(), "whole": set()}
    for step in [*range(0, 4), *range(300, 312)]:
        problems, examples = bases.retries_lesson(args, step)
        assert [decode(example.prompt) for example in examples] == [problem.prompt for problem in problems]
        which = [i for i, example in enumerate(examples) if "wait" in decode(example.completion)]
        n_retries[stage(args, step)].add(tuple(which))
    assert n_retries == {"beginning": {()}, "hard part": {()}, "whole": {(0, 2, 4, 6)}}


def test_a_few_solutions_are_shown_again_and_again():
    """All of them in time, and no other problem."""
    args = argparse.Namespace(**vars(LESSON) | {"task": "countdown", "level": 3, "solutions": 12})
    few, solutions = bases.all_there_are("countdown", 3, 12, args.seed)
    shown = set()
    for step in range(20):
        problems, examples = bases.few_lesson(args, step)
        assert set(problems) <= set(few) and len(problems) == args.batch_size
        shown |= set(problems)
        for problem, example in zip(problems, examples):
            if stage(args, step) == "beginning":
                assert decode(example.completion) == solutions[few.index(problem)] + "<|eos|>"
    assert shown == set(few)


@pytest.mark.parametrize("label", ["exact", "outcome"])
def test_of_states_the_value_head_learns_what_comes_of_them(label):
    """
    Their labels are the exact values, or whether a sample from there is right; nothing of them is imitated.
    """
    of_countdown = {"task": "countdown", "level": 4, "max_tokens": 60, "label": label}
    args = argparse.Namespace(**vars(LESSON) | of_countdown)
    counted = []
    run = argparse.Namespace(model=to_device(GPT(GPTConfig(n_layer=1)), torch.device("cpu")),
                             count=lambda *numbers: counted.append(numbers))
    problems, examples = bases.states_lesson(run, args, 500)
    usual, states = examples[:len(problems)], examples[len(problems):]
    assert usual == bases.lesson(args, 500)[1] and len(states) == bases.STATES * len(problems)
    n_steps, labels = Counter(), []
    for example in states:
        prompt, steps = decode(example.prompt).split("\n", 1)
        assert not any(example.imitate) and len(example.labels) == len(example.completion) == 1
        n_steps[steps.count("\n")] += 1
        labels.append(example.labels[0])
        if label == "exact":
            assert example.labels == [state_value(parse_problem(prompt), steps)]
    assert set(n_steps) == {1, 2}
    if label == "exact":
        assert {0.0, 1.0} == set(labels) and not counted
    else:                                   # a model that was never trained solves nothing
        assert {0.0} == set(labels) and counted[0][1] > sum(len(example.prompt) for example in states)


@pytest.mark.parametrize("level, step", [(3, 1600), (3, 2001), (4, 2001), (4, 2002)])
def test_few_streams_go_back_and_as_much_is_shown(level, step):
    """Step 1600 shows short streams beside whole pieces, 2001 streams, 2002 plans of four numbers."""
    args = argparse.Namespace(task="countdown", level=level, steps=3000, batch_size=96, seed=0, rank=0,
                              processes=1)
    _, usual = bases.train_sft.streams_lesson(args, step)

    def lesson(share):
        args.share = share
        return bases.returns_lesson(args, step)[1]

    def n_back(examples):
        return sum(bases.WAIT in example.completion for example in examples)

    def n_tokens(examples):
        return sum(len(example.completion) for example in examples)

    assert lesson(1) == usual and n_back(usual) > 2
    straight = lesson(0)
    assert not n_back(straight) and 0 <= n_tokens(straight) - n_tokens(usual) < 60
    assert 0 < n_back(lesson(0.5)) < n_back(usual)
    for example in straight:
        if example not in usual:
            problem = parse_problem(decode(example.prompt))
            text = decode(example.completion[:-1])
            assert verify(problem, text) and all(example.imitate) and example.completion[-1] == EOS
            steps = [line for line in text.splitlines() if not line.startswith("?")]
            assert all(line.endswith(f">{problem.target}") for line in steps)
            assert problem.target in bases.SEEN_TARGETS


SMALL = ["--level", 1, "--depth", 1, "--steps", 20, "--log-every", 10, "--test-problems", 20,
         "--log-problems", 20]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """A folder with a base of each kind."""
    folders = {}

    def make(kind):
        if kind not in folders:
            folder = folders[kind] = tmp_path_factory.mktemp(kind)
            of_countdown = ["--level", 3, "--max-tokens", 80]
            more = ["--task", "expression"] if kind in ("direct", "shots") else of_countdown
            done = run("experiments.bases", "--kind", kind, *SMALL, *more, "--out", folder)
            assert done.returncode == 0, done.stderr
        return folders[kind]
    return make


@pytest.mark.parametrize("kind", ["direct", "shots", "retries", "states", "returns"])
def test_bases_run_and_log(base_of, kind):
    rows = table(base_of(kind) / "sft.csv")
    assert [row["step"] for row in rows] == ["10", "20"]
    flags = load_checkpoint(base_of(kind) / "sft.pt")[1]["flags"]
    assert (flags["kind"], flags["shots"]) == (kind, 3)
    assert flags["streams"] == (kind == "returns")


def test_solved_examples_stand_before_the_test_problems_too(monkeypatch, tmp_path):
    """Of what is measured on, and of the sample that is shown."""
    seen = []

    def train(args, run, lesson):
        seen.extend(run.prompts)
        assert lesson is bases.shots_lesson
    monkeypatch.setattr(bases.train_sft, "train", train)
    flags = ["--kind", "shots", "--shots", 2, "--task", "expression", *SMALL, "--out", tmp_path]
    monkeypatch.setattr("sys.argv", ["bases.py", *map(str, flags)])
    bases.main()
    problems = held_out_problems("expression", 1, 20)
    texts = [decode(prompt).splitlines() for prompt in seen]
    assert [text[-1] + "\n" for text in texts] == [problem.prompt for problem in problems]
    assert {len(text) for text in texts} == {5} and len({tuple(text[:-1]) for text in texts}) == 1


def test_a_base_is_not_resumed_by_another_script(base_of):
    """It would go on with another lesson."""
    done = run_here("train_sft.py", "--resume", "--out", base_of("direct"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "sft.pt was begun by another script, with --kind" in done.stderr


def test_nor_is_a_run_of_another_script_resumed_as_a_base(out, tmp_path):
    (tmp_path / "sft.pt").write_bytes((out / "sft.pt").read_bytes())
    before = (tmp_path / "sft.pt").read_bytes()
    done = run_here("experiments.bases", "--kind", "retries", "--resume", "--out", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "another script" in done.stderr
    assert (tmp_path / "sft.pt").read_bytes() == before


def test_a_base_is_resumed_by_the_flags_that_ctrl_c_names(base_of, tmp_path):
    """As said there: the same script with --resume --out. It goes on with the lesson that it began with."""
    model, checkpoint = load_checkpoint(base_of("direct") / "sft.pt")
    stopped = checkpoint | {"flags": checkpoint["flags"] | {"steps": 22}}
    torch.save(stopped, tmp_path / "sft.pt")
    done = run("experiments.bases", "--resume", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in table(tmp_path / "sft.csv")] == ["10", "20", "22"]
    assert load_checkpoint(tmp_path / "sft.pt")[1]["flags"]["kind"] == "direct"


# ------------------------------------------------------------------------------------------------------------
# Coverage

def test_a_power_law_is_found_and_continued():
    a, b = coverage.power_law([1, 2, 4, 8], [np.exp(-0.7 * k ** -0.3) for k in (1, 2, 4, 8)])
    assert (a, b) == pytest.approx((0.7, 0.3))
    a, b = coverage.power_law([1, 2, 4, 8], [np.exp(-0.7), np.exp(-0.35), 1.0, 0.0])        # two have no log
    assert (a, b) == pytest.approx((0.7, 1.0))
    assert np.isnan(coverage.power_law([1, 2, 4], [0.5, 1.0, 1.0])).all()   # one point is no line


def test_coverage_and_choice_by_hand():
    """
    Two problems, four samples each. Of the first half are right, and rated higher; of the second one, which
    is rated lowest and outvoted.
    """
    problems = [SHORT, parse_problem("98 12>86")]
    right, wrong = ["98-11=87,87\n", "98-12=86,86\n"], ["98+11=109,109\n", "98+12=110,110\n"]

    def samples(i, *values):
        return [Sample(right[i] if value > 0 else wrong[i], abs(value), 5, True) for value in values]
    drawn = [samples(0, 0.9, -0.1, 0.8, -0.2), samples(1, -0.5, -0.4, 0.3, -0.6)]
    assert coverage.coverage(problems, drawn, [1, 2, 4]) == pytest.approx([3 / 8, (5 / 6 + 1 / 2) / 2, 1])
    votes = [[coverage.chosen(problems, drawn, k, choose) for k in (1, 2, 4)]
             for choose in coverage.CHOOSERS.values()]
    assert votes[1:] == [[3 / 8, 2 / 4, 1 / 2]] * 2
    assert votes[0][0] == 3 / 8 and votes[0][2] == 1 / 2                # a tie is won by who came first
    rows = coverage.measure(problems, drawn)
    assert [row["k"] for row in rows] == [1, 2, 4] * 5
    assert {row["how"] for row in rows} == set(coverage.LOOKS)


def test_coverage_is_measured_and_drawn(out, tmp_path):
    flags = "--models", out / "sft.pt", "--n-problems", 5, "--out", tmp_path
    done = run_here("experiments.coverage", *flags, "--samples", 6)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "coverage.csv")
    assert (tmp_path / "coverage.png").exists() and len(rows) == 15 and "4 samples" in done.stdout
    shares = [float(row["accuracy"]) for row in rows if row["how"] == "coverage"]
    assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] <= 1
    shipped = run_here("experiments.coverage", "--models", "results/model.pt", "--out", tmp_path)
    assert shipped.returncode == 2 and "streams" in shipped.stderr


# ------------------------------------------------------------------------------------------------------------
# Deeper models

@pytest.mark.parametrize("n_new", [1, 2, 3])
def test_a_deeper_model_says_the_same_and_can_learn_more(n_new):
    shallow = random_model(n_layer=3)
    deep = deeper(shallow, n_new)
    idx = torch.randint(1, 30, (2, 40), generator=torch.Generator().manual_seed(0))
    for was, now in zip(shallow(idx), deep(idx)):
        assert torch.equal(was, now)
    assert deep.config.n_layer == 3 + n_new
    is_new = [not block.mlp.proj.weight.any() for block in deep.blocks]
    assert is_new == [False, True] * n_new + [False] * (3 - n_new)
    logits, _ = deep(idx)
    logits.logsumexp(-1).sum().backward()
    for block in deep.blocks:
        assert block.mlp.proj.weight.grad.any() and block.attn.proj.weight.grad.any()


@torch.no_grad()
def test_a_model_that_reads_longer_numbers_says_the_same_of_shorter_ones():
    model = random_model(n_layer=2)
    larger = with_n_gram(model, 4)
    short, long = (torch.tensor([encode(f"99*{n}=")]) for n in (999, 9999))
    torch.testing.assert_close(larger(short)[0], model(short)[0])
    assert (larger(long)[0] - model(long)[0]).abs().max() > 1e-3
    assert larger.config.n_gram == 4 and not larger.wte.weight[:64].any()


def test_a_checkpoint_is_made_deeper_and_trained_on(out, tmp_path):
    done = run_here("experiments.deeper", "--init", out / "sft.pt", "--layers", 1, "--out", tmp_path)
    assert "deeper.pt" in done.stdout and done.returncode == 0, done.stderr
    model, checkpoint = load_checkpoint(tmp_path / "deeper.pt")
    shallow, parent = load_checkpoint(out / "sft.pt")
    assert model.config.n_layer == shallow.config.n_layer + 1 and checkpoint["flops"] == parent["flops"]
    done = run_here("train_sft.py", "--init", tmp_path / "deeper.pt", "--steps", 2, "--batch-size", 8,
                    "--log-problems", 4, "--test-problems", 4, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    done = run_here("experiments.deeper", "--init", out / "sft.pt", "--layers", 9, "--out", tmp_path)
    assert done.returncode == 2 and "--layers 9" in done.stderr and "Traceback" not in done.stderr
    done = run_here("experiments.deeper", "--init", out / "sft.pt", "--layers", 0, "--n-gram", 2,
                    "--out", tmp_path)
    assert done.returncode == 2 and "--n-gram 2" in done.stderr and "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------------------
# Judges

class Chatty(GPT):
    """Random, but with a taste for newlines and <|eos|>, so that samples end."""

    def run(self, windows, positions, mask, cache=None):
        logits, values = super().run(windows, positions, mask, cache)
        taste = torch.zeros(64, dtype=logits.dtype)
        taste[NEWLINE], taste[EOS] = 3.0, 0.5
        return logits + taste, values


@pytest.fixture
def model():
    return random_model(kind=Chatty)


def settings(max_tokens=18, **others):
    return Settings(max_tokens, torch.Generator().manual_seed(0), **others)


JUDGED = ["vote (judge)", "vote (verdict)", "best-of-n (judge)", "best-of-n (lines)", "best-of-n (verdict)",
          "revise", "revise (verifier)"]


@pytest.mark.parametrize("name", JUDGED)
@pytest.mark.parametrize("limit", [5, 33, 100])
def test_no_method_exceeds_its_budget(model, name, limit):
    problems = held_out_problems("countdown", 3, 12)
    results = run_method(model, problems, METHODS[name], limit, settings(TASKS["countdown"].max_tokens(3)))
    assert len(results) == len(problems)
    for result in results:
        assert 0 < result.tokens <= limit and 0 <= result.score <= 1 and isinstance(result.completion, str)
        for completion, n_tokens, _ in result.found:
            assert n_tokens == len(ENCODING.encode(completion, allowed_special="all")) + 1
    if METHODS[name].ranks:
        assert all(result.tokens == limit for result in results)        # samples use all of it


def test_the_judge_reads_what_it_says_it_reads(model, monkeypatch):
    """
    One by one, without padding: the value at the end, the product of values after the lines, and yes against
    no after "?".
    """
    monkeypatch.setattr(judges, "BATCH", 3)
    problem = parse_problem("9 3 5 2>24")
    pairs = [(problem, SOLUTION), (problem, SOLUTION + "?no\n"), (problem, "9+5=14,3 2 14\n"),
             (SHORT, "98-11=87,87\n")]
    scores = judges.judge_completions(model, pairs)
    assert scores[0] == pytest.approx(scores[1])                        # a verdict that is there is not read
    for (problem, completion), found in zip(pairs, scores):
        text = problem.prompt + completion.removesuffix("?no\n")
        logits, values = model(torch.tensor([encode(text + "?")]))
        ends = [len(encode(text[:i + 1])) - 1 for i, character in enumerate(text) if character == "\n"][1:]
        assert found["judge"] == pytest.approx(values[0, -2].sigmoid().item(), abs=1e-5)
        assert found["lines"] == pytest.approx(values[0, ends].sigmoid().prod().item(), abs=1e-5)
        yes, no = logits[0, -1, encode("yesno")].softmax(-1).tolist()
        assert found["verdict"] == pytest.approx(yes, abs=1e-5)


A, B = "98-11=87,87\n", "98+11=109,109\n"
DRAWN = [Sample(A, 0.5, 5, True)] * 3 + [Sample(B, 0.6, 6, True)] * 2
DRAWN += [Sample("junk", 0.0, 7, False), Sample("<|pad|>\n", 0.9, 4, True)]


def test_ranking_by_hand(monkeypatch, model):
    """
    Three samples of one solution, two of a better rated one, one that never ended, one that cannot be read:
    weighted votes, best.
    """
    said = {A: {"judge": 0.5, "lines": 0.4, "verdict": 0.3}, B: {"judge": 0.6, "lines": 0.2, "verdict": 0.9}}
    asked = []

    def judge_completions(judge, pairs):
        asked.append((judge, pairs))
        return [said[completion] for _, completion in pairs]
    monkeypatch.setattr(judges, "judge_completions", judge_completions)

    def choose(name):
        result, = METHODS[name].run(model, [SHORT], 40, settings(samples=[DRAWN]))
        assert result.tokens == 3 * 5 + 2 * 6 + 7 + 4
        assert result.read == len(encode(SHORT.prompt)) + result.tokens               # read by the judge too
        return result.completion, result.score
    assert choose("vote (judge)") == (A, pytest.approx(1.5 / 7))
    assert choose("best-of-n (judge)") == (B, 0.6)
    assert choose("vote (verdict)") == (B, pytest.approx(1.8 / 7))
    assert choose("best-of-n (verdict)") == (B, 0.9)
    assert choose("best-of-n (lines)") == (A, 0.4)
    assert asked == [(model, [(SHORT, A), (SHORT, B)])] * 5             # each different sample once
    monkeypatch.setitem(judges.JUDGE, "model", "another")
    choose("best-of-n (judge)")
    assert asked[-1][0] == "another"


class Speaker:
    """A stand-in for generate: says for each stream what is next in its script, keeps what it was asked."""

    def __init__(self, *said):
        self.said, self.asked = list(said), []

    def __call__(self, model, prompts, limits, temperature, stops, generator):
        self.asked += [(decode(prompt), limit) for prompt, limit in zip(prompts, limits)]
        rows = [encode(self.said.pop(0)) + [EOS] for _ in prompts]
        rows = [row[:limit] for row, limit in zip(rows, limits)]
        T = max(map(len, rows))
        return Samples(torch.tensor([row + [0] * (T - len(row)) for row in rows]),
                       torch.tensor([[t < len(row) for t in range(T)] for row in rows]), None, None)


@pytest.mark.parametrize("scorer, said, final", [
    ("verdict", [B + "?no\n", A + "?yes\n"], B + "?no\nwait\n" + A + "?yes\n"),
    ("verdict", [B, A + "?yes\n"], B + "wait\n" + A + "?yes\n"),        # no verdict: made to go on
    ("verdict", [A + "?yes\n"], A + "?yes\n"),
    ("verdict", [B + "?yes\n"], B + "?yes\n"),                          # wrong, and content
    ("verifier", [B + "?yes\n", A + "?no\n"], B + "wait\n" + A + "?no\n"),
])
def test_revision_goes_on_until_it_is_content(monkeypatch, model, scorer, said, final):
    speaker = Speaker(*said)
    monkeypatch.setattr(judges, "generate", speaker)
    result, = judges.revise(model, [SHORT], 100, settings(), scorer)
    assert result.completion == final and result.finished and speaker.said == [] and result.score == 1.0
    taken_away = sum(3 for text in said[:-1] if text.endswith("?yes\n"))
    assert result.tokens == len(encode(final)) + taken_away + len(said)         # and each <|eos|>
    assert result.read == sum(len(encode(text)) for text, _ in speaker.asked)
    assert result.found == [(final, len(encode(final)) + 1, None)]
    assert verify(SHORT, final).correct == ("98-11" in final)


def test_a_revision_that_meets_the_ceiling_counts_what_ended_before(monkeypatch, model):
    first = B + "?no\n"
    monkeypatch.setattr(judges, "generate", Speaker(first, A + "?yes\n"))
    result, = judges.revise(model, [SHORT], len(encode(first)) + 12, settings(), "verdict")
    assert result.completion == first and result.tokens == len(encode(first)) + 12
    assert result.finished and result.score == 0.0


def test_a_revision_that_has_no_room_to_take_back_ends(monkeypatch, model):
    first = B + "?no\n"
    speaker = Speaker(first)
    monkeypatch.setattr(judges, "generate", speaker)
    result, = judges.revise(model, [SHORT], len(encode(first)) + 1 + 2, settings())     # just "wait\n"
    assert result.completion == first and result.tokens == len(encode(first)) + 1 and speaker.said == []


def test_streams_go_on_side_by_side(monkeypatch, model):
    """One that is content leaves, the others go on; none is given another's text."""
    speaker = Speaker(B + "?no\n", A + "?yes\n", A + "?yes\n")
    monkeypatch.setattr(judges, "generate", speaker)
    results = judges.revise(model, [SHORT, SHORT], 100, settings())
    assert [result.completion for result in results] == [B + "?no\nwait\n" + A + "?yes\n", A + "?yes\n"]
    assert speaker.asked == [(SHORT.prompt, 18)] * 2 + [(SHORT.prompt + B + "?no\nwait\n", 18)]


# ------------------------------------------------------------------------------------------------------------
# From search to traces to a judge

@pytest.fixture(scope="module")
def found(out, tmp_path_factory):
    path = tmp_path_factory.mktemp("found") / "found.jsonl"
    flags = ["--methods", "majority", "--budgets", 60, "--n-problems", 60]
    done = run_here("search.py", "--init", out / "sft.pt", "--save", path, *flags)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("what, label", [
    ("verdicts", "rollouts"), ("composites", "given"), ("continuations", "given"), ("attempts", "exact")])
def test_traces_are_written_learnt_and_judged(out, found, tmp_path, what, label):
    sft, traces = out / "sft.pt", tmp_path / "traces.jsonl"
    flags = ["--write", what, "--label", label, "--samples", 4]
    done = run_here("experiments.rewrite", "--init", sft, "--data", found, "--save", traces, *flags)
    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in open(traces)]
    assert len(written) > 5 and all("values" in trace for trace in written if label != "given")
    if what == "continuations":
        assert any("?no\nwait\n" in trace["completion"] and trace["correct"] for trace in written)
    cost = [sum(json.loads(line)["flops"] for line in open(path)) for path in (found, traces)]
    if what == "continuations":
        assert cost[1] > cost[0]
    else:                                   # with 2 numbers no line has a successor
        assert cost[1] == pytest.approx(cost[0])
    flags = ["--init", sft, "--data", traces, "--max-tokens", 34, "--test-problems", 20]
    done = run("train_sft.py", *flags, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (float(table(folder / "sft.csv")[-1]["flops"]) for folder in (out, tmp_path))
    assert after > before + cost[1]
    flags = ["--judge", tmp_path / "sft.pt", "--methods", "best-of-n (verdict)", "vote (value)", "revise"]
    done = run_here("experiments.judges", "--init", sft, *flags, "--budgets", 60, "--n-problems", 20,
                    "--out", tmp_path)
    assert done.returncode == 0 and len(table(tmp_path / "search.csv")) == 3, done.stderr


def test_all_methods_run_and_the_judge_is_that_of_the_flag(out, tmp_path):
    """One that finds all samples equally good: a vote weighted by it is the majority's."""
    judge = random_model().float()
    with torch.no_grad():
        judge.value_head.weight.zero_()
    save_checkpoint(tmp_path / "judge.pt", judge)
    methods = ["majority", *JUDGED]
    flags = ["--init", out / "sft.pt", "--judge", tmp_path / "judge.pt", "--budgets", 60, "--n-problems", 40]
    done = run_here("experiments.judges", *flags, "--out", tmp_path, "--methods", *methods)
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in table(tmp_path / "search.csv")}
    assert list(rows) == methods
    assert rows["vote (judge)"]["accuracy"] == rows["majority"]["accuracy"]
    majority, judged = (float(rows[name]["flops_per_problem"]) for name in ("majority", "vote (judge)"))
    assert judged > majority                # it reads all samples


def test_sampling_benchmark():
    flags = ["--batch-sizes", 2, 5, "--depths", 1, 2, "--new-tokens", 4, "--repeats", 1, "--compare"]
    done = run("experiments.benchmark", *flags, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens/s") == 4 == done.stdout.count("; no cache ")
    assert "peak memory" in done.stdout


def test_speed_of_an_rl_step():
    flags = ["--prompts", 2, "--new-tokens", 4, "--repeats", 1, "--device", "cpu"]
    done = run("experiments.rl_speed", *flags, "--compare")
    assert done.returncode == 0, done.stderr
    assert "train_rl.py: 16 completions of 4 tokens in " in done.stdout
    assert "TRL: 16 completions" in done.stdout or "trl is not installed" in done.stdout
    done = run("experiments.rl_speed", *flags, "--rows", 3)
    assert done.returncode == 2 and "--rows 3 does not divide the 16 completions" in done.stderr


# ------------------------------------------------------------------------------------------------------------
# What the value head knows

def test_values_are_held_against_enumeration(out, base_of, tmp_path):
    """Of made-up values: one that is right about random steps, and says of own ones the wrong thing."""
    problem = parse_problem("9 3 5 2>24")
    good, bad = "9-5=4,3 2 4\n", "9+5=14,3 2 14\n"
    labels = [state_value(problem, lines) for lines in (good, bad)]
    assert labels == [True, False]
    found = [(source, 1, problem, lines) for source in ("random", "own") for lines in (good, bad)]
    rows = value_rows(found, [3.0, -3.0, -3.0, 3.0], labels * 2)
    assert [(row["source"], row["steps"], row["states"], row["auc"]) for row in rows] == [
        ("own", 1, 2, 0.0), ("random", 1, 2, 1.0)]
    bins = calibration_rows(found, [3.0, -3.0, -3.0, 3.0], labels * 2)
    assert [(row["source"], row["low"], row["states"], row["solvable"]) for row in bins] == [
        ("random", 0.0, 1, 0.0), ("random", 0.9, 1, 1.0), ("own", 0.0, 1, 1.0), ("own", 0.9, 1, 0.0)]
    assert all(row["low"] <= row["value"] <= row["high"] for row in bins)
    # And of a model, from the command line
    base = base_of("states") / "sft.pt"
    done = run("experiments.values", "--models", base, "--n-problems", 30, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    random, = [row for row in table(tmp_path / "values.csv") if row["source"] == "random"]
    assert (random["steps"], random["states"]) == ("1", "30")
    assert (tmp_path / "calibration.png").read_bytes().startswith(b"\x89PNG")
    refused = run_here("experiments.values", "--models", out / "sft.pt", "--out", tmp_path)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "level" in refused.stderr
