"""
Spend compute at test time: the same model, more tokens, higher accuracy.

    python search.py                                # all methods over a few budgets -> out/search.csv (40 s on two CPU cores)
    python search.py --ask "25 8 7>24"              # one problem of yours, with the search tree as text
    python search.py --problems FILE                # your own problems, a prompt a line
    python search.py --save FILE --methods "mcts (verifier)" --budgets 150      # traces to learn from (train_sft.py --data)

Four generators, and ways to choose among what they found:

    sample_n   independent samples: greedy, a single sample, majority vote, best-of-N
    revise     one stream that goes on: attempt, verdict, `wait`, another attempt
    beam       beam search over steps (a step is a line): keep the best few partial solutions at each depth
    mcts       Monte-Carlo tree search over steps: PUCT with the policy as prior, the value head at the leaves

A budget is a ceiling on the tokens generated for a problem, thrown-away ones included. A search sees the prompt only. Who
chooses is said in brackets:

    value      the value head: of samples, at their end
    lines      the value head again: the product of what it says after each line, as a process reward model
    verdict    the probability that the model writes ?yes behind a solution
    verifier   the exact verifier, asked about finished completions only
    rollouts   the verifier, and in place of the value head one sample from each step to its end

vote is the sum of such scores over the samples that agree; majority vote, where each counts 1. To rank samples, `--judge` may
name another checkpoint; all rankings of a budget are of the same samples. In countdown the verifier is honest, because to check a
solution takes no hidden answer; in expression it is not, and is marked so.

Deviations from AlphaZero (Silver et al. 2017): a single player, so no sign flips; no noise at the root; a node has too
many possible steps to list, so an expansion adds one child, the likeliest that is still missing, as long as its beginning has
a probability of 1 % or more; to end is considered where the policy finds it likeliest only.
"""
import json
import math
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from model import (Parser, between, choose_device, flops_per_token, load_checkpoint, open_folder, positive, run_script, save_table,
                   write_whole)
from sample import Store, for_inference, generate, pad, wilson
from verify import (EOS, NEWLINE, choose_task, decode, encode, legal_steps, make_problems, max_tokens, parse_problem, random_lines,
                    standing_lines, state_value, test_problems, verify, without_verdict)

STOPS = (NEWLINE, EOS)                      # where a step ends
MIN_LOGPROB = math.log(0.01)                # of a step's beginning that is worth a try


@dataclass
class Result:
    completion: str
    score: float                            # of whoever chose it, in [0, 1]
    tokens: int                             # all that were generated for it, those thrown away too
    read: int = 0                           # tokens that were read beside: the prompt's, and the last of a step gone on from
    finished: bool = True                   # whether the completion ended in <|eos|>
    found: list = field(default_factory=list)           # all that ended: (completion, tokens, label of each line or None)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ------------------------------------------------------------------------------------------------------------------
# Independent samples

