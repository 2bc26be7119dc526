"""
The model computes what it says: causally, the same through its cache, as many FLOPs as are counted; Muon is
torch's. Checkpoints survive what happens to files: kills, flipped bits, strangers.
"""
import os
import random
import subprocess
import sys

import pytest
import torch

from checkpoint import load_checkpoint, save_checkpoint
from common import choose_device, read_table, save_table, write_whole
from model import (GPT, GPTConfig, KVCache, N_CIRCLES, PERIODS, flops_per_token, number_circles, rotary_table,
                   sharpness_table)
from optim import OPTIMIZERS, Muon, make_optimizers, optimizer_step
from verify import encode

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def random_model(config=CONFIG):
    """In float64; every layer does something."""
    torch.manual_seed(0)
    model = GPT(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_depth_is_the_one_dial():
    assert GPTConfig.from_depth(3) == GPTConfig() == GPTConfig(n_layer=3, n_head=4, n_embd=128)


def test_shapes_and_start():
    model = GPT(GPTConfig())
    logits, values = model(torch.randint(64, (2, 7)))
    assert logits.shape == (2, 7, 64) and values.shape == (2, 7)
    # Output layers start at zero: a uniform policy, P(correct) = 1/2.
    assert not logits.any() and not values.any()


def test_forward_is_causal():
    model = random_model()
    idx = torch.randint(64, (1, 12))
    changed = idx.clone()
    changed[0, 6:] = (idx[0, 6:] + 1) % 64
    before, after = model(idx)[0][0], model(changed)[0][0]
    torch.testing.assert_close(before[:6], after[:6])
    assert (before[6:] - after[6:]).abs().min(1).values.max() > 1e-3


@torch.no_grad()
def test_the_order_of_far_tokens_matters():
    """Two texts of the same windows of tokens: only positions tell them apart."""
    model = random_model()
    a, b, c = [[token] * 3 for token in (0, 5, 7)]
    one, other = model(torch.tensor([a + b + a + c + a + [9], a + c + a + b + a + [9]]))[0][:, -1]
    assert (one - other).abs().max() > 1e-3


@torch.no_grad()
def test_of_positions_only_differences_matter():
    """Of the first 64, where attention is equally sharp: queries and keys are turned, and nothing else."""
    model, idx = random_model(), torch.randint(64, (1, 9))
    windows = torch.nn.functional.pad(idx, (2, 0)).unfold(1, 3, 1)
    mask = torch.full((9, 9), float("-inf")).double().triu(1).repeat_interleave(2, dim=0)[None]
    here, further = (model.run(windows, torch.arange(9)[None] + first, mask)[0] for first in (0, 50))
    torch.testing.assert_close(here, further, atol=1e-4, rtol=0)


@pytest.mark.cache
@pytest.mark.parametrize("spare", [0, 3])
@pytest.mark.parametrize("room", [5, 20])
@torch.no_grad()
def test_through_the_cache_the_same_comes_out(spare, room):
    """A text is read at once, and its last tokens one by one, behind some columns that are left empty."""
    model = random_model(GPTConfig(n_layer=2, n_head=2, n_embd=16))
    idx, T, n_gram = torch.randint(64, (2, 9)), 5, CONFIG.n_gram
    expected = model(idx)
    cache = KVCache(model, 2, room)
    cache.look_at(T)
    cache.columns = torch.arange(T)
    for out, whole in zip(model(idx[:, :T], cache), expected):
        torch.testing.assert_close(out, whole[:, :T])
    for t in range(T, 9):
        column = t + spare
        cache.look_at(column + 1)           # columns are added as they are needed
        cache.columns = torch.tensor([column])
        mask = torch.zeros(1, 1, column + 1, dtype=torch.double)
        mask[:, :, T:T + spare] = float("-inf")
        windows = idx[:, None, t + 1 - n_gram:t + 1]
        for out, whole in zip(model.run(windows, torch.tensor([[t]]), mask, cache), expected):
            torch.testing.assert_close(out[:, 0], whole[:, t])


@pytest.mark.cache
@torch.no_grad()
def test_rows_of_a_cache_can_be_copied():
    model = random_model()
    source, target = KVCache(model, 3, 4), KVCache(model, 4, 0)
    source.k.normal_()
    source.v.normal_()
    target.copy(source, torch.tensor([2, 0]), 3)
    assert target.T == 3 and target.k.shape[:3] == (1, 4, 3) == target.v.shape[:3]
    assert torch.equal(target.k[:, :2], source.k[:, [2, 0], :3])
    assert torch.equal(target.v[:, :2], source.v[:, [2, 0], :3])
    assert not target.k[:, 2:].any()


def test_flops_count_the_matmuls():
    """Against torch's own counter, which counts what is masked, too: here each token sees all 32."""
    from torch.utils.flop_counter import FlopCounterMode
    model = GPT(GPTConfig())
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(4, 32, dtype=torch.long))
    assert flops_per_token(model.config, 32) * 4 * 32 == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_overfits_one_batch(kind):
    torch.manual_seed(0)
    model, idx = GPT(CONFIG), torch.randint(64, (4, 9))
    optimizers = make_optimizers(model, 1e-2, kind)
    trained = [id(weight) for each in optimizers for group in each.param_groups for weight in group["params"]]
    assert sorted(trained) == sorted(map(id, model.parameters()))
    for _ in range(200):
        logits, _ = model(idx[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), idx[:, 1:].flatten())
        loss.backward()
        optimizer_step(model, optimizers, 1e-2)
    assert loss.item() < 0.2


