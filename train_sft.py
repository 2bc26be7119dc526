"""
Supervised fine-tuning from an empty model: imitate worked solutions, then learn to judge one's own.

    python train_sft.py                     # countdown with 3 numbers -> out/sft.pt, out/sft.csv (7 min on two CPU cores)
    python train_sft.py --init out/rl.pt --data traces.jsonl            # learn from the traces of search.py --save

Each step draws fresh problems with their solutions; the loss is on the completion only, its <|eos|> included. What is hard in a
countdown solution is to plan its first step; the rest is soon mastered, and most batches leave it out. The others show random
steps too, of which only the arithmetic is learnt: so the model stays honest where a plan fails (`honest`). In the second half the
model now and then samples solutions of its own as well, the verifier says which are right, and the value head learns to
foretell that at every token (binary cross-entropy, the outcome as label: Cobbe et al. 2021, section 3).

Everything random in step i is drawn from (seed, i), so to resume a run is to go on with step i: no state to restore but
the weights and the optimizers.
"""
import math
import os
import signal
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from model import (GPT, GPTConfig, Parser, between, catch_ctrl_c, choose_device, count, flops_per_token, load_checkpoint, make_optimizers,
                   open_folder, optimizer_step, positive, run_script, save_checkpoint, save_table, to_device)
from sample import evaluate, generate, value_auc
from verify import (EOS, NEWLINE, PAD, choose_task, decode, encode, imitated_lines, labelled_states, make_judge, make_problems,
                    max_tokens, random_lines, read_traces, test_problems, verify)

COMMA, EQUALS = encode(",=")


def parse_args():
    parser = Parser(description="Imitate worked solutions and fit the value head: writes sft.pt and sft.csv.")
    # the problem
    parser.shared("--task", "--level", "--attempts", task=None)
    # the model
    parser.shared("--depth", "--init")
    # what to learn from
    parser.add_argument("--data", nargs="+", metavar="FILE", help="traces to learn from instead of fresh worked solutions: right ones are "
                        "imitated, all of them fit the value head; needs --init")
    # the optimisation
    parser.add_argument("--steps", type=positive, help="optimizer steps (default 6800; with --data as many as show each trace once)")
    parser.add_argument("--batch-size", type=positive, default=64, help="problems a step (default 64)")
    parser.add_argument("--lr", type=between(0, math.inf), help="peak learning rate (default 3e-3, with --data 1e-3)")
    parser.add_argument("--warmup", type=positive, help="steps of linear warm-up (default 100, with --data 20)")
    parser.add_argument("--decay", type=between(1e-9, 1), default=0.5, help="share of the steps in which the rate falls to 0 (default 0.5)")
    parser.add_argument("--hard", type=between(0, 1), default=0.3, help="share of problems that must multiply or divide, falling to 0 in the "
                        "second half (default 0.3)")
    parser.add_argument("--begin-only", type=between(0, 1), default=0.13, help="after this share of the steps, five of six batches show each "
                        "solution up to its first result only: the rest is mastered soon (default 0.13)")
    parser.add_argument("--honest", type=between(0, 1), default=0.5, help="of the sixth batch, the share that shows random steps, of which only "
                        "the arithmetic is imitated (default 0.5)")
    parser.add_argument("--retries", action="store_true", help="countdown: in half of what --honest shows the steps are taken back and a solution "
                        "follows: for a base that is to learn to correct itself")
    parser.add_argument("--direct", action="store_true", help="expression: imitate the answer alone, without a chain of thought")
    parser.add_argument("--shots", type=count, default=0, help="0 to this many solved examples before each problem, and all of them before the "
                        "test problems (default 0)")
    # the value head
    parser.add_argument("--value-every", type=positive, default=16, help="in the second half, every so many steps also fit the value head "
                        "(default 16)")
    parser.add_argument("--value-coef", type=between(0, math.inf), default=1.0, help="weight of the value loss (default 1)")
    # the run
    parser.add_argument("--log-every", type=positive, default=1000, help="steps between rows of sft.csv (default 1000)")
    parser.add_argument("--log-problems", type=positive, default=500, help="test problems for these rows (default 500)")
    parser.add_argument("--test-problems", type=positive, default=1000, help="test problems at the end (default 1000)")
    parser.add_argument("--workers", type=count, help="processes that make problems ahead; changes no result (default 0 on a CPU, which has "
                        "no core to spare, 8 with CUDA)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with the flags it was started with")
    parser.shared("--out", "--device", "--seed")
    return parser, parser.parse_args()


