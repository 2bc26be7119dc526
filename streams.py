"""
The teacher of streams: it tries, sees that it got nowhere, goes back and tries something else, in one
completion (after Gandhi et al. 2024, Stream of Search). Underlined is what is imitated:

    59 82 79 42>67              the problem
    82-59=23,79 42 23>67        an opening, one of some twenty; the target is out of reach from here
          ^^^^^^^^^^^^^^^
    79-23=56,42 56>67           a try to go on from there,
          ^^^^^^^^^^^^
    56+42=98,98>67              to the end,
          ^^^^^^^^^
    wait 82 79 59 42>67         and back to the problem, its numbers in order of size, for another opening
    ^^^^^^^^^^^^^^^^^^^^
    82-79=3,59 42 3>67          one that can be solved, and its solution
    ^^^^^^^^^^^^^^^^^^^
    42*3=126,59 126>67
    ^^^^^^^^^^^^^^^^^^^
    126-59=67,67>67
    ^^^^^^^^^^^^^^^^

Every line ends in a prompt of its own, so the numbers that the next step needs are always close, however long
the stream is; and what is learnt about three numbers helps with the end of four. A stream always goes back to
the problem itself, never to what an opening left: small models that have both confuse the numbers.

The teacher knows, by enumeration, which openings can be solved, and how. Wrong openings are drawn at
random; so are the steps behind them, half of them from near misses where there are any. The choice of such a
step is not imitated; what follows from it is, the result and the numbers left, and then the return. So of
openings only right ones are imitated, behind wrong ones that came before. Some lines are slips, wrong on
purpose: after these only the return is imitated.

From four numbers on streams are long, and two things are added, which the end of this file explains: choices
that are left open (`choose`), and checks of quotients (`check`). On a first reading they may be skipped.
"""
import math

from countdown import TARGETS
from mistakes import check_of, false_quotients, near_misses, slip
from verify import EOS, TASKS, encode, make_problems, parse_problem

UNSEEN_TARGETS = 14, 39, 41, 57, 62, 81, 87, 89, 96     # as in Stream of Search: never trained on
SEEN_TARGETS = [target for target in TARGETS if target not in UNSEEN_TARGETS]
LARGEST = 999           # result of a wrong step: the model reads up to three digits as a number
DEAD_END = 0.8          # P(a try goes on to the last step)
SLIP = 0.15             # P(a try is a line that is wrong on purpose)
NEAR_MISS = 0.5         # P(a step behind a wrong opening is a near miss, if there is one)
CAREFUL_FROM = 4        # numbers, from which choices are left open and quotients checked
FALSE_END = 0.3         # P(a try has a false quotient and a check, if it can)
FALSE_AT = 0.15, 0.6, 0.25      # P(the false quotient is then the first step, the second, the third)
# The lessons, by how far training is, from 0 to 1
WHOLE_UNTIL = 0.03      # until then all show whole pieces; later they go by tables, over and over:
STREAMS_AFTER = 0.4     # until then by the first, later by the second
WITHOUT_STREAMS = "whole", *7 * ("first steps",)
WITH_STREAMS = "whole", "streams", "plans", "streams", "first steps", "streams", "plans", "streams"
PIECES_PER_STREAM = 12  # a stream counts as so many pieces


