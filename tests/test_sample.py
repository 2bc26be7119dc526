"""
The sampler against the plain forward pass. Guards against the bugs samplers are known for: a cache that
drifts from the full forward, rows that depend on their neighbours or get lost when others are left behind, a
first token shared by a whole batch, sampling at one temperature and scoring at another, a stop token outside
the mask; and against what would break a CUDA graph: buffers that move, values that were baked in, steps that
wait for the device.
"""
import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sample
from metrics import auc, evaluate, pass_at_k, values_of, wilson
from model import GPT, GPTConfig
from optim import make_optimizers, optimizer_step
from sample import BLOCK, FEW_ROWS, Decoder, for_inference, generate, read_prompts, sample_token
from store import Store
from train_rl import forward
from verify import EOS, encode

PROMPTS = [encode(text) for text in (
    "9 3 5 2>24\n", "98>7\n", "1 2 3>6\n", "10 20 30 40 50 60>77\n", "5 5>10\n")]


@pytest.fixture
def model():
    return random_model()


def random_model(dtype=torch.float64, std=0.3, **config):
    """
    Random weights everywhere, the output layers too: a fresh model's are zero, and would hide every mistake.
    """
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{"n_layer": 2, "n_head": 2, "n_embd": 32, **config})).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std)
    return model


class FixedLogits(GPT):
    """Whatever it reads, it gives every row the same logits, or each its own."""

    def __init__(self, logits):
        super().__init__(GPTConfig(n_layer=1, n_head=2, n_embd=16))
        self.logits = logits                # (V,) or (B, V)

    def run(self, windows, positions, mask, cache=None):
        B = windows.size(0)
        return self.logits.expand(B, -1)[:, None], torch.zeros(B, 1)


def assert_close(one, other, atol=1e-10):
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def full_forward(model, prompt, tokens, temperature=1.0):
    """Log-probs and values of sampled tokens by a forward pass over the whole row, without a cache."""
    with torch.no_grad():
        logits, values = model(torch.tensor([prompt + tokens]))
    logprobs = (logits / temperature).log_softmax(-1)[0, len(prompt) - 1:-1]
    return logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0], values[0, len(prompt) - 1:]


def assert_is_full_forward(model, prompts, samples, temperature=1.0, atol=1e-10):
    """Every log-prob and value of each row, and with read_last the value of all of it."""
    assert len(prompts) == len(samples.tokens)
    for row, (prompt, n) in enumerate(zip(prompts, samples.mask.sum(1).tolist())):
        logprobs, values = full_forward(model, prompt, samples.tokens[row, :n].tolist(), temperature or 1.0)
        assert_close(samples.logprobs[row, :n], logprobs, atol)
        assert_close(samples.values[row, :n], values[:-1], atol)
        if samples.end_values is not None:
            assert_close(samples.end_values[row], values[-1], atol)


def assert_same(one, other, names=("logprobs", "values"), atol=1e-10):
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.mask, other.mask)
    for name in names:
        assert_close(getattr(one, name), getattr(other, name), atol)


@pytest.mark.cache
@pytest.mark.bugs
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_cached_equals_full_forward_at_every_position(model, temperature):
    generator = torch.Generator().manual_seed(1)
    samples = generate(model, PROMPTS, 20, temperature, (EOS,), generator, n_samples=3, read_last=True)
    assert samples.tokens.shape[0] == 15
    assert_is_full_forward(model, [prompt for prompt in PROMPTS for _ in range(3)], samples, temperature)


def test_greedy_takes_the_likeliest_token(model):
    samples = generate(model, PROMPTS, 12, temperature=0.0, n_top=3)
    for row, prompt in enumerate(PROMPTS):
        tokens = samples.tokens[row].tolist()
        logits = model(torch.tensor([prompt + tokens]))[0][0, len(prompt) - 1:-1]
        assert logits.argmax(-1).tolist() == tokens
        top = logits.log_softmax(-1).topk(3)
        assert torch.equal(top.indices, samples.top_tokens[row])
        assert_close(samples.top_logprobs[row], top.values)


def test_ragged_batch_equals_one_by_one(model):
    together = generate(model, PROMPTS, 15, temperature=0.0)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], 15, temperature=0.0)
        assert torch.equal(together.tokens[row], alone.tokens[0])
        assert_close(together.logprobs[row], alone.logprobs[0])
        assert_close(together.values[row], alone.values[0])


def test_logprobs_are_the_trainers(model):
    samples = generate(model, PROMPTS, 10, 1.0, (EOS,), torch.Generator().manual_seed(2))
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt + samples.tokens[row, :int(samples.mask[row].sum())].tolist()])
        logprobs, entropy, values = forward(model, {"idx": ids[:, :-1], "next": ids[:, 1:]})
        mask = samples.mask[row]
        assert_close(samples.logprobs[row][mask], logprobs[0, len(prompt) - 1:])
        assert_close(samples.values[row][mask], values[0, len(prompt) - 1:])


