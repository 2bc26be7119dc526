"""
search.py with other judges of its samples, and with streams that go on after a verdict.

    python -m experiments.judges --init out/sft.pt --judge out/judge/sft.pt --methods "vote (verdict)"

All flags and methods of search.py work here too. These are added; they need a model that has learnt to write
verdicts (experiments/rewrite.py), the searching one or that of `--judge`:

    judge     the value head of --judge, at the end of a sample
    lines     the product of its values after each line, as process reward models rank (Lightman et al. 2023)
    verdict   the probability that it writes ?yes behind a sample (Zhang et al. 2024)
    revise    one stream that goes on: attempt, verdict, `wait`, another attempt (Muennighoff et al. 2025)
"""
from dataclasses import replace

# First, so that Ctrl-C while torch is imported ends quietly
from common import choose_device, run_script

import torch
import torch.nn.functional as F

import best_of_n
import search
from best_of_n import sample_n, vote
from budget import Budget, Result
from checkpoint import load_checkpoint
from sample import for_inference, generate, pad
from search import Method
from traces import standing_lines, without_verdict
from verify import EOS, NEWLINE, decode, encode, verify

BATCH = 1024                                # texts that a judge reads at once
MAX_WAITING = 2 ** 25   # rows x columns^2 of streams that go on together: attention is quadratic in memory


# ------------------------------------------------------------------------------------------------------------
# Judges

@torch.no_grad()
def judge_completions(judge, pairs):
    """
    What a model thinks of completions, for each (problem, completion): {"judge": its value head at the end,
    "lines": the product of its values after each line, "verdict": P(yes) after a "?"}.
    """
    yes, no = encode("yesno")
    texts = [encode(problem.prompt + without_verdict(completion) + "?") for problem, completion in pairs]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))      # so that little is padded
    scores = [None] * len(texts)
    for i in range(0, len(order), BATCH):
        rows = order[i:i + BATCH]
        idx, length = pad([texts[k] for k in rows], judge.wte.weight.device)
        logits, values = for_inference(judge, len(rows))(idx)
        row, end = torch.arange(len(rows)), length - 1                  # of the ?
        line_ends = (idx == NEWLINE) & ((idx == NEWLINE).cumsum(1) > 1)                     # but the prompt's
        at_end = values[row, end - 1].sigmoid()
        lines = (F.logsigmoid(values) * line_ends).sum(1).exp()
        verdict = logits[row, end][:, [yes, no]].softmax(-1)[:, 0]
        for k, *three in zip(rows, at_end.tolist(), lines.tolist(), verdict.tolist()):
            scores[k] = dict(zip(("judge", "lines", "verdict"), three))
    return scores


def judged(method, scorer):
    """
    A ranking method of best_of_n.py whose scores come from the judge, which reads each different sample once.
    """
    def run(model, problems, budget, settings):
        drawn = settings.samples or sample_n(model, problems, budget, settings)
        places = [(problem, sample) for problem, samples in zip(problems, drawn) for sample in samples
                  if sample.finished and "<|" not in sample.completion]
        pairs = list(dict.fromkeys((problem, sample.completion) for problem, sample in places))
        scores = dict(zip(pairs, judge_completions(JUDGE.get("model", model), pairs)))
        for problem, sample in places:
            sample.scores = scores[problem, sample.completion]
        results = method(model, problems, budget, replace(settings, samples=drawn), scorer)
        for result in results:
            result.read += result.tokens    # all samples were read once more
        return results
    return run


def score_of(scorer):
    return lambda problem, sample: sample.scores.get(scorer, 0.0)


JUDGE = {}                                  # "model": that of --judge
best_of_n.SCORERS |= {scorer: score_of(scorer) for scorer in ("judge", "lines", "verdict")}


# ------------------------------------------------------------------------------------------------------------
# One stream that goes on

class Stream:
    """What a problem's stream has come to."""

    def __init__(self, problem, limit):
        self.problem, self.budget = problem, Budget(limit)
        self.text = problem.prompt          # all of it so far
        self.answer, self.content = "", False

    def result(self):
        found = [(self.answer, len(encode(self.answer)) + 1, None)] if self.answer else []
        spent, read = self.budget.spent, self.budget.read
        return Result(self.answer, float(self.content), spent, read, bool(self.answer), found)


def revise(model, problems, budget, settings, scorer="verdict"):
    """
    An attempt that does not end in ?yes is taken back by as many `wait`s as it takes, and the stream goes on,
    while the budget lasts and attempts come to an end. Scorer verifier: whether to go on is not the model's
    own verdict but the verifier's. The last attempt that ended counts. -> Results
    """
    streams = [Stream(problem, budget) for problem in problems]
    waiting, room = list(streams), settings.max_tokens
    while waiting:
        longest = max(len(encode(stream.text)) for stream in waiting)
        n = max(1, MAX_WAITING // (longest + room) ** 2)
        batch, waiting = waiting[:n], waiting[n:]
        limits = [min(room, stream.budget.left) for stream in batch]
        texts = [encode(stream.text) for stream in batch]
        samples = generate(model, texts, limits, 1.0, (EOS,), settings.generator)
        for stream, ids, new in zip(batch, samples.finished((EOS,)), samples.completions()):
            stream.budget.spend(len(new), read=len(encode(stream.text)))
            if ids is None or "<|" in decode(ids):                  # cut off, or not to be written as text
                continue
            stream.answer = (stream.text + decode(ids)).removeprefix(stream.problem.prompt)
            waits = "wait\n" * len(standing_lines(stream.problem, stream.answer))
            stream.content = is_content(stream, scorer)
            fits = len(encode(waits)) < stream.budget.left and longest + 2 * room < model.config.block_size
            if not stream.content and waits and fits:
                stream.budget.spend(len(encode(waits)))
                # Nothing may follow ?yes
                stream.text = stream.problem.prompt + stream.answer.removesuffix("?yes\n") + waits
                waiting.append(stream)
    return [stream.result() for stream in streams]


def is_content(stream, scorer):
    if scorer == "verifier":
        return verify(stream.problem, stream.answer).correct
    return stream.answer.endswith("?yes\n")


def revise_verified(model, problems, budget, settings):
    return revise(model, problems, budget, settings, "verifier")


MORE_METHODS = {
    "vote (judge)": Method(judged(vote, "judge"), ranks=True),
    "vote (verdict)": Method(judged(vote, "verdict"), ranks=True),
    "best-of-n (judge)": Method(judged(best_of_n.best_of_n, "judge"), ranks=True),
    "best-of-n (lines)": Method(judged(best_of_n.best_of_n, "lines"), ranks=True),
    "best-of-n (verdict)": Method(judged(best_of_n.best_of_n, "verdict"), ranks=True),
    "revise": Method(revise),
    "revise (verifier)": Method(revise_verified, verifies=True),
}
search.METHODS |= MORE_METHODS


def main():
    parser = search.make_parser()
    parser.add_argument("--judge", metavar="FILE",
                        help="a checkpoint that ranks the samples (default: that of --init)")
    args = parser.parse_args()
    with parser.errors():
        if args.judge:
            JUDGE["model"] = load_checkpoint(args.judge, choose_device(args.device))[0]
    search.run(parser, args)


if __name__ == "__main__":
    run_script(main)
