"""What is imitated and what the value head learns, token by token: worked solutions, own samples, traces."""
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model import GPT, GPTConfig
from train_sft import Example, answer, from_trace, honest, introduce_words, make_batch, retry, solved_examples, worked
from verify import EOS, PAD, decode, encode, imitated_lines, parse_problem, read_traces, solve, test_problems, verify

PROMPT, SOLUTION = "9 3 5 2>24\n", "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n"
WANDERING = "9+5=14,3 2 14\nwait\n9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n?yes\n"


def test_batch_aligns_targets_and_labels_with_what_precedes_them():
    examples = [worked(parse_problem(PROMPT), SOLUTION, False), worked(parse_problem(PROMPT), SOLUTION, True),
                Example(encode(PROMPT), encode("9-5=4") + [EOS], [False] * 6, [0.25] * 6)]
    idx, targets, labels = make_batch(examples, "cpu")
    text = encode(PROMPT + SOLUTION) + [EOS]
    assert idx[0].tolist() == text[:-1] and targets[0][targets[0] >= 0].tolist() == text[len(encode(PROMPT)):]
    assert decode(targets[1][targets[1] >= 0].tolist()) == "9-5=4,"     # up to the first result
    begins = len(encode(PROMPT)) - 1
    for row in range(2):
        shown = targets[row] >= 0
        assert shown.nonzero()[0] == begins and torch.equal(targets[row][:-1][shown[:-1]][:5], idx[row][1:][shown[:-1]][:5])
        assert labels[row].isnan().all()
    assert (targets[2] == -1).all() and (labels[2] == 0.25).nonzero()[:, 0].tolist() == list(range(begins, begins + 6))
    assert idx[2, begins + 6:].eq(PAD).all()


def test_of_a_right_trace_what_stands_is_imitated():
    example = from_trace({"prompt": PROMPT, "completion": WANDERING, "correct": True})
    imitated = [token for token, flag in zip(example.completion, example.imitate) if flag]
    assert decode(imitated) == "wait\n9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n?yes\n<|eos|>"
    assert example.completion == encode(WANDERING) + [EOS] and example.labels == [1.0] * len(example.completion)


def test_of_a_wrong_trace_only_the_verdict_is_imitated():
    example = from_trace({"prompt": PROMPT, "completion": "9+5=14,3 2 14\n?no\n", "correct": False})
    assert decode([token for token, flag in zip(example.completion, example.imitate) if flag]) == "?no\n"
    assert set(example.labels) == {0.0}


def test_a_trace_that_ended_in_mid_line():
    for values in (None, [0.5]):
        example = from_trace({"prompt": PROMPT, "completion": "9+5=14,3 2 14\n3+", "correct": False, "values": values})
        assert len(example.completion) == len(example.imitate) == len(example.labels) and not any(example.imitate)


def test_labels_of_lines_stand_where_the_line_has_ended():
    example = from_trace({"prompt": PROMPT, "completion": SOLUTION, "correct": True, "values": [0.5, None, 1.0]})
    text = example.prompt + example.completion
    labelled = {decode(text[len(example.prompt):len(example.prompt) + i]): label for i, label in enumerate(example.labels) if not math.isnan(label)}
    assert labelled == {"9-5=4,3 2 4\n": 0.5, SOLUTION: 1.0}            # what stands before the token, and its label


@pytest.mark.parametrize("completion, correct, lines", [
    (SOLUTION, True, [1, 1, 1]), (SOLUTION, False, [0, 0, 0]), ("", True, []), (WANDERING, True, [0, 1, 1, 1, 1, 1]),
    ("a\nb\nwait\nwait\nc\n", True, [0, 0, 1, 1, 1]), ("a\n?no\nwait\nb\n?yes\n", True, [0, 1, 1, 1, 1]),
    ("a\n?no\n", False, [0, 1]), ("a\n?yes\n", False, [0, 0]), ("a\n?no\n", True, [1, 0])])
def test_lines_worth_imitating(completion, correct, lines):
    assert imitated_lines(completion, correct) == [bool(line) for line in lines]


GOOD = {"prompt": PROMPT, "completion": SOLUTION, "correct": True, "tokens": 33, "method": "greedy"}


