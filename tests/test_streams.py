"""
The teacher of streams, held against replay and enumeration.
"""
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

import best_of_n
from budget import Settings
from common import choose_task
from experiments.bounds import CURES, cured
from experiments.recovery import BEGINNINGS, begun, next_line
from experiments.streams import by_length, curve, faults
from mistakes import check_of, false_quotients, helpful_results, near_misses, slip
from scripts import run, run_here, table
from streams import PIECES_PER_STREAM, SEEN_TARGETS, UNSEEN_TARGETS, parts, piece, plans, stream
from train_sft import make_parser, streams_lesson
from verify import EOS, TASKS, decode, encode, make_problems, parse_problem, replay, state_value, verify

TASK = TASKS["countdown"]


def problems(level, n, seed=0):
    return zip(*make_problems("countdown", level, n, np.random.default_rng(seed)))


def streams(level, n, most=99):
    rng = np.random.default_rng(1)
    return [(problem, stream(problem, rng, most)) for problem, _ in problems(level, n)]


def wait_for(problem):
    """How a stream goes back to its problem."""
    return f"wait {TASK.restate(problem, sorted(problem.numbers, reverse=True))}\n"


@pytest.mark.parametrize("level", [2, 3, 4, 5])
def test_streams_are_right_and_try_any_wrong_openings_before(level):
    n_tried, all_tried = Counter(), 0
    for problem, written in streams(level, 60 if level < 5 else 5):
        text = decode(written.ids[:-1])
        assert written.ids[-1] == EOS and verify(problem, text).correct
        assert len(written.ids) == len(written.imitate)
        *tried, last = [attempt.splitlines(keepends=True)[0] for attempt in text.split(wait_for(problem))]
        assert state_value(problem, last) and not any(state_value(problem, line) for line in tried)
        assert len(set(tried)) == len(tried)                            # none twice
        wrong = [line for line, left in TASK.legal_steps(sorted(problem.numbers, reverse=True))
                 if left[-1] < 1000 and not state_value(problem, line)]
        n_tried[len(tried) * 2 > len(wrong)] += 1
        all_tried += len(tried) == len(wrong)
        steps = [line for line in text.splitlines() if not line.startswith(("wait", "?"))]
        assert all(line.endswith(f">{problem.target}") for line in steps)
    if 2 < level < 5:
        assert min(n_tried.values()) > 15 and all_tried


def lines_of(written):
    """Each line of a stream with what stood before it, and which of its tokens are imitated."""
    before, flags = "", list(written.imitate)
    for line in decode([token for token in written.ids if token != EOS]).splitlines(keepends=True):
        n = len(encode(line))
        yield before, line, flags[:n]
        before, flags = before + line, flags[n:]


def of_result(line):
    """Which tokens of a step follow from its choice."""
    n_chosen = len(encode(TASK.chosen_part(line)))
    return [False] * n_chosen + [True] * (len(encode(line)) - n_chosen)


def test_what_is_imitated_of_streams():
    counts = Counter()
    for problem, written in streams(4, 60):
        whole, is_false = decode(written.ids[:-1]), False   # is_false: the attempt has a wrong step
        standing = {step.line for step in replay(problem, whole).standing}
        for number, (before, line, imitate) in enumerate(lines_of(written)):
            if line.startswith("wait"):
                assert all(imitate) and not state_value(problem, before)
                is_false = False
            elif number in standing or line.startswith("?") or is_false:
                assert all(imitate)
            elif any(imitate):
                assert imitate == of_result(line)
                counts["tries"] += 1
            else:
                assert replay(problem, before + line).state is None
                is_false = not whole[len(before + line):].startswith("wait")
                counts["false" if is_false else "slips"] += 1
    assert counts["tries"] > 200 and 10 < counts["slips"] < 120 and 20 < counts["false"] < 120


