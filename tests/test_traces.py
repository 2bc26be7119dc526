"""
What experiments/rewrite.py makes of traces: every text it writes is judged by the verifier as the trace says,
its parts are where they belong, and what it cost is kept. (What a file of traces is: test_sft.py.)
"""
import json

import numpy as np
import pytest
import torch

from experiments import rewrite
from experiments.rewrite import (first_wrong_turn, label, sample_ends, write_composites,
                                 write_continuations, write_mended, write_searched, write_verdicts)
from scripts import run_here
from traces import read_traces
from verify import EOS, encode, parse_problem, state_value, verify

PROMPT = "9 3 5 2>24\n"
RIGHT = "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n"
LIE = "9-5=4,3 2 4\n3+2=5,4 5\n4*5=24,24\n"     # the second step leads nowhere, the third is wrong
DEAD_END = "9+5=14,3 2 14\n14+3=17,2 17\n17+2=19,19\n"
TURN = "9+5=14,3 2 14\nwait\n"                  # taken back
SHORT = "98-11=87,87\n"


def trace(completion, prompt=PROMPT):
    correct = verify(parse_problem(prompt), completion).correct
    return {"prompt": prompt, "completion": completion, "correct": correct, "flops": 3.0}


def texts(traces):
    return [new["completion"] for new in traces]


@pytest.fixture
def attempts():
    return [trace(text) for text in (RIGHT, LIE, DEAD_END)] + [trace(SHORT, "98 11>87\n")]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("completion, turn", [
    (RIGHT, None),
    (LIE, 1),
    (DEAD_END, 0),
    ("", None),
    (TURN + RIGHT, None),
    (TURN + LIE, 3),
    ("9-5=4,3 2 4\n?no\n3+2=6,4 6\n", 2),
    ("nonsense\n", 0),
])
def test_first_wrong_turn(completion, turn):
    """Against the definition: the first standing line after which state_value is false."""
    assert first_wrong_turn(parse_problem(PROMPT), completion) == turn


def test_verdicts_are_the_verifiers(attempts):
    judged = write_verdicts(attempts)
    assert texts(judged) == [RIGHT + "?yes\n", LIE + "?no\n", DEAD_END + "?no\n", SHORT + "?yes\n"]
    for new in judged:
        correct = verify(parse_problem(new["prompt"]), new["completion"]).correct
        assert new["correct"] == new["completion"].endswith("?yes\n") == correct
        assert new["tokens"] == len(encode(new["completion"])) + 1 and "values" not in new


def test_the_models_own_verdict_is_replaced():
    judged = write_verdicts([trace(RIGHT + "?no\n"), trace(LIE + "?yes\n")])
    assert texts(judged) == [RIGHT + "?yes\n", LIE + "?no\n"]


def test_composites_put_a_right_step_behind_a_wrong_one(attempts, rng):
    mended = write_composites(attempts, rng)
    corrected = RIGHT.replace("3*2", "3+2=5,4 5\nwait\n3*2")
    assert texts(mended) == [RIGHT, corrected, TURN + RIGHT, SHORT]
    for new in mended:
        assert new["correct"] and verify(parse_problem(new["prompt"]), new["completion"]).correct
    assert mended[1]["values"] == [1.0, 0.0, None, 1.0, 1.0]
    assert write_composites(attempts[1:], rng) == attempts[1:]          # no right attempt to mend them with
    lost = "wait\n" + LIE + "?yes\nx\n"
    again = [attempts[0], trace(TURN + LIE), trace(lost)]   # the second turn of a stream; one that is lost
    assert texts(write_composites(again, rng)) == [RIGHT, TURN + corrected, lost]


