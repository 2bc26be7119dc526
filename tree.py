"""
Search over steps: beam search and Monte-Carlo tree search, led by the policy and the value head.

A step is a line, and a node of the tree is the text up to the end of a line. A node has too many possible
next steps to list, so `expand` adds one child at a time: it takes the likeliest beginning that no child has
yet, and completes it greedily. At each token the second and third best are noted as branches, where other
children may begin:

    9-5=4,3 2 4      the first child, written greedily
    9+               a branch: the second child may begin like this ...
    3                ... or like this, whichever is likelier

So no step is found twice, and a new one costs only the tokens after its branch begins. A `Store` keeps the
keys and values of all tokens of a text but the last: that one is what the next step reads first.

All problems of a batch are searched side by side: each search picks a node, and one call to the model expands
them all.

Deviations from AlphaZero (Silver et al. 2017): a single player, so no sign flips in backup; no noise at the
root; steps less likely than 1 % are left out; to end is considered only where the policy finds it likeliest;
the answer is the solution with the best probability times value, not the most visits; a search ends early
when nothing better can be found any more.
"""
import math
from dataclasses import dataclass, field
from heapq import heappop, heappush

import torch

from budget import Budget, Result
from sample import for_inference, generate, read_prompts
from store import Store
from verify import EOS, NEWLINE, TASKS, decode, encode, verify

STOPS = (NEWLINE, EOS)                      # where a step ends
MIN_PROB = 0.01                             # branches that are less likely are left out
VERIFYING = ("verifier", "rollouts")        # scorers that ask the verifier about finished completions
JUDGES = ("value", *VERIFYING)              # scorers of nodes


# ------------------------------------------------------------------------------------------------------------
# The tree

@dataclass(order=True)
class Branch:
    """Where a new child may begin: with tokens that begin none of the children so far."""
    cost: float                         # minus their log-probability: the likeliest is the first of a heap
    begun: list = field(compare=False)      # token ids
    slots: list = field(compare=False)      # where the store has the node and these tokens, all but the last


@dataclass(eq=False)
class Node:
    ids: list                               # prompt and steps so far
    slots: list = field(default_factory=list)           # where the store has them, all but the last
    prior: float = 1.0                      # probability of the last step under the policy
    path: float = 1.0                       # probability of all steps so far
    value: float = 0.5                  # P(this ends correct), by the value head, a rollout or a verdict
    parent: "Node" = None
    children: list = field(default_factory=list)
    branches: list = None                   # a heap of Branch; at first there is one, with nothing begun
    visits: int = 0
    total: float = 0.0                      # sum of what was backed up through here
    finished: bool = False                  # ended in <|eos|>
    # Nothing is left to find below: it ended, or the policy finds it likeliest to end here, or all children
    # are closed, or the model could not read on
    closed: bool = False
    head: float = field(init=False)         # by the value head, whatever the scorer

    def __post_init__(self):
        self.head = self.value
        if self.branches is None:
            self.branches = [Branch(0.0, [], self.slots)]

    @property
    def q(self):
        return self.total / self.visits if self.visits else self.value

    @property
    def score(self):
        """
        Ranks beams and solutions: P(the policy writes this) x P(this ends correct). The value alone would
        pick lines that the policy hardly ever writes; the value head has never seen these and judges them at
        random.
        """
        return self.path * self.value


class Search:
    """The search on one problem: its tree, what it has found and what it has spent."""

    def __init__(self, problem, limit, scorer, slots, room):
        self.problem, self.scorer, self.budget = problem, scorer, Budget(limit)
        self.room = room                    # tokens that a line may take
        self.prompt = encode(problem.prompt)
        self.root = Node(self.prompt, slots)
        self.finished = []                  # nodes
        self.budget.spend(0, read=len(slots))

    @property
    def over(self):
        if self.budget.left < 2 or self.root.closed:            # a branch's token and one more may be needed
            return True
        if self.scorer in VERIFYING:
            return any(node.value == 1.0 for node in self.finished)
        return max((node.score for node in self.finished), default=-1.0) >= self.bound(self.root)

    def bound(self, node):
        """
        An upper bound on the score of solutions still to be found below a node: the probability of its
        likeliest open path.
        """
        best, waiting = 0.0, [node]         # no recursion: paths may have thousands of lines
        while waiting:
            node = waiting.pop()
            if node.closed:
                continue
            if node.branches:
                best = max(best, node.path * math.exp(-node.branches[0].cost))
            waiting += node.children
        return best

    def completion(self, node):
        return decode(node.ids[len(self.prompt):-1 if node.finished else None])

    def result(self):
        spent, read = self.budget.spent, self.budget.read
        if not self.finished:
            return Result("", 0.0, spent, read, finished=False)
        best = max(self.finished, key=lambda node: node.score)
        found = [self.describe(node) for node in self.finished]
        return Result(self.completion(best), float(best.value), spent, read, True, found)

    def describe(self, node):
        """(completion, tokens, mean value backed up through each line or None)"""
        completion, values, above = self.completion(node), [], node.parent
        while above.parent:
            values.insert(0, float(above.q))
            above = above.parent
        values += [None] * (completion.count("\n") - len(values))       # a rollout's lines are no nodes
        return completion, len(node.ids) - len(self.prompt), values