def test_a_step_tells_the_norm_before_clipping_and_clears_the_gradient():
    model = GPT(CONFIG)
    optimizers = make_optimizers(model, 1e-3)
    model(torch.arange(9)[None])[0][..., 3].sum().mul(100).backward()
    norm = torch.stack([w.grad.norm() for w in model.parameters() if w.grad is not None]).norm().item()
    assert optimizer_step(model, optimizers, 1e-3) == pytest.approx(norm) and norm > 10
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_is_torchs_for_several_matrices_at_once(dtype):
    torch.manual_seed(0)
    shapes = [(32, 32), (128, 32), (32, 128), (48, 32)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    optimizers = Muon(ours, 0.1, dtype=dtype), reference
    for _ in range(3):
        for weight, other in zip(ours, theirs):
            weight.grad = torch.randn(weight.shape)
            other.grad = weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for weight, expected in zip(ours, theirs):
        torch.testing.assert_close(weight, expected, atol=0.02, rtol=0)    # an update is 0.1 * 0.2 * sqrt(32)


@pytest.mark.parametrize("computes", [torch.bfloat16, None])
def test_muon_computes_as_its_model_does(computes):
    """It was bfloat16 everywhere, and took more than half of training where that has to be emulated."""
    model = GPT(CONFIG)
    model.compute_dtype = computes
    muon, _ = make_optimizers(model, 1e-3)
    assert muon.dtype == (computes or torch.float32)


@pytest.mark.parametrize("text, numbers", [
    ("7 42>100\n", [7, 0, 4, 42, 0, 1, 10, 100, 0]), ("1234", [1, 12, 123, 234])])
def test_numbers_are_read_whole(text, numbers):
    """Each digit embeds the number that ends in it, three digits at most; other tokens none."""
    model, seen = GPT(CONFIG), []
    model.number.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(torch.tensor([encode(text)]))
    nothing = torch.zeros(2 * N_CIRCLES)
    circles = number_circles(1000).float()
    expected = [circles[n] if char.isdigit() else nothing for n, char in zip(numbers, text)]
    torch.testing.assert_close(seen[0][0], torch.stack(expected))


def test_on_the_circles_to_add_is_to_rotate():
    cos, sin = number_circles(1000).chunk(2, dim=1)
    points = torch.complex(cos, sin)
    sums, products = points[47] * points[35], points[12] * points[8]
    torch.testing.assert_close(sums[:len(PERIODS)], points[82, :len(PERIODS)])
    torch.testing.assert_close(products[len(PERIODS):], points[96, len(PERIODS):])


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


def test_checkpoint_round_trip(tmp_path):
    torch.manual_seed(0)
    model, path = GPT(CONFIG), tmp_path / "a.pt"
    optimizers = make_optimizers(model, 1e-3)
    model(torch.zeros(1, 4, dtype=torch.long))[0].sum().backward()
    optimizer_step(model, optimizers, 1e-3)
    save_checkpoint(path, model, optimizers, step=7, flags={"seed": 1})
    loaded, checkpoint = load_checkpoint(path)
    assert checkpoint["step"] == 7 and checkpoint["flags"] == {"seed": 1} and loaded.config == CONFIG
    assert same_weights(model, loaded)
    for optimizer, state in zip(make_optimizers(loaded, 1e-3), checkpoint["optimizers"]):
        optimizer.load_state_dict(state)
    assert os.listdir(tmp_path) == ["a.pt"]
    torch.load(path, weights_only=True)     # plain tensors, numbers and strings only


@pytest.mark.parametrize("content", [None, b"", b"hello", "truncated", "foreign"])
def test_bad_checkpoints_are_one_line(tmp_path, content):
    path = tmp_path / "a.pt"
    if content == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif content == "truncated":
        save_checkpoint(path, GPT(CONFIG))
        path.write_bytes(path.read_bytes()[:-1000])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_flipped_bit_never_loads_as_other_weights(tmp_path):
    """torch.load does not look at the checksums its files carry: of 400 flipped bits it lets 8 % through."""
    path, rng = tmp_path / "a.pt", random.Random(0)
    model = GPT(CONFIG)
    save_checkpoint(path, model)
    good, refused = path.read_bytes(), 0
    for _ in range(60):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            loaded, _ = load_checkpoint(path)
        except ValueError:
            refused += 1
            continue
        assert same_weights(model, loaded)
    assert refused > 30


def test_a_killed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pt"
    save_checkpoint(path, GPT(CONFIG), step=1)
    script = ("import os, sys, torch, checkpoint, model\n"
              "torch.save = lambda data, file: (file.write(b'half'), file.flush(), os._exit(9))\n"
              "checkpoint.save_checkpoint(sys.argv[1], model.GPT(model.GPTConfig()), step=2)")
    run = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT)
    assert run.returncode == 9 and load_checkpoint(path)[1]["step"] == 1