def sample_n(model, problems, budget, temperature=1.0, n=None, generator=None, stop_when_correct=False, attempts=1):
    """
    Independent samples for each problem until its budget is spent, or n of them: for each problem a list of Result, the
    score being the value head's at the end. A sample that meets the ceiling is cut off there, and counts.
    """
    prompts = [encode(problem.prompt) for problem in problems]
    found, spent = [[] for _ in problems], [0] * len(problems)
    room = max_tokens(problems[0].task, problems[0].level, attempts)
    while True:
        rows, limits = [], []
        for i in range(len(problems)):      # as many as surely fit; when none does, one that may be cut off
            left = budget - spent[i]
            wanted = min(max(left // room, min(left, 1)), 64) if n is None else n - len(found[i])
            if stop_when_correct and any(result.score == 1.0 for result in found[i]):
                wanted = 0
            rows += [i] * wanted
            limits += [min(room, left)] * wanted
        if not rows:
            return found
        samples = generate(model, [prompts[i] for i in rows], limits, temperature, (EOS,), generator)
        lengths = samples.mask.sum(1)
        at_end = samples.values.gather(1, lengths[:, None] - 1).squeeze(1).tolist()     # before <|eos|>: of all of it
        for i, ids, cut_off, length, value in zip(rows, samples.finished((EOS,)), samples.completions(), lengths.tolist(), at_end):
            completion = decode(cut_off if ids is None else ids)
            score = sigmoid(value) if ids is not None else 0.0
            if stop_when_correct:
                score = float(ids is not None and verify(problems[i], completion).correct)
            found[i].append(Result(completion, score, length, len(prompts[i]), ids is not None))
            spent[i] += length


def answer_of(problem, completion):
    """What is voted on: in expression the answer; in countdown, where there is none, the solution itself."""
    completion = without_verdict(completion)
    return completion.split("\n")[-2] if problem.task == "expression" and "\n" in completion else completion


def pick(results, score, key=None):
    """One Result for all of a problem's samples: the one with the best score, or key, and the tokens of all."""
    if not results:
        return Result("", 0.0, 0, 0, False)
    best = max(results, key=key or score)
    return Result(best.completion, score(best), sum(r.tokens for r in results), sum(r.read for r in results), best.finished,
                  [(r.completion, r.tokens, None) for r in results if r.finished])


def greedy(model, problems, budget, attempts=1, **others):
    return [pick(found, lambda r: r.score) for found in sample_n(model, problems, budget, 0.0, n=1, attempts=attempts)]


def single(model, problems, budget, generator=None, attempts=1, **others):
    return [pick(found, lambda r: r.score) for found in sample_n(model, problems, budget, n=1, generator=generator, attempts=attempts)]


@torch.no_grad()
def judge_completions(judge, pairs, batch_size=1024):
    """
    What a model thinks of completions, for each (problem, completion): {"value": its value head at the end, "lines": the product
    of its values after each line (as process reward models rank, Lightman et al. 2023), "verdict": P(yes) after a "?"}.
    """
    (question, yes, no), scores = encode("?yesno"), []
    texts = [encode(problem.prompt + without_verdict(completion)) + [question] for problem, completion in pairs]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))      # so that little is padded
    for i in range(0, len(order), batch_size):
        rows = [texts[k] for k in order[i:i + batch_size]]
        idx, length = pad(rows, judge.lm_head.weight.device)
        logits, values = for_inference(judge, len(rows))(idx)
        ends = length[:, None] - 1                                      # (B, 1), of the ?
        line_ends = (idx == NEWLINE) & ((idx == NEWLINE).cumsum(1) > 1)                                     # but the prompt's
        yes_or_no = logits.gather(1, ends[..., None].expand(-1, -1, logits.size(-1)))[:, 0, [yes, no]].softmax(-1)
        columns = (values.gather(1, ends - 1).sigmoid()[:, 0], (F.logsigmoid(values) * line_ends).sum(1).exp(), yes_or_no[:, 0])
        scores += zip(*(column.tolist() for column in columns))
    by_pair = dict(zip(order, scores))
    return [dict(zip(("value", "lines", "verdict"), by_pair[i])) for i in range(len(texts))]


@lru_cache(maxsize=8)
def samples_to_rank(model, problems, budget, state, attempts):
    """sample_n from a generator's state, and its state then: every ranking of a budget is of the same samples."""
    generator = torch.Generator(model.lm_head.weight.device)
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    return sample_n(model, problems, budget, generator=generator, attempts=attempts), generator.get_state()


@lru_cache(maxsize=8)
def judged_samples(model, judge, *of):
    """What judge_completions says of each different completion among these samples: {(problem, completion): scores}."""
    found, problems = samples_to_rank(model, *of)[0], of[0]
    pairs = list(dict.fromkeys((problem, r.completion) for problem, results in zip(problems, found) for r in results
                               if r.finished and "<|" not in r.completion))
    return dict(zip(pairs, judge_completions(judge, pairs)))