@torch.no_grad()
def start_searches(model, problems, budget, scorer, max_tokens=None):
    """A store that holds each prompt but its last token, and a list with a Search for each problem."""
    if scorer not in JUDGES:
        raise ValueError(f"no scorer {scorer!r}: there are {', '.join(JUDGES)}")
    prompts, store = [encode(problem.prompt) for problem in problems], Store(model)
    cache = read_prompts(for_inference(model, len(prompts)), prompts)
    slots = store.add(cache, 0, [len(prompt) - 1 for prompt in prompts])
    room = max_tokens or TASKS[problems[0].task].max_tokens(problems[0].level)
    return store, [Search(problem, budget, scorer, row, room) for problem, row in zip(problems, slots)]


# ------------------------------------------------------------------------------------------------------------
# Expand and evaluate

@dataclass
class Line:
    """What the model wrote after a node and a branch, with its log-probabilities."""
    new: list                               # token ids
    slots: list                             # of the token before each
    logprobs: list                          # of each
    others: list                            # for each token the likeliest three in its place: (log-prob, id)
    value: float                            # P(this ends correct) of the whole, before <|eos|>


def write_lines(model, store, searches, nodes, branches):
    """Write each line greedily to its end. One batch for all: a list of Line."""
    texts = [node.ids + branch.begun for node, branch in zip(nodes, branches)]
    readable = model.config.block_size - max(map(len, texts)) - 1       # one for read_last
    rooms = [search.room - len(branch.begun) for search, branch in zip(searches, branches)]
    # One less than the budget: the branch's own token counts, too
    limits = [min(max(1, room), search.budget.left - 1, readable) for room, search in zip(rooms, searches)]
    cache = store.load(model, [branch.slots for branch in branches])
    samples = generate(model, texts, limits, 0.0, STOPS, n_top=3, read_last=True, cache=cache)
    new = samples.completions()
    slots = store.add(samples.cache, samples.start, list(map(len, new)))
    logprobs, values = samples.logprobs.tolist(), samples.values.sigmoid().tolist()
    top_logprobs, top_tokens = samples.top_logprobs.tolist(), samples.top_tokens.tolist()
    lines = []
    for i, end_value in enumerate(samples.end_values.sigmoid().tolist()):
        n = len(new[i])
        value = values[i][n - 1] if new[i][-1] == EOS else end_value
        others = [list(zip(*pair)) for pair in zip(top_logprobs[i][:n], top_tokens[i][:n])]
        lines.append(Line(new[i], slots[i], logprobs[i][:n], others, value))
    return lines


def expand(model, store, searches, nodes):
    """
    Give each node one more child, from its likeliest branch; its value comes from the same pass. Returns
    the children, None where a step was cut off.
    """
    branches = [heappop(node.branches) for node in nodes]
    lines = write_lines(model, store, searches, nodes, branches)
    children = []
    for search, node, branch, line in zip(searches, nodes, branches, lines):
        if branch.begun:                    # its last token was generated too, but not yet counted
            search.budget.spend(len(line.new) + 1)
        else:                               # the node's last token had to be read again, to go on from it
            search.budget.spend(len(line.new), read=1)
        add_branches(node, branch, line)
        children.append(add_child(search, node, branch, line))
        if children[-1] and len(children[-1].ids) + search.room + 2 > model.config.block_size:
            children[-1].closed = True      # the model could not read one more line behind it
    return children


def add_branches(node, branch, line):
    """Note the second and third best token at each place of a line as branches, if they are likely enough."""
    so_far = -branch.cost
    for t, token in enumerate(line.new):
        for logprob, other in line.others[t]:
            if so_far + logprob > math.log(MIN_PROB) and other not in (token, *STOPS):
                begun = branch.begun + line.new[:t] + [other]
                heappush(node.branches, Branch(-so_far - logprob, begun, branch.slots + line.slots[:t + 1]))
        so_far += line.logprobs[t]