class Batches(torch.utils.data.Dataset):
    """What the steps learn from: fresh problems with a worked solution each, and the generator that drew them."""

    def __init__(self, args, start):
        self.args, self.start = args, start

    def __len__(self):
        return self.args.steps - self.start

    def __getitem__(self, i):
        args, step = self.args, self.start + i
        rng = np.random.default_rng([args.seed, step])
        if args.data:
            return [], [], rng
        hard = args.hard * min(1.0, 2 - 2 * step / args.steps)          # to the natural share in the second half
        problems, solutions = make_problems(args.task, args.level, args.batch_size, rng, hard=hard)
        return problems, [answer(args, solution) for solution in solutions], rng

    def load(self, n_workers):
        """All in order. Ctrl-C is for the main process to hear."""
        return torch.utils.data.DataLoader(self, batch_size=None, num_workers=n_workers, collate_fn=tuple, worker_init_fn=deaf)


def deaf(worker):
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class Example:
    prompt: list                            # token ids
    completion: list                        # token ids, <|eos|> included where it ended
    imitate: list                           # of bool, for each token of the completion
    labels: list                            # P(this ends correct) of what stands before each of these tokens, nan where unknown


def answer(args, solution):
    """A worked solution, or its last line alone."""
    return solution.splitlines(keepends=True)[-1] if args.direct else solution


def solved_examples(args, n, rng):
    """Token ids of n problems with their solutions, to stand before a problem."""
    problems, solutions = make_problems(args.task, args.level, n, rng)
    return encode("".join(problem.prompt + answer(args, solution) for problem, solution in zip(problems, solutions)))


def worked(problem, solution, begin_only):
    """A worked solution to imitate, all of it or up to its first result."""
    ids = encode(solution) + [EOS]
    ids = ids[:ids.index(COMMA) + 1] if begin_only else ids
    return Example(encode(problem.prompt), ids, [True] * len(ids), [math.nan] * len(ids))


def follows_equals(ids):
    """For each token whether it stands behind an `=` in its line."""
    flags, follows = [], False
    for token in ids:
        flags.append(follows)
        follows = (follows or token == EQUALS) and token != NEWLINE
    return flags


def honest(problem, rng):
    """
    Random legal steps to the end, of which only what follows each `=` is imitated. In worked solutions the last line always
    ends in the target: a model that has seen nothing else writes the target in a dead end too, and can tell no wrong
    arithmetic from right. The value head learns how they ended.
    """
    text, left = random_lines(problem.numbers, problem.level - 1, rng, below=1000)
    ids = encode(text)
    return Example(encode(problem.prompt), ids + [EOS], follows_equals(ids) + [True], [float(left == [problem.target])] * (len(ids) + 1))


def retry(problem, solution, rng):
    """
    One or more random legal steps, of which again only the arithmetic is imitated; `wait`s that take all of them back, some
    behind a ?no, which are not imitated at all; and a worked solution, which is. A plan that stands far away from the prompt
    has to be learnt apart from one that stands beside it.
    """
    n = int(rng.integers(1, problem.level))
    text, _ = random_lines(problem.numbers, n, rng, below=1000)
    taken_back = encode(text + "?no\n" * (n == problem.level - 1 and rng.random() < 0.5) + "wait\n" * n)
    ids = encode(solution) + [EOS]
    return Example(encode(problem.prompt), taken_back + ids, follows_equals(taken_back) + [True] * len(ids), [math.nan] * len(taken_back + ids))


def from_trace(trace):
    """
    A trace: the lines worth imitating are imitated, <|eos|> after a correct one. The value head learns the labels of its
    lines, or without these the verdict, everywhere.
    """
    lines, correct, values = trace["completion"].splitlines(keepends=True), trace["correct"], trace.get("values")
    ids, imitate, labels = [], [], [math.nan if values else float(correct)]
    for number, (line, imitated) in enumerate(zip(lines, imitated_lines(trace["completion"], correct) + [False])):     # one may be cut off
        tokens = encode(line)
        ids += tokens
        imitate += [imitated] * len(tokens)
        labels += labels[:1] * len(tokens)
        if values and line.endswith("\n") and values[number] is not None:
            labels[-1] = values[number]     # of what stands when the line has ended
    return Example(encode(trace["prompt"]), ids + [EOS], imitate + [correct], labels)


@torch.no_grad()
def introduce_words(model, traces):
    """
    Words that the model has never had to write are some twenty nats less likely to it than any other, and to undo that takes
    longer than many a file of traces. `?` and `wait` come where a text might end: let them begin as likely as <|eos|>.
    """
    rows = model.lm_head.weight             # (V, C)
    imitated = {line for trace in traces for line, flag in zip(trace["completion"].split("\n"), imitated_lines(trace["completion"], trace["correct"])) if flag}
    for word in set(encode("".join(imitated))):
        if torch.equal(rows[word], rows[-1]):       # as the last id, which is no word at all
            rows[word] = rows[EOS]


