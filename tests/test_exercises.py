"""
The exercises of EXERCISES.md: what grades those whose solution is not in the repository (they are skipped
until `--student=DIR` brings one), and that grading grades. And the bugs of mutants.py still fit our files.
"""
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

import search
import train_rl
import tree
from algorithms import ALGORITHMS
from conftest import EXERCISES
from model import GPTConfig
from mutants import MUTANTS, Mutant, planted, read_patch
from scripts import table
from test_rl import advantages_of, loss_of, random_model, with_flags
from test_search import Chatty, settings
from tree import Node, mcts_searches
from verify import EOS, NEWLINE, held_out_problems

ROOT = Path(__file__).parent.parent


def written(module, name):
    """What a student has added to a module."""
    if not hasattr(module, name):
        pytest.skip(f"{module.__name__}.py has no {name} yet")
    return getattr(module, name)


@pytest.fixture
def student(request):
    """The student's folder."""
    folder = request.config.getoption("--student")
    if not folder:
        pytest.skip("needs --student")
    return Path(folder)


# ------------------------------------------------------------------------------------------------------------
# What grades

@pytest.mark.rloo
def test_rloo_measures_a_sample_by_the_others():
    if "rloo" not in ALGORITHMS:
        pytest.skip("ALGORITHMS has no rloo yet")
    rewards, mask = torch.tensor([1.0, 0, 0, 1, 0, 1, 0, 0, 0]), torch.tensor([[0, 1, 1, 0]] * 9).bool()
    advantages = advantages_of("rloo", rewards, torch.rand(9, 4), mask, samples=3)
    expected = torch.tensor([1, -1 / 2, -1 / 2, 1 / 2, -1, 1 / 2, 0, 0, 0])
    torch.testing.assert_close(advantages, expected[:, None] * mask)
    logprobs = torch.randn(9, 4)
    one, other = (loss_of(algo, logprobs, logprobs - 0.1, advantages) for algo in ("rloo", "reinforce"))
    torch.testing.assert_close(one, other)
    assert train_rl.make_parser().parse_args(["--algo", "rloo"]).algo == "rloo"