@pytest.mark.parametrize("line, complaint", [
    ("not json", "line 2"), ("[]", "line 2"), ("3", "line 2"), (json.dumps({"prompt": PROMPT}), "completion, correct"),
    (json.dumps(GOOD | {"prompt": "9 3>x\n"}), "not a countdown prompt"), (json.dumps(GOOD | {"completion": "abc"}), "'a'"),
    (json.dumps(GOOD | {"values": [1.0]}), "1 values for 3 lines"), (json.dumps(GOOD | {"values": ["a", 1, 1]}), "line 2"),
    (json.dumps(GOOD | {"values": [2, 1, 1]}), "from 0 to 1"), (json.dumps(GOOD | {"correct": "yes"}), "true or false"), (json.dumps(GOOD | {"completion": None}), "line 2")])
def test_bad_traces_are_named(tmp_path, line, complaint):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=complaint) as error:
        read_traces(path)
    assert "t.jsonl, line 2" in str(error.value) and "\n" not in str(error.value)
    path.write_text(json.dumps(GOOD | {"values": [0.5, None, 1]}) + "\n")
    assert read_traces(path)[0]["values"] == [0.5, None, 1]


def test_honest_examples_are_legal_and_teach_the_arithmetic_only():
    problems, rng, hits = test_problems("countdown", 3, 300), np.random.default_rng(0), 0
    for problem in problems:
        example = honest(problem, rng)
        text = decode(example.completion[:-1])
        verdict = verify(problem, text)
        assert example.completion[-1] == EOS and example.imitate[-1]
        assert verdict.correct or verdict.reason.startswith("dead end"), verdict.reason
        assert set(example.labels) == {float(verdict.correct)}
        hits += verdict.correct
        taught = decode([token for token, flag in zip(example.completion, example.imitate) if flag])
        assert taught.removesuffix("<|eos|>") == "".join(line.split("=")[1] + "\n" for line in text.splitlines())
    assert 0 < hits < 150


def test_a_retry_is_right_and_teaches_the_arithmetic_and_what_follows_the_waits():
    rng, taken_back = np.random.default_rng(0), set()
    for problem in test_problems("countdown", 3, 100):
        solution = solve(problem, rng)
        example = retry(problem, solution, rng)
        text = decode(example.completion[:-1])
        first, n_waits = text.removesuffix(solution).replace("?no\n", ""), text.count("wait\n")
        assert text.endswith("wait\n" + solution) and verify(problem, text).correct and first.count("\n") == 2 * n_waits
        assert example.completion[-1] == EOS and all(map(math.isnan, example.labels))
        taught = decode([token for token, flag in zip(example.completion, example.imitate) if flag])
        assert taught == "".join(line.split("=")[1] + "\n" for line in first.splitlines()[:n_waits]) + solution + "<|eos|>"
        taken_back.add((n_waits, "?no" in text))
    assert taken_back == {(1, False), (2, False), (2, True)}


def test_solved_examples_are_prompts_with_their_answers():
    for direct in (False, True):
        args = SimpleNamespace(task="expression", level=3, direct=direct)
        lines, problems = decode(solved_examples(args, 2, np.random.default_rng(0))).splitlines(), 0
        while lines:
            problem, n = parse_problem(lines[0]), 1 if direct else 3
            assert verify(problem, "\n".join(lines[1:1 + n]) + "\n").correct
            lines, problems = lines[1 + n:], problems + 1
        assert problems == 2
    assert answer(SimpleNamespace(direct=True), "19*3-5\n57-5\n52\n") == "52\n"


def test_only_words_that_will_be_imitated_are_introduced():
    """A stray parenthesis in a wrong trace once became as likely as <|eos|>, and was all over the next model's samples."""
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16))
    with torch.no_grad():
        model.lm_head.weight.normal_()
        new = encode("?yesnowait()")
        model.lm_head.weight[new] = model.lm_head.weight[-1].clone()
    before = model.lm_head.weight.clone()
    introduce_words(model, [{"completion": "9-5=4,3 2 4\n?yes\n", "correct": True}, {"completion": "9-(5=4\n?no\n", "correct": False},
                            {"completion": "9)5\n?yes\n", "correct": False}, {"completion": "wait\n", "correct": False}])
    changed = (model.lm_head.weight != before).any(1).nonzero()[:, 0].tolist()
    assert sorted(changed) == sorted(encode("?yesno")) and torch.equal(model.lm_head.weight[changed[0]], before[EOS])
