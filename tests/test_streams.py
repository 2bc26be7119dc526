"""
The teacher of streams, held against replay, enumeration and the order of chance.
"""
import numpy as np
import pytest

from experiments.recovery import BEGINNINGS, begun, next_line
from experiments.streams import curve, faults
from scripts import run, run_here, table
from streams import PIECES, SEEN_TARGETS, UNSEEN_TARGETS, behind, piece, reaction, stream
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
def test_streams_are_right_and_their_openings_come_in_order(level):
    n_missed = 0
    for problem, written in streams(level, 30 if level < 5 else 3):
        text = decode(written.ids[:-1])
        assert written.ids[-1] == EOS and verify(problem, text).correct
        assert len(written.ids) == len(written.imitate)
        openings = [attempt.splitlines(keepends=True)[0] for attempt in text.split(wait_for(problem))]
        solvable = [state_value(problem, opening) for opening in openings]
        assert solvable[-1]
        n_missed += sum(solvable[:-1])
        in_order = [line for line, left in TASK.openings(sorted(problem.numbers, reverse=True))
                    if left[-1] < 1000 or state_value(problem, line)]
        assert [opening.replace(f">{problem.target}\n", "\n") for opening in openings] == (
            (in_order * 99)[:len(openings)])
        steps = [line for line in text.splitlines() if not line.startswith("wait")]
        assert all(line.endswith(f">{problem.target}") for line in steps)
        assert faults(problem, text)["returns from solvable", 2] == 0
    assert n_missed == 0 if level < 4 else level == 5 or 3 < n_missed < 30


def test_of_vain_tries_and_wrong_beginnings_results_are_imitated_but_no_choices():
    n_hidden = n_slips = 0
    for problem, written in streams(4, 60):
        text, at, opens = decode(written.ids[:-1]), 0, True
        standing = {step.line for step in replay(problem, text).standing}
        for number, line in enumerate(text.splitlines(keepends=True)):
            flags = written.imitate[at:at + len(encode(line))]
            at += len(flags)
            if number in standing or line.startswith("wait") or opens:
                assert all(flags)
            elif not any(flags):
                n_slips += 1
                before = "".join(text.splitlines(keepends=True)[:number + 1])
                assert replay(problem, before).state is None and text[len(before):].startswith("wait")
            else:
                chosen = len(encode(TASK.chosen_part(line)))
                assert flags == [False] * chosen + [True] * (len(flags) - chosen)
                n_hidden += 1
            opens = line.startswith("wait")
        assert at == len(written.ids) - 1 and written.imitate[-1]
    assert n_hidden > 200 and 5 < n_slips < 60


def test_openings_come_in_the_order_of_their_operators():
    operators = "".join(line.split("=")[0].strip("0123456789") for line, _ in TASK.openings((8, 4, 2)))
    assert operators == "---///+++***"
    assert sorted(TASK.openings((8, 4, 2))) == sorted(TASK.legal_steps((8, 4, 2)))


def test_few_wrong_openings_if_so_asked():
    def n_wrong(most):
        return [decode(written.ids[:-1]).count(wait_for(problem))
                for problem, written in streams(4, 40, most)]
    assert n_wrong(0) == [0] * 40 and max(n_wrong(2)) == 2 and max(n_wrong(99)) > 8


def test_where_a_stream_begins_later_its_first_choice_is_not_imitated():
    n_hidden = 0
    for problem, written in streams(4, 40, 2):
        first = decode(written.ids).splitlines(keepends=True)[0]
        chosen = written.imitate[:len(encode(TASK.chosen_part(first)))]
        assert all(chosen) or not any(chosen)
        if any(chosen):                     # it begins at the beginning, or it is right
            order = TASK.openings(sorted(problem.numbers, reverse=True))
            assert first.split(">")[0] + "\n" == order[0][0] or "wait" not in decode(written.ids)
        n_hidden += not any(chosen)
    assert 5 < n_hidden < 35


def test_what_cannot_be_solved_has_no_stream():
    assert stream(parse_problem("1 1 1>100"), np.random.default_rng(0)) is None


def test_slips_look_like_steps_and_are_wrong():
    rng, reasons = np.random.default_rng(0), set()
    for problem, _ in problems(3, 200):
        line = TASK.slip(problem.numbers, rng).rstrip()
        state, reason = TASK.step(problem, problem.numbers, line)
        assert state is None and " is not " in reason, line
        reasons.add(line.replace("=", " ").translate(str.maketrans("", "", "0123456789, ")))
    assert reasons == set("+-*/")