class Writer:
    """
    Writes a completion, and notes for each of its tokens whether it is to be imitated. choices: {position:
    set of tokens} for some that are not, where any of these is accepted.
    """

    def __init__(self, problem, level=None):
        """level: of the full problem, if this is a part of one."""
        self.problem, self.task = problem, TASKS[problem.task]
        self.is_careful = (level or problem.level) >= CAREFUL_FROM
        self.start = self.task.in_order(self.task.start(problem))       # as a return restates it
        self.ids, self.imitate, self.choices, self.tried = [], [], {}, set()

    def openings(self):
        """All first steps, (line, what is left): a list of those that can be solved, and of the others."""
        right, wrong = [], []
        for line, left in self.task.legal_steps(self.start):
            (right if self.task.is_solvable(self.problem, left) else wrong).append((line, left))
        return right, wrong

    def write(self, text, n_hidden=0):
        """Some text, whose first n_hidden tokens are not to be imitated."""
        ids = encode(text)
        self.ids += ids
        self.imitate += [i >= n_hidden for i in range(len(ids))]

    def step(self, line, imitate="all"):
        """
        A step, with the target behind it. imitate: "all", "nothing", or "result", what follows the choice.
        """
        if imitate == "result":
            n_hidden = len(encode(self.task.chosen_part(line)))
        else:
            n_hidden = {"all": 0, "nothing": math.inf}[imitate]
        self.write(f"{line.rstrip()}>{self.problem.target}\n", n_hidden)

    def choose(self, line, steps):
        """
        A step with alternatives, (line, what is left) each. At each token of its choice any token is accepted
        that continues one of them; with few numbers the choice is simply not learnt.
        """
        if self.is_careful:
            chosen = encode(self.task.chosen_part(line))
            others = [encode(self.task.chosen_part(step)) for step, _ in steps]
            for i in range(len(chosen)):
                self.choices[len(self.ids) + i] = {ids[i] for ids in others if ids[:i] == chosen[:i]}
        self.tried.add(line)
        self.step(line, imitate="result")

    def untried(self, openings):
        return [(line, left) for line, left in openings if line not in self.tried]

    def steps(self, lines):
        for line in lines.splitlines():
            self.step(line)

    def back(self, imitated=True):
        """The return to the problem. `wait` is imitated only if `imitated`, the problem always."""
        self.write(f"wait {self.task.restate(self.problem, self.start)}\n", n_hidden=0 if imitated else 1)

    def solution(self, state):
        """The lines that lead from a state to the target."""
        if self.task.is_solved(self.problem, state):
            return ""
        return self.task.solve(parse_problem(self.task.restate(self.problem, state)))

    def check(self, lines):
        """Check the quotients of an attempt, up to the first that is wrong."""
        if not self.is_careful:
            return
        for line in lines.splitlines():
            check, agrees = check_of(line)
            self.write(check)
            if not agrees:
                return

    def end(self, solution):
        """The end, behind a solution: all of its lines are given, for the checks."""
        self.check(solution)
        self.ids.append(EOS)
        self.imitate.append(True)
        return self


def stream(problem, rng, most=99):
    """
    A stream that ends solved, after any number of wrong openings up to `most`; None if there is no solution.
    """
    written = Writer(problem)
    right, wrong = written.openings()
    if not right:
        return None
    wrong = [(line, left) for line, left in wrong if left[-1] <= LARGEST]
    openings = right + wrong
    n_wrong = rng.integers(min(most, len(wrong)) + 1)
    for i in rng.permutation(len(wrong))[:n_wrong]:
        line, left = wrong[i]
        is_false = written.is_careful and rng.random() < FALSE_END
        if not (is_false and try_falsely(written, line, left, openings, rng)):
            written.choose(line, written.untried(openings))
            try_in_vain(written, left, rng)
        written.back()
    line, left = right[rng.integers(len(right))]
    solution = line + written.solution(left)
    written.steps(solution)
    return written.end(solution)


def try_in_vain(written, state, rng):
    """
    What is tried behind a wrong opening: steps, often to the last one, which shows what it came to; or a
    slip, so that the model sees one taken back.
    """
    task, problem = written.task, written.problem
    if len(state) > 1 and rng.random() < SLIP:
        written.step(slip(problem, state, rng), imitate="nothing")
        return
    if len(state) > 3:
        n_steps = 1
    else:
        n_steps = len(state) - 1 if rng.random() < DEAD_END else len(state) - 2
    for _ in range(n_steps):
        legal = task.legal_steps(state, LARGEST + 1)
        near = near_misses(problem, state) if rng.random() < NEAR_MISS else []
        steps = near or legal               # all in vain, as the target is out of reach already
        line, state = steps[rng.integers(len(steps))]
        written.choose(line, legal)


def parts(problem, rng):
    """
    A problem, as it was drawn or as a return restates it, and the smaller problems that the steps of its
    solution leave, down to three numbers: each with its solution. These may be test problems of a lower
    level, so do not test a model of four numbers on three.
    """
    task = TASKS[problem.task]
    if rng.random() < 0.5:
        problem = parse_problem(task.restate(problem, Writer(problem).start))
    found = [(problem, task.solve(problem, rng))]
    while problem.level > 3:
        first_step = found[-1][1].split("\n")[0]
        state, _ = task.step(problem, task.start(problem), first_step)
        problem = parse_problem(task.restate(problem, state))
        found.append((problem, task.solve(problem)))
    return found