def rank(model, problems, budget, scorer="value", generator=None, judge=None, vote=False, attempts=1, **others):
    """
    Best-of-N: of a problem's samples, the one with the best score; or, as vote, the solution whose samples have the highest
    sum of scores (majority vote where every score is 1; weighted vote, Li et al. 2023, otherwise).
    """
    generator, judge, picked = generator or torch.Generator(model.lm_head.weight.device), judge or model, []
    of = tuple(problems), budget, bytes(generator.get_state().tolist()), attempts
    found, state = samples_to_rank(model, *of)
    generator.set_state(state)
    scores = {} if scorer == "count" else judged_samples(model, judge, *of)
    read_again = scorer in ("lines", "verdict") or scorer == "value" and judge is not model     # the sampler knows the value at the end
    for problem, results in zip(problems, found):
        def score(r):
            if scorer == "count" or not r.finished:
                return float(r.finished)
            return scores.get((problem, r.completion), {scorer: 0.0})[scorer]

        votes = Counter()
        for r in results if vote else []:
            votes[answer_of(problem, r.completion)] += score(r) / len(results)
        def weight(r):
            return votes[answer_of(problem, r.completion)] if vote and r.finished else score(r)

        picked.append(pick(results, weight, key=lambda r: (weight(r), score(r))))
        picked[-1].read += read_again * sum(r.tokens for r in results)
    return picked


def best_of_n(model, problems, budget, generator=None, attempts=1, **others):
    """Samples until the verifier is content."""
    found = sample_n(model, problems, budget, generator=generator, stop_when_correct=True, attempts=attempts)
    return [pick(results, lambda r: r.score) for results in found]


# ------------------------------------------------------------------------------------------------------------------
# One stream that goes on

