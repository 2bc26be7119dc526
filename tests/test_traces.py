"""
What is made of traces: every text it writes is judged by the verifier as the trace says, its parts are where they belong,
and what it cost is kept.
"""
import json

import numpy as np
import pytest
import torch

import traces as traces_module
from traces import label, main, write_composites, write_continuations, write_verdicts
from verify import encode, first_wrong_turn, parse_problem, state_value, verify

PROMPT = "9 3 5 2>24\n"
RIGHT = "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n"
LIE = "9-5=4,3 2 4\n3+2=5,4 5\n4*5=24,24\n"                      # the second step leads nowhere, the third is wrong
DEAD_END = "9+5=14,3 2 14\n14+3=17,2 17\n17+2=19,19\n"


def trace(completion, prompt=PROMPT, **more):
    return {"prompt": prompt, "completion": completion, "correct": verify(parse_problem(prompt), completion).correct, "flops": 3.0, **more}


@pytest.fixture
def attempts():
    return [trace(text) for text in (RIGHT, LIE, DEAD_END)] + [trace("98-11=87,87\n", "98 11>87\n")]


@pytest.mark.parametrize("completion, turn", [
    (RIGHT, None), (LIE, 1), (DEAD_END, 0), ("", None), ("9+5=14,3 2 14\nwait\n" + RIGHT, None), ("9+5=14,3 2 14\nwait\n" + LIE, 3),
    ("9-5=4,3 2 4\n?no\n3+2=6,4 6\n", 2), ("nonsense\n", 0)])
def test_first_wrong_turn(completion, turn):
    """Against the definition: the first standing line after which state_value is false."""
    assert first_wrong_turn(parse_problem(PROMPT), completion) == turn


def test_verdicts_are_the_verifiers(attempts):
    judged = write_verdicts(attempts)
    assert [new["completion"] for new in judged] == [RIGHT + "?yes\n", LIE + "?no\n", DEAD_END + "?no\n", "98-11=87,87\n?yes\n"]
    for new in judged:
        assert new["correct"] == new["completion"].endswith("?yes\n") == verify(parse_problem(new["prompt"]), new["completion"]).correct
        assert new["tokens"] == len(encode(new["completion"])) + 1 and "values" not in new


def test_composites_put_a_right_step_behind_a_wrong_one(attempts):
    mended = write_composites(attempts, np.random.default_rng(0))
    assert [new["completion"] for new in mended] == [
        RIGHT, RIGHT.replace("3*2", "3+2=5,4 5\nwait\n3*2"), "9+5=14,3 2 14\nwait\n" + RIGHT, "98-11=87,87\n"]
    assert all(new["correct"] and verify(parse_problem(new["prompt"]), new["completion"]).correct for new in mended)
    assert mended[1]["values"] == [1.0, 0.0, None, 1.0, 1.0]
    assert write_composites(attempts[1:], np.random.default_rng(0)) == attempts[1:]     # no right attempt to mend them with
    again = [attempts[0], trace("9+5=14,3 2 14\nwait\n" + LIE), trace("wait\n" + LIE + "?yes\nx\n")]     # the second turn of a stream; a stream that is lost
    assert [new["completion"] for new in write_composites(again, np.random.default_rng(0))] == [
        RIGHT, "9+5=14,3 2 14\nwait\n" + RIGHT.replace("3*2", "3+2=5,4 5\nwait\n3*2"), "wait\n" + LIE + "?yes\nx\n"]


