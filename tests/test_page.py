"""
Asking: a conversation goes on after a bad problem and ends with its input; the page of a tree says of each
node what the search knew, the page of a stream what became of each line; what cannot be written is told
before the search.
"""
import io
import json
import os
import re
import subprocess
import sys

import pytest
import torch

import ask
import search
from ask import print_step, print_tree
from budget import Settings
from checkpoint import load_checkpoint
from model import GPT, GPTConfig
from page import MOST, line_of, stream_page, tree_page, write_page
from sample import generate
from scripts import ROOT, command, run_here, tiny_base
from tree import Node, Search, mcts_searches
from verify import EOS, NEWLINE, encode, parse_problem, state_value, tidy, verify

PROBLEM = parse_problem("60 27>87")
FOUR = parse_problem("9 3 5 2>24")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint for problems with two numbers."""
    return tiny_base(tmp_path_factory) / "sft.pt"


@pytest.fixture(scope="module")
def streaming(base, tmp_path_factory):
    """The same, taken for a model of streams."""
    checkpoint = torch.load(base, weights_only=True)
    checkpoint["flags"] |= {"streams": True, "level": 3}
    path = tmp_path_factory.mktemp("streaming") / "rl.pt"
    torch.save(checkpoint, path)
    return path


def type_in(monkeypatch, text):
    """What the next script reads from its standard input, as a pipe would hand it over."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="utf-8"))


def page_data(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < 300_000 and "{{" not in text
    assert not re.search(r"https?:|src=|<link|@import|url\(", text)     # nothing to fetch
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])


# ------------------------------------------------------------------------------------------------------------
# A conversation

def test_a_conversation_goes_on_after_a_bad_problem(base, monkeypatch):
    type_in(monkeypatch, b"60 27>87\nmagic\n\n1 2>99\n25 8 7>24\n\xff 2>3\r\n  25 50>75")
    done = run_here("ask.py", "--init", base)
    assert done.returncode == 0 and done.stderr == ""
    first, *lines = done.stdout.splitlines()
    assert first.startswith(f"checkpoint {base}: countdown, level 2, as in ")
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 4
    expected = "'magic' is not a prompt", "1 2>99 has no solution", "level 3", "2>3' is not a"
    assert all(reason in error for reason, error in zip(expected, errors))
    assert sum(line.endswith(" tokens") for line in lines) == 2
    assert any(re.fullmatch(r"60\+27=87,87 +value \d\.\d\d", line) for line in lines)
    assert any(re.match(r"60\+27=87,87 +N \d+ +Q", line) for line in lines)


def test_a_conversation_shows_what_a_single_question_does(base, monkeypatch):
    alone = run_here("ask.py", "--init", base, "60 27>87").stdout
    type_in(monkeypatch, b"60 27>87\n")
    together = run_here("ask.py", "--init", base).stdout
    assert together.endswith(alone[alone.index("60 27>87    N"):])


def test_a_stream_is_shown_as_it_comes_with_a_value_beside_each_line(streaming, monkeypatch):
    flags = ["--init", streaming, "--budget", 200]
    alone = run_here("ask.py", *flags, "9 3 5>17").stdout.splitlines()[2:]
    type_in(monkeypatch, b"9 3 5>17\n")
    live = run_here("ask.py", *flags).stdout.splitlines()[1:]
    assert alone[-1] == live[-1] and alone[-1].endswith(" tokens")
    shown = [re.sub(r" +value \d\.\d\d$", "", line) for line in live[:-1]]
    assert shown[:len(alone) - 1] == alone[:-1]
    assert all("value" in line for line in live[:len(alone) - 1])


