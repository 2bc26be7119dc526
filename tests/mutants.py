"""
Would the tests notice? 50 plausible bugs are planted one at a time in a copy of the repository, and the tests
of the file that has the bug run until one fails.

    python tests/mutants.py                 # all of them (some 10 minutes on one core)
    python tests/mutants.py --only 3 7      # these

A bug is a piece of a file that stands there once, and what stands in its place. The last eight are those of
exercises/bugs. To begin with, the tests run on the copy as it is: if they fail there, their failing says
nothing. Exit status 1 if a bug survives.
"""
import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300                               # a test that takes longer hangs
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "out", "mine", "results")
# The others of this file take a minute
OF_VERDICTS = "test_verify.py -k 'not fuzz and not linear_time and not speed'"
TESTS = {
    "countdown.py": OF_VERDICTS,
    "verify.py": OF_VERDICTS,
    "expression.py": OF_VERDICTS,
    "model.py": "test_model.py",
    "checkpoint.py": "test_model.py",
    "optim.py": "test_model.py",
    "sample.py": "test_sample.py",
    "metrics.py": "test_sample.py",
    "store.py": "test_sample.py",
    "batches.py": "test_rl.py",
    "traces.py": "test_sft.py",
    "solutions.py": "test_sft.py",
    "train_sft.py": "test_sft.py",
    "algorithms.py": "test_rl.py",
    "train_rl.py": "test_rl.py",
    "best_of_n.py": "test_search.py",
    "tree.py": "test_search.py",
    "search.py": "test_search.py",
    "experiments/rewards.py": "test_experiments.py -k kl_penalty",
}


class Mutant(NamedTuple):
    file: str
    old: str                                # stands in the file once
    new: str
    what: str


def read_patch(path):
    """The bug of a patch that changes one place of one file."""
    file, hunk = re.fullmatch(r"(?s).*\n\+\+\+ b/(.*?)\n@@.*?@@.*?\n(.*)", path.read_text()).groups()
    lines = hunk.splitlines(keepends=True)
    old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
    return Mutant(file, old, new, str(path.relative_to(ROOT)))


MUTANTS = [
    # Problems and verdicts
    Mutant("verify.py", "key = TASKS[problem.task].split_key(problem)", "key = problem.prompt",
           "split leak: the same numbers in another order are another problem"),
    Mutant("verify.py", "hashlib.blake2b(key.encode(), digest_size=8).digest()",
           'hash(key).to_bytes(8, "big", signed=True)', "split leak: another split in every process"),
    Mutant("verify.py", "np.random.default_rng([HELD_OUT_SEED, len(problems) // 200])",
           "np.random.default_rng(HELD_OUT_SEED)", "the same 200 test problems again and again"),
    Mutant("verify.py", "return len(standing) - 1\n", "return max(1, len(standing) - 1)\n",
           "a `wait` with nothing to take back is forgiven"),
    Mutant("verify.py", "range(len(standing) - 1, 0, -1)", "range(len(standing), 0, -1)",
           "`wait P` takes back nothing, where P is what is left"),
    Mutant("verify.py", 'if not completion.endswith("\\n"):', "if not completion:",
           "what was cut off in mid-line is right"),
    Mutant("countdown.py", "target == problem.target and len(numbers)", "len(numbers)",
           "`wait P` goes back to a state of the same numbers, but another target"),
    Mutant("countdown.py", "(b * targets == a) & (b > 0)", "b * targets == a", "0 / 0 hits every target"),
    Mutant("expression.py", "PRECEDENCE[operators[-1]] >= PRECEDENCE[token]",
           "PRECEDENCE[operators[-1]] > PRECEDENCE[token]", "9-5-2 is 9-(5-2)"),
    # The model
    Mutant("model.py", ".triu(1)", ".triu(2)", "a token sees the next one"),
    Mutant("model.py", "keys.index_copy_(1, self.columns, k)",
           "keys.index_copy_(1, (self.columns - 1).clamp_min(0), k)", "cache off by one: keys"),
    Mutant("model.py", "torch.cat((-angle.sin(), angle.sin()), 1)",
           "torch.cat((angle.sin(), angle.sin()), 1)", "rotary positions that do not rotate"),
    Mutant("model.py", "torch.arange(n - 1, -1, -1)).sum(1)", "torch.zeros(n).long()).sum(1)",
           "42 is read as 6"),
    Mutant("checkpoint.py", "damaged = archive.testzip()", "damaged = None", "checksums are not looked at"),
    Mutant("optim.py", "        optimizer.zero_grad(set_to_none=True)\n", "", "gradients pile up"),
    # Sampling
    Mutant("sample.py", "rows.position[:n, 0] = length - 1", "rows.position[:n, 0] = length",
           "cache off by one: positions"),
    Mutant("sample.py", "torch.rand(logprobs.shape, generator", "torch.rand(logprobs.shape[1:], generator",
           "one draw for the whole batch: the first token is broadcast"),
    Mutant("sample.py", 'getattr(all_rows, name)[rows["index"]] = buffer',
           "getattr(all_rows, name)[:len(buffer)] = buffer", "rows that moved come back in others' places"),
    Mutant("sample.py", "new.copy_(old)", "new.copy_(new)", "samples with the weights of the first call"),
    Mutant("sample.py", "row[:-1] if row and row[-1] in stop_tokens else None", "row[:-1]",
           "what was cut off counts as finished"),
    Mutant("metrics.py", "1.0 - math.comb(n - n_correct, k) / math.comb(n, k)",
           "1.0 - (1.0 - n_correct / n) ** k", "pass@k with a bias"),
    Mutant("metrics.py", "judge(start + row // n_samples, ids)", "judge(start + row % len(batch), ids)",
           "samples judged on another problem"),
    Mutant("store.py", "self.k[:, first:self.size] = cache.k[:, rows, start + columns]",
           "self.k[:, first:self.size] = cache.k[:, rows, columns]",
           "keys of the prompt in place of the line's"),
    # Training
    Mutant("batches.py", '"mask": mask[:, 1:]}', '"mask": mask[:, :-1]}',
           "everything is learnt a token too late"),
    Mutant("batches.py", "(mask * columns).amax(1)", "(mask * columns).amax(1) - 1",
           "the last token is cut off with the padding"),
    Mutant("traces.py", "line in VERDICTS or correct and bool(", "line in VERDICTS or bool(",
           "wrong traces are imitated"),
    Mutant("traces.py", "labels[-1] = values[number]", "labels[-len(tokens) - 1] = values[number]",
           "the label of a line stands before it"),
    Mutant("solutions.py", "is_correct(problem, lines + ended)", "is_correct(problem, ended)",
           "an attempt is judged without its beginning"),
    Mutant("train_sft.py", "/ max(1, n_policy)", "/ max(1, n_learnt(part))",
           "a mean of means: a part of the batch with few tokens counts as much as others"),
    Mutant("train_rl.py", "is_correct(problems[row // args.samples], ids)",
           "is_correct(problems[row % args.prompts], ids)", "rewards go to others' samples"),
    Mutant("algorithms.py", "mask & ~F.pad(mask[:, 1:], (0, 1))",
           "mask & ~F.pad(mask[:, :-1], (1, 0))", "the reward comes with the first token, not the last"),
    Mutant("algorithms.py", "-torch.minimum(ratio", "-torch.maximum(ratio", "PPO clips the wrong side"),
    Mutant("train_rl.py", '(loss * part["mask"]).sum().div(n_tokens)',
           '((loss * part["mask"]).sum(1) / part["mask"].sum(1)).mean()',
           "each completion counts the same, so tokens of long wrong ones count little"),
    Mutant("train_rl.py", "{ends[line] + 1 for line in read.restarts}",
           "{ends[line] for line in read.restarts}", "an attempt begins a token too early"),
    # Search
    Mutant("best_of_n.py", "sum(sample.tokens for sample in samples)",
           "sum(sample.tokens for sample in samples if sample.finished)",
           "the budget forgets what was thrown away"),
    Mutant("tree.py", "        node.total += value\n",
           "        node.total += value\n        value = 1 - value\n", "backup's sign, as for two players"),
    Mutant("tree.py", "math.exp(sum(line.logprobs) - branch.cost)", "math.exp(sum(line.logprobs))",
           "the prior of a child is that of its end only"),
    Mutant("tree.py", "search.budget.spend(len(line.new) + 1)", "search.budget.spend(len(line.new))",
           "the budget forgets the token a branch begins with"),
    Mutant("tree.py", "child.prior / (1 + child.visits)", "child.prior / max(1, child.visits)",
           "PUCT without the 1 +"),
    Mutant("tree.py", "key=lambda child: -child.score)[:width]", "key=lambda child: child.score)[:width]",
           "beams keep the worst"),
    Mutant("tree.py", "not node.branches and all(", "not node.branches and any(",
           "a node is closed as soon as one child is"),
    Mutant("search.py", 'args.level, N_VALIDATION, "validation")', 'args.level, N_VALIDATION, "test")',
           "the temperature is chosen on test problems"),
    *map(read_patch, sorted((ROOT / "exercises" / "bugs").glob("*.patch"))),
]