def test_what_seems_to_be_solved_is_checked():
    counts, at = Counter(), Counter()
    for problem, written in streams(4, 100):
        *tried, last = decode(written.ids[:-1]).split(wait_for(problem))
        for attempt in tried:
            steps = [line for line in attempt.splitlines() if not line.startswith("?")]
            quotients = [line for line in steps if "/" in line]
            checks = attempt.splitlines()[len(steps):]
            assert all(check.startswith("?") for check in checks)       # they stand behind the steps
            assert bool(checks) == bool(steps[-1].endswith(f",{problem.target}>{problem.target}"))
            for quotient, check in zip(quotients, checks):
                a, b, c = map(int, re.findall("[0-9]+", quotient)[:3])
                assert check == f"?{c}*{b}={c * b}"
                assert (a == b * c) == (check != checks[-1])            # the last one finds it out
            if checks:
                wrong = replay(problem, attempt).standing
                at[next(i for i, step in enumerate(wrong) if step.state is None)] += 1
        quotients = [line for line in last.splitlines() if "/" in line]
        checks = [line for line in last.splitlines() if line.startswith("?")]
        assert len(quotients) == len(checks) and last.endswith("".join(check + "\n" for check in checks))
        for quotient, check in zip(quotients, checks):
            a, b, c = re.findall("[0-9]+", quotient)[:3]
            assert check == f"?{c}*{b}={a}"
        counts[len(checks)] += 1
    assert counts[0] > 20 and counts[1] > 10 and min(at[1], at[2]) > 10 and at[3], (counts, at)


def test_three_numbers_are_checked_only_as_parts_of_four():
    problem, solution = parse_problem("84 2 7>49"), "84/2=42,7 42\n42+7=49,49\n"
    assert decode(piece(problem, solution, True, 4).ids) == (
        "84/2=42,7 42>49\n42+7=49,49>49\n?42*2=84\n<|eos|>")
    assert decode(piece(problem, solution, True).ids) == "84/2=42,7 42>49\n42+7=49,49>49\n<|eos|>"
    assert not any("?" in decode(written.ids) for _, written in streams(3, 60))


def test_false_quotients_are_near_and_would_help():
    for problem, _ in problems(3, 60):
        found = false_quotients(problem, problem.numbers)
        for line, left in found:
            a, b, c = map(int, re.findall("[0-9]+", line)[:3])
            assert a % b and abs(a / b - c) <= 2 and TASK.is_solvable(problem, left)
            assert TASK.step(problem, problem.numbers, line.rstrip()) == (None, f"{a}/{b} is not {c}")
            assert check_of(line) == (f"?{c}*{b}={c * b}\n", False)
    assert false_quotients(parse_problem("86 20 6>18"), (86, 20, 6)) == [("86/20=3,6 3\n", (6, 3))]
    assert false_quotients(parse_problem("5 0>18"), (5, 0)) == []


@pytest.mark.parametrize("line, expected", [
    ("42/7=6,30 6>36", ("?6*7=42\n", True)), ("42/9=4,30 4", ("?4*9=36\n", False)),
    ("5/0=0,0", ("?0*0=0\n", False)),
    ("42*7=294,294", ("", True)), ("42-7=36,36", ("", True)), ("x", ("", True)), ("", ("", True))])
def test_what_checks_a_step(line, expected):
    assert check_of(line) == expected


def test_choices_are_open_to_what_is_legal_and_was_not_tried():
    n_open, n_forbidden = 0, 0
    for problem, written in streams(4, 60):
        tried, position = set(), 0
        legal = {line for line, _ in TASK.legal_steps(sorted(problem.numbers, reverse=True))}
        for before, line, imitate in lines_of(written):
            chosen, state = line.split("=")[0] + "=", replay(problem, before).state
            opens = len(state or ()) == 4
            if "=" in line and imitate == of_result(line):
                would_do = {TASK.chosen_part(step) for step, _ in TASK.legal_steps(state, 1000)}
                if opens:                   # those that lead to the target may also be large on their way
                    right = {TASK.chosen_part(step) for step in legal if state_value(problem, step)}
                    n_forbidden += len(tried)
                    would_do = (would_do | right) - tried
                ids = encode(chosen)
                for i in range(len(ids)):
                    begun = decode(ids[:i])
                    rests = [text[len(begun):] for text in would_do if text.startswith(begun)]
                    assert written.choices[position + i] == {encode(rest)[0] for rest in rests}
                n_open += len(ids)
            else:
                assert not any(position + i in written.choices for i in range(len(imitate)))
            if opens:
                tried.add(chosen)
            position += len(imitate)
    assert n_open > 2000 and n_forbidden > 500
    assert not any(written.choices for _, written in streams(3, 30))


