"""
Supervised fine-tuning from an empty model: imitate streams, which try, go back and try again; or worked
solutions, and learn to judge one's own.

    python train_sft.py         # countdown with 3 numbers -> out/sft.pt, out/sft.csv (7 min on two CPU cores)
    python train_sft.py --no-streams        # worked solutions, the base for votes and tree search
    python train_sft.py --init out/rl.pt --data traces.jsonl    # learn from the traces of search.py --save

Each step draws fresh problems with their solutions; the loss is on the completion only, its <|eos|> included.
What streams show, and what of it is imitated, says streams.py. The rest is about worked solutions.

What is hard in a countdown solution is to plan its first step; the rest is soon mastered. So after a while
most batches show the first step up to its result only. Every sixth batch shows all: half of it solutions,
half of it random steps, of which only the arithmetic is imitated, so that the model stays honest where a plan
fails (`honest`).

The value head learns P(this ends correct) at every token (binary cross-entropy, the outcome as label: Cobbe
et al. 2021, section 3): from those random steps, and in the second half, now and then, from the model's own
attempts as well, which the verifier judges. With streams it learns nothing here (RL teaches it a little).
"""
import math
import signal
from argparse import BooleanOptionalAction
from dataclasses import dataclass
from functools import partial

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, between, choose_device, choose_task, positive, run_script, stop_signals, whole

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

import streams
from checkpoint import load_checkpoint
from model import GPT, GPTConfig, to_device
from optim import optimizer_step
from processes import average_gradients, join_processes, mean_over_processes, share_of
from sample import generate
from traces import imitated_lines, read_traces
from trainer import Run, add_run_flags, by_length, load_stopped, on_tokens, pack
from verify import EOS, TASKS, encode, is_correct, make_problems, parse_problem, random_steps

HARD_PART_AFTER = 0.13  # after this share of the steps most batches show the hard part of each solution,
WHOLE_EVERY = 6         # and one in so many all of it
VALUE_EVERY = 16        # in the second half, every so many steps the value head learns from own attempts
DECAY = 0.5             # share of the steps in which the learning rate falls to 0


def make_parser():
    parser = Parser(description="Imitate worked solutions and fit the value head: writes sft.pt and sft.csv.")
    # the problems
    parser.shared("--task", "--level", "--max-tokens")
    # the model
    parser.add_argument("--depth", type=whole(1, 32), metavar="N",
                        help="size of a new model: layers, and a width of 32 (depth + 1) (default 3)")
    parser.shared("--init")
    # what to learn from
    parser.add_argument("--data", nargs="+", metavar="FILE",
                        help="traces to learn from instead of fresh worked solutions: right ones are "
                             "imitated, all of them fit the value head; needs --init")
    parser.add_argument("--streams", action=BooleanOptionalAction,
                        help="imitate streams, which try, go back with `wait` and the problem restated, and "
                             "try again; or worked solutions only (default: streams, of a new model for "
                             "countdown with at least 3 numbers)")
    parser.add_argument("--honest", type=between(0, 1), default=0.5, metavar="X",
                        help="of the batches with whole solutions, the share that shows random steps "
                             "instead, if the task can list them (default 0.5)")
    # the optimisation
    parser.add_argument("--steps", type=positive, metavar="N",
                        help="optimizer steps (default 6800, of streams 3000; with --data as many as show "
                             "each trace once)")
    parser.add_argument("--batch-size", type=whole(1, 10 ** 5), metavar="N",
                        help="problems a step (default 64, of streams 128 pieces)")
    parser.add_argument("--lr", type=between(0, 1), metavar="X",
                        help="peak learning rate (default 3e-3, with --data 1e-3)")
    parser.add_argument("--value-coef", type=between(0, 1000), default=1.0, metavar="X",
                        help="weight of the value loss (default 1)")
    # the run
    parser.add_argument("--workers", type=whole(0, 64), metavar="N",
                        help="processes that make problems ahead; changes no result (default 0 on a CPU, "
                             "which has no core to spare, 1 with CUDA)")
    add_run_flags(parser, log_every=1000)
    parser.set_defaults(optimizer="muon")
    return parser


# ------------------------------------------------------------------------------------------------------------
# Examples

@dataclass
class Example:
    prompt: list                            # token ids
    completion: list                        # token ids, <|eos|> included where it ended
    imitate: list                           # of bool, for each token of the completion
    labels: list = None     # P(this ends correct) of what stands before each of them, nan where unknown


