"""
The sampling of a step as one Triton kernel: from logits to the state of the next step without leaving the registers.

In plain torch that is a dozen kernels, each of which reads and writes all of (B, V). Without a GPU it can be read and tested
in Triton's interpreter: TRITON_INTERPRET=1.
"""
import torch
import triton
import triton.language as tl


@triton.jit
def advance_kernel(logits, logprobs, last, room, alive, row, length, stops, seed, temperature, B, V, max_T,
                   N_STOPS: tl.constexpr, SAMPLE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_V: tl.constexpr):
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)              # this program's rows
    v = tl.arange(0, BLOCK_V)[None, :]
    here = b < B
    x = tl.load(logits + b[:, None] * V + v, mask=here[:, None] & (v < V), other=-1e30) / temperature
    x = x - tl.max(x, axis=1)[:, None]
    logp = x - tl.log(tl.sum(tl.exp(x), axis=1))[:, None]               # log_softmax
    scores = logp
    if SAMPLE:
        # Gumbel noise as a function of (seed, row, position, token): the same whichever other rows have been dropped.
        draw = tl.load(row + b, mask=here, other=0) * max_T + tl.load(length + b, mask=here, other=0)
        u = tl.rand(tl.load(seed), (draw[:, None] * BLOCK_V + v).to(tl.int32))
        scores = logp - tl.log(-tl.log(u))
    token = tl.argmax(scores, axis=1)
    left = tl.load(room + b, mask=here, other=0) - 1
    goes_on = (tl.load(alive + b, mask=here, other=0) != 0) & (left > 0)
    for i in tl.static_range(N_STOPS):
        goes_on = goes_on & (token != tl.load(stops + i))
    tl.store(logprobs + b, tl.sum(tl.where(v == token[:, None], logp, 0.0), axis=1), mask=here)
    tl.store(last + b, token.to(tl.int64), mask=here)
    tl.store(room + b, left, mask=here)
    tl.store(alive + b, goes_on.to(tl.uint8), mask=here)


def advance(logits, rows):
    """What `Rows.advance` does, on `TritonRows`: logits (B, V) -> log-probs (B,); last, room and alive change in place."""
    B, V = logits.shape
    logits, logprobs = logits.float().contiguous(), torch.empty(B, device=logits.device)
    block_v = triton.next_power_of_2(V)
    block_b = max(1, 2048 // block_v)
    advance_kernel[(triton.cdiv(B, block_b),)](
        logits, logprobs, rows.last, rows.room, rows.alive.view(torch.uint8), rows.row, rows.cache.length, rows.stops, rows.seed,
        rows.temperature or 1.0, B, V, rows.cache.T_all, len(rows.stops), rows.temperature > 0, block_b, block_v)
    return logprobs


def compile():
    """Sample one token, so that whatever keeps Triton from working shows itself."""
    ints = [torch.zeros(1, dtype=torch.long, device="cuda") for _ in range(6)]
    advance_kernel[(1,)](torch.zeros(1, 2, device="cuda"), torch.zeros(1, device="cuda"), ints[0], ints[1],
                         torch.zeros(1, dtype=torch.uint8, device="cuda"), *ints[2:], 1.0, 1, 2, 1, 0, True, 1, 2)
