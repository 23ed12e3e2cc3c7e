"""What PyTorch takes for the token reward, all in bf16: logits of the whole vocabulary, log_softmax, gather; and for attention.

    python3 kernels/cuda-check/torch_baseline.py [--attention]

The token reward as it stands and through torch.compile, beside the bf16 multiply of the same shape, which no such
computation can beat that writes its logits; FLOPs are those of the multiply, memory is the peak above the operands.
Attention is causal scaled_dot_product_attention, as it picks its backend; --attention is for it alone. Each is timed by
events over several runs, of which the median counts.
"""

import statistics
import sys

import torch
import torch.nn.functional as F

# Rows, hidden size, vocabulary: Qwen3-8B, Llama-3.2-1B, and a short batch of Llama-3-70B.
SHAPES = [(8192, 4096, 151936), (8192, 2048, 128256), (2048, 8192, 128256)]
RUNS = 10


def matmul(hidden, weight, targets):
    return F.linear(hidden, weight)


def naive(hidden, weight, targets):
    logits = F.linear(hidden, weight)
    return F.log_softmax(logits, dim=-1).gather(-1, targets[:, None])


def measure(compute, operands):
    """Milliseconds of the median run, and the peak of memory above the operands in MiB."""
    for _ in range(3):
        compute(*operands)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(RUNS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        compute(*operands)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times), (torch.cuda.max_memory_allocated() - held) / 2**20


def attention() -> None:
    """Trajectories of one length, 32 query and 8 key/value heads of 128; FLOPs are those of the keys that are seen."""
    for count, length in [(32, 256), (4, 2048), (1, 8192)]:
        new = lambda heads: torch.randn(count, heads, length, 128, device="cuda", dtype=torch.bfloat16)
        operands = new(32), new(8), new(8)
        compute = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        ms, _ = measure(compute, operands)
        flops = 4 * count * length * (length + 1) / 2 * 32 * 128
        print(f"attention {count} x {length}: {ms:.3f} ms, {flops / ms / 1e9:.0f} TFLOP/s")


def main() -> int:
    if not torch.cuda.is_available():
        return print("torch finds no card", file=sys.stderr) or 1
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    attention()
    if "--attention" in sys.argv[1:]:
        return 0
    print(f"{'n':>6} {'d':>5} {'V':>7}  {'':<9} {'ms':>9} {'TFLOP/s':>8} {'of matmul':>9} {'peak MiB':>9}")
    for n, d, v in SHAPES:
        torch.manual_seed(0)
        new = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
        operands = new(n, d), new(v, d) / d**0.5, torch.randint(v, (n,), device="cuda")
        bound = None
        for name, compute in [("matmul", matmul), ("naive", naive), ("compiled", torch.compile(naive, dynamic=False))]:
            row = f"{n:>6} {d:>5} {v:>7}  {name:<9}"
            try:
                with torch.no_grad():
                    ms, mib = measure(compute, operands)
            except torch.cuda.OutOfMemoryError:
                print(row, "out of memory")
                continue
            bound = bound or ms
            print(row, f"{ms:>9.3f} {2 * n * d * v / ms / 1e9:>8.1f} {bound / ms:>9.2f} {mib:>9.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