def add_child(search, node, branch, line):
    """The node behind a line, None if the line was cut off."""
    if line.new[-1] not in STOPS:
        return None
    prior = math.exp(sum(line.logprobs) - branch.cost)
    ids = node.ids + branch.begun + line.new
    child = Node(ids, branch.slots + line.slots, prior, node.path * prior, line.value, node)
    if line.new[-1] == EOS:
        child.finished = child.closed = True
        if search.scorer in VERIFYING:
            child.value = float(verify(search.problem, search.completion(child)).correct)
        if not branch.begun and len(line.new) == 1:
            node.closed = True              # the policy would rather end here
        search.finished.append(child)
    node.children.append(child)
    return child


def roll_out(model, store, searches, children, generator):
    """
    In place of the value head: a child's value is 1 if one sample from it to the end is right, else 0. A
    right sample is a solution, too. Monte-Carlo rollouts, as in tree search before there were value networks
    (Coulom 2006).
    """
    pairs = [(search, child) for search, child in zip(searches, children)
             if child and not child.closed and search.budget.left > 0]
    if not pairs:
        return
    limits = [min(search.room, search.budget.left) for search, _ in pairs]
    cache = store.load(model, [child.slots for _, child in pairs])
    samples = generate(model, [child.ids for _, child in pairs], limits, 1.0, (EOS,), generator, cache=cache)
    for (search, child), new in zip(pairs, samples.completions()):
        search.budget.spend(len(new), read=1)
        end = Node(child.ids + new, parent=child, finished=new[-1] == EOS)
        right = end.finished and verify(search.problem, search.completion(end)).correct
        child.value = end.value = float(right)
        if end.value:                       # a solution, though not part of the tree
            search.finished.append(end)


# ------------------------------------------------------------------------------------------------------------
# Beam search

def beam(model, problems, budget, settings, scorer, width=None, n_candidates=None):
    """
    At each depth the beams of a problem get n_candidates children (default 1.5 x width), of which the best by
    score are kept. The default width is the number of longest solutions that fit the budget; most cost less,
    as they share beginnings. -> Results
    """
    store, searches = start_searches(model, problems, budget, scorer, settings.max_tokens)
    width = width or max(1, round(budget / settings.max_tokens))
    beams = [[search.root] for search in searches]
    while any(beams):
        # One candidate for each problem a turn, from its beams in order
        for turn in range(n_candidates or math.ceil(1.5 * width)):
            live, nodes = [], []
            for search, kept in zip(searches, beams):
                open_nodes = [node for node in kept if node.branches and not node.closed]
                if open_nodes and not search.over:
                    live.append(search)
                    nodes.append(open_nodes[turn % len(open_nodes)])
            if live:
                expand(model, store, live, nodes)
        for i, search in enumerate(searches):
            children = [child for node in beams[i] for child in node.children if not child.finished]
            beams[i] = [] if search.over else sorted(children, key=lambda child: -child.score)[:width]
    return [search.result() for search in searches]


# ------------------------------------------------------------------------------------------------------------
# Monte-Carlo tree search

def select(root, c_puct):
    """
    The node to expand: from the root down, argmax of Q + c P sqrt(visits of the parent) / (1 + visits) (PUCT,
    Silver et al. 2017, p. 8). A node's next new child competes with the children it has, with its branch's
    probability as P and, as in AlphaZero, 0 as Q; where it wins, the node is chosen.
    """
    node = root
    while True:
        explore = c_puct * node.visits ** 0.5

        def puct(child):
            return child.q + explore * child.prior / (1 + child.visits)

        best = max((child for child in node.children if not child.closed), key=puct, default=None)
        if node.branches:
            new_child = explore * math.exp(-node.branches[0].cost)
            if best is None or new_child >= puct(best):
                return node
        node = best


def backup(node, value):
    """Add a value to a node and to all above; close those with nothing left to find."""
    while node:
        node.visits += 1
        node.total += value
        node.closed = node.closed or not node.branches and all(child.closed for child in node.children)
        node = node.parent


def mcts(model, problems, budget, settings, scorer):
    """Monte-Carlo tree search. -> Results"""
    return [search.result() for search in mcts_searches(model, problems, budget, settings, scorer)]


def mcts_searches(model, problems, budget, settings, scorer):
    """
    All problems side by side: select, expand, evaluate, backup until the budget is spent. Returns each
    Search.
    """
    store, searches = start_searches(model, problems, budget, scorer, settings.max_tokens)
    while live := [search for search in searches if not search.over]:
        nodes = [select(search.root, settings.c_puct) for search in live]
        children = expand(model, store, live, nodes)    # expand evaluates too: a child comes with its value
        if scorer == "rollouts":
            roll_out(model, store, live, children, settings.generator)
        for search, node, child in zip(live, nodes, children):
            value = child.value if child else 0.0       # a step that was cut off leads nowhere
            backup(child or node, value)
            if settings.watch:
                settings.watch(search, child or node, value)
    return searches
