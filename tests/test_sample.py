"""
The sampler against the plain forward pass. Guards against the bugs samplers are known for: a cache that drifts from the
full forward, rows that depend on their neighbours, a first token shared by a whole batch, sampling at one temperature and
scoring at another, a stop token outside the mask.
"""
import itertools
import math

import pytest
import torch

import sample
from model import GPT, GPTConfig, KVCache
from sample import GraphRows, Rows, Store, TritonRows, evaluate, generate, pass_at_k, sample_token, value_auc, wilson
from train_rl import forward
from verify import EOS, encode

PROMPTS = [encode(text) for text in ("9 3 5 2>24\n", "98>7\n", "1 2 3>6\n", "10 20 30 40 50 60>77\n", "5 5>10\n")]


@pytest.fixture
def model():
    """Random weights everywhere, the output layers too: a fresh model's are zero, and would hide every mistake."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def full_forward(model, prompt, tokens, temperature=1.0):
    """Log-probs and values of sampled tokens by a forward pass over the whole row, without a cache."""
    logits, values = model(torch.tensor([prompt + tokens]))
    logprobs = (logits / temperature).log_softmax(-1)[0, len(prompt) - 1:-1]
    return logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0], values[0, len(prompt) - 1:]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_cached_equals_full_forward_at_every_position(model, temperature):
    samples = generate(model, PROMPTS, 20, temperature, (EOS,), torch.Generator().manual_seed(1), n_samples=3, read_last=True)
    assert samples.tokens.shape[0] == 15
    for row, (prompt, _) in enumerate(itertools.product(PROMPTS, range(3))):
        n = int(samples.mask[row].sum())
        logprobs, values = full_forward(model, prompt, samples.tokens[row, :n].tolist(), temperature or 1.0)
        torch.testing.assert_close(samples.logprobs[row, :n], logprobs, rtol=0, atol=1e-10)
        torch.testing.assert_close(samples.values[row, :n], values[:-1], rtol=0, atol=1e-10)
        torch.testing.assert_close(samples.end_values[row], values[-1], rtol=0, atol=1e-10)


def test_greedy_takes_the_likeliest_token(model):
    samples = generate(model, PROMPTS, 12, temperature=0.0, n_top=3)
    for row, prompt in enumerate(PROMPTS):
        tokens = samples.tokens[row].tolist()
        logits = model(torch.tensor([prompt + tokens]))[0][0, len(prompt) - 1:-1]
        assert logits.argmax(-1).tolist() == tokens
        top = logits.log_softmax(-1).topk(3)
        assert torch.equal(top.indices, samples.top_tokens[row])
        torch.testing.assert_close(samples.top_logprobs[row], top.values, rtol=0, atol=1e-10)


def test_ragged_batch_equals_one_by_one(model):
    together = generate(model, PROMPTS, 15, temperature=0.0)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, [prompt], 15, temperature=0.0)
        assert torch.equal(together.tokens[row], alone.tokens[0])
        torch.testing.assert_close(together.logprobs[row], alone.logprobs[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(together.values[row], alone.values[0], rtol=0, atol=1e-10)


def test_logprobs_are_the_trainers(model):
    samples = generate(model, PROMPTS, 10, 1.0, (EOS,), torch.Generator().manual_seed(2))
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt + samples.tokens[row, :int(samples.mask[row].sum())].tolist()])
        logprobs, entropy, values = forward(model, {"idx": ids[:, :-1], "next": ids[:, 1:]})
        mask = samples.mask[row]
        torch.testing.assert_close(samples.logprobs[row][mask], logprobs[0, len(prompt) - 1:], rtol=0, atol=1e-10)
        torch.testing.assert_close(samples.values[row][mask], values[0, len(prompt) - 1:], rtol=0, atol=1e-10)


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


def test_a_limit_for_each_row(model):
    limits = [1, 2, 3, 4, 7]
    samples = generate(model, PROMPTS, limits, temperature=0.0)
    assert samples.mask.sum(1).tolist() == limits
    free = generate(model, PROMPTS, 7, temperature=0.0)
    assert torch.equal(samples.tokens, free.tokens * samples.mask)


def test_same_seed_same_samples(model):
    one, same, other = (generate(model, PROMPTS, 10, generator=torch.Generator().manual_seed(seed)).tokens for seed in (4, 4, 5))
    assert torch.equal(one, same) and not torch.equal(one, other)


def chi_squared(counts, probabilities):
    """p-value of counts under probabilities, cells that expect fewer than 10 pooled."""
    expected = probabilities * counts.sum()
    small = expected < 10
    counts = torch.cat([counts[~small], counts[small].sum()[None]]).double()
    expected = torch.cat([expected[~small], expected[small].sum()[None]]).clamp_min(1e-9)
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2).item()


@pytest.mark.parametrize("temperature, scored_at, same", [(1.0, 1.0, True), (0.7, 0.7, True), (0.97, 1.0, False), (1.0, 0.9, False)])
def test_sampling_distribution(temperature, scored_at, same):
    """100,000 draws by chi-squared; temperatures that are off by a few percent are the negative control."""
    logits = torch.randn(64, generator=torch.Generator().manual_seed(0)).double() * 2
    tokens, logprobs = sample_token(logits.expand(100_000, -1), temperature, torch.Generator().manual_seed(1))
    p = chi_squared(tokens.bincount(minlength=64), (logits / scored_at).softmax(-1))
    assert (p > 1e-3) if same else (p < 1e-6)
    torch.testing.assert_close(logprobs, (logits / temperature).log_softmax(-1)[tokens])


def test_samples_of_a_prompt_differ_in_their_first_token(model):
    samples = generate(model, [PROMPTS[0]], 2, generator=torch.Generator().manual_seed(0), n_samples=20_000)
    for t in range(2):                      # the second token by its conditional, given the commonest first token
        rows = samples.tokens[:, 0] == samples.tokens[:, 0].mode().values if t else slice(None)
        prefix = PROMPTS[0] + ([int(samples.tokens[:, 0].mode().values)] if t else [])
        probabilities = model(torch.tensor([prefix]))[0][0, -1].softmax(-1)
        assert chi_squared(samples.tokens[rows, t].bincount(minlength=64), probabilities) > 1e-3


def test_rows_that_end_early_are_dropped_and_the_others_do_not_notice(model, monkeypatch):
    sizes = []
    step = Rows.step
    monkeypatch.setattr(Rows, "step", lambda rows: sizes.append(len(rows.last)) or step(rows))
    limits = [1, 2, 2, 3, 9, 12, 30, 30]
    samples = generate(model, [PROMPTS[i % 5] for i in range(8)], limits, temperature=0.0)
    assert samples.mask.sum(1).tolist() == limits
    assert sizes == [8] * 2 + [5] * 7 + [3] * 3 + [2] * 18             # dropped when they are a quarter
    for i, limit in enumerate(limits):
        alone = generate(model, [PROMPTS[i % 5]], limit, temperature=0.0)
        assert torch.equal(samples.tokens[i, :limit], alone.tokens[0])
        torch.testing.assert_close(samples.logprobs[i, :limit], alone.logprobs[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(samples.values[i, :limit], alone.values[0], rtol=0, atol=1e-10)


def test_a_prompt_is_read_once_however_often_it_comes(model, monkeypatch):
    read = []
    trunk = model.trunk
    monkeypatch.setattr(model, "trunk", lambda idx, cache=None: read.append(idx.numel()) or trunk(idx, cache))
    generate(model, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], 1, n_samples=5)
    assert read == [2 * (len(PROMPTS[0]) - 1), 15]      # two prompts but their last tokens, then the last token of each row


def test_the_store_gives_back_what_was_read(model):
    """From a prefix in the store, the same as from the prefix itself; also from one that ends amid what was sampled."""
    store = Store(model)
    first = generate(model, PROMPTS, 12, 0.0, (EOS,), read_last=True, store=store, slots=store.read(model, PROMPTS))
    held = [slots[:n] for slots, n in zip(first.slots.tolist(), first.mask.sum(1).tolist())]
    prefixes, slots = [], []
    for prompt, begun, new in zip(PROMPTS, store.read(model, PROMPTS), held):
        for n in (1, len(new) // 2, len(new)):
            prefixes.append(prompt + first.tokens[len(prefixes) // 3, :n].tolist())
            slots.append(begun + new[:n])                               # all but the last token
    size = store.size
    again = generate(model, prefixes, 8, 0.0, n_top=2, read_last=True, store=store, slots=slots)
    plain = generate(model, prefixes, 8, 0.0, n_top=2, read_last=True)
    assert store.size == size + 8 * len(prefixes) and len(set(again.slots.flatten().tolist())) == again.slots.numel()
    assert torch.equal(again.tokens, plain.tokens)
    for name in ("logprobs", "values", "end_values", "top_logprobs"):
        torch.testing.assert_close(getattr(again, name), getattr(plain, name), rtol=0, atol=1e-10)


def test_bfloat16_is_close_and_leaves_the_model_alone():
    """Where the processor has bfloat16 the weights are cast once a call: a step of the optimizer in between must be seen."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.compute_dtype = torch.bfloat16
    for _ in range(2):
        samples = generate(model, PROMPTS * 20, 10, generator=torch.Generator().manual_seed(0))
        for row in (0, 57, 99):
            prompt, tokens = (PROMPTS * 20)[row], samples.tokens[row].tolist()
            with torch.no_grad():
                logprobs, values = full_forward(model, prompt, tokens)
            torch.testing.assert_close(samples.logprobs[row], logprobs, rtol=0, atol=0.05)
            torch.testing.assert_close(samples.values[row], values[:-1], rtol=0, atol=0.05)
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.1)