def make_batch(examples, device):
    """
    idx (B, T); targets (B, T), what follows each token where that is to be imitated, -1 (ignored) elsewhere; labels (B, T)
    for the value head, nan where there is none.
    """
    T = max(len(example.prompt) + len(example.completion) for example in examples) - 1
    idx, targets, labels = np.full((len(examples), T), PAD), np.full((len(examples), T), -1), np.full((len(examples), T), np.nan, np.float32)
    for row, example in enumerate(examples):
        start, end = len(example.prompt) - 1, len(example.prompt) + len(example.completion) - 1    # the last token is a target only
        idx[row, :end] = (example.prompt + example.completion)[:-1]
        targets[row, start:end] = np.where(example.imitate, example.completion, -1)
        labels[row, start:end] = example.labels
    return tuple(torch.from_numpy(column).to(device) for column in (idx, targets, labels))


def sample_own(model, problems, room, rng):
    """
    Two completions of the model's own for each problem, of which one starts behind random legal steps: a value head that
    only ever saw what the policy likes to write could not tell a search what to think of the rest. Nothing of them is
    imitated; their verdicts are the labels.
    """
    begun = [[]] * len(problems) + [encode(random_start(problem, rng)) for problem in problems]
    problems = problems * 2
    starts = [encode(problem.prompt) + lines for problem, lines in zip(problems, begun)]
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(int(rng.integers(2 ** 62)))
    samples = generate(model, starts, room, stop_tokens=(EOS,), generator=generator)
    judge = make_judge(problems)
    verdicts = [judge(i, None if ids is None else lines + ids) for i, (lines, ids) in enumerate(zip(begun, samples.finished((EOS,))))]
    return [Example(start, ids, [False] * len(ids), [float(verdict)] * len(ids))
            for start, ids, verdict in zip(starts, samples.completions(), verdicts)]


def random_start(problem, rng):
    """One or more random legal steps, at least one short of the end. None in expression, where every legal step is right."""
    if problem.task == "expression" or problem.level == 2:
        return ""
    return random_lines(problem.numbers, rng.integers(1, problem.level - 1), rng)[0]


def learning_rate(args, step):
    warmup = min(1.0, (step + 1) / args.warmup)
    return args.lr * warmup * min(1.0, (args.steps - step) / (args.decay * args.steps))