def test_continuations_go_on_from_the_first_wrong_turn(attempts, monkeypatch):
    asked = []

    def sample_ends(model, prefixes, n_samples, attempts, rng):
        asked.extend(prefixes)
        return [[RIGHT] if lines else [] for _, lines in prefixes], 1000
    monkeypatch.setattr(traces_module, "sample_ends", sample_ends)
    continued, n_tokens = write_continuations(None, attempts, 4, 1, np.random.default_rng(0))
    assert n_tokens == 1000 and asked == [(PROMPT, "9-5=4,3 2 4\n"), (PROMPT, "")]
    stitched = LIE + "?no\nwait\nwait\n3*2=6,4 6\n4*6=24,24\n?yes\n"
    assert [new["completion"] for new in continued] == [RIGHT + "?yes\n", stitched, DEAD_END + "?no\n", "98-11=87,87\n?yes\n"]
    assert [new["correct"] for new in continued] == [True, True, False, True]
    assert continued[1]["values"] == [1.0, 0.0, 0.0, None, None, None, 1.0, 1.0, None]
    stream = DEAD_END + "?no\nwait\nwait\nwait\n" + LIE               # what went wrong again goes on again
    again, _ = write_continuations(None, [trace(stream + "?yes\n")], 4, 1, np.random.default_rng(0))
    assert again[0]["completion"] == DEAD_END + "?no\nwait\nwait\nwait\n" + stitched and again[0]["correct"]


def test_labels(attempts, monkeypatch):
    monkeypatch.setattr(traces_module, "sample_ends", lambda model, prefixes, n, attempts, rng: (
        [["right"] * (1 if "14" in lines else 3) for _, lines in prefixes], 7 * len(prefixes)))
    assert label(None, attempts, "rollouts", 4, 1, None) == 7 * 5           # the lines before the last, those shared once
    assert [new["values"] for new in attempts] == [[0.75, 0.75, 1.0], [0.75, 0.75, 0.0], [0.25, 0.25, 0.0], [1.0]]
    judged = write_verdicts(attempts[:1])
    assert label(None, judged, "rollouts", 4, 1, None) == 7 * 2 and judged[0]["values"] == [0.75, 0.75, 1.0, 1.0]      # none behind the end
    assert label(None, attempts, "exact", 4, 1, None) == 0
    for new in attempts:
        lines = new["completion"].splitlines(keepends=True)
        assert new["values"] == [float(state_value(parse_problem(new["prompt"]), "".join(lines[:n + 1]))) for n in range(len(lines))]


def test_sampled_ends_are_right_and_begin_as_asked(monkeypatch):
    from verify import EOS

    class Samples:
        mask = torch.ones(4, 10, dtype=torch.bool)

        def finished(self, stop_tokens):
            ends = ["3*2=6,4 6\n4*6=24,24\n", "3*2=6,4 6\n4*6=25,25\n", "3+2=5,4 5\n4*5=20,20\n"]
            return [encode(end) for end in ends] + [None]
    monkeypatch.setattr(traces_module, "generate", lambda *args: Samples())
    model = torch.nn.Module()
    model.lm_head = torch.nn.Linear(1, 1)
    right, n_tokens = traces_module.sample_ends(model, [(PROMPT, "9-5=4,3 2 4\n")], 4, 1, np.random.default_rng(0))
    assert right == [[RIGHT]] and n_tokens == 40 + len(encode(PROMPT + "9-5=4,3 2 4\n")) and EOS not in encode(RIGHT)


def test_the_file_keeps_what_it_cost(attempts, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(new) + "\n" for new in attempts))
    monkeypatch.setattr("sys.argv", ["traces.py", "--data", str(tmp_path / "a.jsonl"), "--save", str(tmp_path / "b.jsonl"), "--write", "verdicts",
                                     "--label", "exact"])
    main()
    written = [json.loads(line) for line in open(tmp_path / "b.jsonl")]
    assert sum(new["flops"] for new in written) == pytest.approx(12.0) and all(len(new["values"]) == new["completion"].count("\n") for new in written)


def test_labels_of_streams_that_end_wrong_and_of_cut_off_ones():
    stream = "9+5=14,3 2 14\nwait\n" + LIE
    assert write_verdicts([trace(stream)])[0]["values"] == [0.0, None, None, 0.0, 0.0, None]      # its good step has none
    cut_off = [trace(RIGHT[:-1])]
    label(None, cut_off, "exact", 4, 1, None)
    assert len(cut_off[0]["values"]) == 2
