"""
Batched sampling with a key-value cache, and what is measured on samples: accuracy and pass@k.

    python sample.py                        # the benchmark: tokens a second by batch size and depth
    python sample.py --compare              # beside Hugging Face `generate` and a loop without a cache

A prompt is read once, however many samples it gets. Then all rows advance together, a token a step, each at its own
position: prompts need not be equally long, nothing is padded on the left, and a row's result does not depend on its
neighbours. Rows that have ended are dropped once they are a quarter of the batch. The sampled stop token belongs to the
sample: it has a log-prob, it is inside the mask, so that stopping can be learnt.

A step reads the last token of every row and samples the next. On a CPU its time goes into matrix products; these are in
bfloat16 where the processor has it, with weights that are cast once. On a GPU a model this small waits for kernels to be
launched, some hundred a step: there the whole step is captured in a CUDA graph and launched as one (`GraphRows`), and the
sampling is one Triton kernel. Without CUDA or Triton the plain step runs (`Rows`); all around it is shared.

This file knows no task. Token ids go in, token ids come out; a judge is passed in.
"""
import copy
import math
import statistics
import time
import weakref
from dataclasses import dataclass
from functools import lru_cache

import torch

from model import (GPT, GPTConfig, KVCache, Linear, Parser, choose_device, flops_per_token, positive, run_script, to_device)

try:
    import kernels
except ImportError:                         # no Triton
    kernels = None


@dataclass
class Samples:
    tokens: torch.Tensor                    # (B, T_new), 0 after the stop token
    mask: torch.Tensor                      # (B, T_new), true up to and including the stop token
    logprobs: torch.Tensor                  # (B, T_new), of each token at the sampling temperature (greedy: at 1)
    values: torch.Tensor                    # (B, T_new), of what stood before each token
    end_values: torch.Tensor                # (B,), of the whole row, its last token included; with read_last
    top_logprobs: torch.Tensor = None       # (B, T_new, n_top), the likeliest tokens' at temperature 1, and
    top_tokens: torch.Tensor = None         # (B, T_new, n_top), which they were
    slots: torch.Tensor = None              # (B, T_new), where the store has the token before each; with a store

    def completions(self):
        """For each row its token ids, up to and including the stop token."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.mask.sum(1).tolist())]

    def finished(self, stop_tokens):
        """For each row its token ids before the stop token, or None if it never came."""
        return [row[:-1] if row and row[-1] in stop_tokens else None for row in self.completions()]


# ------------------------------------------------------------------------------------------------------------------
# One token for each row

def sample_token(logits, temperature, generator=None):
    """
    One token for each row by the Gumbel-max trick: logits (B, V) -> tokens (B,), their log-probs (B,). argmax(logits + g)
    is a sample of softmax(logits) when g is Gumbel noise, -log(-log(u)) of a uniform u. Temperature 0 takes the likeliest.
    """
    if temperature not in (0, 1):
        logits = logits / temperature
    logprobs = logits.log_softmax(-1)       # (B, V)
    scores = logprobs
    if temperature > 0:
        u = torch.rand(logprobs.shape, generator=generator, dtype=logprobs.dtype, device=logprobs.device)
        scores = logprobs - (-u.log()).log()                            # u = 0 gives -inf, which cannot win; 1 does not come
    tokens = scores.argmax(-1)                                          # (B,)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


# ------------------------------------------------------------------------------------------------------------------
# One step of all rows

class Rows:
    """Rows in the making: what a step reads and changes."""
    look_every, patience = 1, 0.75          # how often to count the rows that are needed; the share at which others are dropped

    def __init__(self, model, cache, last, room, temperature, stops, n_top, generator):
        self.model, self.temperature, self.stops, self.n_top, self.generator = model, temperature, stops, n_top, generator
        self.cache = cache                  # of all tokens but the last
        self.last = last                    # (B, 1), the last token: sampled, not read yet
        self.room = torch.tensor(room, device=last.device)              # (B,), how many tokens may still come
        self.alive = self.room > 0          # (B,), whether any will
        self.T_end = cache.longest + 1 + max(room)                      # columns that the cache will need in the end
        self.row = torch.arange(len(last), device=last.device)          # (B,), which row of the samples this is
        self.nowhere = len(last)            # the row of those that are none of them

    def step(self):
        """Read each row's last token and sample the next. Returns what Samples says of that, by name: (B,) or (B, n_top)."""
        logits, values = self.model(self.last, self.cache)
        logits, new = logits[:, 0], {"values": values[:, 0], "mask": self.alive.clone()}
        if self.n_top:
            new["top_logprobs"], new["top_tokens"] = logits.log_softmax(-1).topk(self.n_top)
        return new | {"logprobs": self.advance(logits), "tokens": self.last[:, 0].clone()}

    def advance(self, logits):
        """From logits (B, V) to each row's new last token, and whether it goes on. Returns the tokens' log-probs (B,)."""
        tokens, logprobs = sample_token(logits, self.temperature, self.generator)
        self.last.copy_(tokens[:, None])
        self.room -= 1
        self.alive &= (self.room > 0) & (self.last != self.stops).all(1)
        return logprobs

    def take(self, rows):
        """These rows (N,) only."""
        taken = copy.copy(self)
        taken.cache = self.cache.take(rows)
        taken.last, taken.room, taken.alive, taken.row = (x[rows] for x in (self.last, self.room, self.alive, self.row))
        return taken