def worked(problem, solution):
    """A worked solution to imitate."""
    return to_imitate(problem, encode(solution) + [EOS])


def hard_part(problem, solution):
    """The part of a worked solution that is hard to learn."""
    part = TASKS[problem.task].hard_part(solution)
    return to_imitate(problem, encode(part)) if part != solution else worked(problem, solution)


def to_imitate(problem, ids):
    return Example(encode(problem.prompt), ids, [True] * len(ids))


def arithmetic_only(task, text):
    """
    The tokens of some steps, and for each whether it follows from the writer's choice: (ids, list of bool).
    """
    ids, follows = [], []
    for line in text.splitlines(keepends=True):
        chosen = task.chosen_part(line)
        n_chosen, tokens = len(encode(chosen)), encode(line)
        ids += tokens
        follows += [False] * n_chosen + [True] * (len(tokens) - n_chosen)
    return ids, follows


def honest(problem, rng):
    """
    Random legal steps to the end, of which only what follows from each choice is imitated. In worked
    solutions the last line always ends in the target: a model that has seen nothing else writes the target in
    a dead end too, and can tell no wrong arithmetic from right. The value head learns how they ended.
    """
    task = TASKS[problem.task]
    text, state = random_steps(problem, problem.level - 1, rng, below=1000)    # more is read in parts
    ids, follows = arithmetic_only(task, text)
    label = float(task.is_solved(problem, state))
    return Example(encode(problem.prompt), ids + [EOS], follows + [True], [label] * (len(ids) + 1))


def from_trace(trace):
    """
    A trace: the lines worth imitating are imitated, <|eos|> after a correct one. The value head learns the
    labels of its lines, or without these the verdict, everywhere.
    """
    lines = trace["completion"].splitlines(keepends=True)
    correct, values = trace["correct"], trace.get("values")
    imitated = imitated_lines(parse_problem(trace["prompt"]), trace["completion"], correct)
    imitated.append(False)                  # the last line may be cut off
    everywhere = math.nan if values else float(correct)
    ids, imitate, labels = [], [], [everywhere]
    for number, line in enumerate(lines):
        tokens = encode(line)
        ids += tokens
        imitate += [imitated[number]] * len(tokens)
        labels += [everywhere] * len(tokens)
        if values and line.endswith("\n") and values[number] is not None:
            labels[-1] = values[number]     # of what stands when the line has ended
    return Example(encode(trace["prompt"]), ids + [EOS], imitate + [correct], labels)


def own_attempts(model, problems, max_tokens, rng):
    """
    Two completions of the model's own for each problem, of which one starts behind random legal steps: a
    value head that only ever saw what the policy likes to write could not tell a search what to think of the
    rest. Nothing of them is imitated; their verdicts are the labels.
    """
    def begin(problem):
        n = rng.integers(1, problem.level - 1) if problem.level > 2 else 0
        return encode(random_steps(problem, n, rng)[0])

    begun = [[]] * len(problems) + [begin(problem) for problem in problems]
    problems = problems * 2
    starts = [encode(problem.prompt) + lines for problem, lines in zip(problems, begun)]
    generator = torch.Generator().manual_seed(int(rng.integers(2 ** 62)))
    samples = generate(model, starts, max_tokens, stop_tokens=(EOS,), generator=generator)
    examples = []
    for i, (ids, ended) in enumerate(zip(samples.completions(), samples.finished((EOS,)))):
        label = float(ended is not None and is_correct(problems[i], begun[i] + ended))
        examples.append(Example(starts[i], ids, [False] * len(ids), [label] * len(ids)))
    return examples


def make_batch(examples, device):
    """
    {"idx" (B, T), "next" (B, T), "action" (B, T)} as from pack; "targets" (B, T), what follows each token
    where that is to be imitated, -1 (ignored) elsewhere; "labels" (B, T) for the value head, nan where there
    is none.
    """
    prompts, completions = zip(*((example.prompt, example.completion) for example in examples))
    batch = pack(prompts, completions, device)
    action = batch["action"]                # (B, T), whether what follows belongs to the completion
    imitate = on_tokens([flag for example in examples for flag in example.imitate], action)
    labels = torch.full(action.shape, math.nan, device=device)
    known = [example.labels or [math.nan] * len(example.completion) for example in examples]
    labels[action] = torch.tensor([label for row in known for label in row], device=device)
    return batch | {"targets": batch["next"].where(imitate, -1), "labels": labels}