def test_failed_writes_leave_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as failed:
        write_whole(tmp_path / "a", b"half")
    assert failed.value.filename == str(tmp_path / "a")
    assert os.listdir(tmp_path) == []


def test_table(tmp_path):
    save_table(tmp_path / "t.csv", [{"a": 1, "b": "x,y"}, {"a": 2, "b": ""}])
    assert (tmp_path / "t.csv").read_bytes() == b'a,b\r\n1,"x,y"\r\n2,\r\n'
    assert read_table(tmp_path / "t.csv") == [{"a": "1", "b": "x,y"}, {"a": "2", "b": ""}]
    assert read_table(tmp_path / "none.csv") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_no_cuda_says_so():
    with pytest.raises(ValueError, match="--device cpu"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_checkpoint_moves_between_devices(tmp_path):
    model = GPT(CONFIG)
    save_checkpoint(tmp_path / "a.pt", model.cuda())
    loaded, _ = load_checkpoint(tmp_path / "a.pt", "cpu")
    assert same_weights(model, loaded)


def test_sharpness_grows_with_the_logarithm_of_what_is_seen_for_queries_only():
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16)
    lengths = GPT(config).rotary.norm(dim=(1, 3)) / rotary_table(config).norm(dim=(1, 3))   # (block_size, 3)
    sharpness = sharpness_table(config)[:, 0, :, 0]
    torch.testing.assert_close(lengths, sharpness)
    torch.testing.assert_close(sharpness[:64, :2], torch.full((64, 2), 1.4))
    torch.testing.assert_close(sharpness[[511, 4095], :2], torch.tensor([[2.1, 2.1], [2.8, 2.8]]))
    assert (sharpness[:, 2] == 1).all()
