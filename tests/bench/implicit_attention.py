"""What an implicit attention map costs, with random weights at full width.

Memory: 4 of the 8,192 channels of a Mamba-1 layer as wide as Falcon-Mamba-7B's, 512 tokens (Linux only).
Time: all 24 heads of a Mamba-2 layer as wide as mamba2-130m's, 2,048 tokens, beside the least that any map
needs: the products C Bᵀ and the mask of decays, from operands that are there already.
Both: a Mamba-1 layer as wide as mamba-130m's, 128 tokens, beside HiddenMambaAttn's formula (Ali et al. 2024)
written plainly: for every query and key, the decays between them multiplied up, for all channels at once.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

import ga_utils as ga
from ga_utils.models.loading import data_dir
from ga_utils.ssm import Scan


def tokenizer():
    return AutoTokenizer.from_pretrained(data_dir() / "world")


def prompt(n_tokens: int) -> str:
    return "apple " * (n_tokens - 1)  # and <bos>


def falcon_mamba() -> ga.LM:
    """One layer of Falcon-Mamba-7B's width."""
    config = FalconMambaConfig(
        vocab_size=500, hidden_size=4096, intermediate_size=8192, num_hidden_layers=1, state_size=16
    )
    return ga.wrap(FalconMambaForCausalLM(config), tokenizer(), "one layer of falcon-mamba-7b")


def mamba2() -> ga.LM:
    """One layer of mamba2-130m's width."""
    torch.manual_seed(0)
    config = Mamba2Config(
        vocab_size=500,
        hidden_size=768,
        num_heads=24,
        head_dim=64,
        state_size=128,
        n_groups=1,
        num_hidden_layers=1,
    )
    return ga.wrap(Mamba2ForCausalLM(config), tokenizer(), "one layer of mamba2-130m")


def peak_growth(work: Callable[[], object]) -> int:
    """Bytes by which this process grew, at its largest, while `work` ran."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(
        0
    )  # memory that earlier work freed, but the allocator kept, would hide growth
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is in use now
    before = _high_water()
    work()
    return _high_water() - before


def _high_water() -> int:
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return 1024 * int(line.split()[1])


def four_channels() -> int:
    """Peak memory of a map of 4 channels out of 8,192, in bytes."""
    lm = falcon_mamba()
    return peak_growth(lambda: ga.attention_map(lm, prompt(512), 0, heads=[0, 1000, 4000, 8191]))


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median of several runs, after one to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


@torch.no_grad()
def all_heads() -> tuple[float, float]:
    """Seconds for the maps of all heads of the Mamba-2 layer, and for C Bᵀ and the mask alone."""
    lm = mamba2()
    scan = ga.scan(lm, prompt(2048), 0)
    total = (scan.A * scan.dt).cumsum(0).T  # [head, pos]
    C, B = (part[:, 0].contiguous() for part in (scan.C, scan.B))  # one group

    def least():
        product = C @ B.T  # once for all heads of the group
        return torch.stack([(t[:, None] - t[None, :]).exp_().mul_(product).tril_() for t in total])

    return seconds(lambda: ga.attention_map(lm, prompt(2048), 0)), seconds(least)


def mamba() -> ga.LM:
    """One layer of mamba-130m's width."""
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=500, hidden_size=768, intermediate_size=1536, num_hidden_layers=1, state_size=16
    )
    return ga.wrap(MambaForCausalLM(config), tokenizer(), "one layer of mamba-130m")


def formula(scan: Scan, carried: bool = False) -> torch.Tensor:
    """M[t, s] = C[t] . (decay[s+1] ... decay[t] * dt[s] B[s]) for all channels, pair by pair.

    carried: bring the product of decays from one key to the one before it. HiddenMambaAttn multiplies it up
        again for each key.

    Returns: [channel, query, key].
    """
    decay = torch.exp(scan.dt[..., None] * scan.A)  # [pos, channel, d_state]
    dB = scan.dt[..., None] * scan.B
    n, channels = scan.dt.shape
    M = torch.zeros(channels, n, n)
    for t in range(n):
        product = torch.ones(scan.A.shape)
        for s in range(t, -1, -1):
            if not carried:
                product = torch.ones(scan.A.shape)
                for between in range(s + 1, t + 1):
                    product *= decay[between]
            M[:, t, s] = (scan.C[t] * product * dB[s]).sum(-1)
            product = product * decay[s]
    return M


@torch.no_grad()
def beside_formula(n_tokens: int = 128) -> dict[str, tuple[float, int]]:
    """{name: (seconds, peak bytes)} of the formula, of our maps of all channels, and of four.

    Raises:
        AssertionError: formula and maps differ by more than 1e-4 of the largest weight.
    """
    lm, text, some = mamba(), prompt(n_tokens), [0, 500, 1000, 1535]
    works = {
        "HiddenMambaAttn's formula, 1,536 channels": lambda: formula(ga.scan(lm, text, 0)),
        "the same with carried products": lambda: formula(ga.scan(lm, text, 0), carried=True),
        "ours, 1,536 channels": lambda: ga.attention_map(lm, text, 0),
        "ours, 4 channels": lambda: ga.attention_map(lm, text, 0, heads=some),
    }
    expected, carried, ours, four = (work() for work in works.values())
    for found, wanted in ((carried, expected), (ours, expected), (four, expected[some])):
        assert (found - wanted).abs().max() < 1e-4 * expected.abs().max()
    del expected, carried, ours, four, found, wanted
    return {name: (seconds(work, repeats=3), peak_growth(work)) for name, work in works.items()}


if __name__ == "__main__":
    print(
        f"Mamba-1, 512 tokens, 4 of 8,192 channels: {four_channels() / 1e6:.0f} MB at the peak "
        "(all: 8,590 MB of maps alone)"
    )
    ours, least = all_heads()
    print(
        f"Mamba-2, 2,048 tokens, all 24 heads: {ours:.2f} s, C Bᵀ and its mask alone {least:.2f} s: "
        f"{ours / least:.2f} times"
    )
    for name, (taken, peak) in beside_formula().items():
        print(f"Mamba-1, 128 tokens, {name}: {taken:.3f} s, {peak / 1e6:.0f} MB at the peak")
