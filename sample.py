"""
Batched sampling with a key-value cache, independent of the task: token ids go in, token ids come out.

A prompt is read once, however many samples it gets. Then all rows advance together, one token per step.
Prompts of different length share one cache. All but their last tokens stand in its first columns,
left-aligned; the last token of each prompt, and what is sampled after it, follow from the same column on:

    column     0 1 2 3 4 5 6 7     8  9 10 11
    row 0      9 8 _ 1 1 > 8 7    nl  9  8  -  ...        98 11>87, newline
    row 1      5 _ 5 > 1 0 . .    nl  5  +  5  ...        5 5>10, newline

With P tokens in the longest prompt (9 here), the first step reads column P - 1 and samples the tokens of
column P. The columns that a short prompt leaves empty (.) are masked, and a token's position in its text is
kept apart from its column. So greedy decoding of a row does not depend on the other rows, up to rounding. The
sampled stop token belongs to the sample: it has a log-prob and is inside the mask, so that stopping can be
learnt.

A step (`Decoder.step`) reads and writes buffers that were allocated before. On a CPU it is called directly.
On a GPU a model this small is limited by kernel launches, so there the step is captured in a CUDA graph and
launched as one. From time to time the unfinished rows move to a smaller decoder.
"""
import copy
import weakref
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from model import KVCache, Linear

LOOK_EVERY = 8                              # steps between looks at how many rows are still alive
SHRINK_AT = {"cpu": 0.75, "cuda": 0.5}      # when at most this share of rows is alive, these move
FEW_ROWS = 96                               # with fewer rows a CPU computes in float32
BLOCK = {"cpu": 16, "cuda": 64}             # attention looks at a multiple of so many columns


