"""
What is imitated and what the value head learns, token by token: worked solutions, own samples, traces. Where
a label stands one token too far, or a lesson shows the wrong part, no script fails: models are just worse.
"""
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import solutions
import train_sft
from batches import Example, as_example, by_length, make_batch
from model import GPT, GPTConfig
from solutions import hard_part, honest, lesson, own_attempts, worked
from streams import stream
from traces import (from_trace, imitated_lines, introduce_words, read_traces, standing_lines, traces_lesson,
                    without_verdict, write_traces)
from train_sft import gradient, learning_rate
from verify import EOS, PAD, decode, encode, held_out_problems, parse_problem, solve, verify

PROMPT, SOLUTION = "9 3 5 2>24\n", "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n"
WANDERING = "9+5=14,3 2 14\nwait\n9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n?yes\n"


def imitated_text(example):
    return decode([token for token, flag in zip(example.completion, example.imitate) if flag])


def test_batch_aligns_targets_and_labels_with_what_precedes_them():
    problem = parse_problem(PROMPT)
    rated = Example(encode(PROMPT), encode("9-5=4") + [EOS], [False] * 6, [0.25] * 6)
    batch = make_batch([worked(problem, SOLUTION), hard_part(problem, SOLUTION), rated], "cpu")
    idx, labels = batch["idx"], batch["labels"]
    targets = batch["next"].where(batch["accepted"].any(-1), -1)
    assert batch["accepted"].sum(-1).max() == 1 and batch["accepted"].int().argmax(-1).where(
        targets >= 0, -1).equal(targets)
    text = encode(PROMPT + SOLUTION) + [EOS]
    assert idx[0].tolist() == text[:-1]
    assert targets[0][targets[0] >= 0].tolist() == text[len(encode(PROMPT)):]
    assert decode(targets[1][targets[1] >= 0].tolist()) == "9-5=4,"     # up to the first result
    begins = len(encode(PROMPT)) - 1
    for row in range(2):
        shown = targets[row] >= 0
        assert shown.nonzero()[0] == begins
        assert torch.equal(targets[row][:-1][shown[:-1]][:5], idx[row][1:][shown[:-1]][:5])
        assert labels[row].isnan().all()
    assert (targets[2] == -1).all()
    assert (labels[2] == 0.25).nonzero()[:, 0].tolist() == list(range(begins, begins + 6))
    assert labels[2].isnan().sum() == labels.size(1) - 6
    assert idx[2, begins + 6] == EOS and idx[2, begins + 7:].eq(PAD).all()


def test_losses_are_means_over_tokens_however_many_at_a_time(monkeypatch):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)).double()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    problems, rng = held_out_problems("countdown", 3, 8), np.random.default_rng(0)
    kinds = zip(problems, [worked, hard_part] * 3)
    examples = [show(problem, solve(problem, rng)) for problem, show in kinds]
    examples += [as_example(stream(problem, rng)) for problem in held_out_problems("countdown", 4, 2)]
    batch = make_batch(examples + [honest(problem, rng) for problem in problems[6:]], "cpu")
    monkeypatch.setattr(train_sft, "by_length", lambda batch: by_length(batch, 60))
    metrics = gradient(model, batch, SimpleNamespace(value_coef=0.5))
    found = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    logits, values = model(batch["idx"])
    labelled, n_accepted = ~batch["labels"].isnan(), batch["accepted"].sum(-1)
    imitated, is_open = n_accepted == 1, n_accepted > 1
    tokens = batch["accepted"].int().argmax(-1)
    losses = [F.cross_entropy(logits[imitated], tokens[imitated], reduction="none")]
    for logprobs, allowed in zip(logits[is_open].log_softmax(-1), batch["accepted"][is_open]):
        losses.append(-logprobs[allowed].exp().sum().log()[None])
    assert len(losses) > 20
    loss = torch.cat(losses).mean()
    value_loss = F.binary_cross_entropy_with_logits(values[labelled], batch["labels"][labelled].double())
    (loss + 0.5 * value_loss).backward()
    assert metrics == {"loss": pytest.approx(loss.item()), "value_loss": pytest.approx(value_loss.item())}
    for name, weight in model.named_parameters():
        torch.testing.assert_close(found[name], weight.grad)