@pytest.mark.parametrize("stream, expected", [
    # A right opening, a wrong turn, back: the turn is not taken
    ("9-5=4,3 2 4>24\n3+2=5,4 5>24\nwait 9 5 3 2>24\n", "9-5=4,3 2 4>24\n3*2=6,4 6>24\n6*4=24,24>24\n"),
    # Given up at once; and a line that is wrong
    ("9-5=4,3 2 4>24\nwait 9 5 3 2>24\n", "9-5=4,3 2 4>24\n3*2=6,4 6>24\n6*4=24,24>24\n"),
    ("9-5=4,3 2 4>24\n3*2=7,4 7>24\n", "9-5=4,3 2 4>24\n3*2=6,4 6>24\n6*4=24,24>24\n"),
    # A wrong opening is none of its business, nor is what stands before the turn
    ("9+5=14,3 2 14>24\nwait 9 5 3 2>24\n9-5=4,3 2 4>24\n3*2=6,4 6>24\n6-4=2,2>24\n",
     "9+5=14,3 2 14>24\nwait 9 5 3 2>24\n9-5=4,3 2 4>24\n3*2=6,4 6>24\n6*4=24,24>24\n"),
    ("9+5=14,3 2 14>24\nwait 9 5 3 2>24\n", None),
    # Right in the end, but not at once
    ("9-5=4,3 2 4>24\n3+2=5,4 5>24\nwait 9 5 3 2>24\n" + RIGHT,
     "9-5=4,3 2 4>24\n3*2=6,4 6>24\n6*4=24,24>24\n"),
    (TURN + RIGHT, TURN + RIGHT),
    ("9+5=14,3 2 14>24\nwait 9 5 3 3>24\n9-5=4,3 2 4>24\n", None),
])
def test_streams_are_mended_where_they_leave_what_could_be_solved(stream, expected):
    found = write_mended([trace(RIGHT), trace(stream)])
    assert texts(found) == [RIGHT] + [expected] * (expected is not None)
    assert all(new["correct"] for new in found)


def test_what_is_mended_is_checked():
    false = "86/21=4,2 1 4>64\n?4*21=84\nwait 86 21 2 1>64\n"
    right, wrong = "86/2=43,21 1 43>64\n", "43-1=42,21 42>64\n42+21=63,63>64\n"
    mended, = texts(write_mended([trace(false + right + wrong, "86 21 2 1>64\n")]))
    assert mended.startswith(false + right)                             # with its check
    attempt = mended.removeprefix(false).splitlines()
    quotients = [line for line in attempt if "/" in line]
    checks = [line for line in attempt if line.startswith("?")]
    assert len(quotients) == len(checks) and checks[0] == "?43*2=86" and attempt[-1] == checks[-1]


def test_what_a_search_tried_becomes_one_stream():
    """In its order, up to the first that is right; nothing where none is, or reading stopped before it."""
    unsolved, unread = "1 2 3 4>24\n", "9 5 3 2>24\n"
    tried = [trace(DEAD_END), trace(DEAD_END, unsolved), trace(SHORT, "98 11>87\n"), trace(LIE), trace(RIGHT),
             trace(TURN), trace("wait\n", unread), trace(RIGHT, unread)]
    found = write_searched(tried)
    back = "wait 9 3 5 2>24\n"
    assert texts(found) == [DEAD_END + back + LIE + back + RIGHT, SHORT]
    assert all(new["correct"] for new in found)
    assert found[0]["values"] == [0.0] * 3 + [None] + [0.0] * 3 + [None] + [1.0] * 3


def test_continuations_go_on_from_the_first_wrong_turn(attempts, monkeypatch, rng):
    asked = []

    def sample_ends(model, prefixes, n_samples, max_tokens, rng):
        asked.extend(prefixes)
        return [[RIGHT] if lines else [] for _, lines in prefixes], 1000
    monkeypatch.setattr(rewrite, "sample_ends", sample_ends)
    continued, n_tokens = write_continuations(None, attempts, 4, 50, rng)
    assert n_tokens == 1000 and asked == [(PROMPT, "9-5=4,3 2 4\n"), (PROMPT, "")]
    stitched = LIE + "?no\nwait\nwait\n3*2=6,4 6\n4*6=24,24\n?yes\n"
    assert texts(continued) == [RIGHT + "?yes\n", stitched, DEAD_END + "?no\n", SHORT + "?yes\n"]
    assert [new["correct"] for new in continued] == [True, True, False, True]
    assert continued[1]["values"] == [1.0, 0.0, 0.0, None, None, None, 1.0, 1.0, None]
    stream = DEAD_END + "?no\nwait\nwait\nwait\n"                       # what went wrong again goes on again
    again, _ = write_continuations(None, [trace(stream + LIE + "?yes\n")], 4, 50, rng)
    assert texts(again) == [stream + stitched] and again[0]["correct"]