def piece(problem, solution, whole, level=None):
    """A worked solution, or its first step up to the result. level: of the problem that it is a part of."""
    written = Writer(problem, level)
    if whole:
        written.steps(solution)
        return written.end(solution)
    written.write(TASKS[problem.task].hard_part(solution))
    return written


def lesson(task, level, n, rng, step, progress):
    """
    What a step of training shows, a list of Writer, by the schedule above:

        whole           worked solutions, and a few streams
        first steps     of worked solutions, up to the result
        streams
        plans           right openings, one behind the other; with three numbers first steps instead
    """
    def draw(n):
        return make_problems(task, level, n, rng, targets=SEEN_TARGETS, progress=progress)[0]

    schedule = WITHOUT_STREAMS if progress <= STREAMS_AFTER else WITH_STREAMS
    kind = "whole" if progress <= WHOLE_UNTIL else schedule[step % len(schedule)]
    if kind == "plans" and level == 3:
        kind = "first steps"
    if kind == "streams":
        return [stream(problem, rng) for problem in draw(n // PIECES_PER_STREAM)]
    if kind == "plans":
        return [plans(problem, rng) for problem in draw(n // 4)]
    # Each problem has level - 2 parts, so these are n
    solved = [part for problem in draw(n // (level - 2)) for part in parts(problem, rng)]
    if kind == "first steps":
        return [piece(*part, whole=False, level=level) for part in solved]
    # Half as many, and short streams. Of what is drawn the hard problems come first (see `draw` in
    # countdown.py), so with three numbers the first half has all of them.
    pieces = [piece(*part, whole=True, level=level) for part in solved[:n // 2]]
    return pieces + [stream(problem, rng, 2) for problem in draw(n // 6)]


# ------------------------------------------------------------------------------------------------------------
# Of four numbers and more only. Where the choice of a step is not imitated, the loss accepts any legal step,
# and of openings any that was not tried yet. And small models write false quotients that would solve the
# problem. To multiply is easier than to divide, so each quotient of an apparent solution is checked, and
# <|eos|> follows if all agree:
#
#     20 6 8 94>18
#     94-8=86,20 6 86>18      the target is out of reach from here
#          ^^^^^^^^^^^^^^
#     86/20=3,6 3>18          a false quotient that would help,
#     6*3=18,18>18            an apparent solution,
#     ^^^^^^^^^^^^^
#     ?3*20=60                and its check: 60 is not 86
#     ^^^^^^^^^
#     wait 94 20 8 6>18
#     ^^^^^^^^^^^^^^^^^^

def try_falsely(written, opening, state, openings, rng):
    """
    In place of an opening and try_in_vain: a false quotient, as the first, second or third step, that would
    make the target reachable; the apparent solution; and the check that fails. False if there is none.
    """
    task, problem = written.task, written.problem
    n_before = rng.choice(3, p=FALSE_AT)       # steps before the false one
    before = [(opening, written.untried(openings))]                     # each with its alternatives
    if n_before == 0:
        before, state = [], written.start
    if n_before == 2:
        legal = task.legal_steps(state, LARGEST + 1)
        line, state = legal[rng.integers(len(legal))]
        before.append((line, legal))
    quotients = false_quotients(problem, state)
    if not quotients:
        return False
    quotient, left = quotients[rng.integers(len(quotients))]
    for line, alternatives in before:
        written.choose(line, alternatives)
    written.step(quotient, imitate="nothing")
    written.steps(written.solution(left))
    written.check("".join(line for line, _ in before) + quotient)
    return True


def plans(problem, rng, most=4):
    """
    An exercise, not a stream: openings that can be solved, in any order, each with the first step of its
    solution; the last of them is solved. Any that was not shown yet is accepted. The `wait` is not imitated,
    as an opening that can be solved is no reason to go back.
    """
    written = Writer(problem)
    right, _ = written.openings()
    *others, last = rng.permutation(len(right))[:most]
    for i in others:
        line, left = right[i]
        written.choose(line, written.untried(right))
        written.step(written.solution(left).split("\n")[0])
        written.back(imitated=False)
    line, left = right[last]
    solution = written.solution(left)
    written.choose(line, written.untried(right))
    written.steps(solution)
    return written.end(line + solution)
