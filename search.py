"""
Spend compute at test time: the same model, more tokens, higher accuracy.

    python search.py                # all methods over a few budgets -> out/search.csv (25 s on two CPU cores)
    torchrun --nproc_per_node 2 search.py           # by two processes, each with half of the problems
    python search.py --problems FILE                # your own problems, a prompt a line
    # Traces to learn from (train_sft.py --data)
    python search.py --save FILE --methods "mcts (verifier)" --budgets 150

A model of streams searches by itself: one sample may use up the whole budget (`stream`). Or it begins new
samples of at most --max-tokens, until one ends (`stream (afresh)`) or the verifier accepts one (`best-of-n
(verifier)`). Around a model of worked solutions there are three ways to generate, and ways to choose among
the results:

    samples    greedy, a single sample, majority vote, best-of-N
    beam       beam search over steps (a step is a line): keep the best few partial solutions at each depth
    mcts       Monte-Carlo tree search over steps: PUCT, the policy as prior, the value head at the leaves

A budget is a ceiling on the tokens generated for a problem, discarded ones included. A search sees the prompt
only. The scorer stands in parentheses:

    value      the value head
    verifier   the exact verifier, asked about finished completions only
    rollouts   the verifier, and in place of the value head one sample from each step to its end
    best T     the same method, at the temperature that is best on validation problems

vote adds up such scores over the samples that agree; in majority vote each counts 1. In countdown the
verifier is fair, because checking a solution takes no hidden answer; in expression it is not, and is marked
(*). Four methods need no model, as baselines: random legal steps, and depth-first search in order, in the
order of a heuristic, and in random order with a look one step ahead.
"""
import os
import time
from dataclasses import dataclass, replace
from functools import partial

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, check_level, open_folder, positive, run_script, save_table

import numpy as np
import torch
from tqdm import tqdm

from baselines import by_heuristic, depth_first, looking_ahead, random_paths
from best_of_n import best_of_n, one_sample, one_stream, sample_n, until_content, vote
from budget import BUDGETS, STREAM_BUDGETS, Settings
from checkpoint import check_room, load_model
from metrics import wilson
from model import flops_per_token
from processes import join_processes, shared
from streams import SEEN_TARGETS
from traces import traces_of, write_traces
from tree import beam, mcts
from verify import TASKS, encode, held_out_problems, make_problems, parse_problem, tidy, verify

TEMPERATURES = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2)
N_VALIDATION = 300                          # validation problems on which the best of them is chosen


# ------------------------------------------------------------------------------------------------------------
# The table

SOLUTIONS, STREAMS = "worked solutions", "streams"


@dataclass(frozen=True)
class Method:
    """A function (model, problems, budget, settings) -> list of Result, and how to run it fairly."""
    run: callable
    verifies: bool = False                  # asks the verifier about finished completions
    ranks: bool = False                 # ranks the samples of a budget, which all ranking methods share
    best_temperature: bool = False          # runs at the temperature that is best on validation problems
    temperature: float = 1.0
    needs_model: bool = True
    single: bool = False                # larger budgets than the longest sample change nothing: no row
    models: tuple = (SOLUTIONS,)            # what its models write: worked solutions, streams


BOTH = SOLUTIONS, STREAMS
without_model = partial(Method, verifies=True, needs_model=False, models=BOTH)
METHODS = {
    "greedy": Method(one_sample, single=True, temperature=0.0),
    "single sample": Method(one_sample, single=True),
    "single sample (best T)": Method(one_sample, single=True, best_temperature=True),
    "stream": Method(one_stream, models=(STREAMS,)),
    "stream (afresh)": Method(partial(until_content, scorer="count"), models=(STREAMS,)),
    "majority": Method(partial(vote, scorer="count"), ranks=True),
    "vote (value)": Method(partial(vote, scorer="value"), ranks=True),
    "best-of-n (value)": Method(partial(best_of_n, scorer="value"), ranks=True),
    "best-of-n (verifier)": Method(partial(until_content, scorer="verifier"), verifies=True, models=BOTH),
    "best-of-n (verifier, best T)": Method(partial(until_content, scorer="verifier"), verifies=True,
                                           best_temperature=True),
    # Of four candidates for each step the best is kept, without backtracking
    "depth-1 (value)": Method(partial(beam, scorer="value", width=1, n_candidates=4)),
    "beam (value)": Method(partial(beam, scorer="value")),
    "beam (verifier)": Method(partial(beam, scorer="verifier"), verifies=True),
    "mcts (value)": Method(partial(mcts, scorer="value")),
    "mcts (verifier)": Method(partial(mcts, scorer="verifier"), verifies=True),
    "mcts (rollouts)": Method(partial(mcts, scorer="rollouts"), verifies=True),
    "random steps": without_model(random_paths),
    "enumeration": without_model(depth_first),
    "heuristic": without_model(partial(depth_first, order=by_heuristic)),
    "one step ahead": without_model(partial(depth_first, order=looking_ahead)),
}
BATCH = 1000                                # problems searched side by side


