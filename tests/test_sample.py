"""
The sampler against the plain forward pass. Guards against the bugs samplers are known for: a cache that drifts from the
full forward, rows that depend on their neighbours, a first token shared by a whole batch, sampling at one temperature and
scoring at another, a stop token outside the mask.
"""
import itertools

import pytest
import torch

from model import GPT, GPTConfig
from sample import evaluate, generate, pass_at_k, sample_token
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
    samples = generate(model, PROMPTS, 20, temperature, (EOS,), torch.Generator().manual_seed(1), n_samples=3)
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
    samples = generate(model, PROMPTS, 40, 1.0, (EOS, 5), torch.Generator().manual_seed(3), n_samples=20)
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