def test_without_a_standard_input_there_is_nothing_to_ask(base, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert run_here("ask.py", "--init", base).returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no terminals")
def test_control_d_ends_a_conversation(base):
    import pty
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(command("ask.py", "--init", base), stdin=theirs, stdout=theirs,
                               stderr=theirs, cwd=ROOT)
    os.close(theirs)
    said, keys = "", [b"magic\n", b"60 27>87\n", b"\x04"]
    while True:
        try:
            heard = os.read(terminal, 1000).decode()
        except OSError:                     # how Linux says that it has ended
            heard = ""
        if not heard:
            break
        said += heard
        if keys and said.count("problem> ") == 4 - len(keys):
            os.write(terminal, keys.pop(0))
    assert process.wait(20) == 0 and not keys
    assert "error: 'magic' is not a prompt" in said and "solved" in said and "Traceback" not in said


def test_each_token_is_told_as_it_comes():
    torch.manual_seed(0)
    model, told = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32)), []
    samples = generate(model, [encode("60 27>87\n")], 40, 1.0, (EOS, 9), torch.Generator().manual_seed(1),
                       watch=lambda *token: told.append(token))
    tokens, values = zip(*told)
    assert list(tokens) == samples.completions()[0] and len(tokens) < 40
    assert list(values) == pytest.approx(samples.values[0].sigmoid().tolist())


def test_a_deep_tree_is_shown(capsys):
    """Once deeper than the column of the figures, a line was formatted to a negative width."""
    found = Search(FOUR, 50, "value", [], 20)
    node = found.root
    for _ in range(150):
        child = Node(node.ids + encode("1+1\n"), prior=0.9, value=0.8, parent=node)
        node.children.append(child)
        node = child
        node.visits = 1
        print_step(node)
    steps = capsys.readouterr().out.splitlines()
    print_tree(found, found.root)
    lines = capsys.readouterr().out.splitlines()
    assert len(steps) == 150 and len(lines) == 101      # deeper ones are not shown
    for i, (step, line) in enumerate(zip(steps, lines)):
        assert step.startswith("    " * i + "1+1 ") and line.startswith("    " * i + "1+1 ")


def test_before_any_training_the_shipped_checkpoint_answers(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ask, "SHIPPED", str(base))

    def asked(*words):
        """Which checkpoint answers."""
        found = []
        monkeypatch.setattr(sys, "argv", ["ask.py", "60 27>87", *words])
        monkeypatch.setattr(ask, "show", lambda model, problem, args: found.append(args.init))
        ask.main()
        return found[0]
    assert asked() == str(base)
    with pytest.raises(SystemExit) as end:              # who names a folder means the model in it
        asked("--out", "elsewhere")
    assert end.value.code == 2
    with pytest.raises(SystemExit) as end:              # and who measures, too
        search.run(search.make_parser(), search.make_parser().parse_args(["--methods", "greedy"]))
    assert end.value.code == 2
    os.mkdir("out")
    (tmp_path / "out" / "sft.pt").write_bytes(base.read_bytes())
    assert asked() == os.path.join("out", "sft.pt")


# ------------------------------------------------------------------------------------------------------------
# The page of a tree

@pytest.mark.parametrize("prompt", ["12 3>4", "12 3>5"])
def test_the_page_of_a_tree_tells_what_the_search_did(base, prompt):
    """Visits and mean values are not written into the page: adding the steps up gives those of the search."""
    steps, problem = [], parse_problem(prompt)

    def watch(search, node, value):
        steps.append((node, value, search.budget.spent))
    model, settings = load_checkpoint(base)[0], Settings(17, watch=watch)
    found, = mcts_searches(model, [problem], 60, settings, "verifier")
    page = tree_page(found, steps)
    rows, nodes, waiting = page["rows"], [], [found.root]
    while waiting:
        nodes.append(waiting.pop())
        waiting += reversed(nodes[-1].children)
    assert [row["line"] for row in rows] == [line_of(node) for node in nodes] and len(rows) > 2
    visits, totals = [0] * len(rows), [0.0] * len(rows)
    for i, value, _ in page["steps"]:
        while i >= 0:
            visits[i], totals[i], i = visits[i] + 1, totals[i] + value, rows[i]["parent"]
    assert visits == [node.visits for node in nodes]
    assert totals == pytest.approx([node.total for node in nodes], abs=0.01)
    for row, node in zip(rows[1:], nodes[1:]):
        assert nodes[row["parent"]] is node.parent and row["depth"] == rows[row["parent"]]["depth"] + 1
        assert row["first"] > rows[row["parent"]]["first"]
        assert (row["prior"], row["head"]) == pytest.approx((node.prior, node.head), abs=0.001)
        text = found.completion(node)
        if node.finished:
            assert row["exact"] == verify(problem, text).correct == row["note"].startswith("right")
        else:
            assert row["exact"] == state_value(problem, text) and row["note"] == ""
    assert sum(row["note"].endswith("the answer") for row in rows) == bool(found.finished)
    assert [spent for _, _, spent in page["steps"]] == sorted(spent for _, _, spent in page["steps"])
    assert page["steps"][-1][2] == found.budget.spent <= 60


