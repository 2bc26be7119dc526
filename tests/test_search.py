"""
Search: the budget is a ceiling that counts everything, no step is paid for twice, PUCT and backup do the
arithmetic of the paper, all who rank see the same samples, nothing is chosen on test problems, and the
baselines of the tables are what they claim.
"""
import json
import math
import os
import time
from argparse import Namespace

import pytest
import torch

import best_of_n
import search
import tree
from baselines import by_heuristic, depth_first, looking_ahead
from best_of_n import Sample, sample_n, until_content, vote
from budget import Budget, Result, Settings
from checkpoint import save_checkpoint
from countdown import Countdown
from model import GPT, GPTConfig, flops_per_token
from search import METHODS, Method, count_correct, fill_table, measure, run_method
from traces import read_traces, traces_of, write_traces
from tree import MIN_PROB, Branch, Node, backup, beam, expand, mcts, mcts_searches, select, start_searches
from verify import ENCODING, EOS, NEWLINE, TASKS, encode, held_out_problems, parse_problem, split_of, verify

PROBLEM = parse_problem("9 3 5 2>24")
SOLUTION = "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n"
COUNTDOWN = TASKS["countdown"]
MAX_TOKENS = COUNTDOWN.max_tokens(3)
RANKING = [name for name, method in METHODS.items() if method.ranks]
BASELINES = [name for name, method in METHODS.items() if not method.needs_model]