# ------------------------------------------------------------------------------------------------------------------
# The fast path

def rows_of(cls, model, B, temperature, stops=(EOS, 5), room=3):
    return cls(model, KVCache(model, B, 32), torch.zeros(B, 1, dtype=torch.long), [room] * B, temperature, torch.tensor(stops), 0, None)


def test_kernel_is_the_plain_path():
    pytest.importorskip("triton")
    model, B = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)), 300
    logits = 4 * torch.randn(B, 64, generator=torch.Generator().manual_seed(0))
    plain, fast = rows_of(Rows, model, B, 0.0), rows_of(TritonRows, model, B, 0.0)
    for rows in (plain, fast):
        rows.alive[::7] = False
        rows.room[::5] = 1
    torch.testing.assert_close(fast.advance(logits), plain.advance(logits), rtol=1e-5, atol=1e-5)
    for name in ("last", "room", "alive"):
        assert torch.equal(getattr(fast, name), getattr(plain, name))
    assert 20 < plain.alive.sum() < 280


@pytest.mark.parametrize("temperature, scored_at, same", [(1.0, 1.0, True), (0.7, 0.7, True), (0.8, 1.0, False)])
def test_kernel_sampling_distribution(temperature, scored_at, same):
    """6,400 draws: Triton's interpreter makes some two thousand a second."""
    pytest.importorskip("triton")
    model, B = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)), 6400
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 2            # not a power of two
    rows = rows_of(TritonRows, model, B, temperature, stops=())
    logprobs = rows.advance(logits.expand(B, -1))
    first = rows.last[:, 0].clone()
    p = chi_squared(first.bincount(minlength=50), (logits / scored_at).softmax(-1))
    assert (p > 1e-3) if same else (p < 1e-6)
    torch.testing.assert_close(logprobs, (logits / temperature).log_softmax(-1)[first], rtol=1e-5, atol=1e-5)


