"""
Turn what a model found, right and wrong, into what there is to learn from it.

    python search.py --init out/sft.pt --save out/found.jsonl --methods majority --budgets 160 --n-problems 7500
    python traces.py --write verdicts --data out/found.jsonl --save out/traces.jsonl
    python train_sft.py --init out/sft.pt --data out/traces.jsonl --out out/judge

A file of traces comes in, another goes out. What is written of them (`--write`):

    attempts        as they came in
    verdicts        each with the verdict behind it, ?yes or ?no. In wrong ones train_sft.py imitates the verdict only: that makes
                    a generative verifier (Zhang et al. 2024)
    composites      failed ones up to their first wrong turn, `wait`, and what a right attempt did instead: the conjecture of
                    Gwern (2024)
    continuations   verdicts, where failed ones go on after ?no: as many `wait`s as lead back to before the first wrong turn,
                    from there a sample of the model's own that is right, and ?yes

and what the value head is to learn of each line (`--label`), a process reward model's labels:

    given           nothing new: the verdict counts for all tokens, as for an outcome reward model, but where steps are taken back
    rollouts        the share of --samples samples, from there to the end, that are right (Math-Shepherd, Wang et al. 2024)
    exact           whether the problem can still be solved, by enumeration: the yardstick that no language task has

Each different attempt of a problem is written once. Right ones stay, and those that could not be mended: a model that only
ever saw mended ones would learn to take back whatever it has written.

All solutions are the model's own. What is exact is the verdict on finished ones and, in continuations, composites and
exact labels, which turn was the first wrong one.
"""
import json
import os
from collections import defaultdict

import numpy as np
import torch
from tqdm import tqdm

from model import Parser, choose_device, flops_per_token, load_checkpoint, open_folder, positive, run_script, write_whole
from sample import generate
from verify import (EOS, decode, encode, first_wrong_turn, max_tokens, parse_problem, read_traces, standing_lines, state_value,
                    verify, without_verdict)


def new_trace(trace, completion):
    """
    A trace of the same problem. Where steps are taken back, the verdict on the whole says nothing about them: there a step's
    label is whether it stands in the end, and in one that ends wrong only those from the first wrong turn on have one.
    """
    problem = parse_problem(trace["prompt"])
    correct = verify(problem, completion).correct
    new = {"prompt": trace["prompt"], "completion": completion, "correct": correct, "tokens": len(encode(completion)) + 1, "method": trace.get("method", "")}
    if "wait" in completion:
        lines, standing = completion.split("\n")[:-1], standing_lines(completion)
        if not correct:
            turn = first_wrong_turn(problem, completion)
            standing = [] if turn is None else [number for number in standing if number < turn]
        new["values"] = [None if line in ("wait", "?yes", "?no") or number in standing and not correct else float(number in standing)
                         for number, line in enumerate(lines)]
    return new


def sample_ends(model, prefixes, n_samples, attempts, rng, batch_size=128):
    """
    n_samples completions of each (prompt, lines that stand): lists of those that are right, lines included; and how many tokens
    were read and written for it.
    """
    right, n_tokens = [], 0
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(int(rng.integers(2 ** 62)))
    for i in tqdm(range(0, len(prefixes), batch_size), desc="sampling"):
        batch = prefixes[i:i + batch_size]
        problems, starts = [parse_problem(prompt) for prompt, _ in batch], [encode(prompt + lines) for prompt, lines in batch]
        samples = generate(model, starts, max_tokens(problems[0].task, problems[0].level, attempts), 1.0, (EOS,), generator, n_samples)
        found = [[] for _ in batch]
        for row, ids in enumerate(samples.finished((EOS,))):
            k = row // n_samples
            completion = batch[k][1] + decode(ids or [])
            if ids is not None and "<|" not in completion and verify(problems[k], completion).correct:
                found[k].append(completion)
        right += found
        n_tokens += int(samples.mask.sum()) + sum(map(len, starts))
    return right, n_tokens


def write_verdicts(traces):
    """Each attempt with the true verdict, in place of the model's own where it wrote one."""
    return [new_trace(trace, f"{without_verdict(trace['completion'])}?{'yes' if trace['correct'] else 'no'}\n") for trace in traces]


def failures(traces):
    """For each failed attempt its number, lines, those of them that stand, and how many of these come before the first wrong turn."""
    for i, trace in enumerate(traces):
        if not trace["correct"]:
            lines, standing = trace["completion"].splitlines(keepends=True), standing_lines(trace["completion"])
            turn = first_wrong_turn(parse_problem(trace["prompt"]), trace["completion"])
            if turn is None or turn in standing:                        # else the verifier stopped reading before the end
                yield i, lines, standing, len(standing) if turn is None else standing.index(turn)