class TritonRows(Rows):
    """The same with one kernel for all of `advance`, whose noise comes from a seed on the device."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seed = torch.zeros(1, dtype=torch.long, device=self.last.device)

    def advance(self, logits):
        return kernels.advance(logits, self)


class GraphRows(TritonRows):
    """
    Rows whose step is a CUDA graph. A graph replays kernels on the addresses and sizes it was captured with, so rows are
    copied into buffers that stay, of round sizes that fit many calls. What is left over there are dead rows.
    """
    look_every, patience = 8, 0.5           # to look is to wait for the GPU; and sizes are powers of two

    @classmethod
    def load(cls, rows):
        size = 1 << (len(rows.last) - 1).bit_length(), -(-rows.T_end // 64) * 64
        graphs = rows.model.__dict__.setdefault("graphs", {})
        key = *size, rows.temperature, tuple(rows.stops.tolist()), rows.n_top
        if key not in graphs:
            graphs[key] = cls(rows, *size)
        return graphs[key].fill(rows)

    def __init__(self, rows, n, T):
        last = torch.zeros(n, 1, dtype=torch.long, device=rows.last.device)
        super().__init__(rows.model, KVCache(rows.model, n, T), last, [1] * n, rows.temperature, rows.stops, rows.n_top, None)
        self.replay = self.capture()

    def capture(self):
        stream = torch.cuda.Stream()        # a few steps beside, as torch asks for: kernels are compiled, libraries made ready
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                super().step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.new = super().step()
        return graph.replay

    def fill(self, rows):
        n, T = len(rows.last), min(rows.cache.T_all, self.cache.T_all)
        self.cache.k[:, :n, :T], self.cache.v[:, :n, :T] = rows.cache.k[:, :, :T], rows.cache.v[:, :, :T]
        n_tokens = self.cache.before + T
        self.cache.tokens[:n, :n_tokens] = rows.cache.tokens[:, :n_tokens]
        self.cache.length.zero_()[:n] = rows.cache.length
        for name in ("last", "room", "alive", "row"):
            getattr(self, name).zero_()[:n] = getattr(rows, name)
        self.row[n:] = self.nowhere = rows.nowhere
        self.T_end = rows.T_end
        if isinstance(rows, GraphRows):
            self.seed.copy_(rows.seed)
        else:
            self.seed.random_(generator=rows.generator)
        return self

    def step(self):
        self.replay()
        return {name: column.clone() for name, column in self.new.items()}

    def take(self, rows):
        return GraphRows.load(super().take(rows))


@lru_cache
def graphs_work(device):
    """Whether steps can be captured on a device (its type); if not, one line says why."""
    reason = "" if kernels else "no Triton"
    if device != "cuda":
        reason = "no CUDA device"
    elif kernels:
        try:
            kernels.compile()
        except Exception as error:          # no C compiler, most often
            reason = str(error).strip().split("\n")[0]
    if reason:
        print(f"sampling without CUDA graphs and Triton: {reason}", flush=True)
    return not reason


# ------------------------------------------------------------------------------------------------------------------
# Many tokens

TWINS = weakref.WeakKeyDictionary()         # model: its copy for inference


def for_inference(model, B):
    """
    The model with the weights of its matrices in the dtype it computes in: cast once, and not at every step. For a few rows
    on a CPU float32 is faster, as bfloat16 products are slow to start.
    """
    if model.compute_dtype is None:
        return model
    if B < 96 and model.lm_head.weight.device.type == "cpu":
        twin = copy.copy(model)             # shares the weights
        twin.compute_dtype = None
        return twin
    if model not in TWINS:
        TWINS[model] = copy.deepcopy(model).requires_grad_(False)
        for module in TWINS[model].modules():
            if isinstance(module, Linear):
                module.to(model.compute_dtype)
    torch._foreach_copy_(list(TWINS[model].parameters()), list(model.parameters()))
    return TWINS[model]


def pad(rows, device):
    """Lists of token ids as one matrix, shorter ones padded: idx (B, T), length (B,)."""
    T = max(map(len, rows))
    idx = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=device)
    return idx, torch.tensor([len(row) for row in rows], device=device)


def prefill(model, prompts, limit, store=None, slots=None):
    """
    Read all tokens of each prompt (a list of token ids) but the last, or copy them from the store's slots. Returns the cache,
    with room for `limit` tokens more, and the last tokens (P, 1). ValueError if a prompt is empty or too long.
    """
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token")
    T = max(map(len, prompts))
    if T + limit > model.config.block_size:
        raise ValueError(f"{T} + {limit} tokens are more than the model's block_size, {model.config.block_size}")
    idx, length = pad(prompts, model.lm_head.weight.device)             # (P, T), (P,)
    cache = KVCache(model, len(prompts))
    if slots is not None:
        store.load(cache, idx[:, :-1], slots)
    elif T > 1:
        model.trunk(idx[:, :-1], cache)
    cache.rewind(length - 1)                # what was written behind a shorter prompt is never seen, and soon overwritten
    return cache, idx.gather(1, length[:, None] - 1)


@torch.no_grad()
def generate(model, prompts, max_new_tokens, temperature=1.0, stop_tokens=(), generator=None, n_samples=1, n_top=0,
             read_last=False, store=None, slots=None):
    """
    n_samples continuations of each prompt (a list of token ids): Samples of B = len(prompts) * n_samples rows, those of a
    prompt side by side, T_new <= max_new_tokens, which may also be a list with a number (at least 1) for each row.
    read_last: read the last token of each row as well, for end_values. store, slots: where to find each prompt but its last
    token; what is read here is added to the store.
    """
    B = len(prompts) * n_samples
    room = [max_new_tokens] * B if isinstance(max_new_tokens, int) else max_new_tokens
    n_steps = max(room, default=0) + 1      # the last one only to read the last tokens
    model = for_inference(model, B)
    if slots is not None:
        cache, last = prefill(model, prompts, n_steps - 1, store, slots)
    else:
        distinct = {}                       # each prompt is read once
        copies = [distinct.setdefault(tuple(prompt), len(distinct)) for prompt in prompts for _ in range(n_samples)]
        cache, last = prefill(model, list(map(list, distinct)), n_steps - 1)
        if len(distinct) < B:
            copies = torch.tensor(copies, device=last.device)
            cache, last = cache.take(copies), last[copies]
    device = last.device
    start = cache.length.clone()            # (B,), where the last token of each prompt stands
    stops = torch.tensor(list(stop_tokens), dtype=torch.long, device=device)
    rows = Rows(model, cache, last, room, temperature, stops, n_top, generator)
    if graphs_work(device.type):
        rows = GraphRows.load(rows)
    columns, steps = {}, []                 # what is known by name, (B + 1, n_steps, ...); the steps since rows were last dropped
    for t in range(n_steps):
        steps.append(rows.step())
        if t % rows.look_every and t + 1 < n_steps:
            continue
        needed = steps[-1]["mask"] if read_last else rows.alive
        n = int(needed.sum())
        if n > rows.patience * len(needed):
            continue
        for name in steps[0]:
            new = torch.stack([step[name] for step in steps], dim=1)    # (rows, steps, ...)
            if name not in columns:
                columns[name] = new.new_zeros(B + 1, n_steps, *new.shape[2:])
            columns[name][rows.row, t + 1 - len(steps):t + 1] = new
        steps = []
        if store:
            done = (~needed).nonzero()[:, 0]
            i, column = columns["mask"][rows.row[done]].nonzero(as_tuple=True)
            row = rows.row[done[i]]
            slots_of_new = columns.setdefault("slots", torch.zeros_like(columns["tokens"]))
            slots_of_new[row, column] = store.add(rows.cache, done[i], start[row] + column)
        if n == 0:
            break
        rows = rows.take(needed.nonzero()[:, 0])
    mask = columns["mask"][:B]
    length = mask.sum(1)
    end_values = columns["values"][:B].gather(1, length[:, None])[:, 0]
    T_new = int(length.max())
    return Samples(end_values=end_values, **{
        name: column[:B, :T_new] * mask[:, :T_new].view(B, T_new, *[1] * (column.dim() - 2)) for name, column in columns.items()})


class Store:
    """
    Keys and values of every token that a search has read, so that it never reads one twice. A token's place is its slot;
    texts that begin alike share slots.
    """

    def __init__(self, model):
        cache = KVCache(model, 0, 0)
        self.k = cache.k.new_zeros(0, len(cache.k), cache.k.size(-1))   # (slots, n_layer, hs)
        self.v = self.k.clone()
        self.size = 0

    def add(self, cache, rows, positions):
        """Copy the tokens at positions (N,) of rows (N,) of a cache: their slots (N,)."""
        start, self.size = self.size, self.size + len(rows)
        if self.size > len(self.k):         # twice as large, so that it is seldom moved
            self.k, self.v = (torch.cat((x, x.new_zeros(self.size, *x.shape[1:]))) for x in (self.k, self.v))
        self.k[start:self.size] = cache.k[:, rows, positions].transpose(0, 1)
        self.v[start:self.size] = cache.v[:, rows, positions].transpose(0, 1)
        return torch.arange(start, self.size, device=rows.device)

    def load(self, cache, idx, slots):
        """Fill an empty cache with tokens idx (B, T) from their slots, a list for each row, shorter ones padded."""
        B, T = idx.shape
        cache.begin(idx)
        slots = torch.tensor([row + [0] * (T - len(row)) for row in slots], dtype=torch.long, device=idx.device)
        cache.k[:, :, :T] = self.k[slots].permute(2, 0, 1, 3)           # from (B, T, n_layer, hs)
        cache.v[:, :, :T] = self.v[slots].permute(2, 0, 1, 3)

    def read(self, model, prompts):
        """Read prompts but their last tokens: the list of slots of each."""
        cache, _ = prefill(for_inference(model, len(prompts)), prompts, 1)
        before_end = torch.arange(cache.T_all, device=cache.length.device) < cache.length[:, None]
        slots = self.add(cache, *before_end.nonzero(as_tuple=True)).tolist()
        ends = cache.length.cumsum(0).tolist()
        return [slots[end - len(prompt) + 1:end] for prompt, end in zip(prompts, ends)]


# ------------------------------------------------------------------------------------------------------------------
# What is measured on samples

def pass_at_k(n, n_correct, k):
    """The unbiased estimate of P(one of k samples is correct) from n samples (Chen et al. 2021, equation 1)."""
    return 1.0 - math.comb(n - n_correct, k) / math.comb(n, k)


def wilson(k, n, z=1.96):
    """The 95 % interval of a fraction k / n (Wilson 1927)."""
    p, z2 = k / n, z * z
    centre, half = p + z2 / (2 * n), z * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    return min(p, max(0.0, (centre - half) / (1 + z2 / n))), max(p, min(1.0, (centre + half) / (1 + z2 / n)))


@torch.no_grad()
def evaluate(model, prompts, judge, max_new_tokens, stop_tokens, seed=0, k=16, batch_size=1024):
    """
    Accuracy on prompts: {"greedy", "sampled" (at temperature 1, the mean of k samples), f"pass{k}"}, fractions.
    judge(i, ids) is asked about prompt i and the tokens before the stop token, None if it never came.
    """
    generator = torch.Generator(model.lm_head.weight.device).manual_seed(seed)

    def count_correct(n_samples, temperature):
        counts, per_batch = [], batch_size // n_samples
        for start in range(0, len(prompts), per_batch):
            batch = prompts[start:start + per_batch]
            samples = generate(model, batch, max_new_tokens, temperature, stop_tokens, generator, n_samples)
            verdicts = [judge(start + row // n_samples, ids) for row, ids in enumerate(samples.finished(stop_tokens))]
            counts += [sum(verdicts[row:row + n_samples]) for row in range(0, len(verdicts), n_samples)]
        return counts

    greedy, sampled = count_correct(1, 0.0), count_correct(k, 1.0)
    return {"greedy": sum(greedy) / len(greedy), "sampled": sum(sampled) / len(sampled) / k,
            f"pass{k}": sum(pass_at_k(k, c, k) for c in sampled) / len(sampled)}


@torch.no_grad()
def value_auc(model, texts, labels, batch_size=1024):
    """
    P(the value head rates a text with label true above one with label false), half for ties: texts are lists of token ids, the
    value at their last token counts. nan if all labels are the same.
    """
    values = []
    for i in range(0, len(texts), batch_size):
        idx, length = pad(texts[i:i + batch_size], model.lm_head.weight.device)
        values += model(idx)[1].gather(1, length[:, None] - 1)[:, 0].tolist()
    values, labels = torch.tensor(values), torch.tensor(labels, dtype=torch.bool)
    better = values[labels][:, None] - values[~labels]                  # (positives, negatives)
    return ((better > 0) + 0.5 * (better == 0)).mean().item()


# ------------------------------------------------------------------------------------------------------------------
# The benchmark

def without_cache(model, prompts, n):
    """What most small repositories do: read everything again for each token."""
    idx = torch.tensor(prompts, device=model.lm_head.weight.device)
    for _ in range(n):
        tokens, _ = sample_token(model(idx)[0][:, -1], 1.0)
        idx = torch.cat((idx, tokens[:, None]), dim=1)


def hugging_face(config, device, **settings):
    """GPT-2 of the same shape, and its `generate`."""
    import transformers
    transformers.logging.set_verbosity_error()
    attention, dtype = settings.pop("attn_implementation", None), settings.pop("dtype", torch.float32)
    gpt2 = transformers.GPT2LMHeadModel._from_config(transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=256, n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head,
        bos_token_id=0, eos_token_id=None, pad_token_id=0, **settings), **({"attn_implementation": attention} if attention else {}))
    gpt2 = gpt2.eval().to(device, dtype)

    def run(prompts, n):
        gpt2.generate(torch.tensor(prompts, device=device), max_new_tokens=n, do_sample=True, top_k=0)
    return run


def contenders(model, device, compare):
    """{name: function of (prompts, n)}: ours, and what it is compared with."""
    found = {"generate": lambda prompts, n: generate(model, prompts, n)}
    if compare:
        found["no cache"] = lambda prompts, n: without_cache(model, prompts, n)
        try:
            found["HF as it comes"] = hugging_face(model.config, device)
            found["HF at its best"] = hugging_face(model.config, device, attn_implementation="eager", dtype=torch.bfloat16,
                                                   activation_function="gelu_pytorch_tanh")
        except ImportError:
            print("transformers is not installed (pip install transformers): compared with a loop without a cache only")
    return found


def seconds_of(run, device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def hardware_limits(device, dtype):
    """(bytes a second, FLOPs a second) that this machine reaches on what it does best: copying and multiplying."""
    large = torch.empty(2 ** 30 if device.type == "cuda" else 2 ** 27, dtype=torch.uint8, device=device)
    copy_of = torch.empty_like(large)
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device).to(dtype)
    bandwidth = max(2 * len(large) / seconds_of(lambda: copy_of.copy_(large), device) for _ in range(5))
    return bandwidth, max(2 * n ** 3 / seconds_of(lambda: a @ a, device) for _ in range(5))


def least_work(model, B, T, n):
    """(bytes, FLOPs) without which no program can sample n tokens after T for B rows with this model."""
    config, dtype = model.config, model.compute_dtype or torch.float32
    per_token = 2 * config.n_layer * config.n_embd // config.n_head * dtype.itemsize    # its keys and values
    weights = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    read = sum(weights + B * (T + t) * per_token for t in range(n))                     # all of them for each token
    return read + B * (T + n) * per_token, B * (T + n) * flops_per_token(config, (T + n) / 2)


def main():
    parser = Parser(description="Tokens a second, by batch size and depth.")
    parser.add_argument("--batch-sizes", nargs="+", type=positive, help="rows sampled together (default 1 16 256 1024, on CUDA 4096 too)", metavar="N")
    parser.add_argument("--depths", nargs="+", type=positive, default=[3], help="sizes of the model (default 3)", metavar="N")
    parser.add_argument("--prompt-tokens", type=positive, default=13, help="tokens of each prompt, all prompts different (default 13)")
    parser.add_argument("--new-tokens", type=positive, default=40, help="tokens sampled for each (default 40)")
    parser.add_argument("--repeats", type=positive, default=5, help="runs of each, in turn; the median counts (default 5)")
    parser.add_argument("--compare", action="store_true", help="beside Hugging Face generate, if there, and a loop without a cache")
    parser.shared("--device", "--seed")
    args = parser.parse_args()
    try:
        device = choose_device(args.device)
        batch_sizes = args.batch_sizes or [1, 16, 256, 1024] + [4096] * (device.type == "cuda")
        models = [to_device(GPT(GPTConfig.from_depth(depth)), device) for depth in args.depths]
        if args.prompt_tokens + args.new_tokens > GPTConfig.block_size:
            raise ValueError(f"--prompt-tokens and --new-tokens make more than {GPTConfig.block_size}, the longest that the model can read")
    except ValueError as error:
        parser.error(str(error))
    torch.manual_seed(args.seed)
    dtype = models[0].compute_dtype or torch.float32
    bandwidth, flops = hardware_limits(device, dtype)
    print(f"sample.py on {device}, {args.new_tokens} tokens after {args.prompt_tokens}; measured here: {bandwidth / 1e9:.0f} GB/s copied, "
          f"{flops / 1e9:.0f} GFLOP/s multiplied in {dtype}")
    for depth, model in zip(args.depths, models):
        found = contenders(model, device, args.compare)
        for B in batch_sizes:
            prompts = torch.randint(3, 36, (B, args.prompt_tokens)).tolist()
            times = {name: [] for name in found}
            for turn in range(args.repeats + 1):
                for name, run in found.items():
                    seconds = seconds_of(lambda: run(prompts, args.new_tokens), device)
                    times[name] += [seconds] * (turn > 0)               # the first turn only warms up
            median = {name: statistics.median(seconds) for name, seconds in times.items()}
            least_bytes, least_flops = least_work(model, B, args.prompt_tokens, args.new_tokens)
            limit = max(least_bytes / bandwidth, least_flops / flops)
            n_tokens = B * args.new_tokens
            print(f"depth {depth}  batch {B:5}  {n_tokens / median['generate']:10,.0f} tokens/s, {100 * limit / median['generate']:4.1f} % of the "
                  f"hardware's limit ({least_bytes / 1e6:,.0f} MB, {least_flops / 1e9:,.1f} GFLOP)" + "".join(
                      f"; {name} {n_tokens / seconds:,.0f} (x {seconds / median['generate']:.1f})" for name, seconds in list(median.items())[1:]))
    print(f"peak memory: {peak_memory(device) / 1e6:,.0f} MB")


def peak_memory(device):
    """Bytes held at most by this process: on CUDA by its tensors, else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource                     # not on Windows
    except ImportError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    run_script(main)