def test_the_value_head_is_shown_whoever_judges(base):
    """The judge's word replaces the value of what has ended; what the head had thought of it is kept."""
    model, heads = load_checkpoint(base)[0], []
    for scorer in ("value", "verifier"):
        found, = mcts_searches(model, [PROBLEM], 40, Settings(17), scorer)
        heads.append({found.completion(node): node.head for node in found.finished})
        for node in found.finished:
            judged = node.head if scorer == "value" else verify(PROBLEM, found.completion(node)).correct
            assert node.value == judged and 0 < node.head < 1
    shared = heads[0].keys() & heads[1].keys()
    assert shared and all(heads[0][text] == pytest.approx(heads[1][text]) for text in shared)


def test_ask_writes_a_page(base, tmp_path):
    path = tmp_path / "new" / "tree.html"
    for overwrites in (False, True):
        done = run_here("ask.py", "--init", base, "60 27>87", "--html", path)
        assert done.returncode == 0 and done.stdout.endswith(f"wrote {path}\n")
        assert (f"overwrites {path}" in done.stdout) == overwrites
    data = page_data(path)
    assert data["kind"] == "tree" and data["prompt"] == "60 27>87" and data["checkpoint"] == str(base)
    assert data["outcome"] in done.stdout and os.listdir(path.parent) == ["tree.html"]


def test_what_enumeration_does_not_know_is_not_shown():
    problem = parse_problem("2+3=")
    found = Search(problem, 50, "value", [], 20)
    child = Node(found.prompt + encode("5\n"), prior=0.9, value=0.8, parent=found.root)
    found.root.children.append(child)
    rows = tree_page(found, [(child, 0.8, 3)])["rows"]
    assert [row["line"] for row in rows] == ["2+3=", "5"] and [row["exact"] for row in rows] == [None, None]


def test_the_largest_pages_stay_small(tmp_path):
    """The page has the first steps, and says so."""
    found, line, n = Search(FOUR, 10 ** 6, "value", [], 20), encode("9" * 90 + "\n"), MOST + 50
    for _ in range(n):
        child = Node(found.prompt + line, prior=0.123456, value=0.654321, parent=found.root)
        found.root.children.append(child)
    steps = [(child, 0.654321, 999_999) for child in found.root.children]
    for page in (tree_page(found, steps), stream_page(FOUR, [(token, 0.123456) for token in line * n])):
        assert len(page["rows"]) == MOST + 1 and page["total"] == n and len(page["steps"]) == MOST
        write_page(tmp_path / "page.html", page, FOUR, "not solved", "x" * 200)
        assert page_data(tmp_path / "page.html")["total"] == n


# ------------------------------------------------------------------------------------------------------------
# The page of a stream

def page_of(text, ends=True):
    ids = encode(text) + [EOS] * ends
    return stream_page(FOUR, [(token, round(i / 1000, 3)) for i, token in enumerate(ids)])


