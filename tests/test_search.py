"""
Search: the budget is a ceiling that counts everything, no step is paid for twice, PUCT and backup do the arithmetic of the
paper, and the tables' baselines and intervals are what they claim.
"""
import json

import numpy as np
import pytest
import torch

from model import GPT, GPTConfig
from search import (METHODS, MIN_LOGPROB, Node, Result, backup, expand, judge_completions, mcts_searches, rank, revise, sample_n, save_traces, select,
                    sigmoid, start)
from verify import EOS, NEWLINE, encode, legal_steps, parse_problem, test_problems, verify


@pytest.fixture
def model():
    """Random, but with a taste for newlines and <|eos|>, so that steps end."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    head = model.forward

    def forward(idx, cache=None):
        logits, values = head(idx, cache)
        bias = torch.zeros(64)
        bias[NEWLINE], bias[EOS] = 3.0, 0.5
        return logits + bias, values
    model.forward = forward
    return model


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [5, 33, 100])
def test_no_method_exceeds_its_budget(model, name, budget):
    problems = test_problems("countdown", 3, 12)
    method, scorer = METHODS[name]
    results = method(model, problems, budget, scorer=scorer, generator=torch.Generator().manual_seed(0))
    assert len(results) == len(problems)
    for result in results:
        assert 0 < result.tokens <= budget and 0 <= result.score <= 1 and isinstance(result.completion, str)
    if name in ("best-of-n (value)", "majority"):
        assert all(result.tokens == budget for result in results)       # and samples use all of it


def test_samples_count_cut_off_ones_and_their_values_are_the_models(model):
    problem = parse_problem("9 3 5 2>24")
    found, = sample_n(model, [problem], 90, generator=torch.Generator().manual_seed(0))
    assert sum(result.tokens for result in found) == 90
    for result in found:
        if result.finished:
            idx = encode(problem.prompt) + encode_any(result.completion)
            value = model(torch.tensor([idx]))[1][0, -1].item()
            assert result.score == pytest.approx(sigmoid(value), abs=1e-5)
            assert result.tokens == len(encode_any(result.completion)) + 1
        else:
            assert result.score == 0.0


def encode_any(text):
    from verify import ENCODING
    return ENCODING.encode(text, allowed_special="all")


def test_every_expansion_is_a_new_step_and_the_likeliest_first(model, monkeypatch):
    monkeypatch.setattr("search.MIN_LOGPROB", -np.inf)
    store, (search,) = start(model, [parse_problem("9 3 5 2>24")], 10_000, "value")
    first = expand(model, store, [search], [search.root])[0]
    ids = list(search.prompt)
    while ids[-1] not in (NEWLINE, EOS) or len(ids) == len(search.prompt):
        ids.append(model(torch.tensor([ids]))[0][0, -1].argmax().item())
    assert first is None or first.ids == ids                            # the first child is the greedy step
    for _ in range(40):
        if search.root.closed:              # the policy would end at once
            break
        expand(model, store, [search], [search.root])
    children = search.root.children
    assert len(children) > 5 and len({tuple(child.ids) for child in children}) == len(children)
    for child in children:                                              # prior and value are the model's, to the last token
        logits, values = model(torch.tensor([child.ids]))
        logprobs = logits.log_softmax(-1)[0, len(search.prompt) - 1:-1]
        line = torch.tensor(child.ids[len(search.prompt):])
        assert child.prior == pytest.approx(logprobs.gather(1, line[:, None]).sum().exp().item(), rel=1e-3)
        if not child.finished:
            assert child.value == pytest.approx(sigmoid(values[0, -1].item()), abs=1e-5)


def test_what_the_policy_finds_absurd_is_not_tried(model):
    """Else a search whose value head errs goes on for ever below a step that cannot be finished, at a prior of 0.00."""
    (store, (search,)), n_children = start(model, [parse_problem("9 3 5 2>24")], 10_000, "value"), 0
    while search.root.branches and not search.root.closed:
        assert all(logprob > MIN_LOGPROB for logprob, begin, slots in search.root.branches)
        child, = expand(model, store, [search], [search.root])
        n_children += child is not None
    assert 1 < n_children < 100


def test_shared_beginnings_are_paid_for_once(model, monkeypatch):
    monkeypatch.setattr("search.MIN_LOGPROB", -np.inf)
    store, (search,) = start(model, [parse_problem("9 3 5 2>24")], 10_000, "value")
    for _ in range(10):
        expand(model, store, [search], [search.root])
    written = {tuple(child.ids[:n]) for child in search.root.children for n in range(len(search.prompt) + 1, len(child.ids) + 1)}
    assert search.spent >= len(written) and search.spent < sum(len(child.ids) - len(search.prompt) for child in search.root.children)


def test_puct_by_hand():
    root = Node([], value=0.5, visits=9, branches=[])
    a = Node([1], prior=0.6, value=0.9, parent=root, visits=6, total=3.0)       # 0.5 + 0.6 * 3 / 7 = 0.757
    b = Node([2], prior=0.3, value=0.5, parent=root, visits=2, total=1.2)       # 0.6 + 0.3 * 3 / 3 = 0.900
    c = Node([3], prior=0.1, value=0.65, parent=root)                           # 0.65 + 0.1 * 3 / 1 = 0.950: not visited, so its value
    root.children = [a, b, c]
    assert select(root, 1.0) is c
    c.closed = True
    assert select(root, 1.0) is b
    assert select(root, 0.0) is b                                               # Q alone
    assert select(root, 4.0) is b                                               # 1.0 + ... = 1.8 against 0.5 + 1.03
    root.branches = [(np.log(0.4), [7], []), (np.log(0.15), [8], [])]                   # a new child: 0 + 0.4 * 3 / 1 = 1.2
    assert select(root, 1.0) is root
    b.closed = True
    root.branches = [(np.log(0.2), [7], [])]                                        # 0.6 against a's 0.757
    assert select(root, 1.0) is a


def test_backup_adds_on_the_way_up_and_closes_what_is_exhausted():
    root = Node([], branches=[])
    child = Node([1], parent=root, branches=[])
    leaf = Node([1, 2], parent=child, branches=[], finished=True, closed=True)
    root.children, child.children = [child], [leaf]
    backup(leaf, 0.25)
    assert [(node.visits, node.total) for node in (leaf, child, root)] == [(1, 0.25)] * 3
    assert child.closed and root.closed
    open_root = Node([], branches=[(0.0, [], [])])
    other = Node([1], parent=open_root, branches=[], closed=True)
    open_root.children = [other]
    backup(other, 1.0)
    assert not open_root.closed


def test_mcts_visits_add_up(model):
    problems = test_problems("countdown", 3, 4)
    searches = mcts_searches(model, problems, 120, "value", None, 1.0)

    def check(node):
        assert sum(child.visits for child in node.children) <= node.visits
        assert node.total <= node.visits + 1e-9
        for child in node.children:
            assert child.parent is node
            check(child)
    for search in searches:
        assert search.root.visits > 2
        check(search.root)


@pytest.mark.parametrize("name", ["mcts (verifier)", "mcts (rollouts)", "depth-1 (value)", "beam (value)", "best-of-n (value)", "greedy"])
def test_traces_are_all_that_was_found(model, tmp_path, monkeypatch, name):
    forward = model.forward

    def ends_soon(idx, cache=None):
        logits, values = forward(idx, cache)
        logits[..., EOS] += 4.0 * (idx == NEWLINE)
        logits[..., 29:] -= 2.0             # fewer tokens that mean nothing
        return logits, values
    monkeypatch.setattr(model, "forward", ends_soon)
    problems = test_problems("countdown", 3, 12)
    method, scorer = METHODS[name]
    results = method(model, problems, 200, scorer=scorer, generator=torch.Generator().manual_seed(0))
    save_traces(tmp_path / "t.jsonl", problems, results, {"method": name, "flops_per_problem": 10.0, "problems": 12})
    traces = [json.loads(line) for line in open(tmp_path / "t.jsonl")]
    by_prompt = {problem.prompt: [trace for trace in traces if trace["prompt"] == problem.prompt] for problem in problems}
    for problem, result in zip(problems, results):
        completions = [trace["completion"] for trace in by_prompt[problem.prompt]]
        assert not any("<|" in completion for completion in completions)       # a special token has no way to be written
        if result.finished and result.completion and "<|" not in result.completion:
            assert result.completion in completions
        for trace in by_prompt[problem.prompt]:
            assert trace["correct"] == verify(problem, trace["completion"]).correct and trace["method"] == name
            assert trace["tokens"] == len(encode_any(trace["completion"])) + 1
            assert ("values" in trace) == (name[:4] in ("mcts", "beam", "dept"))
            if "values" in trace:
                assert len(trace["values"]) == trace["completion"].count("\n") and all(value is None or 0 <= value <= 1 for value in trace["values"])
    assert len(traces) > 3 and sum(trace["flops"] for trace in traces) == pytest.approx(120.0)


def test_enumeration_writes_the_whole_tree_once_and_finds_everything():
    problems = test_problems("countdown", 3, 50)
    results = METHODS["enumeration"][0](None, problems, 10_000)
    assert all(verify(problem, result.completion).correct for problem, result in zip(problems, results))
    numbers = (7, 8, 9)

    def lines(left):
        return [line for line, rest in legal_steps(left) for line in [line, *lines(rest)]]
    unsolvable = parse_problem("7 8 9>998")
    result, = METHODS["enumeration"][0](None, [unsolvable], 10_000)
    assert result.completion == "" and result.tokens == sum(len(encode(line)) for line in lines(numbers))


def test_random_steps_are_legal_and_honest():
    problems = test_problems("countdown", 2, 40)
    results = METHODS["random steps"][0](None, problems, 400, generator=torch.Generator())
    solved = [verify(problem, result.completion).correct for problem, result in zip(problems, results)]
    assert solved == [result.score == 1.0 for result in results] and sum(solved) > 30


SOLUTION = "9-5=4,3 2 4\n3*2=6,4 6\n4*6=24,24\n"


def test_the_judge_reads_what_it_says_it_reads(model):
    """One by one, without padding: the value at the end, the product of values after the lines, and yes against no after "?"."""
    problem = parse_problem("9 3 5 2>24")
    pairs = [(problem, SOLUTION), (problem, SOLUTION + "?no\n"), (problem, "9+5=14,3 2 14\n"), (parse_problem("98 11>87"), "98-11=87,87\n")]
    scores = judge_completions(model, pairs, batch_size=3)
    assert scores[0] == pytest.approx(scores[1])                        # a verdict that is there already is not read
    for (problem, completion), found in zip(pairs, scores):
        completion = completion.removesuffix("?no\n")
        logits, values = model(torch.tensor([encode(problem.prompt + completion + "?")]))
        ends = [len(encode(problem.prompt + completion[:i + 1])) - 1 for i, character in enumerate(completion) if character == "\n"]
        assert found["value"] == pytest.approx(values[0, -2].sigmoid().item(), abs=1e-5)
        assert found["lines"] == pytest.approx(values[0, ends].sigmoid().prod().item(), abs=1e-5)
        yes, no = logits[0, -1, encode("yesno")].softmax(-1).tolist()
        assert found["verdict"] == pytest.approx(yes, abs=1e-5)


def test_ranking_by_hand(monkeypatch, model):
    """Three samples of one solution, two of a better rated one, one that never ended: votes, weighted votes, best."""
    problem, a, b = parse_problem("98 11>87"), "98-11=87,87\n", "98+11=109,109\n"
    found = [[Result(a, 0, 5)] * 3 + [Result(b, 0, 6)] * 2 + [Result("junk", 0, 7, finished=False)]]
    scores = {(problem, a): {"value": 0.5, "verdict": 0.3}, (problem, b): {"value": 0.6, "verdict": 0.9}}
    monkeypatch.setattr("search.samples_to_rank", lambda *args: (found, torch.Generator().get_state()))
    monkeypatch.setattr("search.judged_samples", lambda *args: scores)

    def choose(**how):
        result, = rank(model, [problem], 40, **how)
        assert result.tokens == 3 * 5 + 2 * 6 + 7
        return result.completion
    assert choose(scorer="count", vote=True) == a
    assert choose(scorer="value", vote=True) == a and choose(scorer="value") == b   # 1.5 against 1.2; 0.5 against 0.6
    assert choose(scorer="verdict", vote=True) == b and choose(scorer="verdict") == b


class Speaker:
    """A stand-in for generate: says for each stream what is next in its script, and keeps what it was asked."""

    def __init__(self, *said):
        self.said, self.asked = list(said), []

    def __call__(self, model, prompts, limits, temperature, stops, generator):
        from sample import Samples
        from verify import decode
        self.asked += [(decode(prompt), limit) for prompt, limit in zip(prompts, limits)]
        rows = [encode(self.said.pop(0)) + [EOS] for _ in prompts]
        rows = [row[:limit] for row, limit in zip(rows, limits)]
        T = max(map(len, rows))
        return Samples(torch.tensor([row + [0] * (T - len(row)) for row in rows]),
                       torch.tensor([[t < len(row) for t in range(T)] for row in rows]), None, None, None)


@pytest.mark.parametrize("scorer, said, final", [
    ("verdict", ["98+11=109,109\n?no\n", "98-11=87,87\n?yes\n"], "98+11=109,109\n?no\nwait\n98-11=87,87\n?yes\n"),
    ("verdict", ["98+11=109,109\n", "98-11=87,87\n?yes\n"], "98+11=109,109\nwait\n98-11=87,87\n?yes\n"),    # no verdict: made to go on
    ("verdict", ["98-11=87,87\n?yes\n"], "98-11=87,87\n?yes\n"),
    ("verdict", ["98+11=109,109\n?yes\n"], "98+11=109,109\n?yes\n"),     # wrong, and content
    ("verifier", ["98+11=109,109\n?yes\n", "98-11=87,87\n?no\n"], "98+11=109,109\nwait\n98-11=87,87\n?no\n"),
])
def test_revision_goes_on_until_it_is_content(monkeypatch, model, scorer, said, final):
    speaker = Speaker(*said)
    monkeypatch.setattr("search.generate", speaker)
    problem = parse_problem("98 11>87")
    result, = revise(model, [problem], 100, scorer)
    assert result.completion == final and result.finished and speaker.said == []
    assert result.tokens == len(encode(final)) + sum(text.endswith("?yes\n") * 3 for text in said[:-1]) + len(said)     # each <|eos|>, and a ?yes taken away
    assert verify(problem, final).correct == ("98-11" in final)


def test_a_revision_that_meets_the_ceiling_counts_what_ended_before(monkeypatch, model):
    first = "98+11=109,109\n?no\n"
    monkeypatch.setattr("search.generate", Speaker(first, "98-11=87,87\n?yes\n"))
    result, = revise(model, [parse_problem("98 11>87")], len(encode(first)) + 12, "verdict")
    assert result.completion == first and result.tokens == len(encode(first)) + 12


def test_batches_of_problems_are_sampled_with_noise_of_their_own(model):
    """rank looks samples up by the generator's state: it must move on all the same."""
    problem, generator = parse_problem("9 3 5 2>24"), torch.Generator().manual_seed(0)
    first, again = (rank(model, [problem], 200, generator=generator)[0].found for _ in range(2))
    repeated = rank(model, [problem], 200, generator=torch.Generator().manual_seed(0))[0].found
    assert first == repeated and first != again