def test_pieces_are_solutions_and_their_first_steps():
    for problem, solution in problems(4, 60):
        left, rest = behind(problem, solution)
        assert left.prompt == f"{solution.splitlines()[0].split(',')[1]}>{problem.target}\n"
        for problem, solution in ((problem, solution), (left, rest)):
            written, hard = piece(problem, solution, True), piece(problem, solution, False)
            assert written.problem == hard.problem == problem
            assert verify(problem, decode(written.ids[:-1])).correct and all(written.imitate)
            text = decode(hard.ids)
            assert text.endswith(",") and text.count("=") == 1 and all(hard.imitate)


def test_reactions_go_on_from_right_steps_and_back_from_wrong_ones():
    n_right, rng = 0, np.random.default_rng(0)
    for problem, solution in problems(3, 100):
        written = reaction(problem, solution, rng)
        ids, lines = written.ids, decode(written.ids).splitlines(keepends=True)
        assert not any(written.imitate[:len(encode(TASK.chosen_part(lines[0])))])
        if ids[-1] == EOS:
            assert verify(problem, decode(ids[:-1])).correct
            n_right += 1
        else:
            assert lines[-1] == wait_for(problem) and all(written.imitate[-len(encode(lines[-1])):])
            assert not state_value(problem, "".join(lines[:-1]))
    assert 30 < n_right < 70


def test_lessons_depend_on_seed_and_step_and_grow_into_streams():
    args = make_parser().parse_args(["--streams", "--task", "countdown", "--level", "4", "--steps", "100",
                                     "--batch-size", "12"])
    lengths = []
    for step in (0, 39, 50, 99):
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
            "wait 1 1>24\n9-5=4,3 2 4>24\n")                           # to nowhere
    counts = faults(problem, text)
    assert counts["steps", 4] == 3 and counts["repeated openings", 4] == 1
    assert counts["steps from solvable", 4] == 3 and counts["steps that keep it solvable", 4] == 3
    assert counts["steps", 3] == 2 and counts["wrong steps", 3] == 1
    assert counts["steps that keep it solvable", 3] == 0
    assert counts["steps", 0] == 1 and counts["wrong steps", 0] == 0
    assert counts["returns", 2] == 1 and counts["returns from solvable", 2] == 0
    assert counts["returns", 3] == 2 and counts["returns from solvable", 3] == 2
    assert counts["returns to nowhere", 3] == 1 and counts["returns", 0] == 1


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


def test_a_curve_counts_what_ended_right_in_time():
    rows = curve([("", 32, True), ("", 33, True), ("", 10, False), ("", 128, False)], 128)
    assert [(row["budget"], row["accuracy"]) for row in rows] == [(32, 0.25), (64, 0.5), (128, 0.5)]
    assert rows[0]["tokens_per_problem"] == (32 + 32 + 10 + 32) / 4


def test_streams_go_through_all_scripts(tmp_path):
    log = ["--max-tokens", 96, "--log-problems", 10, "--test-problems", 20, "--out", tmp_path]
    done = run("train_sft.py", "--streams", "--level", 3, "--depth", 1, "--steps", 40, "--batch-size", 12,
               "--log-every", 20, *log)
    assert done.returncode == 0, done.stderr
    done = run("train_rl.py", "--steps", 4, "--prompts", 4, "--samples", 4, "--half-life", 64,
               "--log-every", 2, *log)
    assert done.returncode == 0, done.stderr
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
    done = run_here("experiments.streams", "--max-tokens", 64, "--n-problems", 10, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = table(tmp_path / "streams.csv")
    assert [(row["targets"], row["budget"]) for row in rows] == [
        ("seen", "32"), ("seen", "64"), ("unseen", "32"), ("unseen", "64")]
    assert table(tmp_path / "faults.csv")
    done = run_here("search.py", "--ask", "9 3 5>24", "--out", tmp_path)
    assert done.returncode == 0 and "tokens" in done.stdout, done.stderr
    done = run_here("search.py", "--methods", "majority", "--out", tmp_path)
    assert done.returncode == 2 and "with a model of streams there are" in done.stderr


def test_streams_need_enough_of_a_batch(tmp_path):
    done = run_here("train_sft.py", "--streams", "--level", 4, "--batch-size", 4, "--out", tmp_path)
    assert done.returncode == 2 and f"--batch-size 4: streams need {PIECES}" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--task", "expression"], ["--level", 2]])
def test_streams_need_steps_to_list(flags, tmp_path):
    done = run_here("train_sft.py", "--streams", *flags, "--out", tmp_path)
    assert done.returncode == 2 and "--streams: not for" in done.stderr