def test_of_a_right_trace_what_stands_is_imitated():
    example = from_trace({"prompt": PROMPT, "completion": WANDERING, "correct": True})
    assert imitated_text(example) == "wait\n9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n?yes\n<|eos|>"
    assert example.completion == encode(WANDERING) + [EOS]
    assert example.labels == [1.0] * len(example.completion)


def test_of_a_wrong_trace_only_the_verdict_is_imitated():
    example = from_trace({"prompt": PROMPT, "completion": "9+5=14,3 2 14\n?no\n", "correct": False})
    assert imitated_text(example) == "?no\n"
    assert set(example.labels) == {0.0}


def test_a_trace_that_ended_in_mid_line():
    for values in (None, [0.5]):
        trace = {"prompt": PROMPT, "completion": "9+5=14,3 2 14\n3+", "correct": False, "values": values}
        example = from_trace(trace)
        assert len(example.completion) == len(example.imitate) == len(example.labels)
        assert not any(example.imitate)


def test_labels_of_lines_stand_where_the_line_has_ended():
    values = [0.5, None, 1.0]
    example = from_trace({"prompt": PROMPT, "completion": SOLUTION, "correct": True, "values": values})
    known = [(i, label) for i, label in enumerate(example.labels) if not math.isnan(label)]
    labelled = {decode(example.completion[:i]): label for i, label in known}
    assert labelled == {"9-5=4,3 2 4\n": 0.5, SOLUTION: 1.0}    # what stands before the token, and its label


@pytest.mark.parametrize("completion, correct, lines", [
    (SOLUTION, True, [1, 1, 1]),
    (SOLUTION, False, [0, 0, 0]),
    ("", True, []),
    (WANDERING, True, [0, 1, 1, 1, 1, 1]),
    ("a\nb\nwait\nwait\nc\n", True, [0, 0, 1, 1, 1]),
    ("a\n?no\nwait\nb\n?yes\n", True, [0, 1, 1, 1, 1]),
    ("a\n?no\n", False, [0, 1]),
    ("a\n?yes\n", False, [0, 0]),
    ("a\n?no\n", True, [1, 0]),
    ("a\n?6*7=42\nwait\nb\n?6*7=41\n?2*2=4\n", True, [0, 1, 1, 1, 0, 1]),
    ("a\n?6*7=42\n", False, [0, 0]),
])
def test_lines_worth_imitating(completion, correct, lines):
    assert imitated_lines(parse_problem(PROMPT), completion, correct) == [bool(line) for line in lines]


@pytest.mark.parametrize("completion, standing, without", [
    (WANDERING, [2, 3, 4], WANDERING[:-5]),
    ("a\n?no\nwait\nwait\nb\nx", [], "a\n?no\nwait\nwait\nb\nx"),
    ("a\n?no\n", [0], "a\n"),
    ("", [], ""),
])
def test_standing_lines_and_verdicts(completion, standing, without):
    assert standing_lines(parse_problem(PROMPT), completion) == standing
    assert without_verdict(completion) == without


GOOD = {"prompt": PROMPT, "completion": SOLUTION, "correct": True, "tokens": 33, "method": "greedy"}