@pytest.mark.short
def test_of_right_samples_the_short_ones_are_worth_more():
    short_rewards = written(train_rl, "short_rewards")
    rewards = torch.tensor([1.0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0])
    lengths = torch.tensor([10, 20, 99, 30, 5, 6, 50, 7, 1, 2, 3, 4, 8, 8, 8, 2])
    found = short_rewards(rewards, lengths, with_flags(short=0.4))
    expected = torch.tensor([0.9092, 0.8, 0, 0.6908, 0, 0, 0.8, 0, 0, 0, 0, 0, 0.8, 0.8, 0.8, 0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.short
@pytest.mark.parametrize("short", [0.0, 0.4])
def test_rollouts_are_rewarded_so(monkeypatch, short):
    short_rewards, n_asked = written(train_rl, "short_rewards"), Counter()

    def is_correct(problem, ids):
        n_asked["all"] += 1
        return n_asked["all"] % 3 > 0
    monkeypatch.setattr(train_rl, "is_correct", is_correct)
    args = with_flags(short=short)
    batch, _ = train_rl.rollout(random_model(), args, 3, Counter())
    verdicts = (torch.arange(1, n_asked["all"] + 1) % 3 > 0).double()
    expected = short_rewards(verdicts, batch["mask"].sum(1), args) if short else verdicts
    torch.testing.assert_close(batch["rewards"], expected)
    assert train_rl.make_parser().parse_args([]).short == 0
    assert train_rl.make_parser().parse_args(["--short", "0.4"]).short == 0.4


@pytest.mark.visits
def test_the_most_visited_path_by_hand():
    most_visited, root = written(tree, "most_visited"), Node([], visits=9)
    often = Node([1], visits=5, value=0.1, parent=root)
    seldom = Node([2], visits=3, value=0.9, parent=root, finished=True)
    root.children = [seldom, often]
    assert most_visited(root) is None                       # the walk ends at a node that has not ended
    ends = [Node([1, n], visits=2, path=0.5, value=value, parent=often, finished=True)
            for n, value in enumerate((0.3, 0.8, 0.5))]
    often.children = ends
    assert most_visited(root) is ends[1]                    # of equals the one with the best score
    ends[2].visits = 4
    assert most_visited(root) is ends[2]
    assert most_visited(Node([])) is None


class Brief(Chatty):
    """Ends behind its first line."""

    def run(self, windows, positions, mask, cache=None):
        logits, values = super().run(windows, positions, mask, cache)
        logits[..., EOS] += 20.0 * ((windows[..., -1] == NEWLINE) & (positions > 12))
        return logits, values


@pytest.mark.visits
def test_a_method_answers_by_visits():
    most_visited = written(tree, "most_visited")
    torch.manual_seed(0)
    model = Brief(GPTConfig(n_layer=1, n_head=2, n_embd=32)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    problems, kinds = held_out_problems("countdown", 3, 20), Counter()
    results = search.METHODS["mcts (visits)"].run(model, problems, 150, settings())
    for own, found in zip(mcts_searches(model, problems, 150, settings(), "value"), results, strict=True):
        best, plain = most_visited(own.root), own.result()
        assert found.completion == (own.completion(best) if best else plain.completion)
        assert (found.tokens, found.found) == (plain.tokens, plain.found)
        kinds["finished"] += best is not None
        kinds["another answer"] += found.completion != plain.completion
    assert min(kinds["finished"], kinds["another answer"]) > 0


@pytest.mark.scaling
def test_a_scaling_curve_has_sizes_and_seeds(student):
    """DIR/d*/sft.csv: three seeds or more of three sizes or more, and accuracy grows with the compute."""
    ends = [table(path)[-1] for path in student.glob("d*/sft.csv")]
    if not ends:
        pytest.skip(f"no {student}/d*/sft.csv yet")
    by_size = defaultdict(list)
    for row in ends:
        by_size[row["parameters"]].append((float(row["flops"]), float(row["greedy"])))
    assert len(by_size) >= 3 and min(map(len, by_size.values())) >= 3
    means = sorted(np.mean(runs, axis=0).tolist() for runs in by_size.values())
    accuracies = [accuracy for _, accuracy in means]
    assert accuracies == sorted(accuracies), accuracies


def best_at_budgets(path):
    """{budget: accuracy} of the best method that asks no verifier, on a thousand test problems."""
    best = defaultdict(float)
    for row in table(path):
        if not search.METHODS[row["method"]].verifies:
            assert int(row["problems"]) >= 1000 and float(row["tokens_per_problem"]) <= int(row["budget"])
            best[int(row["budget"])] = max(best[int(row["budget"])], float(row["accuracy"]))
    return best


@pytest.mark.curve
def test_a_better_curve_than_ours(student):
    if not (student / "search.csv").exists():
        pytest.skip(f"no {student}/search.csv yet")
    mine = best_at_budgets(student / "search.csv")
    ours = [best_at_budgets(path) for path in ROOT.glob("results/answers/seed*/search.csv")]
    for budget in (75, 150, 300):
        assert mine[budget] > max(seed[budget] for seed in ours), (budget, mine, ours)


# ------------------------------------------------------------------------------------------------------------
# That it grades

def grade(folder, *flags):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--student={folder}"]
    return subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=170)


def test_a_students_file_is_graded_in_place_of_ours(tmp_path):
    """As it is, with a bug, and the exercises that are not done are skipped."""
    (tmp_path / "algorithms.py").write_text((ROOT / "algorithms.py").read_text())
    done = grade(tmp_path, "tests/test_rl.py", "tests/test_exercises.py", "-m", "gae or rloo or short")
    assert done.returncode == 0 and "4 passed, 4 skipped" in done.stdout, done.stdout
    (tmp_path / "algorithms.py").write_text(planted(read_patch(ROOT / "exercises/bugs/3.patch")))
    done = grade(tmp_path, "tests/test_rl.py")
    assert done.returncode == 1 and "test_gae" in done.stdout and "4 failed" in done.stdout, done.stdout
    done = grade(tmp_path, "--collect-only", "-m", "gae")           # as the text has it, without a path
    assert done.returncode == 0 and "test_rl.py" in done.stdout, done.stdout
    done = grade(tmp_path / "none")
    assert done.returncode == 4 and "no such folder" in done.stderr


def test_the_text_says_how_each_exercise_is_graded():
    text = (ROOT / "EXERCISES.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert [title.split()[1] for title in titles] == [f"{n}." for n in range(1, len(EXERCISES) + 1)]
    assert all(f"-m {name}" in text for name in EXERCISES)


def test_fifty_bugs_fit_the_files_they_are_for():
    """Each where its old text stands, once; and what comes of it can be compiled."""
    assert len(MUTANTS) == 50 == len({(mutant.file, mutant.new) for mutant in MUTANTS})
    for mutant in MUTANTS:
        compile(planted(mutant), mutant.file, "exec")
    with pytest.raises(ValueError, match="stands there 0 times"):
        planted(Mutant("verify.py", "no such text", "", "nothing"))