@dataclass
class Samples:
    tokens: torch.Tensor                    # (B, T_new), 0 after the stop token
    mask: torch.Tensor                      # (B, T_new), true up to and including the stop token
    logprobs: torch.Tensor              # (B, T_new), of each token at the sampling temperature (greedy: at 1)
    values: torch.Tensor                    # (B, T_new), before each token
    end_values: torch.Tensor = None         # (B,), of the whole row, its last token included; with read_last
    top_tokens: torch.Tensor = None         # (B, T_new, n_top), the likeliest tokens in each place
    top_logprobs: torch.Tensor = None       # (B, T_new, n_top), their log-probs, at temperature 1
    cache: KVCache = None                   # at the end; with read_last
    start: int = 0                      # the column of that cache where the last token of each prompt stands

    def completions(self):
        """For each row its token ids, up to and including the stop token."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.mask.sum(1).tolist())]

    def finished(self, stop_tokens):
        """For each row its token ids before the stop token, or None if it never came."""
        return [row[:-1] if row and row[-1] in stop_tokens else None for row in self.completions()]


# ------------------------------------------------------------------------------------------------------------
# One token for each row

def sample_token(logits, temperature, generator=None):
    """
    One token for each row by the Gumbel-max trick: logits (B, V) -> tokens (B,), their log-probs (B,).
    argmax(logits + g) is a sample of softmax(logits) when g is Gumbel noise, -log(-log(u)) of a uniform u.
    Temperature 0 takes the likeliest.
    """
    if temperature not in (0, 1):
        logits = logits / temperature
    logprobs = logits.log_softmax(-1)       # (B, V)
    scores = logprobs
    if temperature > 0:
        u = torch.rand(logprobs.shape, generator=generator, dtype=logprobs.dtype, device=logprobs.device)
        scores = logprobs - u.log_().neg_().log_()      # u = 0 gives -inf, never chosen; rand is below 1
    tokens = scores.argmax(-1)                                          # (B,)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


class Decoder:
    """B rows of up to T_all columns that advance by one token a step, in buffers that stay where they are."""

    def __init__(self, model, B, T_all, temperature, stop_tokens, n_top):
        self.model, self.temperature, self.n_top = model, temperature, n_top
        weight = model.wte.weight
        device, n_gram = weight.device, model.config.n_gram

        def zeros(*shape, dtype=torch.long):
            return torch.zeros(shape, dtype=dtype, device=device)

        # CUDA graphs need fixed addresses, so there all columns are allocated now. On a CPU, whose matrix
        # product would copy a slice of them, they are added as they are needed.
        self.cache = KVCache(model, B, T_all if device.type == "cuda" else 0)
        self.cache.columns = zeros(1)       # the column that is written and read in this step
        self.rows = SimpleNamespace(
            index=zeros(B),                                             # which row of the samples this is
            window=zeros(B, 1, n_gram),                     # the last tokens; the last one is not read yet
            position=zeros(B, 1),                                   # where in its text the last token stands
            seen=zeros(B, 1, T_all, dtype=self.cache.k.dtype),          # 0 where it may look, else -inf
            length=zeros(B), limit=zeros(B),                            # tokens sampled; at most so many
            alive=zeros(B, dtype=torch.bool),                           # not finished
            tokens=zeros(B, T_all),                         # the sampled ones; 0 for those of prompts
            logprobs=zeros(B, T_all, dtype=weight.dtype),
            values=zeros(B, T_all, dtype=weight.dtype),
            top_logprobs=zeros(B, T_all, n_top, dtype=weight.dtype),
            top_tokens=zeros(B, T_all, n_top))
        self.stop_tokens = torch.tensor(list(stop_tokens), dtype=torch.long, device=device)
        self.generator = torch.Generator(device)
        self.n = 0                          # rows in use; those behind them are dead
        self.column = 0                     # the same as cache.columns, on the host
        self.block = BLOCK[device.type]
        self.graphs = {}                    # captured steps, by the number of columns they look at
        if device.type == "cuda":
            for T in range(self.block, T_all + 1, self.block):
                self.graphs[T] = self.capture(T)

    def step(self):
        """Read the last token of every row, in column c, and sample the one of column c + 1."""
        rows, column = self.rows, self.cache.columns
        rows.seen.index_fill_(2, column, 0)                             # every token sees itself
        seen = rows.seen[:, :, :self.cache.T]
        logits, values = self.model.run(rows.window, rows.position, seen, self.cache)
        logits = logits[:, 0]               # (B, V)
        column += 1                         # in place, so the cache's as well
        if self.n_top:
            top = logits.log_softmax(-1).topk(self.n_top)
            rows.top_logprobs.index_copy_(1, column, top.values[:, None])
            rows.top_tokens.index_copy_(1, column, top.indices[:, None])
        tokens, logprobs = sample_token(logits, self.temperature, self.generator)
        rows.tokens.index_copy_(1, column, tokens[:, None])
        rows.logprobs.index_copy_(1, column, logprobs[:, None])
        rows.values.index_copy_(1, column, values)
        rows.window.copy_(torch.cat((rows.window[:, :, 1:], tokens[:, None, None]), dim=2))
        rows.position += 1
        rows.length += rows.alive
        # Here a row ends. It goes on computing, but its length stays, and `collect` masks what follows.
        rows.alive &= (rows.length < rows.limit) & (tokens[:, None] != self.stop_tokens).all(1)

    def advance(self):
        """One step, over no more columns than it needs."""
        T = -(-(self.column + 1) // self.block) * self.block
        self.cache.look_at(T)
        self.graphs.get(T, self.step)()     # the captured step; on a CPU the plain one
        self.column += 1

    def begin(self, cache, prompts, prompt_of, limit, seed):
        """Row i goes on from prompts[prompt_of[i]]; the cache holds each prompt without its last token."""
        rows, device = self.rows, self.cache.k.device
        start, n_gram = max(map(len, prompts)) - 1, rows.window.size(2)
        prompt_of = torch.tensor(prompt_of, device=device)                    # (n,)
        length = torch.tensor([len(prompt) for prompt in prompts], device=device)[prompt_of]
        windows = torch.tensor([([0] * n_gram + prompt)[-n_gram:] for prompt in prompts], device=device)
        n = len(prompt_of)
        self.restart(n, start, seed)
        self.cache.copy(cache, prompt_of, start)
        rows.index[:n] = torch.arange(n, device=device)
        rows.window[:n, 0] = windows[prompt_of]
        rows.position[:n, 0] = length - 1
        rows.seen.fill_(float("-inf"))
        is_prompt = torch.arange(start, device=device) < length[:, None] - 1            # (n, start)
        rows.seen[:n, 0, :start].masked_fill_(is_prompt, 0.0)
        rows.limit[:n] = torch.tensor(limit, device=device)
        rows.alive[:n] = True
        return self

    def take(self, other, kept, seed):
        """Go on with rows kept (n,) of another, larger decoder with as many columns."""
        assert other is not self
        n = len(kept)
        self.restart(n, other.column, seed)
        self.cache.copy(other.cache, kept, other.column)
        for name, buffer in vars(self.rows).items():
            buffer[:n] = getattr(other.rows, name)[kept]
        return self

    def restart(self, n, column, seed):
        """Zero all buffers, for n rows that go on from a column."""
        self.n = n
        for buffer in vars(self.rows).values():
            buffer.zero_()
        self.column = column
        self.cache.columns.fill_(column)
        self.generator.manual_seed(seed)

    # On CUDA only: may be skipped on a first reading

    def capture(self, T):
        """The step that looks at T columns, as a CUDA graph: a function that replays it."""
        self.cache.look_at(T)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        # A few steps beside, as torch asks for: kernels are compiled, libraries made ready
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.cache.columns.zero_()
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


# ------------------------------------------------------------------------------------------------------------
# Many tokens

def pad(rows, device):
    """Lists of token ids as one matrix, shorter ones padded: idx (B, T), length (B,)."""
    T = max(map(len, rows))
    idx = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=device)
    return idx, torch.tensor([len(row) for row in rows], device=device)


def read_prompts(model, prompts):
    """The cache of all tokens of each prompt but the last, left-aligned."""
    idx, _ = pad(prompts, model.wte.weight.device)
    cache = KVCache(model, len(prompts), idx.size(1) - 1)
    cache.columns = torch.arange(idx.size(1) - 1, device=idx.device)
    if idx.size(1) > 1:
        model(idx[:, :-1], cache)
    return cache


@torch.no_grad()
def generate(model, prompts, max_new_tokens, temperature=1.0, stop_tokens=(), generator=None, n_samples=1,
             n_top=0, read_last=False, cache=None, watch=None):
    """
    n_samples continuations of each prompt (a list of token ids): Samples of B = len(prompts) * n_samples
    rows, those of a prompt one after the other. ValueError if a prompt is empty or too long for the model.

    max_new_tokens      T_new is no more; a number for all rows, or a list with one (at least 1) for each
    generator           a torch.Generator of the CPU, whatever the device
    n_top               note the likeliest n_top tokens in each place
    read_last           read the last token of each row as well, for end_values, and give back the cache
    cache               of all prompts but their last tokens, if it is there already
    watch               called for each token of the first row as it comes: watch(token, value), with the
                        value of what stood before it, in [0, 1]
    """
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs at least one token")
    B, P = len(prompts) * n_samples, max(map(len, prompts))
    limit = [max_new_tokens] * B if isinstance(max_new_tokens, int) else max_new_tokens
    n_steps = max(limit) + read_last
    if P + n_steps > model.config.block_size:
        raise ValueError(f"{P} + {n_steps} tokens are more than the model's block_size, "
                         f"{model.config.block_size}")
    model = for_inference(model, B)
    # Always one number from the caller's generator, however often rows move to a smaller decoder
    seeds = torch.Generator().manual_seed(draw_seed(generator))
    prompt_of = [i for i in range(len(prompts)) for _ in range(n_samples)]
    if cache is None:
        distinct = list(dict.fromkeys(map(tuple, prompts)))             # each is read once
        where = {prompt: i for i, prompt in enumerate(distinct)}
        prompt_of = [where[tuple(prompts[i])] for i in prompt_of]
        prompts = list(map(list, distinct))
        cache = read_prompts(model, prompts)
    settings = P + n_steps, temperature, tuple(stop_tokens), n_top
    decoder = make_decoder(model, B, *settings).begin(cache, prompts, prompt_of, limit, draw_seed(seeds))
    all_rows = None                         # the rows of all samples, once some have been left behind
    for t in range(n_steps):
        decoder.advance()
        if watch and decoder.rows.index[0] == 0 and decoder.rows.length[0] == t + 1:        # still alive
            token, value = decoder.rows.tokens[0, decoder.column], decoder.rows.values[0, decoder.column]
            watch(int(token), value.sigmoid().item())
        if (t + 1) % LOOK_EVERY:
            continue
        alive = decoder.rows.alive[:decoder.n].nonzero()[:, 0]
        if len(alive) == 0:
            if read_last and t + 1 < n_steps:
                decoder.advance()           # for the rows that ended just now
            break
        if len(alive) <= SHRINK_AT[alive.device.type] * decoder.n and not read_last:
            all_rows = leave_behind(decoder, all_rows)
            decoder = make_decoder(model, len(alive), *settings).take(decoder, alive, draw_seed(seeds))
    return collect(leave_behind(decoder, all_rows), P, n_top, decoder.cache if read_last else None)


def draw_seed(generator):
    return int(torch.randint(2 ** 62, (), generator=generator))


def leave_behind(decoder, all_rows):
    """Copy a decoder's rows to their places in all_rows, which the first call creates."""
    rows = {name: buffer[:decoder.n] for name, buffer in vars(decoder.rows).items()}
    if all_rows is None:
        return SimpleNamespace(**{name: buffer.clone() for name, buffer in rows.items()})
    for name, buffer in rows.items():
        getattr(all_rows, name)[rows["index"]] = buffer
    return all_rows