def test_what_the_verifier_did_not_read_to_its_end_is_left_as_it_is(attempts, monkeypatch, rng):
    """It stopped at what follows ?yes; what was the first wrong turn then does not stand at the end."""
    unread = LIE + "?yes\nwait\nwait\n"
    assert texts(write_composites([attempts[0], trace(unread)], rng)) == [RIGHT, unread]
    monkeypatch.setattr(rewrite, "sample_ends", lambda *asked: ([[RIGHT]] * len(asked[1]), 0))
    judged, _ = write_continuations(None, [trace(unread)], 4, 50, rng)
    assert texts(judged) == [unread + "?no\n"] and not judged[0]["correct"]


def test_labels(attempts, monkeypatch):
    def sample_ends(model, prefixes, n_samples, max_tokens, rng):
        return [["right"] * (1 if "14" in lines else 3) for _, lines in prefixes], 7 * len(prefixes)
    monkeypatch.setattr(rewrite, "sample_ends", sample_ends)
    # The lines before the last; those that attempts share are sampled from once
    assert label(None, attempts, "rollouts", 4, 50, None) == 7 * 5
    assert [new["values"] for new in attempts] == [
        [0.75, 0.75, 1.0], [0.75, 0.75, 0.0], [0.25, 0.25, 0.0], [1.0]]
    judged = write_verdicts(attempts[:1])
    assert label(None, judged, "rollouts", 4, 50, None) == 7 * 2        # none behind the end
    assert judged[0]["values"] == [0.75, 0.75, 1.0, 1.0]
    assert label(None, attempts, "exact", 4, 50, None) == 0
    for new in attempts:
        problem, lines = parse_problem(new["prompt"]), new["completion"].splitlines(keepends=True)
        exact = [state_value(problem, "".join(lines[:n + 1])) for n in range(len(lines))]
        assert new["values"] == list(map(float, exact))


def test_sampled_ends_are_right_and_begin_as_asked(monkeypatch, rng):
    ends = ["3*2=6,4 6\n4*6=24,24\n", "3*2=6,4 6\n4*6=25,25\n", "3+2=5,4 5\n4*5=20,20\n"]
    asked = []

    class Samples:
        mask = torch.ones(4, 10, dtype=torch.bool)

        def finished(self, stop_tokens):
            return [encode(end) for end in ends] + [None]

    def generate(model, starts, max_tokens, temperature, stops, generator, n_samples):
        asked.append((starts, max_tokens, temperature, stops, n_samples))
        return Samples()
    monkeypatch.setattr(rewrite, "generate", generate)
    right, n_tokens = sample_ends(None, [(PROMPT, "9-5=4,3 2 4\n")], 4, 50, rng)
    start = encode(PROMPT + "9-5=4,3 2 4\n")
    assert right == [[RIGHT]] and n_tokens == 40 + len(start)
    assert asked == [([start], 50, 1.0, (EOS,), 4)]


def test_the_file_keeps_what_it_cost(attempts, tmp_path):
    twice = [*attempts, attempts[1]]        # each different attempt is written once
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(new) + "\n" for new in twice))
    done = run_here("experiments.rewrite", "--data", tmp_path / "a.jsonl", "--save", tmp_path / "b.jsonl",
                    "--write", "verdicts", "--label", "exact")
    assert done.returncode == 0 and "4 traces, 2 of them right" in done.stdout, done.stderr
    written = read_traces(tmp_path / "b.jsonl")
    assert sum(new["flops"] for new in written) == pytest.approx(15.0)
    assert all(len(new["values"]) == new["completion"].count("\n") for new in written)
    assert texts(written) == [RIGHT + "?yes\n", LIE + "?no\n", DEAD_END + "?no\n", SHORT + "?yes\n"]


def test_labels_of_streams_that_end_wrong_and_of_cut_off_ones():
    judged, = write_verdicts([trace(TURN + LIE)])
    assert judged["values"] == [0.0, None, None, 0.0, 0.0, None]        # its good step has none
    cut_off = [trace(RIGHT[:-1])]
    label(None, cut_off, "exact", 4, 50, None)
    assert len(cut_off[0]["values"]) == 2
