"""What saving costs: seconds of one checkpoint over the seconds of the steps between two.

    OMP_NUM_THREADS=1 python benchmarks/checkpoint_cost.py                    # network A of step_networks.py
    OMP_NUM_THREADS=1 python benchmarks/checkpoint_cost.py --folder /runs     # on the disk that runs will be on

A checkpoint is all of the trainer's state: weights, average and both moments of the optimizer, written, flushed and
with their digests, after which the oldest is removed. Steps and saves alternate, because timings on a shared machine
compare only so. Training waits while it saves, so the share is what a run gets longer by.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from step_networks import BATCH, NETWORKS

from adm_bench.checkpoints import Checkpoints
from generators.adm.config import AdmConfig
from generators.adm.trainer import AdmTrainer
from generators.configuration import to_mapping
from generators.protocol import TrainingBatch
from generators.training.config import TrainingConfig
from generators.unet.checkpoint import WeightsHeader

GOAL = 0.02
MIB = 2**20


def main() -> None:
    """Alternate steps and saves, and print the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="A")
    parser.add_argument("--interval", type=int, default=1000, help="steps between two checkpoints")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="that are timed before each save")
    parser.add_argument("--folder", type=Path, help="where to save; default: a temporary folder")
    chosen = parser.parse_args()
    model, batch_size = NETWORKS[chosen.network], BATCH[chosen.network]
    config = AdmConfig(model=model, training=TrainingConfig(batch_size=batch_size))
    trainer = AdmTrainer(config, torch.device("cpu"), "fp32")
    images = torch.randint(256, (batch_size, 3, model.image_size, model.image_size), dtype=torch.uint8)
    header = WeightsHeader(kind="adm", config=to_mapping(config))
    step_sec, save_sec = [], []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        checkpoints = Checkpoints(Path(folder))
        trainer.train_step(TrainingBatch(step=0, images=images, labels=None, seeds=range(batch_size)))
        for step in range(1, chosen.saves * chosen.steps + 1):
            began = time.perf_counter()
            trainer.train_step(TrainingBatch(step=step, images=images, labels=None, seeds=range(batch_size)))
            step_sec.append(time.perf_counter() - began)
            if step % chosen.steps == 0:
                began = time.perf_counter()
                saved = checkpoints.save(step, trainer.state(), {}, header)
                save_sec.append(time.perf_counter() - began)
        size = sum(file.stat().st_size for file in saved.iterdir())
    share = statistics.median(save_sec) / (chosen.interval * statistics.median(step_sec))
    worst = max(save_sec) / (chosen.interval * min(step_sec))
    print(
        f"network {chosen.network}, {batch_size} images, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print(f"step {statistics.median(step_sec):.4f} s (best {min(step_sec):.4f}), {len(step_sec)} steps")
    print(
        f"save {statistics.median(save_sec):.4f} s (worst {max(save_sec):.4f}), {len(save_sec)} of {size / MIB:.0f} MiB"
    )
    print(f"share at an interval of {chosen.interval}: {share:.3%} (at worst {worst:.3%}); wanted: under {GOAL:.0%}")


if __name__ == "__main__":
    main()