def collect(rows, start, n_top, cache):
    """Samples from the rows of a decoder, whose first new token is in column start."""
    T_new = int(rows.length.max())
    mask = torch.arange(T_new, device=rows.length.device) < rows.length[:, None]        # (B, T_new)

    def new(buffer):
        buffer = buffer[:, start:start + T_new]
        return buffer * mask.view(*mask.shape, *[1] * (buffer.dim() - 2))

    samples = Samples(new(rows.tokens), mask, new(rows.logprobs), new(rows.values), start=start - 1)
    if n_top:
        samples.top_logprobs, samples.top_tokens = new(rows.top_logprobs), new(rows.top_tokens)
    if cache is not None:
        samples.cache = cache
        samples.end_values = rows.values.gather(1, start + rows.length[:, None])[:, 0]
    return samples


# ------------------------------------------------------------------------------------------------------------
# For speed: may be skipped on a first reading

def make_decoder(model, B, T_all, *settings):
    """A decoder for at least B rows and T_all columns; on CUDA sizes are rounded up and decoders are kept."""
    device = model.wte.weight.device.type
    T_all = -(-T_all // BLOCK[device]) * BLOCK[device]
    if device == "cpu":
        return Decoder(model, B, T_all, *settings)
    B = 1 << (B - 1).bit_length()
    key = B, T_all, *settings
    if key not in model.decoders:
        model.decoders[key] = Decoder(model, B, T_all, *settings)
    return model.decoders[key]


COPIES = weakref.WeakKeyDictionary()        # model: its copies for inference, by dtype and device


@torch.no_grad()
def for_inference(model, B):
    """
    A copy of the model with its matrices in the dtype it computes in, cast once and not at every step. For a
    few rows on a CPU that is float32, as a bfloat16 product has a larger overhead.
    """
    few = B < FEW_ROWS and model.wte.weight.device.type == "cpu"
    dtype = None if few else model.compute_dtype
    weight = model.wte.weight
    copies, key = COPIES.setdefault(model, {}), (dtype, weight.dtype, weight.device)
    if key not in copies:
        twin = copies[key] = copy.deepcopy(model).requires_grad_(False)
        twin.compute_dtype, twin.decoders = dtype, {}
        for module in twin.modules():
            if isinstance(module, Linear):
                module.to(dtype)
    for new, old in zip(copies[key].parameters(), model.parameters()):
        new.copy_(old)                      # each time, as the weights may have changed
    return copies[key]
