"""
How fast is a step of RL? Tokens a second, sampled and learnt from; beside TRL.

    python -m experiments.rl_speed                              # 48 prompts, 8 completions of 256 tokens each
    python -m experiments.rl_speed --new-tokens 1024 --compare  # beside TRL's GRPOTrainer

`--compare` uses trl where it is installed (pip install trl). Models of the same shape with random weights;
completions that are all equally long; random rewards; one update a step, no reference model. The time for
problems, verdicts and the teacher's streams is left out: `train_rl.py --profile` shows it.
"""
import statistics
import tempfile
import time

# First, so that Ctrl-C while torch is imported ends quietly
from common import Parser, choose_device, positive, run_script, whole

import torch

import train_rl
from experiments.benchmark import gpt2
from model import GPT, GPTConfig, to_device
from optim import make_optimizers
from sample import generate

SAMPLES = 8                                 # completions of each prompt
PROMPT_TOKENS = 13


def ours(prompts, args, device):
    """The seconds of each step, and of the sampling in it: two lists."""
    model = to_device(GPT(GPTConfig.from_depth(3)), device)
    rl = train_rl.make_parser().parse_args("--half-life 0 --sft-coef 0 --epochs 1 --minibatches 1".split())
    optimizers = make_optimizers(model, rl.lr, rl.optimizer)
    seconds, sampling = [], []
    for seed in range(args.repeats + 1):
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        samples = generate(model, prompts, args.new_tokens, 1.0, (), generator, SAMPLES)
        batch = train_rl.pack_samples(prompts, samples, samples.completions(), SAMPLES, device)
        batch["rewards"] = torch.randint(2, (len(batch["idx"]),), device=device).to(samples.values.dtype)
        sampling.append(time.perf_counter() - start)
        train_rl.learn(model, optimizers, batch, None, rl, rl.lr, seed)
        seconds.append(time.perf_counter() - start)
    return seconds, sampling


def beside_trl(prompts, args, device):
    """The same of TRL's GRPOTrainer with eager attention, the fastest. ImportError where it is missing."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    config = GPTConfig.from_depth(3)
    model = gpt2(config, device, PROMPT_TOKENS + args.new_tokens, torch.float32, "eager", "gelu_pytorch_tanh")
    vocabulary = {"pad": 0, "eos": 1, **{f"t{i}": i for i in range(2, config.vocab_size)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="pad"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="pad", eos_token="eos")
    times, sampling = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())

    class Trainer(GRPOTrainer):
        def _generate(self, *inputs):
            start = time.perf_counter()
            samples = super()._generate(*inputs)
            sampling.append(time.perf_counter() - start)
            return samples

    def random_rewards(completions, **_):
        return torch.randint(2, (len(completions),)).tolist()

    n = SAMPLES * len(prompts)
    never_ends = {"min_new_tokens": args.new_tokens, "suppress_tokens": [0, 1]}
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=folder, use_cpu=device.type == "cpu", bf16=False, gradient_checkpointing=False,
            num_generations=SAMPLES, generation_batch_size=n, per_device_train_batch_size=args.rows,
            gradient_accumulation_steps=n // args.rows, max_completion_length=args.new_tokens,
            max_steps=args.repeats + 1, beta=0.0, generation_kwargs=never_ends, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True)
        texts = [{"prompt": " ".join(f"t{token}" for token in prompt)} for prompt in prompts]
        trainer = Trainer(model, random_rewards, settings, Dataset.from_list(texts * (args.repeats + 1)),
                          processing_class=tokenizer, callbacks=[Clock()])
        times.append(time.perf_counter())
        trainer.train()
    return [after - before for before, after in zip(times, times[1:])], sampling


def main():
    parser = Parser(description="Tokens a second of a step of RL.")
    parser.add_argument("--prompts", type=whole(1, 10 ** 5), default=48, metavar="N",
                        help=f"of each {SAMPLES} completions are sampled (default 48)")
    parser.add_argument("--new-tokens", type=positive, default=256, metavar="N",
                        help="how long each is (default 256)")
    parser.add_argument("--repeats", type=positive, default=2, metavar="N",
                        help="steps, behind one that warms up; the median counts (default 2)")
    parser.add_argument("--rows", type=positive, default=16, metavar="N",
                        help="completions that TRL learns from at a time (default 16)")
    parser.add_argument("--compare", action="store_true", help="beside TRL's GRPOTrainer, if it is there")
    parser.shared("--device", "--seed")
    args = parser.parse_args()
    with parser.errors():
        device = choose_device(args.device)
        if PROMPT_TOKENS + args.new_tokens >= GPTConfig.block_size:
            raise ValueError(f"--new-tokens {args.new_tokens}: the model reads fewer than "
                             f"{GPTConfig.block_size}, the {PROMPT_TOKENS} of a prompt among them")
        if args.prompts * SAMPLES % args.rows:
            raise ValueError(f"--rows {args.rows} does not divide the {args.prompts * SAMPLES} completions")
    torch.manual_seed(args.seed)
    prompts = torch.randint(3, 36, (args.prompts, PROMPT_TOKENS)).tolist()
    n_tokens = args.prompts * SAMPLES * args.new_tokens
    contenders = {"train_rl.py": ours}
    if args.compare:
        contenders["TRL"] = beside_trl
    for name, contender in contenders.items():
        try:
            seconds, sampling = contender(prompts, args, device)
        except ImportError:
            print("trl is not installed (pip install trl): nothing to compare with")
            return
        whole_step, of_sampling = (statistics.median(times[1:]) for times in (seconds, sampling))
        of_learning = whole_step - of_sampling
        print(f"{name}: {args.prompts * SAMPLES} completions of {args.new_tokens} tokens in "
              f"{whole_step:.1f} s: {n_tokens / whole_step:,.0f} tokens/s "
              f"({n_tokens / of_sampling:,.0f} sampled, {n_tokens / of_learning:,.0f} learnt)", flush=True)


if __name__ == "__main__":
    run_script(main)
