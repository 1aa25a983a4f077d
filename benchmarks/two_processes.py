"""What two processes on one core each reach together, training one network, of what two that have nothing to do
with each other reach at once.

    OMP_NUM_THREADS=1 python benchmarks/two_processes.py                   # network B of step_networks.py
    OMP_NUM_THREADS=1 python benchmarks/two_processes.py --network A --rounds 8

It starts itself under torchrun, and pins each process to a core. In every round both take some steps alone, at the
same time, so that they share caches and memory bandwidth as they will, and then as many together; batches are the
same. A round's ratio is the images a second of both together over the sum of theirs alone. What else runs on the
machine lowers most rounds, since together the faster one waits, and raises those where it falls on the steps alone:
the figure is the median, and quiet moments are best. The ratio of the processors' seconds knows nothing of waiting.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from step_networks import BATCH, EMA_RATE, NETWORKS
from torch import nn

from adm_bench.parallel import Sharding, parallel_for
from adm_bench.ranks import Ranks, joined_ranks
from generators.diffusion.losses import training_losses
from generators.diffusion.process import Diffusion, DiffusionConfig
from generators.protocol import Parallel
from generators.training.alone import Alone
from generators.unet.unet import UNet

GOAL = 0.85


def training_step(name: str, parallel: Parallel) -> Callable[[], None]:
    """A step of one process: loss, backward, AdamW, average."""
    torch.manual_seed(0)
    network = UNet(NETWORKS[name])
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    wrapped = parallel.wrap(network)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    averaged = [p.detach().clone() for p in parameters]
    diffusion = Diffusion(DiffusionConfig())
    size = NETWORKS[name].image_size
    images = torch.rand(BATCH[name], 3, size, size) * 2 - 1

    def step() -> None:
        optimizer.zero_grad()
        steps = torch.randint(len(diffusion), (len(images),))
        training_losses(diffusion, wrapped, images, steps, torch.randn_like(images))["loss"].mean().backward()
        optimizer.step()
        torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - EMA_RATE)

    return step


def timed(step: Callable[[], None], repeats: int, ranks: Ranks) -> tuple[float, float]:
    """Seconds by the clock and by the processor of some steps that all processes begin at once."""
    ranks.barrier()
    began, used = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        step()
    return time.perf_counter() - began, time.process_time() - used


def measure(chosen: argparse.Namespace) -> None:
    """What each process does; the first prints."""
    with joined_ranks() as ranks:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[ranks.rank % len(cores)]})
        sharding: Sharding = chosen.sharding
        parallel = parallel_for(ranks, sharding)
        alone, together = training_step(chosen.network, Alone()), training_step(chosen.network, parallel)
        for step in (alone, together):
            timed(step, 2, ranks)
        ratios, processor_ratios = [], []
        for round_number in range(chosen.rounds):
            seconds = torch.tensor([*timed(alone, chosen.steps, ranks), *timed(together, chosen.steps, ranks)])
            seconds = parallel.gather(seconds[None]).double()
            alone_sec, alone_processor, together_sec, together_processor = seconds.T
            rates = [chosen.steps * BATCH[chosen.network] / sec.numpy() for sec in (alone_sec, together_sec)]
            ratios.append(rates[1].sum() / rates[0].sum())
            processor_ratios.append((alone_processor.sum() / together_processor.sum()).item())
            if ranks.is_first:
                print(
                    f"round {round_number + 1}: {rates[0].sum():7.2f} images/s alone, {rates[1].sum():7.2f} together, "
                    f"ratio {ratios[-1]:.3f} (processors' seconds {processor_ratios[-1]:.3f})",
                    flush=True,
                )
    if ranks.is_first:
        best, median = max(ratios), statistics.median(ratios)
        print(f"network {chosen.network}, {BATCH[chosen.network]} images a process, sharding {chosen.sharding}")
        print(f"torch {torch.__version__}, {torch.get_num_threads()} thread each")
        print(f"of the ideal: median {median:.3f} of {len(ratios)} rounds, best {best:.3f}; wanted {GOAL}")
        print(f"by processors' seconds: median {statistics.median(processor_ratios):.3f}")


def main() -> None:
    """Start two of this program, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="B")
    parser.add_argument("--sharding", choices=("none", "full"), default="none")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="steps a round, alone and together")
    chosen = parser.parse_args()
    if "RANK" in os.environ:
        measure(chosen)
        return
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    raise SystemExit(subprocess.run([*launcher, *sys.argv], env=os.environ | environment, check=False).returncode)


if __name__ == "__main__":
    main()