def main():
    parser, args = parse_args()
    start, tokens, flops, table, checkpoint, trained = 0, 0, 0, [], None, None
    try:
        device = choose_device(args.device)
        if args.resume:
            model, checkpoint = load_checkpoint(os.path.join(args.out, "sft.pt"), device,
                                                needs=("flags", "step", "tokens", "flops", "table", "optimizers"))
            args.__dict__.update(checkpoint["flags"], out=args.out, device=args.device, workers=args.workers, resume=True)
        elif args.init:
            model, parent = load_checkpoint(args.init, device, needs=("flags", "tokens", "flops"))
            tokens, flops = parent["tokens"], parent["flops"]
            trained = parent["flags"]
            if args.depth and GPTConfig.from_depth(args.depth) != model.config:
                raise ValueError(f"--depth {args.depth} is not the size of --init {args.init}: leave --depth out")
        else:
            torch.manual_seed(args.seed)
            model = to_device(GPT(GPTConfig.from_depth(args.depth or 3)), device)
        args.task, args.level, args.attempts = choose_task(args, trained)
        if args.direct and args.task != "expression":
            raise ValueError("--direct is for --task expression: in countdown every line is part of the answer")
        if args.data and (args.direct or args.shots):
            raise ValueError("--direct and --shots are for worked solutions: with --data leave them out")
        if args.retries and (args.data or args.task != "countdown" or not args.honest):
            raise ValueError("--retries is for worked solutions of --task countdown, beside --honest: leave it out")
        if args.data and not (args.init or args.resume):
            raise ValueError("--data needs a model to start from: --init")
        traces = [trace for path in args.data or [] for trace in read_traces(path)]
        args.steps = args.steps or (-(-len(traces) // args.batch_size) if args.data else 6800)
        args.lr = args.lr if args.lr is not None else 1e-3 if args.data else 3e-3
        args.warmup = args.warmup or (20 if args.data else 100)
        test = test_problems(args.task, args.level, args.test_problems)
        shots = solved_examples(args, args.shots, np.random.default_rng(args.seed))
        prompts, room = [shots + encode(problem.prompt) for problem in test], max_tokens(args.task, args.level, args.attempts)
        if max(map(len, prompts)) + room > model.config.block_size:
            raise ValueError(f"--shots {args.shots} with --attempts {args.attempts} needs more than the model's {model.config.block_size} tokens")
    except ValueError as error:
        parser.error(str(error))
    if traces and not args.resume:
        introduce_words(model, traces)
    open_folder(args.out, *([] if args.resume else ["sft.pt", "sft.csv"]))
    print(f"train_sft.py on {device}: {vars(args)}", flush=True)

    optimizers = make_optimizers(model, args.lr)
    tokens += sum(trace.get("tokens", 0) for trace in traces)           # what it took to make them
    flops += sum(trace.get("flops", 0) for trace in traces)
    if checkpoint:
        for optimizer, state in zip(optimizers, checkpoint["optimizers"]):
            optimizer.load_state_dict(state)
        start, tokens, flops, table = (checkpoint[key] for key in ("step", "tokens", "flops", "table"))
    n_workers = args.workers if args.workers is not None else 8 * (device.type == "cuda")
    order = np.random.default_rng(args.seed).permutation(len(traces))
    states = labelled_states(args.task, args.level)

    def measure(n):
        return evaluate(model, prompts[:n], make_judge(test), room, (EOS,), seed=args.seed) | {"value_auc": value_auc(model, *states)}

    def save(step):
        save_checkpoint(os.path.join(args.out, "sft.pt"), model, optimizers, step=step, tokens=tokens, flops=flops,
                        table=table, flags=vars(args))
        if table:
            save_table(os.path.join(args.out, "sft.csv"), table)

    ctrl_c, shown = catch_ctrl_c(), {}
    bar = tqdm(range(start, args.steps), initial=start, total=args.steps, desc="sft", mininterval=1)
    for step, (problems, solutions, rng) in zip(bar, Batches(args, start).load(n_workers)):
        # 1. What to learn from: traces, or fresh problems with a worked solution; now and then, the model's own solutions.
        if args.data:
            examples = [from_trace(traces[i]) for i in order.take(range(step * args.batch_size, (step + 1) * args.batch_size), mode="wrap")]
        else:
            begins = args.task == "countdown" and step > args.begin_only * args.steps
            examples = [worked(problem, solution, begins and step % 6) for problem, solution in zip(problems, solutions)]
            if begins and step % 6 == 0:
                n_honest = round(args.honest * len(problems))
                for i, (problem, solution) in enumerate(zip(problems[:n_honest], solutions)):
                    examples[i] = retry(problem, solution, rng) if args.retries and i % 2 == 0 else honest(problem, rng)
            if args.shots:
                shots = solved_examples(args, rng.integers(args.shots + 1), rng)
                examples = [replace(example, prompt=shots + example.prompt) for example in examples]
        if problems and step >= args.steps / 2 and step % args.value_every == 0:
            own = sample_own(model, problems, room, rng)
            examples += own
            flops += sum(len(example.prompt + example.completion) for example in own) * flops_per_token(model.config, room)
        # 2. One forward pass over all of it.
        idx, targets, labels = make_batch(examples, device)
        logits, values = model(idx)                                     # (B, T, V), (B, T)
        n_imitated, labelled = (targets >= 0).sum().item(), ~labels.isnan()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum") / max(1, n_imitated)
        shown |= {"loss": f"{loss.item():.3f}"}
        if labelled.any():
            value_loss = F.binary_cross_entropy_with_logits(values[labelled], labels[labelled].to(values.dtype))
            shown |= {"value_loss": f"{value_loss.item():.3f}"}
            loss = loss + args.value_coef * value_loss
        bar.set_postfix(shown, refresh=False)
        # 3. Step.
        loss.backward()
        optimizer_step(model, optimizers, learning_rate(args, step))
        n_tokens = sum(len(example.prompt + example.completion) for example in examples)
        tokens += n_tokens
        flops += 3 * n_tokens * flops_per_token(model.config, idx.size(1) / 2)
        # 4. Log, save, stop when asked.
        done = step + 1
        if done % args.log_every == 0 or done == args.steps:
            row = measure(args.test_problems if done == args.steps else args.log_problems)
            table.append({"step": done, "tokens": tokens, "flops": flops, **row, "loss": loss.item()})
            save(done)
            bar.write("  ".join([f"step {done}", *(f"{key} {100 * value:.1f}%" for key, value in row.items() if not math.isnan(value))]))
            show_sample(bar, model, test[0], room)
        if ctrl_c.is_set():
            bar.close()
            save(done)
            print(f"stopped at step {done}; go on with: python train_sft.py --resume --out {args.out}")
            raise SystemExit(130)
    print(f"wrote {args.out}/sft.pt and {args.out}/sft.csv")


def show_sample(bar, model, problem, room):
    samples = generate(model, [encode(problem.prompt)], room, temperature=0.0, stop_tokens=(EOS,))
    ids = samples.tokens[0].tolist()
    bar.write(f"  {problem.prompt}{decode(ids)}  [{verify(problem, decode(ids).removesuffix('<|eos|>')).reason}]")


if __name__ == "__main__":
    run_script(main)