def test_few_wrong_openings_if_so_asked():
    def n_wrong(most):
        return [decode(written.ids[:-1]).count(wait_for(problem))
                for problem, written in streams(4, 40, most)]
    assert n_wrong(0) == [0] * 40 and max(n_wrong(2)) == 2 and max(n_wrong(99)) > 8


def test_what_cannot_be_solved_has_no_stream():
    assert stream(parse_problem("1 1 1>100"), np.random.default_rng(0)) is None


@pytest.mark.parametrize("level", [2, 3, 4])
def test_slips_look_like_steps_and_are_wrong(level):
    rng, reasons = np.random.default_rng(0), set()
    for problem, _ in problems(level, 200):
        line = slip(problem, problem.numbers, rng).rstrip()
        state, reason = TASK.step(problem, problem.numbers, line)
        assert state is None and " is not " in reason, line
        reasons.add(line.replace("=", " ").translate(str.maketrans("", "", "0123456789, ")))
    assert reasons == set("+-*/")


def test_near_misses_come_near():
    problem = parse_problem("52 24 26>50")
    helpful = {24: [26, 74, 1200], 26: [24, 76, 1300], 52: [2, 102, 2600]}     # by the number that is left
    near = near_misses(problem, problem.numbers)
    for line, (other, result) in TASK.legal_steps(problem.numbers, 1000):
        is_near = any(0 < abs(result - x) < 0.2 * x for x in helpful[other])
        assert ((line, (other, result)) in near) == is_near, line
    assert [line for line, _ in near] == ["52-24=28,26 28\n", "52+26=78,24 78\n"]
    assert near_misses(problem, (24, 28)) == [("28+24=52,52\n", (52,))]
    assert near_misses(problem, (1, 2, 3, 4)) == []


def test_helpful_results_make_the_target():
    for problem, _ in problems(2, 100):
        other, number = problem.numbers
        makes = [result for _, (result,) in TASK.legal_steps(problem.numbers)]
        assert (problem.target in makes) == (number in helpful_results((other,), problem.target))


@pytest.mark.parametrize("level, levels", [(3, [3]), (4, [4, 3]), (5, [5, 4, 3])])
def test_pieces_are_parts_of_solutions_and_their_first_steps(level, levels):
    rng, n_restated = np.random.default_rng(0), 0
    for problem, _ in problems(level, 40 if level < 5 else 5):
        found = parts(problem, rng)
        assert [part.level for part, _ in found] == levels
        assert verify(problem, found[0][1]).correct
        n_restated += found[0][0].prompt == wait_for(problem).removeprefix("wait ")
        for (before, solution), (after, _) in zip(found, found[1:]):
            state, _ = TASK.step(before, before.numbers, solution.split("\n")[0])
            assert after.prompt.rstrip() == TASK.restate(before, state)
        for part, solution in found:
            written, hard = piece(part, solution, True), piece(part, solution, False)
            assert written.problem == hard.problem == part
            assert verify(part, decode(written.ids[:-1])).correct and all(written.imitate)
            text = decode(hard.ids)
            assert text.endswith(",") and text.count("=") == 1 and all(hard.imitate)
    assert level == 5 or 10 < n_restated < 40