def default_methods(task, streams=False):
    """All methods that a task allows, for a model of streams or of worked solutions."""
    return [name for name, method in METHODS.items() if (STREAMS if streams else SOLUTIONS) in method.models
            and (method.needs_model or TASKS[task].enumerable)]


def run_method(model, problems, method, budget, settings):
    """The Results of a method on all problems, a batch at a time."""
    def run_on(share):
        results = []
        for start in range(0, len(share), BATCH):
            rows = share[start:start + BATCH]
            drawn = settings.samples and [settings.samples[i] for i in rows]
            batch = [problems[i] for i in rows]
            results += method.run(model, batch, budget, replace(settings, samples=drawn))
        return results
    return shared(run_on, range(len(problems)))


def count_correct(problems, results):
    return sum(r.finished and verify(problem, r.completion).correct for problem, r in zip(problems, results))


def best_temperature(model, method, budget, settings, args):
    """The temperature at which a method solves most validation problems."""
    problems = held_out_problems(args.task, args.level, N_VALIDATION, "validation")
    solved = {}
    for temperature in TEMPERATURES:
        settings.generator.manual_seed(args.seed)
        at_temperature = replace(settings, temperature=temperature, samples=None)
        results = run_method(model, problems, method, budget, at_temperature)
        solved[temperature] = count_correct(problems, results)
    return max(solved, key=solved.get)


def measure(model, problems, name, budget, settings, args, seconds_to_draw=0.0):
    """
    One row of the table, and the Result of each problem. seconds_to_draw: the time it took to draw
    settings.samples. All methods share a generator, which is seeded anew for each.
    """
    method = METHODS[name]
    settings = replace(settings, temperature=method.temperature)
    if method.best_temperature:
        settings.temperature = best_temperature(model, method, budget, settings, args)
    settings.generator.manual_seed(args.seed)
    started = time.time()
    results = run_method(model, problems, method, budget, settings)
    seconds, n = seconds_to_draw + time.time() - started, len(problems)
    correct, tokens = count_correct(problems, results), sum(r.tokens for r in results) / n
    low, high = wilson(correct, n)
    # The mean number of tokens that a token attends to: long streams have long contexts
    written = sum(r.tokens ** 2 for r in results) / max(1, n * tokens) if args.streams else args.max_tokens
    context = (len(encode(problems[0].prompt)) + written) / 2
    through_model = tokens + sum(r.read for r in results) / n if method.needs_model else 0
    oracle = method.verifies and not TASKS[args.task].checkable
    flops = through_model * flops_per_token(model.config, context)
    row = {"task": args.task, "level": args.level, "checkpoint": args.init, "seed": args.seed,
           "method": name, "oracle": int(oracle), "budget": budget, "problems": n,
           "accuracy": correct / n, "ci_low": low, "ci_high": high,
           "tokens_per_problem": tokens, "flops_per_problem": flops,
           "seconds": round(seconds, 2), "temperature": settings.temperature}
    return row, results


def fill_table(model, problems, args):
    """All methods at all budgets: yields (the rows so far, the Results of the last)."""
    table, settings = [], Settings(args.max_tokens, torch.Generator(), c_puct=args.c_puct)
    bar = tqdm(total=len(args.budgets) * len(args.methods), desc="search", disable=args.rank > 0)
    for i, budget in enumerate(args.budgets):
        settings.samples, seconds_to_draw = None, 0.0
        had_room = any(earlier >= args.max_tokens for earlier in args.budgets[:i])
        for name in args.methods:
            bar.update()
            method = METHODS[name]
            if method.single and had_room:
                continue
            if method.ranks and not settings.samples:
                settings.generator.manual_seed(args.seed)
                started = time.time()
                settings.samples = shared(lambda part: sample_n(model, part, budget, settings), problems)
                seconds_to_draw = time.time() - started
            seconds = seconds_to_draw if method.ranks else 0.0
            row, results = measure(model, problems, name, budget, settings, args, seconds)
            table.append(row)
            if args.rank == 0:
                bar.write(describe(row))
            yield table, results
    bar.close()