# ------------------------------------------------------------------------------------------------------------
# What each step learns from

def draw_problems(args, step):
    """(problems, solutions, the generator that drew them), all of them functions of seed and step."""
    rng = np.random.default_rng([args.seed, step, 0, args.rank])
    n = share_of(args.batch_size, args, "--batch-size")
    return *make_problems(args.task, args.level, n, rng, progress=step / args.steps), rng


def stage(args, step):
    """
    What a step shows: in the "beginning" solutions in full; later most often the "hard part"; every sixth
    time the "whole", in part random steps.
    """
    if step <= HARD_PART_AFTER * args.steps:
        return "beginning"
    return "hard part" if step % WHOLE_EVERY else "whole"


def solutions_lesson(args, step):
    """(problems, examples): fresh problems, most of them with the hard part of a solution only."""
    problems, solutions, rng = draw_problems(args, step)
    show = hard_part if stage(args, step) == "hard part" else worked
    examples = [show(problem, solution) for problem, solution in zip(problems, solutions)]
    if stage(args, step) == "whole" and TASKS[args.task].enumerable:
        n_honest = round(args.honest * len(problems))
        examples[:n_honest] = [honest(problem, rng) for problem in problems[:n_honest]]
    return problems, examples


def streams_lesson(args, step):
    """(no problems, examples): streams, or pieces of them."""
    n = share_of(args.batch_size, args, "--batch-size")
    rng = np.random.default_rng([args.seed, step, 0, args.rank])
    written = streams.lesson(args.task, args.level, n, rng, step, step / args.steps)
    return [], [Example(encode(text.problem.prompt), text.ids, text.imitate) for text in written]


def traces_lesson(traces, args, step):
    """(no problems, examples): traces in an order of their own, again from the start when all were seen."""
    order = np.random.default_rng(args.seed).permutation(len(traces))
    chosen = order.take(range(step * args.batch_size, (step + 1) * args.batch_size), mode="wrap")
    return [], [from_trace(traces[i]) for i in chosen[args.rank::args.processes]]


class Lessons(Dataset):
    """The lessons of all steps from `start` on, in order; they may be made ahead in other processes."""

    def __init__(self, lesson, args, start):
        self.lesson, self.args, self.start = lesson, args, start

    def __len__(self):
        return self.args.steps - self.start

    def __getitem__(self, i):
        return self.lesson(self.args, self.start + i)

    def load(self, n_workers):
        return DataLoader(self, batch_size=None, num_workers=n_workers, collate_fn=tuple,
                          worker_init_fn=ignore_signals)


def ignore_signals(worker):
    for signum in stop_signals():
        signal.signal(signum, signal.SIG_IGN)                           # the main process hears them


# ------------------------------------------------------------------------------------------------------------
# Training

def learning_rate(args, step):
    warmup = min(1.0, (step + 1) / (20 if args.data else 100))
    return args.lr * warmup * min(1.0, (args.steps - step) / (DECAY * args.steps))


def train(args, run, lesson):
    """Do all steps of a run; lesson(args, step) says what each learns from: (problems, examples)."""
    n_workers = args.workers if args.workers is not None else int(run.device.type == "cuda")
    lessons = Lessons(lesson, args, run.start).load(n_workers)
    for step, (problems, examples) in zip(run.steps(), lessons):        # steps first: they end last, and save
        # 1. Now and then, add the model's own attempts, for the value head.
        n_sampled = 0
        if problems and step >= args.steps / 2 and step % VALUE_EVERY == 0:
            rng = np.random.default_rng([args.seed, step, 1, args.rank])
            own = own_attempts(run.model, problems, args.max_tokens, rng)
            examples = examples + own
            n_sampled = sum(len(example.prompt + example.completion) for example in own)
        # 2. The gradient, of some examples at a time.
        batch = make_batch(examples, run.device)
        run.metrics = gradient(run.model, batch, args)
        # 3. Step.
        average_gradients(run.model)
        optimizer_step(run.model, run.optimizers, learning_rate(args, step))
        lengths = [len(example.prompt + example.completion) for example in examples]
        n_tokens = sum(lengths)
        context = sum(n * n for n in lengths) / 2 / n_tokens            # a long text has long contexts
        run.count(n_tokens, n_sampled, n_tokens, context)