def test_plans_follow_right_openings_that_are_not_imitated():
    rng, n_plans = np.random.default_rng(0), 0
    for problem, _ in problems(4, 60):
        written = plans(problem, rng)
        assert written.ids[-1] == EOS and verify(problem, decode(written.ids[:-1])).correct
        opens = True
        for before, line, imitate in lines_of(written):
            if line.startswith("wait"):
                assert line == wait_for(problem) and imitate == [False] + [True] * (len(imitate) - 1)
                n_plans += 1
            elif opens:
                assert imitate == of_result(line)
            else:
                assert all(imitate) and state_value(problem, before + line)
            opens = line.startswith("wait")
    assert 60 < n_plans < 180


def test_lessons_depend_on_seed_and_step_and_grow_into_streams():
    args = make_parser().parse_args(["--streams", "--task", "countdown", "--level", "4", "--steps", "100",
                                     "--batch-size", "48"])
    lengths = []
    for step in (0, 19, 52, 99):
        examples = streams_lesson(args, step)[1]
        assert [e.completion for e in examples] == [e.completion for e in streams_lesson(args, step)[1]]
        assert all(int(decode(e.prompt).split(">")[1]) in SEEN_TARGETS for e in examples)
        lengths.append(np.mean([len(example.completion) for example in examples]))
    assert lengths[1] < lengths[0] < lengths[-1] and lengths[2] < lengths[0]
    assert len(SEEN_TARGETS) == 82 and not set(SEEN_TARGETS) & set(UNSEEN_TARGETS)


def test_faults_are_what_enumeration_says():
    problem = parse_problem("9 3 5 2>24")
    text = ("9-5=4,3 2 4>24\n3+2=5,4 5>24\nwait 3 2 4>24\n"            # a wrong turn
            "wait 9 3 5 2>24\n"                                        # a right opening given up
            "9-5=4,2 3 4>24\n3*2=7,4 7>24\n4*7=24,24>24\n"             # again; a wrong step, and one on it
            "wait 9 3 5 2>24\n9*3=27,5 2 27>24\n"
            "?3*2=6\n?9*3=27\nwait 9 3 5 2>24\n9-5=4,3 2 4>24\n?1*2=3\n"     # checks
            "wait 1 1>24\n9-5=4,3 2 4>24\n")                           # to nowhere
    counts = faults(problem, text)
    assert counts["steps", 4] == 4 and counts["repeated openings", 4] == 2
    assert counts["steps from solvable", 4] == 4 and counts["steps that keep it solvable", 4] == 4
    assert counts["steps", 3] == 2 and counts["wrong steps", 3] == 1
    assert counts["steps that keep it solvable", 3] == 0
    assert counts["steps", 0] == 1 and counts["wrong steps", 0] == 0
    assert counts["returns", 2] == 1 and counts["returns from solvable", 2] == 0
    assert counts["returns", 3] == 3 and counts["returns from solvable", 3] == 3
    assert counts["returns to nowhere", 3] == 1 and counts["returns", 0] == 1
    assert counts["checked", 3] == 2 and counts["checked and taken back", 3] == 2


def test_a_cure_ends_a_stream_where_the_mistake_would_have_been():
    problem = parse_problem("9 3 5 2>24")
    lines = ["9-5=4,3 2 4>24", "3+2=5,4 5>24", "wait 9 3 5 2>24",               # a wrong turn
             "9+3=12,5 2 12>24", "wait 9 3 5 2>24",
             "9-5=4,2 3 4>24", "wait 9 3 5 2>24",                               # given up
             "9-5=4,3 2 4>24", "3*2=7,4 7>24"]                                  # a wrong step, and cut off
    lengths = [len(line) - 3 * line.startswith("wait") + 1 for line in lines]   # `wait` is one token
    completion, rest = "\n".join(lines) + "\n", len("3*2=6,4 6>24\n4*6=24,24>24\n") + 1
    stream = completion, sum(lengths), False
    found = {name: cured(problem, stream, cures) for name, cures in CURES.items()}
    assert found == {"as it is": (sum(lengths), False, False),
                     "no repeats": (sum(lengths) - sum(lengths[5:7]), False, False),
                     "legal steps": (sum(lengths[:8]) + rest, True, True),
                     "no giving up": (sum(lengths[:6]) + rest, True, True),
                     "right plans": (lengths[0] + rest, True, True),
                     "all": (lengths[0] + rest, True, True),
                     "no checks": (sum(lengths), False, False)}
    right = encode("9-5=4,3 2 4>24\n3*2=6,4 6>24\n4*6=24,24>24\n")
    for cures in CURES.values():            # there is nothing to cure
        assert cured(problem, (decode(right), len(right) + 1, True), cures) == (len(right) + 1, True, False)
    for first, is_right in ((decode(right), True), ("9-5=4,3 2 4>24\n4*6=24,24>24\n", False)):
        checked = f"{first}?1*1=1\nwait 9 5 3 2>24\n{decode(right)}"
        expected = len(encode(first)) + 1, is_right, True
        assert cured(problem, (checked, len(encode(checked)) + 1, True), ("no checks",)) == expected