@pytest.mark.parametrize("line, complaint", [
    ("not json", "line 2"),
    ("[]", "line 2"),
    ("3", "line 2"),
    (json.dumps({"prompt": PROMPT}), "completion, correct"),
    (json.dumps(GOOD | {"prompt": "9 3>x\n"}), "not a countdown prompt"),
    (json.dumps(GOOD | {"completion": "abc"}), "'a'"),
    (json.dumps(GOOD | {"completion": None}), "line 2"),
    (json.dumps(GOOD | {"values": [1.0]}), "1 values for 3 lines"),
    (json.dumps(GOOD | {"values": ["a", 1, 1]}), "line 2"),
    (json.dumps(GOOD | {"values": [2, 1, 1]}), "from 0 to 1"),
    (json.dumps(GOOD | {"correct": "yes"}), "true or false"),
    (json.dumps(GOOD | {"flops": -1}), "flops"),
    (json.dumps(GOOD | {"flops": None}), "line 2"),
])
def test_bad_traces_are_named(tmp_path, line, complaint):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=complaint) as error:
        read_traces(path)
    assert "t.jsonl, line 2" in str(error.value) and "\n" not in str(error.value)


def test_traces_are_read_as_they_were_written(tmp_path):
    traces = [GOOD, GOOD | {"values": [0.5, None, 1], "flops": 1e9}]
    write_traces(tmp_path / "t.jsonl", traces)
    assert read_traces(tmp_path / "t.jsonl") == traces
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="empty.jsonl"):
        read_traces(tmp_path / "empty.jsonl")


def test_honest_examples_are_legal_and_teach_the_arithmetic_only():
    problems, rng, hits = held_out_problems("countdown", 3, 300), np.random.default_rng(0), 0
    for problem in problems:
        example = honest(problem, rng)
        text = decode(example.completion[:-1])
        verdict = verify(problem, text)
        assert example.completion[-1] == EOS and example.imitate[-1]
        assert verdict.correct or verdict.reason.startswith("dead end"), verdict.reason
        assert set(example.labels) == {float(verdict.correct)}
        hits += verdict.correct
        taught = imitated_text(example).removesuffix("<|eos|>")
        assert taught == "".join(line.split("=")[1] + "\n" for line in text.splitlines())
    assert 0 < hits < 150


LESSON = SimpleNamespace(task="countdown", level=3, seed=0, steps=100, batch_size=8, honest=0.5, rank=0,
                         processes=1)


@pytest.mark.parametrize("task, step, shown", [
    ("countdown", 0, ["whole"] * 8),
    ("countdown", 13, ["whole"] * 8),
    ("countdown", 14, ["hard part"] * 8),
    ("countdown", 18, ["honest"] * 4 + ["whole"] * 4),
    ("countdown", 96, ["honest"] * 4 + ["whole"] * 4),
    ("countdown", 99, ["hard part"] * 8),
    ("expression", 14, ["whole"] * 8),
    ("expression", 18, ["whole"] * 8),
])
def test_what_a_lesson_shows(task, step, shown):
    args = SimpleNamespace(**vars(LESSON) | {"task": task})
    problems, examples = lesson(args, step)
    kinds = []
    for problem, example in zip(problems, examples):
        text = decode(example.completion).removesuffix("<|eos|>")
        assert example.prompt == encode(problem.prompt)
        if not all(example.imitate):
            kinds.append("honest")
        elif example.completion[-1] == EOS:
            kinds.append("whole")
            assert verify(problem, text).correct
        else:
            kinds.append("hard part")
            assert text.count(",") == 1 and text.endswith(",") and "\n" not in text
    assert kinds == shown and [problem.task for problem in problems] == [task] * 8
    again, other = lesson(args, step), lesson(args, step + 1)
    assert again[0] == problems != other[0]
    assert [example.completion for example in again[1]] == [example.completion for example in examples]


def test_traces_are_shown_once_before_any_comes_again():
    traces = [{"prompt": f"{n} 1>{n + 1}\n", "completion": f"{n}+1={n + 1},{n + 1}\n", "correct": True}
              for n in range(10, 20)]
    args, seen = SimpleNamespace(seed=1, batch_size=4, rank=0, processes=1), []
    for step in range(5):
        problems, examples = traces_lesson(traces, args, step)
        assert problems == [] and len(examples) == 4
        seen += [decode(example.prompt) for example in examples]
    prompts = [trace["prompt"] for trace in traces]
    assert sorted(seen[:10]) == prompts != seen[:10] and seen[10:] == seen[:10]