class Chatty(GPT):
    """Random, but with a taste for newlines and <|eos|>, so that steps end."""
    ends_soon = False                       # and lines, with fewer tokens that mean nothing

    def run(self, windows, positions, mask, cache=None):
        logits, values = super().run(windows, positions, mask, cache)
        taste = torch.zeros(64, dtype=logits.dtype)
        taste[NEWLINE], taste[EOS] = 3.0, 0.5
        logits = logits + taste
        if self.ends_soon:
            logits[..., EOS] += 4.0 * (windows[..., -1] == NEWLINE)
            logits[..., 29:] -= 2.0
        return logits, values


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Chatty(GPTConfig(n_layer=1, n_head=2, n_embd=32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.double()


def settings(seed=0, max_tokens=MAX_TOKENS, **others):
    return Settings(max_tokens, torch.Generator().manual_seed(seed), **others)


def run(model, problems, name, limit, **others):
    own = settings(temperature=METHODS[name].temperature, **others)
    return run_method(model, problems, METHODS[name], limit, own)


def flags(budgets, methods):
    return Namespace(task="countdown", level=3, init="x.pt", seed=0, rank=0, streams=False,
                     max_tokens=MAX_TOKENS, c_puct=1.0, budgets=budgets, methods=methods)


def encode_any(text):
    return ENCODING.encode(text, allowed_special="all")


def without_time(row):
    return {key: value for key, value in row.items() if key != "seconds"}


# ------------------------------------------------------------------------------------------------------------
# The budget

def test_a_budget_cannot_be_overspent():
    budget = Budget(10)
    budget.spend(4, read=7)
    budget.spend(6)
    assert (budget.spent, budget.left, budget.read) == (10, 0, 7)
    with pytest.raises(AssertionError, match="more tokens than the budget allows"):
        budget.spend(1)
    assert (budget.spent, budget.left, budget.read) == (10, 0, 7)
    with pytest.raises(AssertionError):
        Budget(10).spend(11)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("limit", [1, 5, 33, 100])
def test_no_method_exceeds_its_budget(model, name, limit):
    problems = held_out_problems("countdown", 3, 12)
    results = run(model, problems, name, limit)
    assert len(results) == len(problems)
    for result in results:
        assert 0 < result.tokens <= limit or (limit == 1 and result.tokens == 0)
        assert 0 <= result.score <= 1 and isinstance(result.completion, str)
    if name in RANKING:
        assert all(result.tokens == limit for result in results)        # and samples use all of it


@pytest.mark.parametrize("name", [name for name in METHODS if name not in BASELINES])
def test_no_method_exceeds_its_budget_in_another_task(model, name):
    problems = held_out_problems("expression", 2, 6)
    results = run(model, problems, name, 40, max_tokens=30)
    assert len(results) == 6 and all(0 < result.tokens <= 40 for result in results)


# ------------------------------------------------------------------------------------------------------------
# Independent samples

def test_samples_count_cut_off_ones_and_their_values_are_the_models(model):
    model.ends_soon = True
    found, = sample_n(model, [PROBLEM], 300, settings())
    assert sum(sample.tokens for sample in found) == 300
    assert {sample.finished for sample in found} == {True, False}
    for sample in found:
        ids = encode_any(sample.completion)
        if sample.finished:
            value = model(torch.tensor([encode(PROBLEM.prompt) + ids]))[1][0, -1]
            assert sample.value == pytest.approx(value.sigmoid().item(), abs=1e-10)
            assert sample.tokens == len(ids) + 1
        else:
            assert sample.value == 0.0 and sample.tokens == len(ids) <= MAX_TOKENS


def test_ranking_by_hand():
    """Three samples of one solution, two of a better rated one, one that never ended."""
    problem, a, b = parse_problem("98 11>87"), "98-11=87,87\n", "98+11=109,109\n"
    samples = [Sample("junk", 0.99, 7, False), *[Sample(a, value, 5, True) for value in (0.5, 0.55, 0.4)],
               *[Sample(b, 0.6, 6, True)] * 2]

    def choose(method, scorer):
        result, = method(None, [problem], 40, settings(samples=[samples]), scorer)
        assert result.tokens == 7 + 3 * 5 + 2 * 6 and result.read == len(encode(problem.prompt))
        assert result.found == [(a, 5, None)] * 3 + [(b, 6, None)] * 2 and result.finished
        return result.completion, result.score
    assert choose(vote, "count") == (a, pytest.approx(3 / 6))
    assert choose(vote, "value") == (a, pytest.approx(1.45 / 6))        # against 1.2 / 6
    assert choose(best_of_n.best_of_n, "value") == (b, 0.6)
    assert choose(best_of_n.best_of_n, "verifier") == (a, 1.0)


def test_votes_are_for_answers(model):
    """In expression the last line counts, however it was reached, and a verdict behind it does not."""
    problem = parse_problem("(12+7)*3-5=")
    texts = ["19*3-5\n57-5\n52\n", "57-5\n52\n", "52\n?yes\n", "51\n", "51\n"]
    samples = [Sample(text, 0.1 * i, 5, True) for i, text in enumerate(texts)]
    result, = vote(None, [problem], 40, settings(samples=[samples]), "count")
    assert result.score == pytest.approx(3 / 5) and result.completion in texts[:3]
    countdown = [Sample(text, 0.5, 5, True) for text in ("1+2=3,3\n", "2+1=3,3\n", "2+1=3,3\n?no\n")]
    result, = vote(None, [parse_problem("1 2>3")], 40, settings(samples=[countdown]), "count")
    assert result.completion.startswith("2+1") and result.score == pytest.approx(2 / 3)


@pytest.mark.parametrize("method", [vote, best_of_n.best_of_n, mcts, beam])
def test_an_unknown_scorer_is_named(model, method):
    with pytest.raises(ValueError, match="luck"):
        method(model, [PROBLEM], 60, settings(), "luck")


def test_samples_are_drawn_with_the_settings_noise(model):
    """Two batches of problems must not share theirs."""
    model.ends_soon = True

    def found(own):
        return METHODS["best-of-n (value)"].run(model, [PROBLEM], 200, own)[0].found
    own = settings()
    first, again = found(own), found(own)
    assert first == found(settings()) and first != again and found(settings(1)) not in (first, again)


def test_all_who_rank_see_the_same_samples(model, monkeypatch):
    """Whoever else draws before or between them."""
    model.ends_soon = True
    drawn, calls = [], []

    def kept_sample_n(*args):
        drawn.append(sample_n(*args))
        return drawn[-1]

    def kept_run_method(model, problems, method, budget, own):
        results = run_method(model, problems, method, budget, own)
        calls.append((method, budget, results))
        return results
    monkeypatch.setattr(search, "sample_n", kept_sample_n)
    monkeypatch.setattr(best_of_n, "sample_n", None)                    # nobody draws for himself
    monkeypatch.setattr(search, "run_method", kept_run_method)
    monkeypatch.setattr(search, "BATCH", 4)
    problems = held_out_problems("countdown", 3, 10)
    methods = ["best-of-n (verifier)", RANKING[0], "single sample", RANKING[1], "mcts (rollouts)", RANKING[2]]
    *_, (table, _) = fill_table(model, problems, flags([60, 120], methods))
    assert len(drawn) == 2 and len(RANKING) == 3
    for samples, limit in zip(drawn, (60, 120)):
        found = [[(sample.completion, sample.tokens, None) for sample in row if sample.finished]
                 for row in samples]
        assert sum(map(len, found)) > 10
        seen = [results for method, budget, results in calls if method.ranks and budget == limit]
        assert len(seen) == 3
        for results in seen:
            assert [result.found for result in results] == found
            assert all(result.tokens == limit for result in results)
    assert drawn[0] != drawn[1]
    *_, (alone, _) = fill_table(model, problems, flags([60, 120], RANKING[2:]))
    assert drawn[2:] == drawn[:2]           # nor does it matter who else is in the table
    rows = [row for row in table if row["method"] == RANKING[2]]
    assert list(map(without_time, rows)) == list(map(without_time, alone))


def scripted(monkeypatch, script):
    """Let best_of_n.draw give what a script {prompt: samples} says is next; returns what it was asked."""
    asked = []

    def draw(model, problems, limits, own, temperature=None):
        asked.append([(problem.prompt, limit) for problem, limit in zip(problems, limits)])
        return [script[problem.prompt].pop(0) for problem in problems]
    monkeypatch.setattr(best_of_n, "draw", draw)
    return asked


def test_until_content_pays_only_for_what_it_draws(monkeypatch):
    """One sample after another for each problem, and none after the first right one."""
    problems = [PROBLEM, parse_problem("98 11>87"), parse_problem("1 2 3>6")]
    one, two, three = [problem.prompt for problem in problems]
    wrong = "9+5=14,3 2 14\n"
    asked = scripted(monkeypatch, {
        one: [Sample(wrong, 0.9, 15, True), Sample(SOLUTION, 0, 20, False), Sample(SOLUTION, 0.1, 31, True)],
        two: [Sample("98-11=87,87\n", 0.2, 13, True)],
        three: [Sample(wrong, 0.9, n, True) for n in (38, 30, 12)]})
    results = until_content(None, problems, 80, settings(), "verifier")
    assert asked == [[(one, 38), (two, 38), (three, 38)], [(one, 38), (three, 38)], [(one, 38), (three, 12)]]
    assert [result.tokens for result in results] == [15 + 20 + 31, 13, 80]
    assert [result.score for result in results] == [1.0, 1.0, 0.0]
    assert [result.completion for result in results] == [SOLUTION, "98-11=87,87\n", wrong]
    assert [len(result.found) for result in results] == [2, 1, 3]


def test_without_a_verifier_the_first_that_ends_counts(monkeypatch):
    """Right or wrong; what was cut off is begun again."""
    problems = [PROBLEM, parse_problem("1 2 3>6")]
    one, two = [problem.prompt for problem in problems]
    wrong = "9+5=14,3 2 14\n"
    asked = scripted(monkeypatch, {
        one: [Sample(SOLUTION, 0, 38, False), Sample(wrong, 0.9, 15, True)],
        two: [Sample(wrong, 0, n, False) for n in (38, 38, 4)]})
    results = until_content(None, problems, 80, settings(), "count")
    assert asked == [[(one, 38), (two, 38)], [(one, 38), (two, 38)], [(two, 4)]]
    assert [(result.tokens, result.finished, result.score) for result in results] == [
        (38 + 15, True, 1.0), (80, False, 0.0)]
    assert results[0].completion == wrong


def test_until_content_counts_what_was_drawn(model, monkeypatch):
    model.ends_soon = True
    drawn, draw = {}, best_of_n.draw

    def kept(model, problems, *args):
        samples = draw(model, problems, *args)
        for problem, sample in zip(problems, samples):
            drawn.setdefault(problem, []).append(sample)
        return samples
    monkeypatch.setattr(best_of_n, "draw", kept)
    monkeypatch.setitem(best_of_n.SCORERS, "verifier", lambda problem, sample: float(sample.tokens % 5 == 0))
    problems = held_out_problems("countdown", 3, 20)
    results = until_content(model, problems, 100, settings(), "verifier")
    n_right = 0
    for problem, result in zip(problems, results):
        samples = drawn[problem]
        right = [sample.finished and sample.tokens % 5 == 0 for sample in samples]
        assert not any(right[:-1]) and (right[-1] or result.tokens == 100)
        assert result.tokens == sum(sample.tokens for sample in samples)
        assert result.completion == samples[-1].completion and result.score == right[-1]
        n_right += right[-1]
    assert 3 < n_right < 20 and max(map(len, drawn.values())) > 3


# ------------------------------------------------------------------------------------------------------------
# Search over steps

def test_every_expansion_is_a_new_step_and_the_likeliest_first(model, monkeypatch):
    monkeypatch.setattr("tree.MIN_PROB", 1e-300)
    store, (own,) = start_searches(model, [PROBLEM], 10_000, "value")
    first = expand(model, store, [own], [own.root])[0]
    ids = list(own.prompt)
    while ids[-1] not in (NEWLINE, EOS) or len(ids) == len(own.prompt):
        ids.append(model(torch.tensor([ids]))[0][0, -1].argmax().item())
    assert first.ids == ids                                             # the first child is the greedy step
    for _ in range(40):
        if own.root.closed:                 # the policy would end at once
            break
        expand(model, store, [own], [own.root])
    children = own.root.children
    assert len(children) > 5 and len({tuple(child.ids) for child in children}) == len(children)
    for child in children:                  # prior and value are the model's, to the last token
        logits, values = model(torch.tensor([child.ids]))
        logprobs = logits.log_softmax(-1)[0, len(own.prompt) - 1:-1]
        line = torch.tensor(child.ids[len(own.prompt):])
        assert child.prior == pytest.approx(logprobs.gather(1, line[:, None]).sum().exp().item(), rel=1e-9)
        value = values[0, -2 if child.finished else -1]                 # <|eos|> itself is not judged
        assert child.value == pytest.approx(value.sigmoid().item(), abs=1e-10)


@pytest.mark.parametrize("ends_soon", [False, True])
def test_priors_and_values_of_a_tree_are_the_models(model, ends_soon):
    """What was read for the parents is not read again: what comes of it is that of a plain forward pass."""
    model.ends_soon = ends_soon
    searches = mcts_searches(model, held_out_problems("countdown", 3, 6), 150, settings(), "value")
    n_deep = n_finished = 0
    for own in searches:
        nodes = list(own.root.children)
        for node in nodes:
            nodes += node.children
            logits, values = model(torch.tensor([node.ids]))
            n = len(node.parent.ids)
            line = torch.tensor(node.ids[n:])
            logprobs = logits.log_softmax(-1)[0, n - 1:-1].gather(1, line[:, None])
            assert node.prior == pytest.approx(logprobs.sum().exp().item(), rel=1e-9)
            assert node.path == pytest.approx(node.parent.path * node.prior)
            value = values[0, -2 if node.finished else -1]
            assert node.value == pytest.approx(value.sigmoid().item(), abs=1e-10)
            n_deep += node.parent is not own.root
            n_finished += node.finished
    assert n_finished > 3 if ends_soon else n_deep > 10


def test_a_line_has_no_more_room_if_it_begins_on_a_branch(model, monkeypatch):
    monkeypatch.setattr("tree.MIN_PROB", 1e-300)
    store, (one,) = start_searches(model, [PROBLEM], 500, "value", 5)
    begun, real = [], tree.generate

    def kept_generate(model, texts, limits, *args, **others):
        n = len(texts[0]) - len(one.root.ids)
        begun.append(n)
        assert limits[0] == max(1, 5 - n)
        return real(model, texts, limits, *args, **others)
    monkeypatch.setattr(tree, "generate", kept_generate)
    while one.root.branches and not one.over:
        expand(model, store, [one], [one.root])
    assert set(begun) >= {0, 1, 2, 3}


def test_what_the_policy_finds_absurd_is_not_tried(model):
    """Else a search whose value head errs goes on for ever below a step that cannot be finished."""
    (store, (own,)), n_children = start_searches(model, [PROBLEM], 10_000, "value"), 0
    while own.root.branches and not own.root.closed:
        assert all(math.exp(-branch.cost) > MIN_PROB for branch in own.root.branches)
        child, = expand(model, store, [own], [own.root])
        n_children += child is not None
    assert 1 < n_children < 100


def test_shared_beginnings_are_paid_for_once(model, monkeypatch):
    monkeypatch.setattr("tree.MIN_PROB", 1e-300)
    store, (own,) = start_searches(model, [PROBLEM], 10_000, "value")
    for _ in range(10):
        expand(model, store, [own], [own.root])
    n_prompt, children = len(own.prompt), own.root.children
    written = {tuple(child.ids[:n]) for child in children for n in range(n_prompt + 1, len(child.ids) + 1)}
    assert len(written) <= own.budget.spent < sum(len(child.ids) - n_prompt for child in children)
    assert own.budget.read == n_prompt      # all but its last token, and that one when the root was read


@pytest.mark.parametrize("scorer", ["value", "verifier", "rollouts"])
def test_a_tree_pays_for_all_that_is_generated(model, monkeypatch, scorer):
    """Lines, rollouts, and the first token of a branch, which was chosen where another line was written."""
    model.ends_soon = scorer == "rollouts"
    generated, begun, generate, write_lines = [], [], tree.generate, tree.write_lines

    def kept_generate(*args, **others):
        samples = generate(*args, **others)
        generated.append(int(samples.mask.sum()))
        return samples

    def kept_write_lines(model, store, searches, nodes, branches):
        begun.append(sum(bool(branch.begun) for branch in branches))
        return write_lines(model, store, searches, nodes, branches)
    monkeypatch.setattr(tree, "generate", kept_generate)
    monkeypatch.setattr(tree, "write_lines", kept_write_lines)
    results = mcts(model, held_out_problems("countdown", 3, 6), 150, settings(), scorer)
    assert sum(result.tokens for result in results) == sum(generated) + sum(begun)
    assert sum(begun) > 5 and (len(generated) > len(begun)) == (scorer == "rollouts")


def test_a_rollout_is_worth_what_the_verifier_says(model, monkeypatch):
    """Of the sample from a step to its end; one that is right is a solution, and ends the search."""
    model.ends_soon = True
    monkeypatch.setattr(tree, "verify", lambda problem, text: Namespace(correct=len(text) % 7 == 3))
    searches = mcts_searches(model, held_out_problems("countdown", 3, 30), 300, settings(), "rollouts")
    values = []
    for own in searches:
        rollouts = [node for node in own.finished if node not in node.parent.children]
        assert all(len(own.completion(node)) % 7 == 3 and node.value == 1.0 for node in rollouts)
        nodes = list(own.root.children)
        for node in nodes:
            nodes += node.children
            if not node.finished:
                assert node.value == float(any(end.parent is node for end in rollouts))
                values.append(node.value)
        assert len(rollouts) <= 1 and own.result().score == any(node.value == 1 for node in own.finished)
    assert {0.0, 1.0} == set(values) and 5 < sum(values) < 30


def test_beams_are_those_of_the_best_score(model, monkeypatch):
    """Of four candidates the second and the last go on, then of two for each of them the second."""
    expanded = []

    def expand(model, store, searches, nodes):
        for own, node in zip(searches, nodes):
            n = len(node.children)
            expanded.append(node.ids[len(own.prompt):])
            node.children.append(Node(node.ids + [n], value=(0.2, 0.9, 0.4, 0.6)[n], parent=node))
            own.budget.spend(5)
    monkeypatch.setattr(tree, "expand", expand)
    beam(model, [PROBLEM], 60, settings(), "value", width=2, n_candidates=4)
    assert expanded == [[]] * 4 + [[1], [3]] * 2 + [[1, 1], [3, 1]] * 2


@pytest.mark.puct
def test_puct_by_hand():
    def branch(prob):
        return Branch(-math.log(prob), [7], [])
    root = Node([], value=0.5, visits=9, branches=[])
    a = Node([1], prior=0.6, value=0.9, parent=root, visits=6, total=3.0)       # 0.5 + 0.6 * 3 / 7 = 0.757
    b = Node([2], prior=0.3, value=0.5, parent=root, visits=2, total=1.2)       # 0.6 + 0.3 * 3 / 3 = 0.900
    # Not visited, so its value: 0.65 + 0.1 * 3 / 1 = 0.950
    c = Node([3], prior=0.1, value=0.65, parent=root)
    root.children = [a, b, c]
    assert select(root, 1.0) is c
    c.closed = True
    assert select(root, 1.0) is b
    assert select(root, 0.0) is b                                               # Q alone
    assert select(root, 4.0) is b                                               # 1.8 against 1.529
    root.branches = [branch(0.4), branch(0.15)]                                 # a new child: 0 + 0.4 * 3 / 1
    assert select(root, 1.0) is root
    b.closed = True
    root.branches = [branch(0.2)]                                               # 0.6 against a's 0.757
    assert select(root, 1.0) is a


def test_backup_adds_on_the_way_up_and_closes_what_is_exhausted():
    root = Node([], branches=[])
    child = Node([1], parent=root, branches=[])
    leaf = Node([1, 2], parent=child, branches=[], finished=True, closed=True)
    root.children, child.children = [child], [leaf]
    backup(leaf, 0.25)
    assert [(node.visits, node.total) for node in (leaf, child, root)] == [(1, 0.25)] * 3
    assert child.closed and root.closed
    open_root = Node([], branches=[Branch(0.0, [], [])])
    other = Node([1], parent=open_root, branches=[], closed=True)
    open_root.children = [other]
    backup(other, 1.0)
    assert not open_root.closed
    half_open = Node([], branches=[])
    half_open.children = [Node([1], parent=half_open, closed=True), Node([2], parent=half_open)]
    backup(half_open.children[0], 1.0)
    assert not half_open.closed


@pytest.mark.puct
def test_mcts_visits_add_up(model):
    searches = mcts_searches(model, held_out_problems("countdown", 3, 4), 120, settings(), "value")

    def check(node):
        assert sum(child.visits for child in node.children) <= node.visits
        assert node.total <= node.visits + 1e-9
        for child in node.children:
            assert child.parent is node
            check(child)
    for own in searches:
        assert own.root.visits > 2
        check(own.root)


@pytest.mark.parametrize("name", [
    "mcts (verifier)", "mcts (rollouts)", "depth-1 (value)", "beam (value)", "best-of-n (value)", "greedy",
    "best-of-n (verifier)"])
def test_traces_are_all_that_was_found(model, tmp_path, name):
    model.ends_soon = True
    problems = held_out_problems("countdown", 3, 12)
    results = run(model, problems, name, 200)
    row = {"method": name, "flops_per_problem": 10.0, "problems": 12}
    write_traces(tmp_path / "t.jsonl", traces_of(problems, results, row))
    traces = [json.loads(line) for line in open(tmp_path / "t.jsonl")]
    assert traces == read_traces(tmp_path / "t.jsonl")
    for problem, result in zip(problems, results):
        own = [trace for trace in traces if trace["prompt"] == problem.prompt]
        completions = [trace["completion"] for trace in own]
        assert not any("<|" in completion for completion in completions)        # no way to be written
        if result.finished and result.completion and "<|" not in result.completion:
            assert result.completion in completions
        for trace in own:
            assert trace["correct"] == verify(problem, trace["completion"]).correct
            assert trace["method"] == name and trace["tokens"] == len(encode(trace["completion"])) + 1
            assert ("values" in trace) == (name[:4] in ("mcts", "beam", "dept"))
            assert len(trace.get("values", [])) in (0, trace["completion"].count("\n"))
            assert all(value is None or 0 <= value <= 1 for value in trace.get("values", []))
    assert len(traces) > 3 and sum(trace["flops"] for trace in traces) == pytest.approx(120.0)


# ------------------------------------------------------------------------------------------------------------
# Without a model

def all_lines(state):
    return [line for first, after in COUNTDOWN.legal_steps(state) for line in [first, *all_lines(after)]]


def lines_above_the_last(state):
    return [line for line in all_lines(state) if line.count(" ")]


@pytest.mark.parametrize("name, lines", [("enumeration", all_lines), ("heuristic", all_lines),
                                         ("one step ahead", lines_above_the_last)])
def test_depth_first_writes_the_whole_tree_once_and_finds_everything(name, lines):
    problems = held_out_problems("countdown", 3, 50)
    results = run(None, problems, name, 10_000)
    assert all(verify(problem, result.completion).correct for problem, result in zip(problems, results))
    assert all(result.score == 1.0 for result in results)
    unsolvable = parse_problem("7 8 9>998")
    result, = run(None, [unsolvable], name, 10_000)
    assert result.completion == "" and result.score == 0.0
    assert result.tokens == sum(len(encode(line)) for line in lines((7, 8, 9)))


def test_random_steps_are_legal_and_honest():
    problems = held_out_problems("countdown", 2, 40)
    results = run(None, problems, "random steps", 400)
    solved = [verify(problem, result.completion).correct for problem, result in zip(problems, results)]
    assert solved == [result.score == 1.0 for result in results] and sum(solved) > 30


@pytest.mark.parametrize("prompt, state, expected", [
    ("9 3 5 2>24", (9, 3, 5, 2), 1 + 0 + 1 + 0),        # the factors are 2, 3, 4, 6, 8, 12, 24
    ("9 3 5 2>24", (13, 100), 1 + 76),
    ("9 3 5 2>24", (24,), 0),
    ("9 3 5 2>24", (0, 1), 2 + 1),                      # 1 divides everything, and says nothing
    ("9 3>12", (10, 7), 2 + 1),
    ("5 2>7", (5, 2), 2 + 5),                           # of a prime, itself
    ("5 4>1", (5, 4), 4 + 3),
    ("5 5>0", (5, 3), 5 + 3),
    ("49 2>98", (30, 8), 16 + 1),                       # 2, 7, 14, 49, 98
])
def test_heuristic_by_hand(prompt, state, expected):
    assert COUNTDOWN.heuristic(parse_problem(prompt), state) == expected


def test_the_heuristic_does_not_count_up_to_the_target():
    """A problem of the user's may have a target near a billion, and a search asks thousands of times."""
    problem, started = parse_problem("95 7>9999991"), time.process_time()
    assert COUNTDOWN.heuristic(problem, (95, 7)) == 2 * 9999991 - 95 - 7        # a prime
    assert time.process_time() - started < 0.1
    assert COUNTDOWN.heuristic(parse_problem("95 7>9998244"), (3163, 3161)) == 1 + 1    # 3162 squared


@pytest.mark.parametrize("ascending", [True, False])
def test_children_are_visited_in_ascending_order_of_the_heuristic(monkeypatch, ascending):
    problem, visited = parse_problem("7 18 9 4>9998"), []               # not solvable, so all are visited
    monkeypatch.setattr(Countdown, "is_solved", lambda task, problem, state: visited.append(state) or False)
    depth_first(None, [problem], 10 ** 6, settings(), *[by_heuristic] * ascending)

    def expected(state):
        """The states below, each followed by those below it."""
        after = [left for _, left in COUNTDOWN.legal_steps(state)]
        if ascending:
            after.sort(key=lambda left: COUNTDOWN.heuristic(problem, left))
        return [left for child in after for left in [child, *expected(child)]]
    assert visited == expected(problem.numbers) and len(visited) > 500
    first = [COUNTDOWN.heuristic(problem, state) for state in visited if len(state) == 3]
    assert (first == sorted(first)) == ascending


def test_one_step_ahead_is_a_random_order_of_its_own_for_each_seed():
    problems = held_out_problems("countdown", 4, 20)
    drawn = [depth_first(None, problems, 10_000, settings(seed), looking_ahead) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2]
    assert all(count_correct(problems, results) == 20 for results in drawn)


@pytest.mark.parametrize("level", [2, 3, 4])
def test_the_heuristic_solves_whatever_enumeration_solves(level):
    """With a large budget; half of the problems have another's target, and so, most likely, no solution."""
    problems = held_out_problems("countdown", level, 20)
    for i in range(10):
        problems.append(parse_problem(f"{problems[i].prompt.split('>')[0]}>{problems[i + 1].target}"))
    plain, guided = (run(None, problems, name, 10 ** 6) for name in ("enumeration", "heuristic"))
    solved = [result.score for result in guided]
    assert solved == [result.score for result in plain] and 20 <= sum(solved) < 30
    assert count_correct(problems, guided) == sum(solved)


@pytest.mark.parametrize("limit, n_solved, n_tokens", [(150, 884, 62.1), (300, 946, 74.7)])
def test_what_the_heuristic_solves(limit, n_solved, n_tokens):
    """The figures of the table."""
    problems = held_out_problems("countdown", 3, 1000)
    results = run(None, problems, "heuristic", limit)
    assert count_correct(problems, results) == n_solved
    assert round(sum(result.tokens for result in results) / 1000, 1) == n_tokens


# ------------------------------------------------------------------------------------------------------------
# The table

@pytest.mark.parametrize("name", ["single sample (best T)", "best-of-n (verifier, best T)"])
def test_the_best_temperature_is_chosen_on_validation_problems(model, monkeypatch, name):
    asked, seen = [], []

    def kept_held_out(task, level, n, split="test"):
        asked.append((task, level, n, split))
        return held_out_problems(task, level, n, split)

    def kept_run_method(model, problems, method, budget, own):
        seen.append(({split_of(problem) for problem in problems}, len(problems), own.temperature))
        return run_method(model, problems, method, budget, own)
    problems = held_out_problems("countdown", 3, 8)
    monkeypatch.setattr(search, "held_out_problems", kept_held_out)
    monkeypatch.setattr(search, "run_method", kept_run_method)
    monkeypatch.setattr(search, "N_VALIDATION", 5)
    row, _ = measure(model, problems, name, 60, settings(), flags([60], [name]))
    assert asked == [("countdown", 3, 5, "validation")]
    assert seen[:-1] == [({"validation"}, 5, temperature) for temperature in search.TEMPERATURES]
    assert seen[-1] == ({"test"}, 8, row["temperature"])
    assert METHODS[name].best_temperature and len(search.TEMPERATURES) > 3


def test_the_best_temperature_is_the_one_that_solves_most(model, monkeypatch):
    """With a method that solves the more problems the closer it is to 0.8, and none of the tests'."""
    def fake(model, problems, budget, own):
        good = split_of(problems[0]) == "validation"
        n_solved = round(100 - 100 * abs(own.temperature - 0.8)) if good else 0
        results = run(None, problems, "enumeration", 10 ** 4)
        for result in results[n_solved:]:
            result.completion = ""
        return results
    monkeypatch.setitem(METHODS, "fake", Method(fake, best_temperature=True, needs_model=False))
    problems = held_out_problems("countdown", 3, 4)
    row, _ = measure(model, problems, "fake", 60, settings(), flags([60], ["fake"]))
    assert row["temperature"] == 0.85 and row["accuracy"] == 0.0
    monkeypatch.setitem(METHODS, "fake", Method(fake, needs_model=False))
    row, _ = measure(model, problems, "fake", 60, settings(), flags([60], ["fake"]))
    assert row["temperature"] == 1.0


def test_the_table_has_a_row_for_each_method_and_budget(model):
    problems = held_out_problems("countdown", 3, 6)
    methods = ["greedy", "single sample", "majority", "mcts (value)", "heuristic"]
    assert 30 < MAX_TOKENS < 60             # so 60 is room enough for a single sample
    *_, (table, _) = fill_table(model, problems, flags([30, 60, 90], methods))
    assert [(row["method"], row["budget"]) for row in table] == [
        *[(name, 30) for name in methods], *[(name, 60) for name in methods],
        *[(name, 90) for name in methods[2:]]]
    for row in table:
        assert row["ci_low"] <= row["accuracy"] <= row["ci_high"] and row["problems"] == 6
        assert 0 < row["tokens_per_problem"] <= row["budget"] and row["oracle"] == 0
        assert (row["flops_per_problem"] == 0) == (row["method"] == "heuristic")


def test_a_long_stream_has_long_contexts(monkeypatch, model):
    """Two streams of 10 and 90 tokens: their tokens see 41 others and the prompt, on the mean, not 25."""
    results = [Result("", 0.0, n) for n in (10, 90)]
    monkeypatch.setattr(search, "run_method", lambda *args: results)
    problems = held_out_problems("countdown", 3, 1) * 2
    args = flags([100], ["stream"])
    args.streams = True
    row, _ = measure(model, problems, "stream", 100, settings(), args)
    context = (len(encode(problems[0].prompt)) + (10 ** 2 + 90 ** 2) / 100) / 2
    assert row["flops_per_problem"] == pytest.approx(50 * flops_per_token(model.config, context))


def test_the_model_that_was_trained_last_is_searched_with(model, tmp_path):
    args = search.make_parser().parse_args(["--out", str(tmp_path)])
    run = {"task": "countdown", "level": 3, "max_tokens": 60, "streams": False}
    for last in ("rl.pt", "sft.pt"):
        for name in ("sft.pt", "rl.pt"):
            save_checkpoint(tmp_path / name, GPT(model.config), flags=run)
            os.utime(tmp_path / name, (100, 200 if name == last else 100))
        args.init = None
        search.load_model(args)
        assert args.init == str(tmp_path / last)


def test_greedy_writes_the_likeliest(model):
    model.ends_soon = True
    problems = held_out_problems("countdown", 3, 6)
    row, results = measure(model, problems, "greedy", 60, settings(), flags([60], ["greedy"]))
    assert row["temperature"] == 0.0
    for problem, result in zip(problems, results):
        ids = encode(problem.prompt)
        new = encode_any(result.completion) + [EOS] * result.finished
        logits = model(torch.tensor([ids + new]))[0][0, len(ids) - 1:-1]
        assert logits.argmax(-1).tolist() == new and result.tokens == len(new)


@pytest.mark.parametrize("name, oracle", [("best-of-n (verifier)", 1), ("best-of-n (value)", 0)])
def test_an_oracle_is_marked(model, name, oracle):
    """In expression nobody but the verifier knows the answer."""
    args = flags([30], [name])
    args.task, args.level = "expression", 2
    row, _ = measure(model, held_out_problems("expression", 2, 3), name, 30, settings(), args)
    assert row["oracle"] == oracle