def test_streams_are_begun_as_it_says():
    rng, values = np.random.default_rng(0), {beginning: [] for beginning in BEGINNINGS}
    for problem, _ in problems(4, 30):
        for beginning in BEGINNINGS:
            written = begun(problem, beginning, rng)
            if written:
                values[beginning].append(state_value(problem, decode(written.ids)))
    assert all(values["nothing"] + values["right opening"]) and len(values["right opening"]) == 30
    assert not any(values["wrong opening"] + values["slip"] + values["right opening, slip"])
    assert begun(parse_problem("1 1 1>100"), "right opening", rng) is None


@pytest.mark.parametrize("before, completion, expected", [
    ("9-5=4,3 2 4>24\n", "3*2=6,4 6>24\n4*6=24,24>24\n", "goes on"),
    ("9-5=4,3 2 4>24\n", "wait 9 5 3 2>24\n9-5=4,3 2 4>24\n", "goes back"),
    ("9-5=4,3 2 4>24\n", "wait 9 5 3 3>24\n", "is wrong"),
    ("9-5=4,3 2 4>24\n", "3*2=7,4 7>24\n", "is wrong"),
    ("9-5=4,3 2 4>24\n", "3*2=6,4 6", "is wrong"),                     # cut off
    ("9-5=5,3 2 5>24\n", "wait 9 5 3 2>24\n", "goes back"),
    ("9-5=5,3 2 5>24\n", "3*2=6,5 6>24\n", "is wrong"),                # on a wrong line
])
def test_what_the_next_line_does(before, completion, expected):
    assert next_line(parse_problem("9 3 5 2>24"), before, completion) == expected


def test_pooled_lengths_are_confounded_and_those_within_problems_are_not():
    # Ten streams each: of the easy problem all are right, of the hard one, which takes longer, the long ones
    easy = [("", 10 + i, True) for i in range(10)]
    hard = [("", 100 + i, i >= 8) for i in range(10)]
    rows = by_length(easy + hard, 10)
    pooled, within = ([row["accuracy"] for row in rows if row["how"] == how] for how in ("pooled", "within"))
    assert pooled == [1, 1, 0.5, 0, 0.5] and within == [0.5, 0.5, 0.5, 0.5, 1]
    assert [row["tokens"] for row in rows][5:] == [55.5, 57.5, 59.5, 61.5, 63.5]


def test_a_curve_counts_what_ended_right_in_time():
    rows = curve([("", 32, True), ("", 33, True), ("", 10, False), ("", 128, False)], 128)
    assert [(row["budget"], row["accuracy"]) for row in rows] == [(32, 0.25), (64, 0.5), (128, 0.5)]
    assert rows[0]["tokens_per_problem"] == (32 + 32 + 10 + 32) / 4
    two = curve([("", 32, True), ("", 33, True), ("", 10, False), ("", 128, False)], 32, n_samples=2)[0]
    assert two["problems"] == 2 and two["ci_low"] < rows[0]["ci_low"] < rows[0]["ci_high"] < two["ci_high"]