def test_learning_rate_rises_stays_and_falls():
    args = SimpleNamespace(data=None, lr=2.0, steps=1000)
    rates = [learning_rate(args, step) for step in (0, 49, 99, 500, 750, 999)]
    assert rates == pytest.approx([0.02, 1.0, 2.0, 2.0, 1.0, 0.004])
    assert learning_rate(SimpleNamespace(data=["a"], lr=2.0, steps=1000), 19) == 2.0


@pytest.mark.parametrize("task", ["countdown", "expression"])
def test_own_attempts_are_labelled_by_the_verifier_and_not_imitated(monkeypatch, task):
    """Instead of a model, someone who solves every second problem from where it stands, if it can be done."""
    asked, rng = [], np.random.default_rng(0)
    model = SimpleNamespace(config=SimpleNamespace(block_size=90))

    def generate(model, starts, max_tokens, stop_tokens, generator):
        assert max_tokens == min(64, 90 - max(map(len, starts)))
        completions = []
        for i, start in enumerate(starts):
            prompt, lines = decode(start).split("\n", 1)
            asked.append((prompt, lines))
            left = lines.splitlines()[-1].split(",")[1] if lines else ""
            open_problem = parse_problem(f"{left}>{prompt.split('>')[1]}" if left else prompt)
            rest = solve(open_problem, rng) or "?no\n"
            completions.append(encode(rest if i % 2 else "?no\n") + [EOS] * (i % 3 > 0))
        finished = [ids[:-1] if ids[-1] == EOS else None for ids in completions]
        return SimpleNamespace(completions=lambda: completions, finished=lambda stop_tokens: finished)

    monkeypatch.setattr(solutions, "generate", generate)
    problems = held_out_problems(task, 4, 60)
    args = SimpleNamespace(steps=200, max_tokens=64, seed=0, rank=0)
    assert own_attempts(model, problems, args, 96) == own_attempts(model, problems, args, 113) == []
    assert own_attempts(model, [], args, 112) == [] and not asked
    examples = own_attempts(model, problems, args, 112)
    n_begun = [lines.count("\n") for _, lines in asked]
    assert len(examples) == 120 and n_begun[:60] == [0] * 60
    assert set(n_begun[60:]) == ({1, 2} if task == "countdown" else {0})
    seen = set()
    for problem, example, (prompt, lines) in zip(problems * 2, examples, asked):
        assert problem.prompt == prompt + "\n" and decode(example.prompt) == problem.prompt + lines
        text = decode(example.completion)
        ended = text.endswith("<|eos|>")
        correct = ended and verify(problem, lines + text.removesuffix("<|eos|>")).correct
        assert set(example.labels) == {float(correct)} and len(example.labels) == len(example.completion)
        assert not any(example.imitate) and len(example.imitate) == len(example.completion)
        seen.add((correct, ended, bool(lines)))
    assert len(seen) == (6 if task == "countdown" else 3)               # right, wrong, cut off; begun or not


def test_only_words_that_will_be_imitated_are_introduced():
    """
    A stray parenthesis in a wrong trace once became as likely as <|eos|>, and was all over the next model's
    samples.
    """
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16))
    with torch.no_grad():
        model.lm_head.weight.normal_()
        new = encode("?yesnowait()")
        model.lm_head.weight[new] = model.lm_head.weight[-1].clone()
    before = model.lm_head.weight.clone()
    introduce_words(model, [
        {"prompt": PROMPT, "completion": "9-5=4,3 2 4\n?yes\n", "correct": True},
        {"prompt": PROMPT, "completion": "9-(5=4\n?no\n", "correct": False},
        {"prompt": PROMPT, "completion": "9)5\n?yes\n", "correct": False},
        {"prompt": PROMPT, "completion": "wait\n", "correct": False}])
    changed = (model.lm_head.weight != before).any(1).nonzero()[:, 0].tolist()
    assert sorted(changed) == sorted(encode("?yesno"))
    assert torch.equal(model.lm_head.weight[changed], before[EOS].expand(len(changed), -1))