def test_everything_is_as_exact_as_the_weights(model):
    samples = generate(model, PROMPTS, 4, n_top=2, read_last=True)
    for name in ("logprobs", "values", "end_values", "top_logprobs"):
        assert getattr(samples, name).dtype == torch.float64
    assert samples.cache.k.dtype == samples.cache.v.dtype == torch.float64


def test_stop_token_is_inside_the_mask_and_padding_is_not(model):
    samples = generate(model, PROMPTS, 20, 1.0, (EOS, 5), torch.Generator().manual_seed(3), n_samples=20)
    stopped = 0
    for tokens, mask, ids in zip(samples.tokens.tolist(), samples.mask.tolist(), samples.finished((EOS, 5))):
        n = sum(mask)
        assert mask == [True] * n + [False] * (len(mask) - n) and not any(tokens[n:])
        assert not {EOS, 5} & set(tokens[:n - 1])
        stopped += tokens[n - 1] in (EOS, 5)
        assert ids == (tokens[:n - 1] if tokens[n - 1] in (EOS, 5) else None)
    assert 10 < stopped < 100               # both kinds of row were seen
    assert not samples.logprobs[~samples.mask].any() and not samples.values[~samples.mask].any()


def test_a_limit_for_each_row(model):
    limits = [1, 2, 3, 4, 7]
    samples = generate(model, PROMPTS, limits, temperature=0.0)
    assert samples.mask.sum(1).tolist() == limits
    free = generate(model, PROMPTS, 7, temperature=0.0)
    assert torch.equal(samples.tokens, free.tokens * samples.mask)


def test_same_seed_same_samples(model):
    one, same, other = (generate(model, PROMPTS, 10, generator=torch.Generator().manual_seed(seed)).tokens
                        for seed in (4, 4, 5))
    assert torch.equal(one, same) and not torch.equal(one, other)


def chi_squared(counts, probabilities):
    """p-value of counts under probabilities, cells that expect fewer than 10 pooled."""
    expected = probabilities * counts.sum()
    small = expected < 10
    counts = torch.cat([counts[~small], counts[small].sum()[None]]).double()
    expected = torch.cat([expected[~small], expected[small].sum()[None]]).clamp_min(1e-9)
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2).item()


@pytest.mark.parametrize("temperature, scored_at, same", [
    (1.0, 1.0, True), (0.7, 0.7, True), (0.97, 1.0, False), (1.0, 0.9, False)])
def test_sampling_distribution(temperature, scored_at, same):
    """100,000 draws by chi-squared; temperatures that are off by a few percent are the negative control."""
    logits = torch.randn(64, generator=torch.Generator().manual_seed(0)).double() * 2
    tokens, logprobs = sample_token(logits.expand(100_000, -1), temperature, torch.Generator().manual_seed(1))
    p = chi_squared(tokens.bincount(minlength=64), (logits / scored_at).softmax(-1))
    assert (p > 1e-3) if same else (p < 1e-6)
    torch.testing.assert_close(logprobs, (logits / temperature).log_softmax(-1)[tokens])


def test_samples_of_a_prompt_differ_in_their_first_token(model):
    samples = generate(model, [PROMPTS[0]], 2, generator=torch.Generator().manual_seed(0), n_samples=20_000)
    commonest = int(samples.tokens[:, 0].mode().values)
    for t in range(2):              # the second token by its conditional, given the commonest first token
        rows = samples.tokens[:, 0] == commonest if t else slice(None)
        probabilities = model(torch.tensor([PROMPTS[0] + [commonest] * t]))[0][0, -1].softmax(-1)
        assert chi_squared(samples.tokens[rows, t].bincount(minlength=64), probabilities) > 1e-3


def keep_steps(monkeypatch):
    """
    A list to which every step of any decoder adds (rows in use, column it reads, columns that it looks at).
    """
    steps, step = [], Decoder.step

    def kept(decoder):
        steps.append((decoder.n, decoder.column, decoder.cache.T))
        step(decoder)
    monkeypatch.setattr(Decoder, "step", kept)
    return steps


def test_rows_that_end_early_are_dropped_and_the_others_do_not_notice(model, monkeypatch):
    steps = keep_steps(monkeypatch)
    limits = [1, 2, 2, 3, 9, 12, 30, 30]
    samples = generate(model, [PROMPTS[i % 5] for i in range(8)], limits, temperature=0.0)
    assert samples.mask.sum(1).tolist() == limits
    assert [n for n, _, _ in steps] == [8] * 8 + [4] * 8 + [2] * 14     # looked at after every eighth step
    for i, limit in enumerate(limits):
        alone = generate(model, [PROMPTS[i % 5]], limit, temperature=0.0)
        assert torch.equal(samples.tokens[i, :limit], alone.tokens[0])
        assert_close(samples.logprobs[i, :limit], alone.logprobs[0])
        assert_close(samples.values[i, :limit], alone.values[0])