def write_composites(traces, rng):
    """Each failed attempt up to its first wrong turn, `wait`, and what a right attempt that began alike did instead."""
    composites, right = list(traces), defaultdict(list)
    for trace in traces:
        if trace["correct"]:
            lines = trace["completion"].splitlines(keepends=True)
            right[trace["prompt"]].append([lines[number] for number in standing_lines(trace["completion"])])
    for i, lines, standing, n_good in failures(traces):
        good = [lines[number] for number in standing[:n_good]]
        fitting = [steps[n_good:] for steps in right[traces[i]["prompt"]] if steps[:n_good] == good]
        if fitting and n_good < len(standing):
            wrong_turn = lines[:standing[n_good] + 1]
            mended = new_trace(traces[i], "".join([*wrong_turn, "wait\n", *fitting[rng.integers(len(fitting))]]))
            composites[i] = mended if mended["correct"] else traces[i]
    return composites


def write_continuations(model, traces, n_samples, attempts, rng):
    """Each failed attempt, ?no, `wait`s that lead back to before its first wrong turn, and from there a sample that is right."""
    judged, failed = write_verdicts(traces), list(failures(traces))
    goods = ["".join(lines[number] for number in standing[:n_good]) for _, lines, standing, n_good in failed]
    right, n_tokens = sample_ends(model, [(traces[i]["prompt"], good) for (i, *_), good in zip(failed, goods)], n_samples, attempts, rng)
    for (i, _, standing, n_good), good, ends in zip(failed, goods, right):
        for end in ends[:1]:
            waits, end = "wait\n" * (len(standing) - n_good), without_verdict(end.removeprefix(good)) + "?yes\n"
            mended = new_trace(traces[i], judged[i]["completion"] + waits + end)
            judged[i] = mended if mended["correct"] else judged[i]
    return judged, n_tokens


def label(model, traces, how, n_samples, attempts, rng):
    """Add values: for each line the share of rollouts from there that are right, or whether it can still be solved. Returns tokens."""
    places = []                             # (trace, line number, prompt and lines up to there)
    for trace in traces:
        lines = trace["completion"].splitlines(keepends=True)[:trace["completion"].count("\n")]       # whole ones
        trace["values"] = [float(trace["correct"])] * len(lines)        # the last line's is the verdict
        n = without_verdict(trace["completion"]).count("\n")
        places += [(trace, number, "".join(lines[:number + 1])) for number in range(n - 1)]
    if how == "exact":
        for trace, number, prefix in places:
            trace["values"][number] = float(state_value(parse_problem(trace["prompt"]), prefix))
        return 0
    distinct = {(trace["prompt"], prefix): None for trace, _, prefix in places}
    right, n_tokens = sample_ends(model, list(distinct), n_samples, attempts, rng)
    shares = {key: len(ends) / n_samples for key, ends in zip(distinct, right)}
    for trace, number, prefix in places:
        trace["values"][number] = shares[trace["prompt"], prefix]
    return n_tokens


def main():
    parser = Parser(description="Turn traces into traces to learn from: verdicts, composites, continuations, labels for each line.")
    parser.add_argument("--data", metavar="FILE", default="out/found.jsonl", help="traces, as search.py --save writes them (default out/found.jsonl)")
    parser.add_argument("--save", metavar="FILE", default="out/traces.jsonl", help="where the new ones go (default out/traces.jsonl)")
    parser.add_argument("--write", default="attempts", choices=["attempts", "verdicts", "composites", "continuations"],
                        help="what to write of them (default attempts: as they are)")
    parser.add_argument("--label", default="given", choices=["given", "rollouts", "exact"], help="what the value head is to learn of each line "
                        "(default given)")
    parser.add_argument("--samples", type=positive, default=8, help="samples for each continuation or label (default 8)")
    parser.shared("--init", "--device", "--seed", init="out/sft.pt")
    args = parser.parse_args()
    try:
        device = choose_device(args.device)
        sampling = args.write == "continuations" or args.label == "rollouts"
        model, checkpoint = load_checkpoint(args.init, device, needs=("flags",)) if sampling else (None, {"flags": {}})
        attempts = checkpoint["flags"].get("attempts", 1)
        traces = read_traces(args.data)
    except ValueError as error:
        parser.error(str(error))
    open_folder(*os.path.split(args.save))
    rng, n_tokens = np.random.default_rng([args.seed, 3]), 0
    flops = sum(trace.get("flops", 0) for trace in traces)
    traces = list({(trace["prompt"], trace["completion"]): trace for trace in traces}.values())       # each different attempt once
    if args.write == "verdicts":
        traces = write_verdicts(traces)
    elif args.write == "composites":
        traces = write_composites(traces, rng)
    elif args.write == "continuations":
        traces, n_tokens = write_continuations(model, traces, args.samples, attempts, rng)
    if args.label != "given":
        n_tokens += label(model, traces, args.label, args.samples, attempts, rng)
    if n_tokens:
        flops += n_tokens * flops_per_token(model.config, len(encode(traces[0]["prompt"] + traces[0]["completion"])) / 2)
    with write_whole(args.save) as file:
        for trace in traces:                # what it cost to make them all is shared by those that are left
            file.write(json.dumps(trace | {"flops": flops / len(traces)}).encode() + b"\n")
    print(f"wrote {args.save}: {len(traces)} traces, {sum(trace['correct'] for trace in traces)} of them right")


if __name__ == "__main__":
    run_script(main)
