"""Training of ADM's own networks on a GPU: the plain way beside the way that is meant to be fast.

    python benchmarks/train_on_gpu.py                                          # 64, 128 and 256 px, fp16 and bf16
    python benchmarks/train_on_gpu.py --presets 128x128_diffusion --precisions bf16 --largest-batch 64
    python benchmarks/train_on_gpu.py --device cpu --presets digits8 --no-compile --largest-batch 4   # does it work?

Naive: a small batch, default layout, no compilation. Optimised: channels-last weights, torch.compile, and the largest
power of two times the small batch that fits (found by doubling, without compiling). Steps are whole ones of this
project's trainer on random images: loss, gradients, AdamW, average. Each way prints images a second (median and range),
the peak of torch's memory, and utilisation: FLOPs of the network's forward and backward pass (convolutions and matrix
products, recomputed ones not counted) over what one large matrix product of that type reaches on this device, measured
first. Steps that fp16 skips for an overflow take no optimizer step; their number is printed where there are any.
"""

import argparse
import gc
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from adm_bench.compute import network_cost
from generators.adm.config import AdmConfig
from generators.adm.presets import PRESETS, preset
from generators.adm.trainer import AdmTrainer
from generators.protocol import TrainingBatch
from generators.training.alone import Alone
from generators.unet.precision import TYPES
from metrics.throughput import Throughput, measure_matmul_flops, measure_throughput

GIB = 2**30
PRESET_NAMES = ("64x64_diffusion", "128x128_diffusion", "256x256_diffusion")
MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True, kw_only=True)
class Way:
    """How to train."""

    name: str
    batch_size: int
    layout: torch.memory_format
    compiled: bool


class InLayout(Alone):
    """A single process whose weights have a layout, and what is made beside them too."""

    def __init__(self, layout: torch.memory_format) -> None:
        self.layout = layout

    def wrap(self, network: nn.Module) -> nn.Module:
        """See `Parallel`."""
        return network.to(memory_format=self.layout)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a way reached."""

    throughput: Throughput
    skipped: int
    peak_bytes: int | None


def trained(
    config: AdmConfig, device: torch.device, precision: str, way: Way, repeats: int, *, recompute: bool
) -> Outcome:
    """Take some steps of a preset's network, after as many that are not timed as compiling needs."""
    settings = replace(
        config.training, batch_size=way.batch_size, compile=way.compiled, recompute_activations=recompute
    )
    trainer = AdmTrainer(replace(config, training=settings), device, precision, InLayout(way.layout))
    size, classes = config.model.image_size, config.model.num_classes
    images = torch.randint(256, (way.batch_size, 3, size, size), dtype=torch.uint8)
    labels = None if classes is None else torch.arange(way.batch_size) % classes
    if device.type == "cuda":
        images, labels = images.pin_memory(), labels if labels is None else labels.pin_memory()
        torch.cuda.reset_peak_memory_stats(device)
    batch = TrainingBatch(step=0, images=images, labels=labels, seeds=range(way.batch_size))
    skips = []

    def step() -> None:
        skips.append(trainer.train_step(batch).skipped is not None)

    throughput = measure_throughput(step, way.batch_size, device=device, warmup=3, repeats=repeats)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Outcome(throughput=throughput, skipped=sum(skips[3:]), peak_bytes=peak)


def fits(attempt: Callable[[], Outcome]) -> Outcome | None:
    """What an attempt gives, or None where the device's memory is too small; leaves nothing behind in it."""
    outcome = None
    with suppress(torch.OutOfMemoryError):
        outcome = attempt()
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return outcome


def show(way: Way, outcome: Outcome | None, flops_per_image: int, peak_flops: float) -> None:
    """One line of a way."""
    line = f"  {way.name:<10} batch {way.batch_size:>5}  "
    if outcome is None:
        print(line + "does not fit")
        return
    rate = outcome.throughput.images_per_sec
    slowest, fastest = outcome.throughput.spread
    line += f"{rate:9.2f} images/s ({slowest:.2f} to {fastest:.2f})  {rate * flops_per_image / peak_flops:6.1%} of peak"
    if outcome.peak_bytes is not None:
        line += f"  {outcome.peak_bytes / GIB:6.2f} GiB"
    print(line + (f"  {outcome.skipped} steps skipped" if outcome.skipped else ""), flush=True)


def compare(name: str, precision: str, peak_flops: float, chosen: argparse.Namespace) -> None:
    """Both ways of one preset in one precision."""
    config, device = preset(name).config, torch.device(chosen.device)
    assert isinstance(config, AdmConfig)
    flops = network_cost(config).training_flops_per_image
    print(f"{name}, {precision}: {flops / 1e9:.1f} GFLOP an image", flush=True)

    def take(way: Way, repeats: int) -> Outcome | None:
        return fits(lambda: trained(config, device, precision, way, repeats, recompute=chosen.recompute))

    naive = Way(name="naive", batch_size=chosen.batch, layout=torch.contiguous_format, compiled=False)
    before = take(naive, chosen.repeats)
    show(naive, before, flops, peak_flops)
    fast = replace(naive, name="optimised", layout=torch.channels_last)
    while fast.batch_size * 2 <= chosen.largest_batch and take(replace(fast, batch_size=fast.batch_size * 2), 1):
        fast = replace(fast, batch_size=fast.batch_size * 2)
    fast = replace(fast, compiled=chosen.compile)
    after = take(fast, chosen.repeats)
    while after is None and fast.batch_size > 1:  # compiled it may need more
        fast = replace(fast, batch_size=fast.batch_size // 2)
        after = take(fast, chosen.repeats)
    show(fast, after, flops, peak_flops)
    if before is not None and after is not None:
        print(f"  optimised over naive: {after.throughput.images_per_sec / before.throughput.images_per_sec:.2f}")


def main() -> None:
    """Measure the device's peak in each type, then every preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(name for name, row in PRESETS.items() if isinstance(row.config, AdmConfig))
    parser.add_argument("--presets", nargs="+", choices=names, default=PRESET_NAMES, metavar="PRESET")
    parser.add_argument("--precisions", nargs="+", choices=sorted(TYPES), default=("fp16", "bf16"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=2, help="of the naive way")
    parser.add_argument("--largest-batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--recompute", action="store_true", help="recompute activations, both ways")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --presets digits8 shows whether the script works")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"torch {torch.__version__}, {where}")
    for precision in chosen.precisions:
        peak = measure_matmul_flops(device, TYPES[precision], MATMUL_SIZE[device.type])
        print(f"peak of a matrix product in {precision}: {peak / 1e12:.4g} TFLOP/s", flush=True)
        for name in chosen.presets:
            compare(name, precision, peak, chosen)


if __name__ == "__main__":
    main()