def gradient(model, batch, args):
    """
    Add the gradient of the losses, and return them. The policy's is a mean over the tokens that are imitated,
    never the prompt's; the value head's over those that have a label.
    """
    n_imitated, n_labelled = mean_over_processes([(batch["targets"] >= 0).sum().item(),
                                                  (~batch["labels"].isnan()).sum().item()])
    metrics = {"loss": 0.0, "value_loss": 0.0 if n_labelled else math.nan}
    for _, part in by_length(batch):
        logits, values = model(part["idx"])                             # (B, T, V), (B, T)
        targets, labels = part["targets"], part["labels"]
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
        loss = loss / max(1, n_imitated)
        metrics["loss"] += loss.item()
        labelled = ~labels.isnan()
        if labelled.any():
            known = labels[labelled].to(values.dtype)
            value_loss = F.binary_cross_entropy_with_logits(values[labelled], known, reduction="sum")
            value_loss = value_loss / n_labelled
            metrics["value_loss"] += value_loss.item()
            loss = loss + args.value_coef * value_loss
        loss.backward()
    return dict(zip(metrics, mean_over_processes(list(metrics.values()))))


@torch.no_grad()
def introduce_words(model, traces):
    """
    Words that the model has never had to write are some twenty nats less likely to it than any other, and to
    undo that takes longer than most files of traces last. `?` and `wait` come where a text might end: let
    them begin as likely as <|eos|>.
    """
    rows, words = model.lm_head.weight, set()                           # (V, C)
    for trace in traces:
        problem, lines = parse_problem(trace["prompt"]), trace["completion"].split("\n")
        for line, imitated in zip(lines, imitated_lines(problem, trace["completion"], trace["correct"])):
            words |= set(encode(line)) if imitated else set()
    for word in words:
        if torch.equal(rows[word], rows[-1]):                       # as the last id, which is no word at all
            rows[word] = rows[EOS]


def begin(args):
    """
    The model to train: new, that of --init, or that of a stopped run; with the checkpoint it starts from and
    that of the stopped run, None where there is none. ValueError if the flags do not fit.
    """
    device, parent, stopped = choose_device(args.device), None, None
    join_processes(args)
    if args.data and not (args.init or args.resume):
        raise ValueError("--data needs a model to start from: --init")
    if args.resume:
        model, stopped = load_stopped("sft", args, device)
    elif args.init:
        model, parent = load_checkpoint(args.init, device, needs=("flags", "tokens", "flops"))
        if args.depth and GPTConfig.from_depth(args.depth) != model.config:
            raise ValueError(f"--depth {args.depth} is not the size of --init {args.init}: leave --depth out")
    else:
        torch.manual_seed(args.seed)
        model = to_device(GPT(GPTConfig.from_depth(args.depth or 3)), device)
    choose_task(args, parent and parent["flags"])
    if args.streams and not TASKS[args.task].stream_tokens(args.level):
        raise ValueError(f"--streams: not for {args.task} at level {args.level}, only where all steps can be "
                         "listed, from level 3 on")
    return model, parent, stopped


def fill_in(args, traces):
    """The flags whose default depends on what there is to learn from."""
    of_streams = args.streams and not traces
    args.batch_size = args.batch_size or (128 if of_streams else 64)
    if share_of(args.batch_size, args, "--batch-size") < streams.STREAM and of_streams:
        raise ValueError(f"--batch-size {args.batch_size}: streams need {streams.STREAM} for each process")
    n_all = -(-len(traces) // args.batch_size)
    args.steps = args.steps or (n_all if traces else 3000 if of_streams else 6800)
    args.lr = args.lr if args.lr is not None else 1e-3 if traces else 3e-3


def main():
    parser = make_parser()
    args = parser.parse_args()
    with parser.errors():
        model, parent, stopped = begin(args)
        longest = model.config.block_size
        traces = [trace for path in args.data or []
                  for trace in read_traces(path, longest, args.task, args.level)]
        fill_in(args, traces)
        run = Run("sft", args, model, parent, stopped)
    if traces and not stopped:
        introduce_words(model, traces)
        run.tokens += sum(trace.get("tokens", 0) for trace in traces)   # what it took to make them
        run.flops += sum(trace.get("flops", 0) for trace in traces)
    lesson = streams_lesson if args.streams else solutions_lesson
    train(args, run, partial(traces_lesson, traces) if traces else lesson)


if __name__ == "__main__":
    run_script(main)
