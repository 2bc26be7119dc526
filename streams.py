"""
The teacher of streams: it tries, sees that it got nowhere, goes back and tries something else, in one
completion (after Gandhi et al. 2024, Stream of Search). Marked is what is imitated:

    59 82 79 42>67              the problem
    82-59=23,79 42 23>67        an opening, one of some twenty, that cannot be solved,
          ^^^^^^^^^^^^^^^
    79-23=56,42 56>67           a try to go on from there,
          ^^^^^^^^^^^^
    56+42=98,98>67              to the end,
          ^^^^^^^^^
    wait 82 79 59 42>67         and back to the problem, restated in order of size, for another opening
    ^^^^^^^^^^^^^^^^^^^^
    82-79=3,59 42 3>67          one that can be solved, and its solution
    ^^^^^^^^^^^^^^^^^^^
    42*3=126,59 126>67
    ^^^^^^^^^^^^^^^^^^^
    126-59=67,67>67
    ^^^^^^^^^^^^^^^^

Every line ends in a prompt of its own, so what is planned next stands beside what it is planned from,
however long the stream has grown; and whoever can solve three numbers can take the last part of four. It
always goes back to the problem itself, never to what an opening left: a small model that has to choose
between the two mixes their numbers up.

What the teacher knows, by enumeration, is which openings can be solved, and how. Wrong openings and the
steps behind them are drawn at random, or come near to what would help. Which of them are tried is not
imitated; what follows from each choice is, the result and the numbers left, and that one goes back. So at
each attempt a model learns to write the opening that is likely to be right, after those that were not. Some
lines are slips, which are wrong: of these only the return behind them is imitated.

From four numbers on a stream is long, and care pays. Of a choice that is not imitated a model learns that it
be a legal step, and of an opening that it was not tried before: any of these will do (`choose`). And a small
model still writes quotients that it wishes for, and that do not come out even. To multiply is easier than to
divide, so it looks again: what seems to be a solution is followed by a check of each quotient, and by <|eos|>
if all agree.

    20 6 8 94>18
    94-8=86,20 6 86>18      no opening that can be solved,
         ^^^^^^^^^^^^^^
    86/20=3,6 3>18          but with 3 it could:
    6*3=18,18>18            so it seems to be solved,
    ^^^^^^^^^^^^^
    ?3*20=60                but 60 is not 86
    ^^^^^^^^^
    wait 94 20 8 6>18
    ^^^^^^^^^^^^^^^^^^
"""
import math

from countdown import TARGETS
from verify import EOS, TASKS, encode, make_problems, parse_problem

UNSEEN_TARGETS = 14, 39, 41, 57, 62, 81, 87, 89, 96     # as in Stream of Search: never trained on
SEEN_TARGETS = [target for target in TARGETS if target not in UNSEEN_TARGETS]
LARGEST = 999           # what a wrong step may come to: the model reads up to three digits as a number
DEAD_END = 0.8          # P(a try goes on to the last step)
SLIP = 0.15             # P(a try begins with a line that is wrong)
NEAR_MISS = 0.5         # P(a step in vain is one that comes near to what would help, where there is one)
CAREFUL_FROM = 4        # this many numbers: choices and checks as said above
WISHES = 0.3            # P(a try ends in what seems to be a solution, if it can)
WISHED_AT = 0.15, 0.6, 0.25     # P(what is wished for is then the first step, the second, the third)
# The lessons, by how far training is, from 0 to 1
HARD_AFTER = 0.03       # after this most pieces show their first step only,
WHOLE_EVERY = 8         # and one lesson in so many all of it
STREAMS_AFTER = 0.4     # after this every second lesson shows streams
PIECES_PER_STREAM = 12  # a stream counts as so many pieces


class Writer:
    """
    Writes a completion, and notes for each of its tokens whether it is to be imitated. allowed: {position:
    set of tokens} for some that are not, where any of several will do.
    """

    def __init__(self, problem, level=None):
        """level: of the streams that it is a part of, where that is another than the problem's."""
        self.problem, self.task = problem, TASKS[problem.task]
        self.is_careful = (level or problem.level) >= CAREFUL_FROM
        self.start = self.task.in_order(self.task.start(problem))       # as a return restates it
        self.ids, self.imitate, self.allowed, self.tried = [], [], {}, set()

    def openings(self):
        """All first steps, (line, what is left): a list of those that can be solved, and of the others."""
        right, wrong = [], []
        for line, left in self.task.legal_steps(self.start):
            (right if self.task.is_solvable(self.problem, left) else wrong).append((line, left))
        return right, wrong

    def write(self, text, n_hidden=0):
        """Some text, of which the first tokens are not to be imitated."""
        ids = encode(text)
        self.ids += ids
        self.imitate += [i >= n_hidden for i in range(len(ids))]

    def step(self, line, imitate="all"):
        """
        A step, with the target behind it. Of it is imitated "all", "nothing", or the "result" of the choice.
        """
        if imitate == "result":
            n_hidden = len(encode(self.task.chosen_part(line)))
        else:
            n_hidden = {"all": 0, "nothing": math.inf}[imitate]
        self.write(f"{line.rstrip()}>{self.problem.target}\n", n_hidden)

    def choose(self, line, steps):
        """
        A step in whose place any of some, (line, what is left) each, will do: behind each part of it, any
        token with which one of them goes on. With few numbers its choice is simply not learnt.
        """
        if self.is_careful:
            chosen = encode(self.task.chosen_part(line))
            others = [encode(self.task.chosen_part(step)) for step, _ in steps]
            for i in range(len(chosen)):
                self.allowed[len(self.ids) + i] = {ids[i] for ids in others if ids[:i] == chosen[:i]}
        self.tried.add(line)
        self.step(line, imitate="result")

    def untried(self, openings):
        return [(line, left) for line, left in openings if line not in self.tried]

    def steps(self, lines):
        for line in lines.splitlines():
            self.step(line)

    def back(self, imitated=True):
        """The return to the problem. That one goes back may not be imitated, where to always is."""
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
            check, agrees = self.task.check(line)
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
    A stream that ends solved, after any number of wrong openings, so many at most; None if there is no
    solution.
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
        wishes = written.is_careful and rng.random() < WISHES
        done = wishes and try_wishfully(written, line, left, openings, rng)
        if not done:
            written.choose(line, written.untried(openings))
            try_in_vain(written, left, rng)
        written.back()
    line, left = right[rng.integers(len(right))]
    solution = line + written.solution(left)
    written.steps(solution)
    return written.end(solution)


