"""Whether loading hides behind training: images a second of the loader, of the step, and of both together.

    python benchmarks/data_loading.py                          # network A at 64 px, JPEGs, one thread that loads
    python benchmarks/data_loading.py --channels 32 --batch 8  # a quicker step
    python benchmarks/data_loading.py --device cuda --precision bf16 --batch 256 --workers 16

JPEGs are made by a rule, in a temporary folder: smooth colours with some noise, about as large as photographs of their
size. The step is the project's own. Blocks of steps on images from the disk, each with the start of its threads and its
first batch, alternate with blocks on the same images from memory; the ratio is the time in memory over that from the
disk, best block over best block, medians in brackets: 1 where loading hides altogether.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adm_bench.images.batches import TrainingBatches
from adm_bench.images.sources import open_dataset
from generators.adm.config import AdmConfig
from generators.adm.trainer import AdmTrainer
from generators.protocol import TrainingBatch
from generators.training.config import TrainingConfig
from generators.unet.config import UNetConfig

QUALITY = 90


def write_jpegs(folder: Path, count: int, side: int) -> float:
    """Write pictures; returns their mean size in bytes."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:side, :side] / side
    total = 0
    for index in range(count):
        waves = rng.normal(size=(3, 6, 4))
        pixels = sum(
            amount * np.sin(2 * np.pi * (across * column + down * row + phase))
            for amount, across, down, phase in np.moveaxis(waves * (40, 3, 3, 1), (1, 2), (0, 1))[..., None, None]
        )
        noisy = 128 + np.moveaxis(np.asarray(pixels), 0, 2) + rng.normal(0, 8, (side, side, 3))
        path = folder / f"{index % 10}" / f"{index:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
        total += path.stat().st_size
    return total / count


def take(trainer: AdmTrainer, batches: Iterable[TrainingBatch]) -> float:
    """Seconds of a block of steps."""
    began = time.perf_counter()
    for batch in batches:
        trainer.train_step(batch)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def load(batches: TrainingBatches, start: int, steps: int) -> float:
    """Images a second of the loader alone."""
    began = time.perf_counter()
    count = sum(len(batch.images) for batch in batches.from_step(start, start + steps))
    return count / (time.perf_counter() - began)


def main() -> None:
    """Time loader, step and both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=64, help="of the JPEGs")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4, help="of a block")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--crop", choices=("center", "random"), default="random")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    network = UNetConfig(image_size=64, channels=chosen.channels, attention_resolutions=(16, 8), head_channels=32)
    config = AdmConfig(model=network, training=TrainingConfig(batch_size=chosen.batch))
    trainer = AdmTrainer(config, device, chosen.precision)
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads of the network, {chosen.workers} that"
    )
    print(f"load, {len(os.sched_getaffinity(0))} processors, {platform.processor() or platform.machine()}")
    with tempfile.TemporaryDirectory() as folder:
        size = write_jpegs(Path(folder), chosen.images, chosen.side)
        batches = TrainingBatches(
            open_dataset(folder, 64),
            batch_size=chosen.batch,
            seed=0,
            crop=chosen.crop,
            flip=True,
            workers=chosen.workers,
            pinned=device.type == "cuda",
        )
        alone = [load(batches, 0, chosen.images // chosen.batch) for _ in range(3)]
        print(f"{chosen.images} JPEGs of {chosen.side} px, {size:.0f} bytes each, {chosen.crop} crops, mirrored")
        print(f"loader alone  {max(alone):9.1f} images/s (median {statistics.median(alone):.1f})")
        kept = list(batches.from_step(0, chosen.steps))
        take(trainer, kept[:2])
        sec: dict[str, list[float]] = {"memory": [], "disk": []}
        for block in range(chosen.blocks):
            sec["memory"].append(take(trainer, kept))
            first = (block + 1) * chosen.steps
            sec["disk"].append(take(trainer, batches.from_step(first, first + chosen.steps)))
    rate = chosen.steps * chosen.batch
    for name, each in sec.items():
        print(f"step, {name:<8}{rate / min(each):9.1f} images/s (median {rate / statistics.median(each):.1f})")
    best = min(sec["memory"]) / min(sec["disk"])
    print(f"ratio         {best:9.3f} ({statistics.median(sec['memory']) / statistics.median(sec['disk']):.3f})")


if __name__ == "__main__":
    main()