def planted(mutant):
    """The text of the file with the bug in it. ValueError if its place is not there once."""
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file}: {mutant.old!r} stands there {text.count(mutant.old)} times")
    return text.replace(mutant.old, mutant.new)


def failing_test(folder, tests):
    """The first test that fails in a copy of the repository, "" if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    try:
        done = subprocess.run(command, cwd=folder / "tests", capture_output=True, text=True, timeout=SECONDS,
                              env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    except subprocess.TimeoutExpired:
        return "it hangs"
    if done.returncode > 1:                 # no test has run
        raise ValueError(f"{tests}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    failed = re.search(r"^FAILED \S*?::(\w+)", done.stdout, re.MULTILINE)
    return failed[1] if failed else "" if done.returncode == 0 else "an error"


def survives(folder, number, mutant):
    """Plant a bug in a copy of the repository, run the tests, and take it out again."""
    path, started = folder / mutant.file, time.time()
    path.write_text(planted(mutant), encoding="utf-8")
    failed = failing_test(folder, TESTS[mutant.file])
    shutil.copy(ROOT / mutant.file, path)
    said, seconds = failed or "SURVIVES", time.time() - started
    print(f"{number:2} {mutant.file:23} {mutant.what}  ->  {said} ({seconds:.0f} s)", flush=True)
    return not failed


def main():
    parser = argparse.ArgumentParser(description="Plant bugs one at a time: do the tests notice?")
    parser.add_argument("--only", nargs="+", type=int, choices=range(1, len(MUTANTS) + 1), metavar="N",
                        help=f"the numbers of some bugs, 1 to {len(MUTANTS)} (default: all)")
    numbers = parser.parse_args().only or range(1, len(MUTANTS) + 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy"
        shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
        for tests in sorted({TESTS[MUTANTS[number - 1].file] for number in numbers}):
            failed = failing_test(folder, tests)
            if failed:
                sys.exit(f"{tests}: {failed} fails without any bug")
        alive = [number for number in numbers if survives(folder, number, MUTANTS[number - 1])]
    print(f"{len(numbers) - len(alive)} of {len(numbers)} caught" + f"; not {alive}" * bool(alive))
    sys.exit(bool(alive))


if __name__ == "__main__":
    main()
