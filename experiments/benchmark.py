"""
How fast does it sample? Tokens a second by batch size and depth, and the share of what the hardware could do.

    python -m experiments.benchmark                         # 1 to 1,024 rows (20 s on two CPU cores)
    python -m experiments.benchmark --compare   # beside Hugging Face `generate` and a loop without a cache
    python -m experiments.benchmark --batch-sizes 512 --new-tokens 1024 --repeats 1         # long streams

`--compare` uses transformers where it is installed (pip install transformers).
"""
import math
import statistics
import time

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, choose_device, positive, run_script, whole

import torch

from model import GPT, GPTConfig, flops_per_token, to_device
from sample import generate, sample_token

LONG = 256                                  # tokens; longer texts are not read again for each


@torch.no_grad()
def without_cache(model, prompts, n):
    """What most small repositories do: read everything again for each token."""
    idx = torch.tensor(prompts, device=model.wte.weight.device)
    for _ in range(n):
        tokens, _ = sample_token(model(idx)[0][:, -1], 1.0)
        idx = torch.cat((idx, tokens[:, None]), dim=1)


def gpt2(config, device, n_positions, dtype=torch.float32, attention="sdpa", activation="gelu_new"):
    """Hugging Face's GPT-2 of the same shape, with random weights. ImportError where it is not installed."""
    import transformers
    transformers.logging.set_verbosity_error()
    settings = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=n_positions, n_embd=config.n_embd, n_layer=config.n_layer,
        n_head=config.n_head, activation_function=activation, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=None, pad_token_id=0)
    model = transformers.GPT2LMHeadModel._from_config(settings, attn_implementation=attention)
    return model.eval().to(device, dtype)


def hugging_face(*settings):
    """A function that samples with `generate` of a gpt2."""
    model = gpt2(*settings)

    def run(prompts, n):
        idx = torch.tensor(prompts, device=model.device)
        model.generate(idx, max_new_tokens=n, do_sample=True, top_k=0)
    return run


def contenders(model, device, n_positions, compare):
    """{name: function of (prompts, n)}: ours, and what it is compared with."""
    found = {"generate": lambda prompts, n: generate(model, prompts, n)}
    if not compare:
        return found
    if n_positions <= LONG:                 # the time grows with the square of the length
        found["no cache"] = lambda prompts, n: without_cache(model, prompts, n)
    try:
        found["HF as it comes"] = hugging_face(model.config, device, n_positions)
        best = torch.bfloat16, "eager", "gelu_pytorch_tanh"
        found["HF at its best"] = hugging_face(model.config, device, n_positions, *best)
    except ImportError:
        print("transformers is not installed (pip install transformers): not compared with it")
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
    """
    (bytes a second, FLOPs a second) that this machine reaches on what it does best: copying and multiplying.
    """
    large = torch.empty(2 ** 30 if device.type == "cuda" else 2 ** 27, dtype=torch.uint8, device=device)
    copy = torch.empty_like(large)
    n = 8192 if device.type == "cuda" else 2048
    a = torch.randn(n, n, device=device).to(dtype)
    bandwidth = max(2 * len(large) / seconds_of(lambda: copy.copy_(large), device) for _ in range(5))
    return bandwidth, max(2 * n ** 3 / seconds_of(lambda: a @ a, device) for _ in range(5))


def least_seconds(model, B, T, n, bandwidth, flops):
    """
    The time without which no program can sample n tokens after T for B rows with this model on such hardware.
    """
    config, dtype = model.config, model.compute_dtype or torch.float32
    per_token = 2 * config.n_layer * config.head_size * dtype.itemsize                  # its keys and values
    weights = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    read = sum(weights + B * (T + t) * per_token for t in range(n))             # all of them for each token
    moved = read + B * (T + n) * per_token
    multiplied = B * (T + n) * flops_per_token(config, (T + n) / 2)
    return max(moved / bandwidth, multiplied / flops)


def peak_memory(device):
    """Bytes held at most by this process: on CUDA by its tensors, else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource                     # not on Windows
    except ImportError:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(found, prompts, args, device):
    """The median seconds of each contender; runs in turn, as a machine's speed drifts."""
    times = {name: [] for name in found}
    for turn in range(args.repeats + 1):
        for name, run in found.items():
            seconds = seconds_of(lambda: run(prompts, args.new_tokens), device)
            times[name] += [seconds] * (turn > 0)                       # the first turn only warms up
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def parse_args():
    parser = Parser(description="Tokens a second, by batch size and depth.")
    parser.add_argument("--batch-sizes", nargs="+", type=whole(1, 10 ** 6), metavar="N",
                        help="rows sampled together (default 1 16 256 1024, on CUDA 4096 too)")
    parser.add_argument("--depths", nargs="+", type=whole(1, 32), default=[3], metavar="N",
                        help="sizes of the model (default 3)")
    parser.add_argument("--prompt-tokens", type=positive, default=13, metavar="N",
                        help="tokens of each prompt, all prompts different (default 13)")
    parser.add_argument("--new-tokens", type=positive, default=40, metavar="N",
                        help="tokens sampled for each (default 40)")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N",
                        help="runs of each, in turn; the median counts (default 5)")
    parser.add_argument("--compare", action="store_true",
                        help="beside Hugging Face generate, if there, and for short texts no cache")
    parser.shared("--device", "--seed")
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    longest = args.prompt_tokens + args.new_tokens
    with parser.errors():
        device = choose_device(args.device)
        if longest >= GPTConfig.block_size:
            raise ValueError(f"--prompt-tokens and --new-tokens make {longest}: the model reads fewer than "
                             f"{GPTConfig.block_size}")
    torch.manual_seed(args.seed)
    batch_sizes = args.batch_sizes or [1, 16, 256, 1024] + [4096] * (device.type == "cuda")
    models = [to_device(GPT(GPTConfig.from_depth(depth)), device) for depth in args.depths]
    dtype = models[0].compute_dtype or torch.float32
    bandwidth, flops = hardware_limits(device, dtype)
    print(f"on {device}, {args.new_tokens} tokens after {args.prompt_tokens}; measured here: "
          f"{bandwidth / 1e9:.0f} GB/s copied, {flops / 1e9:.0f} GFLOP/s multiplied in {dtype}")
    for depth, model in zip(args.depths, models):
        found = contenders(model, device, longest, args.compare)
        for B in batch_sizes:
            prompts = torch.randint(3, 36, (B, args.prompt_tokens)).tolist()
            median = measure(found, prompts, args, device)
            ours, n_tokens = median["generate"], B * args.new_tokens
            limit = least_seconds(model, B, args.prompt_tokens, args.new_tokens, bandwidth, flops)
            others = [f"; {name} {n_tokens / seconds:,.0f} (x {seconds / ours:.1f})"
                      for name, seconds in median.items() if name != "generate"]
            share = f"{100 * limit / ours:4.1f} % of the hardware's limit"
            speed = f"{n_tokens / ours:10,.0f} tokens/s, {share}"
            print(f"depth {depth}  batch {B:5}  {speed}{''.join(others)}", flush=True)
    print(f"peak memory: {peak_memory(device) / 1e6:,.0f} MB")


if __name__ == "__main__":
    run_script(main)