def test_only_the_first_row_is_watched_also_when_it_was_left_behind(model):
    """Once rows had moved to a smaller decoder, the tokens of its first row were told as well."""
    told = []
    limits = [3, 2, 2, 3, 9, 12, 30, 30]
    samples = generate(model, [PROMPTS[i % 5] for i in range(8)], limits, temperature=0.0,
                       watch=lambda token, value: told.append(token))
    assert told == samples.completions()[0] and len(told) == 3


@pytest.mark.parametrize("read_last", [False, True])
def test_generate_stops_soon_after_all_rows_have_ended(model, monkeypatch, read_last):
    """Whatever the limit: a line of a tree search is a third as long as a solution may be."""
    steps = keep_steps(monkeypatch)
    samples = generate(model, PROMPTS, 200, stop_tokens=range(64), read_last=read_last)
    assert samples.mask.sum(1).tolist() == [1] * 5 and len(steps) <= 8 + read_last
    assert_is_full_forward(model, PROMPTS, samples)


@pytest.mark.cache
def test_long_streams_equal_one_by_one(model, monkeypatch):
    """24 rows of up to 300 tokens, some much shorter: left behind again and again, while columns grow."""
    steps = keep_steps(monkeypatch)
    prompts = [PROMPTS[i % 5][i // 5:] for i in range(24)]              # no two alike
    limits = [1 + (37 * i * i + 11 * i) % 300 for i in range(23)] + [300]
    together = generate(model, prompts, limits, temperature=0.0)
    assert together.mask.sum(1).tolist() == limits
    sizes, columns = [n for n, _, _ in steps], [T for _, _, T in steps]
    assert len(set(sizes)) > 5 and sizes == sorted(sizes, reverse=True)
    assert len(set(columns)) > 15 and columns == sorted(columns)
    for row, (prompt, limit) in enumerate(zip(prompts, limits)):
        alone = generate(model, [prompt], limit, temperature=0.0)
        assert torch.equal(together.tokens[row, :limit], alone.tokens[0])
        assert_close(together.logprobs[row, :limit], alone.logprobs[0])
        assert_close(together.values[row, :limit], alone.values[0])


@pytest.mark.cache
@pytest.mark.parametrize("n", [1, 15, 16, 17, 32])
def test_attention_looks_at_no_more_columns_than_it_needs(model, monkeypatch, n):
    """A step that reads the token in column c needs columns 0 to c: rounded up to a multiple of 16."""
    steps, widths, heads = keep_steps(monkeypatch), [], GPT.run

    def kept(self, windows, positions, mask, cache=None):
        if windows.size(1) == 1:
            keys, values = cache.append(0, *torch.zeros(2, 2, 1, 16).double())
            widths.append((mask.size(2), keys.size(1), values.size(1), cache.k.size(2)))
        return heads(self, windows, positions, mask, cache)
    monkeypatch.setattr(GPT, "run", kept)
    prompt = (PROMPTS[3] * 4)[:n]
    generate(model, [prompt, PROMPTS[1][:1]], 40, 0.0)
    assert [column for _, column, _ in steps] == list(range(n - 1, n + 39))
    expected = [16 * math.ceil((column + 1) / 16) for _, column, _ in steps]
    assert [T for _, _, T in steps] == expected
    assert widths == [(T,) * 4 for T in expected]       # of mask, keys and values, and what is allocated


def test_a_prompt_is_read_once_however_often_it_comes(model, monkeypatch):
    read, heads = [], GPT.run

    def kept(self, windows, *others):
        read.append(windows.size(0) * windows.size(1))
        return heads(self, windows, *others)
    monkeypatch.setattr(GPT, "run", kept)
    generate(model, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], 1, n_samples=5)
    # Two prompts but their last tokens, then the last token of each row
    assert read == [2 * (len(PROMPTS[0]) - 1), 15]


@pytest.mark.cache
@pytest.mark.parametrize("kept", [False, True])
def test_the_store_gives_back_what_was_read(model, monkeypatch, kept):
    """
    From a prefix in the store, the same as from the prefix itself; also if it ends amid what was sampled.
    """
    if kept:
        like_cuda(monkeypatch)
    store = Store(model)
    cache = read_prompts(for_inference(model, 5), PROMPTS)
    begun = store.add(cache, 0, [len(prompt) - 1 for prompt in PROMPTS])
    first = generate(model, PROMPTS, 12, 0.0, (EOS,), read_last=True, cache=store.load(model, begun))
    held = store.add(first.cache, first.start, first.mask.sum(1).tolist())
    prefixes, slots = [], []
    for row, prompt in enumerate(PROMPTS):
        for n in (1, len(held[row]) // 2, len(held[row])):
            prefixes.append(prompt + first.tokens[row, :n].tolist())
            slots.append(begun[row] + held[row][:n])                    # all but the last token
    size = store.size
    assert size == sum(map(len, begun)) + sum(map(len, held))
    again = generate(model, prefixes, 8, 0.0, n_top=2, read_last=True, cache=store.load(model, slots))
    new = store.add(again.cache, again.start, [8] * len(prefixes))
    assert store.size == size + 8 * len(prefixes) and sorted(sum(new, [])) == list(range(size, store.size))
    plain = generate(model, prefixes, 8, 0.0, n_top=2, read_last=True)
    assert_same(again, plain, ("logprobs", "values", "end_values", "top_logprobs"))
    for row, prefix in enumerate(prefixes):     # and what was added is the model's cache of all that was read
        text = prefix + again.tokens[row].tolist()
        plain = read_prompts(for_inference(model, 1), [text])
        place = torch.tensor(slots[row] + new[row])
        assert_close(store.k[:, place], plain.k[:, 0])
        assert_close(store.v[:, place], plain.v[:, 0])


def test_bfloat16_is_close_and_leaves_the_model_alone():
    """The weights are cast once a call: a step of the optimizer in between must be seen."""
    model = random_model(torch.float32, 0.1)
    model.compute_dtype = torch.bfloat16
    for _ in range(2):
        samples = generate(model, PROMPTS * 20, 10, generator=torch.Generator().manual_seed(0))
        for row in (0, 57, 99):
            prompt, tokens = (PROMPTS * 20)[row], samples.tokens[row].tolist()
            logprobs, values = full_forward(model, prompt, tokens)
            assert_close(samples.logprobs[row], logprobs, 0.05)
            assert_close(samples.values[row], values[:-1], 0.05)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.1)


def test_few_rows_are_computed_in_float32():
    """On a CPU, where bfloat16 products are slow to start; many rows are in bfloat16, which is seen."""
    model = random_model(torch.float32, 0.1)
    error = {}
    for dtype, n in ((torch.bfloat16, FEW_ROWS // 5), (torch.bfloat16, FEW_ROWS // 5 + 1)):
        model.compute_dtype = dtype
        samples = generate(model, PROMPTS, 10, generator=torch.Generator().manual_seed(0), n_samples=n)
        model.compute_dtype = None
        logprobs, _ = full_forward(model, PROMPTS[0], samples.tokens[0].tolist())
        error[n] = (samples.logprobs[0] - logprobs).abs().max().item()
    few, many = error.values()
    assert few < 1e-5 < 1e-4 < many


# ------------------------------------------------------------------------------------------------------------
# A step

def begun_decoder(model, B, temperature=1.0, stop_tokens=(), limit=3, n_top=0, seed=0, prompt=(7,)):
    """A decoder whose B rows have read all of a prompt but its last token."""
    model, prompts = for_inference(model, B), [list(prompt)] * B
    decoder = Decoder(model, B, 32, temperature, tuple(stop_tokens), n_top)
    return decoder.begin(read_prompts(model, prompts), prompts, list(range(B)), [limit] * B, seed)


@torch.no_grad()
def test_a_step_by_hand():
    """Dead rows, rows at their limit, stop tokens."""
    B = 300
    logits = 4 * torch.randn(B, 64, generator=torch.Generator().manual_seed(0))
    decoder = begun_decoder(FixedLogits(logits), B, 0.0, (EOS, 5), limit=3, n_top=2, prompt=(7, 8))
    rows, column = decoder.rows, 2
    rows.alive[::7] = False
    rows.limit[::5] = 1
    alive = rows.alive.clone()
    decoder.advance()
    tokens, logprobs = logits.argmax(-1), logits.log_softmax(-1)
    assert torch.equal(rows.tokens[:, column], tokens)
    torch.testing.assert_close(rows.logprobs[:, column], logprobs.max(-1).values)
    assert torch.equal(rows.top_tokens[:, column], logits.topk(2).indices)
    torch.testing.assert_close(rows.top_logprobs[:, column], logprobs.topk(2).values)
    assert rows.window[:, 0].tolist() == [[7, 8, token] for token in tokens.tolist()]
    assert rows.position.flatten().tolist() == [2] * B and decoder.column == 2 == int(decoder.cache.columns)
    assert torch.equal(rows.length, alive.long())
    goes_on = [i % 7 > 0 and i % 5 > 0 and token not in (EOS, 5) for i, token in enumerate(tokens.tolist())]
    assert rows.alive.tolist() == goes_on and 180 < sum(goes_on) < 290
    assert rows.seen[0, 0].tolist() == [0.0] * 2 + [-math.inf] * 30


@pytest.mark.parametrize("temperature, scored_at, same", [
    (1.0, 1.0, True), (0.7, 0.7, True), (0.97, 1.0, False)])
@torch.no_grad()
def test_sampling_distribution_of_a_step(temperature, scored_at, same):
    """100,000 rows; also of the second step, whose draws do not depend on those of the first."""
    logits = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 2
    decoder = begun_decoder(FixedLogits(logits), 100_000, temperature, limit=2)
    decoder.advance()
    decoder.advance()
    probabilities = (logits / scored_at).double().softmax(-1)
    for column in (1, 2):
        tokens = decoder.rows.tokens[:, column]
        p = chi_squared(tokens.bincount(minlength=64), probabilities)
        assert (p > 1e-3) if same else (p < 1e-6)
        expected = (logits / temperature).log_softmax(-1)[tokens]
        torch.testing.assert_close(decoder.rows.logprobs[:, column], expected)
    if same:
        pairs = (64 * decoder.rows.tokens[:, 1] + decoder.rows.tokens[:, 2]).bincount(minlength=64 * 64)
        assert chi_squared(pairs, torch.outer(probabilities, probabilities).flatten()) > 1e-3


@torch.no_grad()
def test_draws_depend_on_seed_row_and_step():
    draws = []
    for seed in (0, 0, 1):
        decoder = begun_decoder(FixedLogits(torch.zeros(64)), 320, seed=seed)
        decoder.advance()
        decoder.advance()
        draws.append(decoder.rows.tokens[:, 1:3])
    assert torch.equal(draws[0], draws[1])
    one, two = draws[0].unbind(1)
    for other in (draws[2][:, 0], two, one.roll(1)):    # another seed, step, row; by chance 1 in 64 agrees
        assert (one == other).float().mean() < 0.1


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Lint(TorchDispatchMode):
    """Fails on what a CUDA graph cannot hold, or what waits for the device; counts the kernels."""
    FREE = {"_unsafe_view", "empty", "empty_like", "new_empty"}         # no kernel, though no view by its tag

    def __init__(self):
        super().__init__()
        self.n_kernels = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        indices = tensors_in(args[1]) if name in ("index", "index_put", "index_put_") else []
        assert all(x.dtype == torch.long for x in indices), f"{func}: a mask as an index"
        assert torch.Tag.data_dependent_output not in func.tags, f"{func}: a number goes to the host"
        assert torch.Tag.dynamic_output_shape not in func.tags or indices, f"{func}: a size is in the data"
        assert not name.startswith("lift_fresh"), f"{func}: a number comes from the host"
        devices = {x.device for x in tensors_in((args, kwargs, out))}
        assert len(devices) == 1, f"{func}: from one device to another"
        self.n_kernels += not func.is_view and name not in self.FREE
        return out


@pytest.mark.parametrize("dtype, temperature, n_top, most", [
    (None, 1.0, 0, 96), (None, 0.7, 3, 101), (torch.bfloat16, 1.0, 0, 101), (torch.bfloat16, 0.0, 3, 100)])
@torch.no_grad()
def test_a_step_never_waits_for_the_device_and_has_few_kernels(dtype, temperature, n_top, most):
    """The default model. Each kernel costs some microseconds on a GPU, however small it is."""
    model = GPT(GPTConfig())
    model.compute_dtype = dtype
    decoder = begun_decoder(model, 100, temperature, (EOS,), n_top=n_top, prompt=PROMPTS[0])
    decoder.advance()                       # so that there are columns
    with Lint() as lint:
        decoder.step()
    assert lint.n_kernels <= most


@pytest.mark.parametrize("deed, complaint", [
    (lambda rows: rows.length[0].item(), "a number goes to the host"),
    (lambda rows: 1 if rows.alive.any() else 0, "a number goes to the host"),
    (lambda rows: torch.equal(rows.length, rows.limit), "a number goes to the host"),
    (lambda rows: rows.tokens[rows.alive], "a mask as an index"),
    (lambda rows: rows.tokens.__setitem__(rows.alive, rows.top_tokens[:, :, 0]), "a mask as an index"),
    (lambda rows: rows.alive.nonzero(), "a size is in the data"),
    (lambda rows: rows.length + torch.tensor([1]), "a number comes from the host"),
    (lambda rows: rows.length.to("meta"), "from one device to another"),
])
@torch.no_grad()
def test_a_step_that_waits_for_the_device_is_caught(monkeypatch, deed, complaint):
    decoder, step = begun_decoder(GPT(GPTConfig()), 3, n_top=1, prompt=PROMPTS[0]), Decoder.step
    decoder.advance()
    monkeypatch.setattr(Decoder, "step", lambda decoder: step(decoder) or deed(decoder.rows))
    with pytest.raises(AssertionError, match=complaint), Lint():
        decoder.step()


# ------------------------------------------------------------------------------------------------------------
# Kept decoders: on a CPU, what surrounds a CUDA graph, and a stand-in for the graph

class Recording(TorchDispatchMode):
    """
    What a CUDA graph is, on a CPU: all operators of a step with the tensors they were called with, to be
    called again on the same memory. Whatever else a step looks at, numbers of Python above all, is baked in.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for old, new in zip(tree_leaves(out), tree_leaves(again)):
                    old.copy_(new)


class KeptDecoder(Decoder):
    """A decoder as it is on CUDA: all columns from the start, and its steps recorded."""
    recorded = True

    def __init__(self, model, B, T_all, *settings):
        super().__init__(model, B, T_all, *settings)
        self.cache.look_at(T_all)
        self.block = BLOCK["cuda"]
        self.graphs = {T: self.capture(T) for T in range(self.block, T_all + 1, self.block)}

    def take(self, other, *args):
        assert other is not self            # what it takes from is emptied
        return super().take(other, *args)

    def capture(self, T):
        self.cache.look_at(T)
        for _ in range(3):
            self.cache.columns.zero_()
            self.step()
        if not self.recorded:
            return self.step
        with Recording() as recording:
            self.step()
        return recording.replay


def like_cuda(monkeypatch, recorded=True):
    """Let make_decoder keep decoders of round sizes, on a CPU."""
    def make_decoder(model, B, T_all, *settings):
        key = 1 << (B - 1).bit_length(), -(-T_all // BLOCK["cuda"]) * BLOCK["cuda"], *settings
        if key not in model.decoders:
            model.decoders[key] = KeptDecoder(model, *key)
        return model.decoders[key]
    monkeypatch.setattr(KeptDecoder, "recorded", recorded)
    monkeypatch.setitem(sample.SHRINK_AT, "cpu", sample.SHRINK_AT["cuda"])
    monkeypatch.setattr(sample, "make_decoder", make_decoder)


def addresses(decoder):
    """Where all that a step reads and writes is, but for the weights."""
    buffers = {**vars(decoder), **vars(decoder.rows), **vars(decoder.cache)}
    places = {name: x.data_ptr() for name, x in buffers.items() if isinstance(x, torch.Tensor)}
    assert {"k", "v", "columns", "window", "seen", "alive", "stop_tokens"} <= set(places)
    return places


@pytest.mark.cache
@torch.no_grad()
def test_buffers_of_a_step_stay_where_they_are(model):
    """On a CPU keys and values move when columns are added, and nothing else ever."""
    decoder = begun_decoder(model, 5, limit=30, n_top=2)
    places = []
    for _ in range(30):
        decoder.advance()
        places.append(addresses(decoder))
    assert places == [places[0]] * 16 + [places[16]] * 14
    assert {name for name in places[0] if places[0][name] != places[16][name]} == {"k", "v"}


def test_buffers_of_kept_decoders_stay_where_they_are(model, monkeypatch):
    like_cuda(monkeypatch)
    settings = {"temperature": 0.0, "n_top": 2}
    limits = [10] * 10 + [90] * 5
    generate(model, PROMPTS, limits, n_samples=3, **settings)
    decoders = for_inference(model, 15).decoders
    before = {key: addresses(decoder) for key, decoder in decoders.items()}
    assert {key[0] for key in before} == {16, 8}, "rows have moved"
    for _ in range(3):
        generate(model, PROMPTS, limits, n_samples=3, **settings)
    assert {key: addresses(decoder) for key, decoder in decoders.items()} == before


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("read_last", [False, True])
def test_kept_decoders_change_nothing(model, monkeypatch, temperature, recorded, read_last):
    """Buffers of round sizes, dead rows, rows that move to smaller decoders, rows that grow beyond a T."""
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    limits = [3] * 8 + [20] * 4 + [70] * 3

    def run():
        generator = torch.Generator().manual_seed(0)
        return generate(model, PROMPTS, limits, temperature, (EOS,), generator, 3, 2, read_last)
    plain = run()
    like_cuda(monkeypatch, recorded)
    one, two = run(), run()
    assert_is_full_forward(model, prompts, one, temperature)
    for tokens, limit in zip(one.completions(), limits):
        assert len(tokens) == limit or tokens[-1] == EOS
    names = ["logprobs", "values", "top_logprobs"] + ["end_values"] * read_last
    assert_same(one, two, names, atol=0)                # the second time in buffers that have been used
    if not temperature:
        assert_same(one, plain, names)
    decoders = for_inference(model, 15).decoders
    sizes = {key[0] for key in decoders}
    assert sizes == {16} if read_last else sizes >= {16, 8} and len(sizes) > 2
    assert {key[1] for key in decoders} == {128}
    assert all(set(decoder.graphs) == {64, 128} for decoder in decoders.values())


@pytest.mark.parametrize("n_left", [1, 2, 4, 5, 7, 8, 9, 11, 14])
def test_rows_move_to_a_smaller_kept_decoder_or_not_at_all(model, monkeypatch, n_left):
    """15 rows need a decoder of 16, and so do 9 of them: to move would be to copy rows onto themselves."""
    limits = [5] * (15 - n_left) + [20] * n_left
    plain = generate(model, PROMPTS, limits, 0.0, n_samples=3)
    like_cuda(monkeypatch)
    assert_same(generate(model, PROMPTS, limits, 0.0, n_samples=3), plain)
    sizes = [key[0] for key in for_inference(model, 15).decoders]
    assert sizes[0] == 16 and all(n_left <= size < 16 for size in sizes[1:])
    assert len(sizes) == 1 + (n_left < 8)


@pytest.mark.parametrize("read_last", [False, True])
@pytest.mark.parametrize("n", [31, 32, 33, 34, 54, 55, 56, 63, 64, 65])
def test_kept_decoders_hold_all_of_a_prompt_that_fills_its_columns(model, monkeypatch, n, read_last):
    """A prompt with what is sampled may need all columns to the last one, or end where a block ends."""
    prompts = [(PROMPTS[3] * 4)[:n], PROMPTS[1]]
    assert len(prompts[0]) == n
    plain = generate(model, prompts, [9, 2], 0.0, read_last=read_last)
    like_cuda(monkeypatch)
    for _ in range(2):
        kept = generate(model, prompts, [9, 2], 0.0, read_last=read_last)
        assert_same(kept, plain, ["logprobs", "values"] + ["end_values"] * read_last)


def test_dead_rows_do_not_run_out_of_positions(monkeypatch):
    """
    9 rows of 16 are in use: the other 7 take part in every step of every call, and must not wander off.
    """
    model = random_model(block_size=80)
    plain = generate(model, PROMPTS[:3], 30, 0.0, n_samples=3)
    like_cuda(monkeypatch)
    for _ in range(8):
        assert_same(generate(model, PROMPTS[:3], 30, 0.0, n_samples=3), plain)
    limits = [30] * 5 + [4] * 4             # 5 rows of 8 after a move
    for _ in range(8):
        moved = generate(model, PROMPTS[:3], limits, 0.0, n_samples=3)
        assert torch.equal(moved.tokens, plain.tokens * moved.mask)


def test_rows_of_another_call_leave_nothing_behind(model, monkeypatch):
    """Few short rows in buffers that many long ones have used before."""
    plain = generate(model, [PROMPTS[1], PROMPTS[4]], 9, 0.0, (EOS,), n_samples=5)
    like_cuda(monkeypatch)
    generate(model, PROMPTS, 33, 0.0, (EOS,), n_samples=3)
    decoder, = for_inference(model, 15).decoders.values()
    assert_same(generate(model, [PROMPTS[1], PROMPTS[4]], 9, 0.0, (EOS,), n_samples=5), plain)
    assert list(for_inference(model, 10).decoders.values()) == [decoder]


@pytest.mark.parametrize("kept", [False, True])
def test_an_optimizer_step_is_seen_and_moves_no_weight(monkeypatch, kept):
    """Of the copy for inference: a graph goes on reading its weights where they were when it was captured."""
    if kept:
        like_cuda(monkeypatch)
    model = random_model(torch.float32, 0.1)
    optimizers = make_optimizers(model, 1e-2)
    before = generate(model, PROMPTS, 12, 0.0)
    assert_is_full_forward(model, PROMPTS, before, atol=1e-4)
    copies = list(for_inference(model, len(PROMPTS)).parameters())
    places = [weight.data_ptr() for weight in copies]
    assert not set(places) & {weight.data_ptr() for weight in model.parameters()}
    logits, values = model(torch.tensor([PROMPTS[3]]))
    (logits.log_softmax(-1)[0, :, 3].sum() + values.sum()).backward()
    optimizer_step(model, optimizers, lr=1e-2)
    after = generate(model, PROMPTS, 12, 0.0)
    assert_is_full_forward(model, PROMPTS, after, atol=1e-4)
    assert (after.logprobs[:, 0] - before.logprobs[:, 0]).abs().max() > 1e-2
    assert [weight.data_ptr() for weight in for_inference(model, len(PROMPTS)).parameters()] == places
    for copied, weight in zip(copies, model.parameters()):
        assert torch.equal(copied, weight) and not copied.requires_grad and weight.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_graph_is_the_plain_path(monkeypatch):
    model = random_model(torch.float32).cuda()
    settings = {"temperature": 0.0, "stop_tokens": (EOS,), "n_top": 2}
    limits = [3, 20, 20, 40, 100]

    def run():
        return [generate(model, PROMPTS, limits, read_last=last, **settings) for last in (False, True)]
    run()
    fast = run()                            # in buffers that have been used
    decoders = for_inference(model, 5).decoders
    assert {key[0] for key in decoders} >= {8, 2} and all(decoder.graphs for decoder in decoders.values())
    drawn = generate(model, [PROMPTS[0]], 1, generator=torch.Generator().manual_seed(0), n_samples=100_000)
    again = generate(model, [PROMPTS[0]], 1, generator=torch.Generator().manual_seed(0), n_samples=100_000)
    other = generate(model, [PROMPTS[0]], 1, generator=torch.Generator().manual_seed(1), n_samples=100_000)
    assert torch.equal(drawn.tokens, again.tokens) and not torch.equal(drawn.tokens, other.tokens)
    decoders.clear()
    monkeypatch.setattr(Decoder, "capture", lambda decoder, T: decoder.step)
    for one, plain in zip(fast, run()):
        assert_same(one, plain, ["logprobs", "values", "top_logprobs"], atol=1e-4)
    assert_close(fast[1].end_values, plain.end_values, 1e-4)
    logits = model(torch.tensor([PROMPTS[0]], device="cuda"))[0][0, -1]
    probabilities = logits.softmax(-1).detach().cpu().double()
    assert chi_squared(drawn.tokens[:, 0].cpu().bincount(minlength=64), probabilities) > 1e-3


# ------------------------------------------------------------------------------------------------------------
# What is measured on samples

def test_pass_at_k_is_unbiased():
    for n, correct, k in [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 2), (6, 5, 2)]:
        draws = list(itertools.combinations([1] * correct + [0] * (n - correct), k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_evaluate_counts_what_the_judge_accepts(model):
    seen = []
    scores = evaluate(model, PROMPTS, lambda i, ids: seen.append(i) or i < 2, 4, (EOS,), k=4, batch_size=8)
    assert scores == {"greedy": 0.4, "sampled": 0.4, "pass4": 0.4}
    assert sorted(seen) == sorted(list(range(5)) * 5)
    one_right = evaluate(model, PROMPTS, lambda i, ids: i == 1, 4, (EOS,), k=4)         # in one batch
    assert one_right == {"greedy": 0.2, "sampled": 0.2, "pass4": 0.2}


@pytest.mark.parametrize("prompts, n, complaint", [
    ([[]], 4, "at least one token"), ([], 4, "at least one"), ([[5], []], 4, "at least one token"),
    ([[5]], 9999, "block_size")])
def test_impossible_requests(model, prompts, n, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate(model, prompts, n)


@pytest.mark.parametrize("read_last", [False, True])
def test_a_stream_may_fill_the_block_and_no_more(read_last):
    model = random_model(block_size=20)
    room = 20 - len(PROMPTS[1]) - read_last
    samples = generate(model, [PROMPTS[1]], room, 0.0, read_last=read_last)
    assert samples.tokens.shape == (1, room)
    assert_is_full_forward(model, [PROMPTS[1]], samples)
    with pytest.raises(ValueError, match="block_size"):
        generate(model, [PROMPTS[1]], room + 1, 0.0, read_last=read_last)


def test_value_auc_is_the_share_of_pairs_in_the_right_order():
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32))
    with torch.no_grad():
        model.value_head.weight.normal_()
    texts = [[1 + i % 7] * (1 + i % 5) + [i] for i in range(2, 20)]
    values = [model(torch.tensor([text]))[1][0, -1].item() for text in texts]
    labels = [i % 3 == 0 for i in range(len(texts))]
    pairs = [(a > b) + 0.5 * (a == b)
             for a, is_a in zip(values, labels) for b, is_b in zip(values, labels) if is_a and not is_b]
    rated = values_of(model, texts, batch_size=4)
    assert auc(rated, labels) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(auc(rated, [True] * len(texts))) and math.isnan(auc(values_of(model, []), []))


def test_wilson():
    """Wilson 1927; the figures are those of Brown, Cai & DasGupta 2001."""
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-3))
    assert wilson(10, 10)[1] == 1.0
    assert wilson(80, 100) == (pytest.approx(0.7112, abs=1e-3), pytest.approx(0.8666, abs=1e-3))


def test_a_model_that_was_cast_is_copied_anew():
    """Its copy for sampling was made for what it was before."""
    model = random_model(torch.float32)
    generate(model, [[3, 4]], 2, 0.0)
    model.double()
    assert generate(model, [[3, 4]], 2, 0.0).logprobs.dtype == torch.float64