def test_kernel_draws_depend_on_seed_row_and_position():
    pytest.importorskip("triton")
    model, B, logits = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16)), 320, torch.zeros(64)
    draws = []
    for seed, position, row in ((0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        rows = rows_of(TritonRows, model, B, 1.0)
        rows.seed += seed
        rows.cache.length += position
        rows.row += row
        rows.advance(logits.expand(B, -1))
        draws.append(rows.last[:, 0])
    assert torch.equal(draws[0], draws[1])
    assert all((draws[0] == other).float().mean() < 0.1 for other in draws[2:4])        # by chance: 1 in 64
    assert torch.equal(draws[0][1:], draws[4][:-1])     # wherever a row stands in the batch, its draws are the same


def without_cuda(monkeypatch):
    """What surrounds a CUDA graph, its capture and replay replaced by a plain step."""
    def capture(rows):
        def replay():
            rows.new = Rows.step(rows)
        return replay
    monkeypatch.setattr(GraphRows, "capture", capture)
    monkeypatch.setattr(GraphRows, "advance", Rows.advance)
    monkeypatch.setattr(sample, "graphs_work", lambda device: True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_static_buffers_change_nothing(model, monkeypatch, temperature):
    """Buffers of round sizes, dead rows, rows that move to smaller buffers."""
    limits = [3] * 3 + [20] * 6 + [40] * 6
    plain = generate(model, PROMPTS, limits, temperature, (EOS,), torch.Generator().manual_seed(0), 3, 2, read_last=True)
    without_cuda(monkeypatch)
    one, two = (generate(model, PROMPTS, limits, temperature, (EOS,), torch.Generator().manual_seed(0), 3, 2, read_last=True) for _ in range(2))
    for samples in (one, two):
        for row, (prompt, n) in enumerate(zip([prompt for prompt in PROMPTS for _ in range(3)], samples.mask.sum(1).tolist())):
            tokens = samples.tokens[row, :n].tolist()
            logprobs, values = full_forward(model, prompt, tokens, temperature or 1.0)
            torch.testing.assert_close(samples.logprobs[row, :n], logprobs, rtol=0, atol=1e-10)
            torch.testing.assert_close(samples.end_values[row], values[-1], rtol=0, atol=1e-10)
            assert n == limits[row] or tokens[-1] == EOS
    if not temperature:
        assert torch.equal(one.tokens, plain.tokens) and torch.equal(two.tokens, plain.tokens)
    assert {key[0] for key in model.graphs} >= {16, 8} and all(key[1] == 64 for key in model.graphs)


@pytest.mark.parametrize("n", [31, 32, 33, 34, 63, 64, 65])
def test_static_buffers_hold_all_of_a_prompt_that_fills_its_cache(model, monkeypatch, n):
    """The cache's tokens have as many columns more than its keys as are embedded together: none of them may be left behind."""
    prompts = [(PROMPTS[3] * 4)[:n], PROMPTS[1]]
    plain = generate(model, prompts, [9, 2], 0.0)
    without_cuda(monkeypatch)
    static = generate(model, prompts, [9, 2], 0.0)
    assert torch.equal(static.tokens, plain.tokens)
    torch.testing.assert_close(static.logprobs, plain.logprobs, rtol=0, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_graph_is_the_plain_path(monkeypatch):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.cuda()
    settings = dict(temperature=0.0, stop_tokens=(EOS,), n_top=2, read_last=True)
    limits = [3, 20, 20, 40, 40]
    fast = generate(model, PROMPTS, limits, **settings)
    drawn = generate(model, [PROMPTS[0]], 1, generator=torch.Generator("cuda").manual_seed(0), n_samples=100_000)
    assert model.graphs
    monkeypatch.setattr(sample, "graphs_work", lambda device: False)
    plain = generate(model, PROMPTS, limits, **settings)
    assert torch.equal(fast.tokens, plain.tokens)
    for name in ("logprobs", "values", "end_values", "top_logprobs"):
        torch.testing.assert_close(getattr(fast, name), getattr(plain, name), rtol=0, atol=1e-4)
    probabilities = model(torch.tensor([PROMPTS[0]], device="cuda"))[0][0, -1].softmax(-1).detach().cpu()
    assert chi_squared(drawn.tokens[:, 0].cpu().bincount(minlength=64), probabilities) > 1e-3


# ------------------------------------------------------------------------------------------------------------------
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


@pytest.mark.parametrize("prompts, n, complaint", [([[]], 4, "at least one token"), ([], 4, "at least one"), ([[5]], 9999, "block_size")])
def test_impossible_requests(model, prompts, n, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate(model, prompts, n)


def test_value_auc_is_the_share_of_pairs_in_the_right_order():
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32))
    with torch.no_grad():
        model.value_head.weight.normal_()
    texts = [[1 + i % 7] * (1 + i % 5) + [i] for i in range(2, 20)]
    values = [model(torch.tensor([text]))[1][0, -1].item() for text in texts]
    labels = [i % 3 == 0 for i in range(len(texts))]
    pairs = [(a > b) + 0.5 * (a == b) for a, is_a in zip(values, labels) for b, is_b in zip(values, labels) if is_a and not is_b]
    assert value_auc(model, texts, labels, batch_size=4) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(value_auc(model, texts, [True] * len(texts))) and math.isnan(value_auc(model, [], []))


def test_wilson():
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-3))      # Wilson 1927; figures of Brown, Cai & DasGupta 2001
    assert wilson(10, 10)[1] == 1.0
    assert wilson(80, 100) == (pytest.approx(0.7112, abs=1e-3), pytest.approx(0.8666, abs=1e-3))