def describe(row):
    interval = f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
    return (f"{row['method'] + ' *' * row['oracle']:30} budget {row['budget']:5}  "
            f"accuracy {100 * row['accuracy']:5.1f}% {interval:13} "
            f"{row['tokens_per_problem']:6.1f} tokens a problem  {row['seconds']:.1f} s")


# ------------------------------------------------------------------------------------------------------------
# The script

def make_parser():
    parser = Parser(description="Search with a trained model: a table of methods and budgets.")
    # the model
    parser.shared("--init", "--task", "--level", "--max-tokens")
    # the search
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD",
                        help=f"of {', '.join(METHODS)} (default: all that the task allows)")
    parser.add_argument("--budgets", nargs="+", type=positive, metavar="N",
                        help="ceilings on the tokens generated for a problem (default 75 150 300, for a "
                             "model of streams 32 64 128 256 512 1024)")
    parser.shared("--c-puct")
    # the problems
    parser.add_argument("--n-problems", type=positive, default=1000, metavar="N",
                        help="how many (default 1000)")
    parser.add_argument("--problems", metavar="FILE", help="measure on these prompts instead, one a line")
    parser.add_argument("--save", metavar="FILE",
                        help="search fresh training problems, with one method and one budget, and save all "
                             "solutions that were found, right and wrong, as traces for train_sft.py --data")
    # the run
    parser.shared("--split", "--out", "--device", "--seed")
    return parser


def load_problems(args):
    """What to measure on: a file's problems, fresh training problems for --save, else held-out ones."""
    if args.save:
        rng, targets = np.random.default_rng([args.seed, 2]), SEEN_TARGETS if args.streams else None
        return make_problems(args.task, args.level, args.n_problems, rng, targets=targets)[0]
    if not args.problems:
        return held_out_problems(args.task, args.level, args.n_problems, args.split)
    problems = []
    with open(args.problems, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                problems.append(parse_problem(tidy(line)))
                check_level(problems[-1], args)
            except ValueError as error:
                raise ValueError(f"{args.problems}, line {number}: {error}") from None
    if not problems:
        raise ValueError(f"{args.problems} holds no problems")
    return problems


def check_methods(args):
    useful = default_methods(args.task, args.streams)
    useless = [name for name in args.methods if name not in useful]
    if useless:
        raise ValueError(f"--methods {', '.join(useless)}: for {args.task} with a model of "
                         f"{STREAMS if args.streams else SOLUTIONS} there are "
                         f"{', '.join(useful)}")
    if args.save and args.problems:
        raise ValueError("--save searches fresh training problems: leave --problems out")
    if args.save and not len(args.methods) == len(args.budgets) == 1:
        raise ValueError("--save takes one of --methods and one of --budgets")
    if args.save and not METHODS[args.methods[0]].needs_model:
        raise ValueError(f"--save is for what a model found, and {args.methods[0]} has none")


def run(parser, args):
    with parser.errors():
        join_processes(args)
        model = load_model(args)
        args.budgets = args.budgets or (STREAM_BUDGETS if args.streams else BUDGETS)
        args.methods = args.methods or default_methods(args.task, args.streams)
        check_methods(args)
        problems = load_problems(args)
        check_room(model, [encode(problem.prompt) for problem in problems], args.max_tokens)
    path = args.save or os.path.join(args.out, "search.csv")
    if args.rank > 0:                       # works on its share; the first process prints and writes
        args.seed += args.rank << 50        # so its samples are different: seeds are below 2 ** 50
        for _ in fill_table(model, problems, args):
            pass
        return
    open_folder(*os.path.split(path))
    print(f"search.py on {model.wte.weight.device}: {vars(args)}", flush=True)
    for table, results in fill_table(model, problems, args):
        if args.save:
            write_traces(path, traces_of(problems, results, table[-1]))
        else:
            save_table(path, table)
    print(f"wrote {path}")


def main():
    parser = make_parser()
    run(parser, parser.parse_args())


if __name__ == "__main__":
    run_script(main)