def hopeless(problem, steps):
    """Those of some (line, what is left) behind which the target is out of reach."""
    task = TASKS[problem.task]
    return [(line, left) for line, left in steps if not task.is_solvable(problem, left)]


def try_in_vain(written, state, rng):
    """
    A step behind a wrong opening, sometimes a last one, which then says what it came to; or a slip, so that
    one is seen to be taken back.
    """
    task, problem = written.task, written.problem
    if len(state) > 1 and rng.random() < SLIP:
        written.step(task.slip(problem, state, rng), imitate="nothing")
        return
    n = min(len(state) - 1, 2)              # steps: one with two numbers left, two with three,
    if len(state) > 3 or rng.random() >= DEAD_END:
        n -= 1                              # or one less; with more numbers always one
    for _ in range(n):
        near = task.near_misses(problem, state) if rng.random() < NEAR_MISS else []
        steps = hopeless(problem, near or task.legal_steps(state, LARGEST + 1))
        if steps:
            line, left = steps[rng.integers(len(steps))]
            written.choose(line, task.legal_steps(state, LARGEST + 1))
            state = left


def try_wishfully(written, opening, state, openings, rng):
    """
    In place of a try in vain: its opening, or none, or one step more; a wrong step that, if it were right,
    would lead to the target; the way there; and the check that finds it out. False if there is no such step.
    """
    task, problem = written.task, written.problem
    n_before = rng.choice(3, p=WISHED_AT)       # steps before the wrong one
    chosen = [(opening, written.untried(openings))]
    if n_before == 0:
        chosen, state = [], written.start
    if n_before == 2:
        legal = task.legal_steps(state, LARGEST + 1)
        steps = hopeless(problem, legal)
        if not steps:
            return False
        line, state = steps[rng.integers(len(steps))]
        chosen.append((line, legal))
    wishes = task.wishful_steps(problem, state)
    if not wishes:
        return False
    wish, left = wishes[rng.integers(len(wishes))]
    for line, steps in chosen:
        written.choose(line, steps)
    written.step(wish, imitate="nothing")
    written.steps(written.solution(left))
    written.check("".join([*(line for line, _ in chosen), wish]))
    return True


def parts(problem, rng):
    """
    A problem, as it was drawn or as a return restates it, and what the right steps leave of it, down to three
    numbers: each a problem with its solution. These may be test problems of a lower level, so who has learnt
    four numbers is not to be measured on three.
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
    """A part of every stream, of this level: a worked solution, or its first step up to the result."""
    written = Writer(problem, level)
    if whole:
        written.steps(solution)
        return written.end(solution)
    written.write(TASKS[problem.task].hard_part(solution))
    return written


def plans(problem, rng, most=4):
    """
    From four numbers on, a part of every stream: openings that can be solved, in any order, each with the
    first step of its solution; the last of them is solved. Any that was not shown yet will do; that one goes
    back from what can be solved is not imitated.
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


def lesson(task, level, n, rng, step, progress):
    """
    What a step of training shows, a list of Writer: one of

        whole pieces      n / 2 of them and n / 6 short streams: at first, and every WHOLE_EVERY steps later
        first steps       of n pieces
        streams           n / PIECES_PER_STREAM: every second step after STREAMS_AFTER
        plans             n / 4 texts: every fourth step then, from four numbers on

    So after STREAMS_AFTER, with four numbers, steps 0, 1, 2, ... of every eight show whole pieces, streams,
    plans, streams, first steps, streams, plans, streams.
    """
    def draw(n):
        return make_problems(task, level, n, rng, targets=SEEN_TARGETS, progress=progress)[0]

    if progress > STREAMS_AFTER and step % 2:
        return [stream(problem, rng) for problem in draw(n // PIECES_PER_STREAM)]
    if progress > STREAMS_AFTER and step % 4 and level > 3:
        return [plans(problem, rng) for problem in draw(n // 4)]
    # Each problem has level - 2 parts, so these are n
    solved = [part for problem in draw(n // (level - 2)) for part in parts(problem, rng)]
    if progress > HARD_AFTER and step % WHOLE_EVERY:
        return [piece(*part, whole=False, level=level) for part in solved]
    # The first of them: so, with three numbers, all of the hard ones (see draw of countdown.py)
    pieces = [piece(*part, whole=True, level=level) for part in solved[:n // 2]]
    return pieces + [stream(problem, rng, 2) for problem in draw(n // 6)]
