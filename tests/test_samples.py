"""The page of samples: what it says of each sample is what the verifier says, and bad files are one line."""
import re

import pytest
import torch

from checkpoint import save_checkpoint
from experiments.samples import cell, make_page
from model import GPT, GPTConfig
from scripts import TINY_RL, run, run_here, tiny_base
from verify import parse_problem, verify

PROMPT = "9 3 5 2>24\n"
RIGHT = "9+5=14,3 2 14\nwait 9 3 5 2>24\n9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n?yes\n<|eos|>"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory) / "sft.pt"


def without_tags(text):
    return re.sub("<[^>]*>", "", text)


def test_lines_are_marked_as_what_became_of_them():
    shown, right = cell(PROMPT, RIGHT)
    assert right
    assert '<strong class="right">correct</strong>' in shown
    assert "<del>9+5=14,3 2 14</del>\n<i>wait 9 3 5 2&gt;24</i>\n<span>9-5=4,3 2 4</span>" in shown
    assert shown.endswith("<span>4*6=24,24</span>\n<i>?yes</i></pre></td>")


@pytest.mark.parametrize("text, verdict", [
    (RIGHT.removesuffix("<|eos|>"), "cut off"),                         # what has not ended is not right
    ("9-5=4,3 2 4\n3*2=7,4 7\n<|eos|>", "line 1: 3*2 is not 7"),
    ("9-5=4,3 2 4\n3*", "cut off"),
    ("<b>&\n<|eos|>", verify(parse_problem(PROMPT), "<b>&\n").reason)])
def test_what_is_not_right_is_said_as_the_verifier_says_it(text, verdict):
    shown, right = cell(PROMPT, text)
    assert not right and '<strong class="wrong">' in shown and "<b>" not in shown
    assert without_tags(shown.split("</strong>")[0]).replace("&lt;", "<").replace("&gt;", ">").replace(
        "&amp;", "&").replace("&#x27;", "'") == verdict


def test_long_samples_are_cut_and_say_so():
    shown = without_tags(cell(PROMPT, "9+5=14,3 2 14\nwait 9 3 5 2>24\n" * 100)[0])
    assert shown.count("\n") < 35 and "and 170 more lines" in shown


def test_the_page_shows_every_row_of_a_run(base, tmp_path):
    done = run("train_rl.py", "--init", base, *TINY_RL, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    page = tmp_path / "new" / "samples.html"
    done = run_here("experiments.samples", base, tmp_path / "rl.pt", "--html", page)
    assert done.returncode == 0 and done.stdout == f"wrote {page}\n"
    text = page.read_text()
    heads = re.findall(r'<th scope="col">(\w+), step (\d+): (\d+) of 10 right', text)
    assert [head[:2] for head in heads] == [("sft", "100"), ("sft", "200"), ("rl", "2"), ("rl", "4")]
    rows = text.split("<tbody>")[1].split("</tr>")[:-1]
    assert len(rows) == 10 and all(row.count("<td>") == 4 for row in rows)
    for i, (_, _, n_right) in enumerate(heads):
        cells = [row.split("<td>")[i + 1] for row in rows]
        assert sum('class="right">correct<' in shown for shown in cells) == int(n_right)
    assert sum(int(head[2]) for head in heads) > 0 and len(text) < 300_000


def test_a_run_keeps_the_same_samples_for_each_row(base):
    samples = torch.load(base, weights_only=True)["samples"]
    assert [row["step"] for row in samples] == [100, 200]
    assert all(len(row["completions"]) == len(row["prompts"]) == 10 for row in samples)
    assert samples[0]["prompts"] == samples[1]["prompts"] and samples[0] != samples[1]


@pytest.mark.parametrize("samples, reason", [
    ([], "stopped before the first row"), ([3], "its samples are not those of a run"),
    ([{"step": 1, "prompts": [4], "completions": ["a"]}], "its samples are not those of a run"),
    ([{"step": 1, "prompts": [PROMPT], "completions": []}], "its samples are not those of a run"),
    ([{"step": 1, "prompts": ["magic"], "completions": ["a"]}], "'magic' is not a prompt"),
    ("none", "samples is a str"), (None, "it lacks samples")])
def test_files_without_samples_are_one_line(tmp_path, samples, reason):
    path, page = tmp_path / "a.pt", tmp_path / "a.html"
    state = {} if samples is None else {"samples": samples}
    save_checkpoint(path, GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)), **state)
    done = run_here("experiments.samples", path, "--html", page)
    assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1
    assert not page.exists()


def test_different_problems_and_other_names_are_refused(base, tmp_path):
    other = torch.load(base, weights_only=True)
    other["samples"][0]["prompts"] = other["samples"][0]["prompts"][::-1]
    torch.save(other, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="different problems"):
        make_page([str(base), str(tmp_path / "a.pt")])
    done = run_here("experiments.samples", base, "--html", tmp_path / "a.txt")
    assert done.returncode == 2 and "the name of a page ends in .html" in done.stderr