def test_the_page_of_a_stream_tells_what_became_of_each_line():
    text = ("9+5=14,3 2 14\n3*2=7,14 7\nwait 9 3 5 2>24\n9-5=4,3 2 4\n3+2=5,4 5\nwait\n"
            "3*2=6,4 6\n4*6=24,24\n?3*2=6\n?yes\n")
    page = page_of(text)
    rows = page["rows"]
    assert [row["line"] for row in rows] == ["9 3 5 2>24", *text.splitlines(), "<|eos|>"]
    assert [row.get("taken") for row in rows] == [None, 3, 3, None, None, 6, *[None] * 6]
    assert [row["note"] for row in rows] == [
        "the problem", "stands", "wrong: 3*2 is not 7", "takes back 2 lines", "stands", "stands",
        "takes back 1 line", "stands", "stands", "a check", "its own verdict", "the end"]
    assert [row["exact"] for row in rows] == [
        1, state_value(FOUR, "9+5=14,3 2 14\n"), 0, 1, 1, state_value(FOUR, "9-5=4,3 2 4\n3+2=5,4 5\n"),
        1, 1, 1, 1, 1, None]
    assert [row["depth"] for row in rows] == [0, 1, 2, 0, 1, 2, 1, 2, 3, 3, 3, 0]
    ends = [i + 1 for i, token in enumerate(encode(text)) if token == NEWLINE]
    assert [row["head"] for row in rows] == [0.0, *(end / 1000 for end in ends), None]      # of all up to it
    steps = [(i, end / 1000, end) for i, end in enumerate(ends, 1)]
    assert page["steps"] == steps + [(11, None, ends[-1] + 1)] and page["total"] == 11


@pytest.mark.parametrize("text, note", [
    ("9-5=4,3 2 4\n3*", "cut off in mid-line"), ("wait\n", "'wait' with nothing to take back"),
    ("9-5=4,3 2 4\n", "stands"), ("", "the problem")])
def test_the_page_of_a_stream_that_does_not_end(text, note):
    page = page_of(text, ends=False)
    assert page["rows"][-1]["note"] == note and len(page["steps"]) == page["total"] == len(page["rows"]) - 1


def test_a_stream_becomes_a_page(streaming, tmp_path):
    path = tmp_path / "stream.html"
    done = run_here("ask.py", "--init", streaming, "--budget", 60, "60 27>87", "--html", path)
    assert done.returncode == 0, done.stderr
    data = page_data(path)
    assert data["kind"] == "stream" and data["rows"][1]["line"] in done.stdout


def test_any_level_may_be_asked_and_spaces_do_no_harm(streaming):
    done = run_here("ask.py", "--init", streaming, "--budget", 30, " 9  3 5 > 17 ")
    assert done.returncode == 0 and "9 3 5>17\n" in done.stdout, done.stderr


def test_spaces_are_taken_out_where_the_language_has_none():
    assert tidy(" (12 + 7) *3 - 5 = ") == "(12+7)*3-5=" and tidy("9  3 5 > 17") == "9 3 5>17"


@pytest.mark.parametrize("prompt, unlike", [
    ("99 1>98", False), ("60 27>87", False), ("60 40>100", False), ("60 41>101", True), ("99 90>9", True),
    ("100 27>73", True), ("0 27>27", True)])
def test_what_was_never_trained_on_is_noted(streaming, prompt, unlike):
    done = run_here("ask.py", "--init", streaming, "--budget", 5, prompt)
    assert done.returncode == 0 and ("note: no problem like this one" in done.stdout) == unlike, done.stderr


# ------------------------------------------------------------------------------------------------------------
# Wrong input

@pytest.mark.parametrize("flags, expected", [
    (["--html", "TMP/a.html"], "--html shows one problem"),
    (["60 27>87", "--html", ""], "argument --html: it is empty"),
    (["60 27>87", "--html", "TMP"], "the name of a page ends in .html"),
    (["60 27>87", "--html", "TMP/file"], "the name of a page ends in .html"),
    (["60 27>87", "--html", "TMP/file/a.html"], "file"),
    (["magic", "--html", "TMP/a.html"], "'magic' is not a prompt"),
    (["1 2>99", "--html", "TMP/a.html"], "no solution"),
])
def test_what_cannot_be_is_told_in_one_line_before_the_search(base, tmp_path, flags, expected, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("tree.start_searches", None)             # there is no search
    flags = [flag.replace("TMP", str(tmp_path)) for flag in flags]
    done = run_here("ask.py", "--init", base, *flags)
    assert done.returncode == 2 and expected in done.stderr and done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"