def test_streams_go_through_all_scripts(tmp_path):
    log = ["--max-tokens", 96, "--log-problems", 10, "--test-problems", 20, "--out", tmp_path]
    done = run("train_sft.py", "--depth", 1, "--steps", 40, "--batch-size", 12,
               "--log-every", 20, *log)
    assert done.returncode == 0, done.stderr
    done = run("train_rl.py", "--steps", 5, "--prompts", 4, "--samples", 4, *log)
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in table(tmp_path / "rl.csv")] == ["1", "2", "4", "5"]
    for name in ("sft.csv", "rl.csv"):
        assert all(float(row["sampled"]) >= float(row["within64"]) >= 0 for row in table(tmp_path / name))
    done = run_here("search.py", "--methods", "stream", "heuristic", "--budgets", 32, 64, "--n-problems", 20,
                    "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "search.csv")
    assert [(row["method"], row["budget"]) for row in rows] == [
        ("stream", "32"), ("heuristic", "32"), ("stream", "64"), ("heuristic", "64")]
    assert all(float(row["tokens_per_problem"]) <= int(row["budget"]) for row in rows)
    done = run_here("plot.py", tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("experiments.streams", "--max-tokens", 64, "--n-problems", 10, "--out", tmp_path)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    rows = table(tmp_path / "streams.csv")
    assert [(row["targets"], row["budget"]) for row in rows] == [
        ("seen", "32"), ("seen", "64"), ("unseen", "32"), ("unseen", "64")]
    assert table(tmp_path / "faults.csv")
    done = run_here("ask.py", "9 3 5>24", "--out", tmp_path)
    assert done.returncode == 0 and "tokens" in done.stdout, done.stderr
    done = run_here("search.py", "--methods", "majority", "--out", tmp_path)
    assert done.returncode == 2 and "with a model of streams there are" in done.stderr


def test_a_stream_that_was_cut_off_is_found_too(monkeypatch):
    cut = best_of_n.Sample("9-5=4,3 2", 0.0, 8, False)
    monkeypatch.setattr(best_of_n, "draw", lambda *args: [cut])
    model = SimpleNamespace(config=SimpleNamespace(block_size=100))
    result, = best_of_n.one_stream(model, [parse_problem("9 3 5 2>24")], 8, Settings(8))
    assert result.found == [(cut.completion, 8, None)] and not result.finished


@pytest.mark.parametrize("flags, expected", [
    ([], (3, True, 512)),                                               # a new model, where there are streams
    (["--level", "4"], (4, True, 1024)),
    (["--level", "2"], (2, False, TASK.max_tokens(2))),
    (["--task", "expression"], (4, False, TASKS["expression"].max_tokens(4))),
    (["--no-streams"], (3, False, TASK.max_tokens(3))),
])
def test_a_new_model_learns_streams_where_there_are_any(flags, expected):
    args = make_parser().parse_args(flags)
    choose_task(args)
    assert (args.level, args.streams, args.max_tokens) == expected


def test_a_model_goes_on_with_what_it_writes():
    for streams in (True, False):
        args = make_parser().parse_args([])
        choose_task(args, {"task": "countdown", "level": 3, "streams": streams, "max_tokens": 77})
        assert args.streams == streams and args.max_tokens == 77


def test_a_model_of_streams_that_learns_answers_needs_room_for_answers():
    args = make_parser().parse_args(["--no-streams"])
    choose_task(args, {"task": "countdown", "level": 3, "streams": True, "max_tokens": 512})
    assert not args.streams and args.max_tokens == TASK.max_tokens(3)


def test_streams_need_enough_of_a_batch(tmp_path):
    done = run_here("train_sft.py", "--streams", "--level", 4, "--batch-size", 4, "--out", tmp_path)
    assert done.returncode == 2 and f"--batch-size 4: streams need {PIECES_PER_STREAM}" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--task", "expression"], ["--level", 2]])
def test_streams_need_steps_to_list(flags, tmp_path):
    done = run_here("train_sft.py", "--streams", *flags, "--out", tmp_path)
    assert done.returncode == 2 and "streams: not for" in done.stderr