def revise(model, problems, budget, scorer="verdict", generator=None, attempts=1, **others):
    """
    Sequential revision: an attempt that does not end in ?yes is taken back by as many `wait`s as it takes, and the stream
    goes on, while the budget lasts and attempts come to an end (budget forcing, Muennighoff et al. 2025). Scorer verifier: whether
    to go on is not the model's own verdict but the verifier's. An attempt has the room of --attempts solutions; the last one that
    ended counts.
    """
    spent, read, answers, scores = ([start] * len(problems) for start in (0, 0, "", 0.0))
    waiting = [(i, encode(problem.prompt)) for i, problem in enumerate(problems)]       # streams, as token ids
    room = max_tokens(problems[0].task, problems[0].level, attempts)
    while waiting:
        longest = max(len(stream) for _, stream in waiting)
        n = max(1, 2 ** 25 // (longest + room) ** 2)                    # few long streams at once: attention is quadratic in memory
        batch, waiting = waiting[:n], waiting[n:]
        samples = generate(model, [stream for _, stream in batch], [min(room, budget - spent[i]) for i, _ in batch], 1.0, (EOS,), generator)
        for (i, stream), ids, new in zip(batch, samples.finished((EOS,)), samples.completions()):
            read[i] += len(stream)
            spent[i] += len(new)
            if ids is None or "<|" in decode(ids):                      # cut off, or not to be written as text
                continue
            answers[i] = decode(stream + ids).removeprefix(problems[i].prompt)
            content = verify(problems[i], answers[i]).correct if scorer == "verifier" else answers[i].endswith("?yes\n")
            waits = "wait\n" * len(standing_lines(answers[i]))
            scores[i] = float(content)
            if not content and waits and spent[i] + len(encode(waits)) < budget and longest + 2 * room < model.config.block_size:
                spent[i] += len(encode(waits))
                waiting.append((i, encode(problems[i].prompt + answers[i].removesuffix("?yes\n") + waits)))      # nothing may follow ?yes
    return [Result(answer, score, n, n_read, bool(answer), [(answer, len(encode(answer)) + 1, None)] if answer else [])
            for answer, score, n, n_read in zip(answers, scores, spent, read)]


# ------------------------------------------------------------------------------------------------------------------
# Search over steps: the tree

@dataclass
class Node:
    ids: list                               # prompt and steps so far
    slots: list = field(default_factory=list)           # where the store holds them, all but the last
    prior: float = 1.0                      # probability of the last step under the policy
    path: float = 1.0                       # probability of all steps so far
    value: float = 0.5                      # P(this ends correct): value head; of a finished one, whoever judges
    parent: "Node" = None
    children: list = field(default_factory=list)
    branches: list = None                   # where new children may begin: (log-prob, first tokens, slots of all before the last)
    visits: int = 0
    total: float = 0.0                      # sum of what was backed up through here
    finished: bool = False                  # ended in <|eos|>
    closed: bool = False                    # nothing left to find below

    def __post_init__(self):
        if self.branches is None:
            self.branches = [(0.0, [], self.slots)]

    @property
    def q(self):
        return self.total / self.visits if self.visits else self.value

    def values_above(self):
        """The mean value backed up through each line on the way to here."""
        values, node = [], self.parent
        while node.parent:
            values.insert(0, float(node.q))
            node = node.parent
        return values

    @property
    def score(self):
        """
        What beams are kept by and solutions chosen by: P(the policy writes this) x P(this ends correct). The value alone
        would pick what the policy hardly ever writes, lines that the value head has never seen and judges at random.
        """
        return self.path * self.value


class Search:
    """What one problem's search has found and spent, whatever the order in which its nodes are expanded."""

    def __init__(self, problem, budget, scorer, slots):
        self.problem, self.budget, self.scorer = problem, budget, scorer
        self.prompt = encode(problem.prompt)
        self.root = Node(self.prompt, slots)
        self.finished, self.spent, self.read = [], 0, len(slots)

    @property
    def over(self):
        if self.spent + 2 > self.budget or self.root.closed:            # a branch and one more token are the least
            return True
        if self.scorer in VERIFYING:
            return any(node.value == 1.0 for node in self.finished)
        return max((node.score for node in self.finished), default=-1.0) >= self.bound(self.root)

    def bound(self, node):
        """No score of what can still be found below a node is higher: the probability of its likeliest open path."""
        if node.closed:
            return 0.0
        own = node.path * np.exp(max(node.branches)[0]) if node.branches else 0.0
        return max([own, *map(self.bound, node.children)])

    def completion(self, node):
        return decode(node.ids[len(self.prompt):-1 if node.finished else None])

    def result(self):
        if not self.finished:
            return Result("", 0.0, self.spent, self.read, False)
        found = []
        for node in self.finished:
            completion, values = self.completion(node), node.values_above()
            values += [None] * (completion.count("\n") - len(values))   # a rollout's lines are no nodes
            found.append((completion, len(node.ids) - len(self.prompt), values))
        best = max(self.finished, key=lambda node: node.score)
        return Result(self.completion(best), float(best.value), self.spent, self.read, True, found)


def start(model, problems, budget, scorer):
    """A search for each problem, and the store in which they keep what was read."""
    store = Store(model)
    slots = store.read(model, [encode(problem.prompt) for problem in problems])
    return store, [Search(problem, budget, scorer, row) for problem, row in zip(problems, slots)]


def expand(model, store, searches, nodes):
    """
    Give each node one more child: the step that begins with the likeliest branch not yet taken, and goes on greedily. No
    step is found twice, and a new one costs only the tokens behind its branching point. The tokens that were second and
    third best on the way become branches in their turn. One batch for all nodes; the child's value comes from the same pass.
    Returns the children, None where a step was cut off.
    """
    logprobs, begins, slots = zip(*(node.branches.pop(max(range(len(node.branches)), key=lambda i: node.branches[i][0])) for node in nodes))
    prefixes = [node.ids + begin for node, begin in zip(nodes, begins)]
    slots = [held[:len(prefix) - 1] for held, prefix in zip(slots, prefixes)]
    room = max_tokens(searches[0].problem.task, searches[0].problem.level)
    limits = [min(room, search.budget - search.spent - 1) for search in searches]
    samples = generate(model, prefixes, limits, 0.0, STOPS, n_top=3, read_last=True, store=store, slots=slots)
    # Log-probs of the step, (B, T): up to each token; and (B, T, 3): with another token in its place
    through = torch.tensor(logprobs, device=samples.logprobs.device)[:, None] + samples.logprobs.cumsum(1)
    others = (through - samples.logprobs)[..., None] + samples.top_logprobs
    tokens = samples.top_tokens
    worth = (others > MIN_LOGPROB) & (tokens != samples.tokens[..., None]) & (tokens != NEWLINE) & (tokens != EOS) & samples.mask[..., None]
    found = [[] for _ in nodes]
    for (i, t, _), logprob, token in zip(worth.nonzero().tolist(), others[worth].tolist(), tokens[worth].tolist()):
        found[i].append((t, logprob, token))
    lengths = samples.mask.sum(1)
    at_end = lengths[:, None] - 1
    columns = (samples.completions(), samples.slots.tolist(), through.gather(1, at_end)[:, 0].exp().tolist(),
               samples.values[:, 0].sigmoid().tolist(), samples.values.gather(1, at_end)[:, 0].sigmoid().tolist(),
               samples.end_values.sigmoid().tolist())
    children = []
    for search, node, begin, held, branches, new, new_slots, prior, first_value, last_value, end_value in zip(
            searches, nodes, begins, slots, found, *columns):
        search.spent += len(new) + bool(begin)          # the branch's own token was generated too
        search.read += not begin
        if node is search.root and not begin:
            node.value = first_value
        ids, held = begin + new, held + new_slots[:len(new)]            # of the step; of all but its last token
        node.branches += [(logprob, ids[:len(begin) + t] + [token], held) for t, logprob, token in branches]
        child = None
        if ids[-1] in STOPS:
            child = Node(node.ids + ids, held, prior, node.path * prior, end_value, node)
            if ids[-1] == EOS:
                child.finished = child.closed = True
                child.value = last_value                                # of what stood before <|eos|>
                node.closed = node.closed or len(ids) == 1              # who would rather end here need not go on
                if search.scorer in VERIFYING:
                    child.value = float(verify(search.problem, search.completion(child)).correct)
                search.finished.append(child)
            node.children.append(child)
        children.append(child)
    return children


def roll_out(model, store, searches, children, generator):
    """
    Instead of the value head: each child's value is whether one sample from it to its end is right. A sample that is right
    is a solution too. Monte-Carlo rollouts, as in tree search before there were value networks (Coulom 2006).
    """
    rows = [(search, child) for search, child in zip(searches, children)
            if child and not child.finished and search.spent < search.budget]
    if not rows:
        return
    room = max_tokens(searches[0].problem.task, searches[0].problem.level)
    limits = [min(room, search.budget - search.spent) for search, _ in rows]
    samples = generate(model, [child.ids for _, child in rows], limits, 1.0, (EOS,), generator, store=store, slots=[child.slots for _, child in rows])
    for (search, child), new, ended in zip(rows, samples.completions(), samples.finished((EOS,))):
        search.spent += len(new)
        search.read += 1
        end = Node(child.ids + new, value=0.0, parent=child, finished=ended is not None)
        child.value = end.value = float(end.finished and verify(search.problem, search.completion(end)).correct)
        if end.value:                       # not part of the tree, but found
            search.finished.append(end)


def depth_one(model, problems, budget, scorer="value", **others):
    """Search of depth one: four candidates for each step, the best goes on, and there is no way back."""
    return beam(model, problems, budget, scorer, width=1, n_candidates=4)


def beam(model, problems, budget, scorer="value", width=None, n_candidates=None, **others):
    """
    Beam search over steps: each depth turns the beams of a problem into up to 1.5 x width candidates, of which the best
    by score go on. The width is as many solutions as the budget has room for; few cost so much, as they share beginnings.
    """
    store, searches = start(model, problems, budget, scorer)
    width = width or max(1, round(budget / max_tokens(problems[0].task, problems[0].level)))
    beams = [[search.root] for search in searches]
    while any(beams):
        for turn in range(n_candidates or math.ceil(1.5 * width)):       # a candidate for each problem, from its beams in turn
            pairs = []
            for search, nodes in zip(searches, beams):
                open_nodes = [node for node in nodes if node.branches and not node.closed]
                if open_nodes and not search.over:
                    pairs.append((search, open_nodes[turn % len(open_nodes)]))
            if pairs:
                expand(model, store, *zip(*pairs))
        for i, nodes in enumerate(beams):
            children = [child for node in nodes for child in node.children if not child.finished]
            beams[i] = sorted(children, key=lambda child: -child.score)[:width] if not searches[i].over else []
    return [search.result() for search in searches]


def select(root, c_puct):
    """
    The node to expand: from the root down, argmax of Q + c P sqrt(visits of the parent) / (1 + visits) (PUCT, Silver et
    al. 2017, p. 8). A node's next new child competes with the children it has, with its branch's probability as P and,
    as in AlphaZero, 0 as Q; where it wins, that is the place.
    """
    node = root
    while True:
        def puct(child):
            return child.q + c_puct * child.prior * node.visits ** 0.5 / (1 + child.visits)

        best = max((child for child in node.children if not child.closed), key=puct, default=None)
        if node.branches:
            branch = Node([], prior=math.exp(max(node.branches)[0]), value=0.0)
            if best is None or puct(branch) >= puct(best):
                return node
        node = best


def backup(node, value):
    """Add a value to a node and to all above; close those with nothing left to find."""
    while node:
        node.visits += 1
        node.total += value
        node.closed = node.closed or not node.branches and all(child.closed for child in node.children)
        node = node.parent


def mcts(model, problems, budget, scorer="value", generator=None, c_puct=1.0, **others):
    return [search.result() for search in mcts_searches(model, problems, budget, scorer, generator, c_puct)]


def mcts_searches(model, problems, budget, scorer, generator, c_puct):
    """Monte-Carlo tree search over steps, all problems side by side: select, expand, evaluate, backup until the budget is spent."""
    store, searches = start(model, problems, budget, scorer)
    while live := [search for search in searches if not search.over]:
        nodes = [select(search.root, c_puct) for search in live]
        children = expand(model, store, live, nodes)                    # expand evaluates too: a child comes with its value
        if scorer == "rollouts":
            roll_out(model, store, live, children, generator)
        for node, child in zip(nodes, children):
            backup(child or node, child.value if child else 0.0)
    return searches


# ------------------------------------------------------------------------------------------------------------------
# Without a model

def random_steps(model, problems, budget, generator=None, **others):
    """Random legal steps to the end, again and again until the verifier is content or the budget is spent."""
    rng = np.random.default_rng(int(torch.randint(2 ** 62, (), generator=generator, device=generator.device if generator else None)))
    results = []
    for problem in problems:
        spent, solution = 0, ""
        while spent < budget and not solution:
            text, left = random_lines(problem.numbers, problem.level - 1, rng)
            spent += len(encode(text)) + 1
            solution = text if spent <= budget and left == [problem.target] else ""
        results.append(Result(solution, float(bool(solution)), min(spent, budget)))
    return results


def enumeration(model, problems, budget, **others):
    """Every path in order, depth first, each line written once, until one hits the target or the budget is spent."""
    def visit(problem, numbers, spent):
        for line, left in legal_steps(numbers):
            spent += len(encode(line))
            if spent >= budget:
                return spent, ""
            if left == [problem.target]:
                return spent + 1, line
            spent, rest = visit(problem, left, spent)
            if rest or spent >= budget:
                return spent, line + rest if rest else ""
        return spent, ""

    results = []
    for problem in problems:
        spent, solution = visit(problem, problem.numbers, 0)
        results.append(Result(solution, float(bool(solution)), min(spent, budget)))
    return results


# ------------------------------------------------------------------------------------------------------------------
# The table

METHODS = {                                 # name: (function, scorer)
    "greedy": (greedy, "value"),
    "single sample": (single, "value"),
    "majority": (partial(rank, vote=True), "count"),
    "vote (value)": (partial(rank, vote=True), "value"),
    "vote (verdict)": (partial(rank, vote=True), "verdict"),
    "best-of-n (value)": (rank, "value"),
    "best-of-n (lines)": (rank, "lines"),
    "best-of-n (verdict)": (rank, "verdict"),
    "best-of-n (verifier)": (best_of_n, "verifier"),
    "revise": (revise, "verdict"),
    "revise (verifier)": (revise, "verifier"),
    "depth-1 (value)": (depth_one, "value"),
    "beam (value)": (beam, "value"),
    "beam (verifier)": (beam, "verifier"),
    "mcts (value)": (mcts, "value"),
    "mcts (verifier)": (mcts, "verifier"),
    "mcts (rollouts)": (mcts, "rollouts"),
    "random steps": (random_steps, "verifier"),
    "enumeration": (enumeration, "verifier"),
}
VERIFYING = {"verifier", "rollouts"}         # scorers that ask the verifier about finished completions
WITHOUT_MODEL = {"random steps", "enumeration"}
OF_VERDICTS = {"vote (verdict)", "best-of-n (verdict)", "revise", "revise (verifier)"}       # for models that have learnt to write them


def measure(model, judge, problems, name, budget, args):
    """One row of the table, and the Result of each problem."""
    method, scorer = METHODS[name]
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(args.seed)
    started, results = time.time(), []
    for i in range(0, len(problems), args.batch_size):
        results += method(model, problems[i:i + args.batch_size], budget, scorer=scorer, generator=generator, c_puct=args.c_puct,
                          judge=judge, attempts=args.attempts)
    seconds, n = time.time() - started, len(problems)
    correct = sum(r.finished and verify(problem, r.completion).correct for problem, r in zip(problems, results))
    tokens = sum(r.tokens for r in results) / n
    low, high = wilson(correct, n)
    context = len(encode(problems[0].prompt)) + max_tokens(args.task, args.level) / 2
    read = sum(r.read for r in results) / n
    return {"task": args.task, "level": args.level, "checkpoint": args.init, "seed": args.seed, "method": name,
            "oracle": int(scorer in VERIFYING and args.task == "expression"), "budget": budget, "problems": n,
            "accuracy": correct / n, "ci_low": low, "ci_high": high, "tokens_per_problem": tokens,
            "flops_per_problem": 0 if name in WITHOUT_MODEL else (tokens + read) * flops_per_token(model.config, context),
            "seconds": round(seconds, 2)}, results


def save_traces(path, problems, results, row):
    """All that a method found, right and wrong, as traces (JSON lines). What the search has cost is shared by all of them."""
    found = [(problem, *found) for problem, result in zip(problems, results) for found in result.found
             if "<|" not in found[0]]       # a special token amid the text: the language has no way to write it
    flops = row["flops_per_problem"] * row["problems"] / max(1, len(found))
    with write_whole(path) as file:
        for problem, completion, tokens, values in found:
            trace = {"prompt": problem.prompt, "completion": completion, "correct": verify(problem, completion).correct, "tokens": tokens,
                     "method": row["method"], "flops": flops} | ({} if values is None else {"values": values})
            file.write(json.dumps(trace).encode() + b"\n")


def print_tree(node, indent=""):
    """The tree below a node: visits, mean value backed up, prior, value head, and the line."""
    for child in sorted(node.children, key=lambda child: (-child.visits, -child.value)):
        line = decode(child.ids[len(node.ids):]).rstrip("\n")
        mark = "" if not child.finished else "  right" if child.value == 1.0 else "  wrong"
        print(f"{indent}{line:<{40 - len(indent)}} N {child.visits:<4} Q {child.q:.2f}  P {child.prior:.2f}  V {child.value:.2f}{mark}")
        print_tree(child, indent + "    ")


def ask(model, problem, args):
    """Solve one problem by tree search and show the tree."""
    scorer = "verifier" if problem.task == "countdown" else "value"
    search, = mcts_searches(model, [problem], args.budgets[-1], scorer, None, args.c_puct)
    result = search.result()
    print(f"{problem.prompt.rstrip()}    N visits, Q mean value backed up, P prior of the policy, V value head\n")
    print_tree(search.root)
    verdict = verify(problem, result.completion)
    print(f"\n{problem.prompt}{result.completion}{'solved' if verdict.correct else 'not solved'} ({verdict.reason}), {result.tokens} tokens")


def read_problems(path):
    """Problems from a file with a prompt a line; ValueError names the line that is wrong."""
    problems = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                problems.append(parse_problem(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not problems:
        raise ValueError(f"{path} holds no problems")
    return problems


def check_level(problem, args, where=""):
    """ValueError unless a problem of the user's is of the task and level to search on: those of the checkpoint, or the flags'."""
    if (problem.task, problem.level) != (args.task, args.level):
        raise ValueError(f"{where}{problem.prompt.rstrip()} is {problem.task} at level {problem.level}; {args.init} is for "
                         f"{args.task} at level {args.level}")


def main():
    parser = Parser(description="Search with a trained model: a table of methods and budgets, or one problem of yours.")
    # the model
    parser.shared("--init", "--task", "--level", "--attempts", task=None)
    # the search
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"of {', '.join(METHODS)} (default: all but those with verdicts, "
                        "which train_sft.py alone does not teach)")
    parser.add_argument("--budgets", nargs="+", type=positive, default=[75, 150, 300], metavar="N",
                        help="ceilings on the tokens generated for a problem (default 75 150 300)")
    parser.add_argument("--judge", metavar="FILE", help="a checkpoint whose value head and verdicts rank the samples (default: that of --init)")
    parser.add_argument("--c-puct", type=between(0, math.inf), default=1.0, help="mcts: weight of the prior against the value (default 1.0)")
    # the problems
    parser.add_argument("--n-problems", type=positive, default=1000, help="test problems (default 1000)")
    parser.add_argument("--problems", metavar="FILE", help="measure on these prompts instead, one a line")
    parser.add_argument("--save", metavar="FILE", help="search --n-problems fresh training problems, with one method and one budget, and save "
                        "all solutions that were found, right and wrong, as traces for train_sft.py --data")
    parser.add_argument("--ask", metavar="PROMPT", help='solve one problem and show the tree, as in --ask "25 8 7>24"')
    # the run
    parser.add_argument("--batch-size", type=positive, default=1000, help="problems searched side by side (default 1000)")
    parser.shared("--out", "--device", "--seed")
    args = parser.parse_args()
    try:
        device = choose_device(args.device)
        args.init = args.init or next((path for name in ("rl.pt", "sft.pt") if os.path.exists(path := os.path.join(args.out, name))),
                                      os.path.join(args.out, "rl.pt"))
        model, checkpoint = load_checkpoint(args.init, device, needs=("flags",))
        judge = load_checkpoint(args.judge, device)[0] if args.judge else model
        args.task, args.level, args.attempts = choose_task(args, checkpoint["flags"])
        if args.ask is not None:
            problem = parse_problem(args.ask)
            check_level(problem, args)
            if not state_value(problem, ""):
                raise ValueError(f"{args.ask} has no solution: all ways to put the numbers together were tried")
            return ask(model, problem, args)
        if args.problems:
            problems = read_problems(args.problems)
            for number, problem in enumerate(problems, 1):
                check_level(problem, args, f"{args.problems}, line {number}: ")
        elif args.save:
            problems, _ = make_problems(args.task, args.level, args.n_problems, np.random.default_rng([args.seed, 2]))
        else:
            problems = test_problems(args.task, args.level, args.n_problems)
        methods = args.methods or [name for name in METHODS if name not in OF_VERDICTS and (args.task == "countdown" or name not in WITHOUT_MODEL)]
        if args.task != "countdown" and (useless := WITHOUT_MODEL & set(methods)):
            raise ValueError(f"--methods {', '.join(sorted(useless))}: for countdown only, in expression every legal step is right")
        if args.save and not len(methods) == len(args.budgets) == 1:
            raise ValueError("--save takes one of --methods and one of --budgets")
    except ValueError as error:
        parser.error(str(error))
    open_folder(*(os.path.split(args.save) if args.save else (args.out, "search.csv")))
    print(f"search.py on {device}: {vars(args)}", flush=True)

    work = [(name, budget) for name in methods for budget in (args.budgets if name not in ("greedy", "single sample") else args.budgets[:1])]
    table, bar = [], tqdm(work, desc="search")
    for name, budget in bar:
        row, results = measure(model, judge, problems, name, budget, args)
        table.append(row)
        if args.save:
            save_traces(args.save, problems, results, row)
        else:
            save_table(os.path.join(args.out, "search.csv"), table)
        bar.write(f"{name + ' *' * row['oracle']:22} budget {budget:5}  accuracy {100 * row['accuracy']:5.1f}% "
                  f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]  {row['tokens_per_problem']:6.1f} tokens a problem  {row['seconds']:.1f} s")
    print(f"wrote {args.save or os.path.join(args.out, 'search.csv')}")


if __name__ == "__main__":
    run_script(main)
