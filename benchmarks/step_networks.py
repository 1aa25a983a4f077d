"""Images a second of ADM's networks: forward pass, training step, guided sampling step; alone or against another.

    python benchmarks/step_networks.py                          # network A, fp32
    python benchmarks/step_networks.py --network B --precision bf16
    python benchmarks/step_networks.py --other adapter.py       # interleaved with another implementation

An adapter is a Python file with one function, `build(name) -> torch.nn.Module`, that returns the other
implementation's network "A" or "B" (below), called as `module(x, timesteps)` and returning 6 channels. Where its
parameters have the names and shapes of ours, our weights are copied into it and the outputs are compared. It is timed
in float32 as it comes; forward pass and sampling without gradients. Its training step is the plain one: this project's
loss, `torch.optim.AdamW` as it comes, and an average kept parameter by parameter.

Each side has a process of its own, as its users run it: ours with the allocator as adm-bench's commands set it, the
other as it comes. They are stepped in turn, one waiting while the other works, because timings on a shared machine
compare only so. A ratio is the other's time over ours, best over best; the median of all rounds' ratios stands beside
it. The ratio of processors' seconds knows nothing of waiting for other programs, though it does of what they leave of
caches and memory.
"""

import argparse
import importlib.util
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from adm_bench.devices import keep_freed_memory
from generators.adm.config import AdmConfig, SamplingConfig
from generators.adm.generator import ClassifierGuide
from generators.adm.sampler import DiffusionSampler
from generators.adm.trainer import AdmTrainer
from generators.diffusion.losses import training_losses
from generators.diffusion.process import Diffusion, DiffusionConfig
from generators.protocol import TrainingBatch
from generators.training.config import TrainingConfig
from generators.unet.classifier import Classifier
from generators.unet.config import ClassifierConfig, UNetConfig
from generators.unet.precision import set_precision
from generators.unet.unet import UNet

NETWORKS = {
    "A": UNetConfig(image_size=32, channels=64, attention_resolutions=(16, 8), head_channels=32),
    "B": UNetConfig(image_size=16, channels=32, attention_resolutions=(8,), head_channels=32),
}
BATCH = {"A": 16, "B": 64}
KINDS = ("forward", "guided", "training")
GUIDED_STEPS = 2
EMA_RATE = 0.9999


def load_other(path: Path, name: str) -> nn.Module:
    """The network that an adapter builds."""
    spec = importlib.util.spec_from_file_location("adapter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.build(name)
    return network


def plain_training_step(network: nn.Module, diffusion: Diffusion, images: Tensor) -> Callable[[], None]:
    """A training step of any network, as guided-diffusion takes it: loss, backward, AdamW, average."""
    network.train().requires_grad_()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    averaged = [p.detach().clone() for p in network.parameters()]

    def step() -> None:
        optimizer.zero_grad()
        steps = torch.randint(len(diffusion), (len(images),))
        training_losses(diffusion, network, images, steps, torch.randn_like(images))["loss"].mean().backward()
        optimizer.step()
        for kept, parameter in zip(averaged, network.parameters(), strict=True):
            kept.mul_(EMA_RATE).add_(parameter.detach(), alpha=1 - EMA_RATE)

    return step


def our_training_step(config: UNetConfig, images: Tensor, precision: str) -> Callable[[], None]:
    """A step of this project's trainer."""
    training = TrainingConfig(batch_size=len(images), ema_rate=EMA_RATE)
    trainer = AdmTrainer(AdmConfig(model=config, training=training), torch.device("cpu"), precision)
    levels = ((images + 1) * 127.5).to(torch.uint8)
    batch = TrainingBatch(step=0, images=levels, labels=None, seeds=range(len(levels)))

    def step() -> None:
        trainer.train_step(batch)

    return step


def guided_sampling(network: nn.Module, name: str, images: Tensor) -> Callable[[], None]:
    """Guided ancestral steps with a classifier of half the width; a foreign network is called as it is."""
    config = NETWORKS[name]
    diffusion = Diffusion(DiffusionConfig(), num_steps=GUIDED_STEPS)
    width = max(32, config.channels // 2)
    classifier = Classifier(
        ClassifierConfig(
            image_size=config.image_size,
            channels=width,
            attention_resolutions=config.attention_resolutions,
            head_channels=32,
            num_classes=10,
        )
    )
    classifier.to(memory_format=torch.channels_last).eval().requires_grad_(requires_grad=False)  # type: ignore[call-overload]
    guide = ClassifierGuide(classifier, diffusion, 1.0, compiled=False)
    ours = network if isinstance(network, UNet) else UNet(config)
    sampler = DiffusionSampler(ours, diffusion, SamplingConfig())
    denoiser = sampler.denoiser(None) if isinstance(network, UNet) else network
    labels = torch.arange(len(images)) % 10

    def step() -> None:
        with torch.inference_mode():
            sampler.draw(range(len(images)), denoiser, guide.towards(labels))

    return step


def forward(network: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """A forward pass without gradients."""
    timesteps = torch.full((len(images),), 500)

    def step() -> Tensor:
        with torch.inference_mode():
            output: Tensor = network(images, timesteps)
            return output

    return step


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is timed, and on which side."""

    name: str
    precision: str
    other: Path | None
    """The adapter; None on our side."""


def make_network(name: str) -> UNet:
    """Our network, with the same weights in every process."""
    torch.manual_seed(0)
    network = UNet(NETWORKS[name]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    return network.eval().requires_grad_(requires_grad=False)


def make_images(name: str) -> Tensor:
    """A batch, the same in every process, in [-1, 1]."""
    torch.manual_seed(1)
    return torch.randn(BATCH[name], 3, NETWORKS[name].image_size, NETWORKS[name].image_size).clamp(-1, 1)


def make_step(kind: str, network: nn.Module, chosen: Chosen) -> Callable[[], object]:
    """A step of the side's network."""
    images = make_images(chosen.name)
    if kind == "forward":
        return forward(network, images)
    if kind == "guided":
        return guided_sampling(network, chosen.name, images)
    if chosen.other is None:
        return our_training_step(NETWORKS[chosen.name], images, chosen.precision)
    return plain_training_step(network, Diffusion(DiffusionConfig()), images)


def compared(other: nn.Module, network: UNet, images: Tensor) -> str:
    """What the other made of our weights, and how far its outputs are from ours."""
    loaded = other.load_state_dict(network.state_dict())
    expected = forward(other, images)()
    difference = (forward(network, images)() - expected).norm() / expected.norm()
    return f"other: {loaded}\nrelative difference of the outputs (L2): {difference:.2e}"


def serve(connection: Connection, chosen: Chosen) -> None:
    """One side: take a step of the kind that is asked for, and answer with its seconds."""
    network: nn.Module = set_precision(make_network(chosen.name), chosen.precision)
    if chosen.other is None:
        keep_freed_memory()
        connection.send("")
    else:
        other = load_other(chosen.other, chosen.name).eval()
        connection.send(compared(other, network, make_images(chosen.name)))
        network = other
    steps: dict[str, Callable[[], object]] = {}
    while kind := connection.recv():
        if kind not in steps:
            steps = {kind: make_step(kind, network, chosen)}
        began, used = time.perf_counter(), time.process_time()
        steps[kind]()
        connection.send((time.perf_counter() - began, time.process_time() - used))


class Side:
    """A process that takes steps when it is asked to."""

    def __init__(self, chosen: Chosen) -> None:
        processes = multiprocessing.get_context("spawn")
        self.connection, theirs = processes.Pipe()
        self.process = processes.Process(target=serve, args=(theirs, chosen), daemon=True)
        self.process.start()
        theirs.close()
        self.greeting: str = self.connection.recv()

    def step(self, kind: str) -> tuple[float, float]:
        """Seconds of a step, by the clock and of all processors in its process."""
        self.connection.send(kind)
        elapsed, processor = self.connection.recv()
        return elapsed, processor

    def end(self) -> None:
        """Ask for nothing more."""
        self.connection.send(None)
        self.process.join()


@dataclass
class Seconds:
    """Of every repeat of a step: by the clock, and of all processors in its process."""

    elapsed: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def interleaved(sides: dict[str, Side], kind: str, repeats: int) -> dict[str, Seconds]:
    """What every side's step took, in turn after two rounds of warm-up."""
    seconds = {name: Seconds() for name in sides}
    for repeat in range(repeats + 2):
        for name, side in sides.items():
            elapsed, processor = side.step(kind)
            if repeat >= 2:
                seconds[name].elapsed.append(elapsed)
                seconds[name].processor.append(processor)
    return seconds


def ratios(ours: list[float], other: list[float]) -> str:
    """The other's time over ours: best over best, and the median of the rounds' ratios."""
    by_round = statistics.median(b / a for a, b in zip(ours, other, strict=True))
    return f"{min(other) / min(ours):.2f} (median {by_round:.2f})"


def show(what: str, seconds: dict[str, Seconds], images: int) -> None:
    """Images a second, spread, and the ratios where there is another."""
    ours = seconds["ours"].elapsed
    line = f"{what:<16}{images / statistics.median(ours):9.2f} images/s  (best {min(ours):.4f} s, median "
    line += f"{statistics.median(ours):.4f} s"
    if "other" not in seconds:
        print(line + ")")
        return
    other = seconds["other"].elapsed
    print(f"{line}; other {min(other):.4f} s, {statistics.median(other):.4f} s)")
    of_processors = ratios(seconds["ours"].processor, seconds["other"].processor)
    print(f"{'':<16}ratio {ratios(ours, other)}, of processors' seconds {of_processors}")


def main() -> None:
    """Step the networks and print what they did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), default="A")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--other", type=Path, help="adapter of another implementation")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", choices=KINDS, help="one of the three")
    given = parser.parse_args()
    adapters = {"ours": None} | ({} if given.other is None else {"other": given.other})
    sides = {
        side: Side(Chosen(name=given.network, precision=given.precision, other=adapter))
        for side, adapter in adapters.items()
    }
    parameters = sum(parameter.numel() for parameter in make_network(given.network).parameters())
    print(f"network {given.network}: {parameters:,} parameters, {BATCH[given.network]} images")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    print("".join(side.greeting + "\n" for side in sides.values() if side.greeting), end="")
    for kind in KINDS if given.only is None else (given.only,):
        label = f"{kind} x{GUIDED_STEPS}" if kind == "guided" else kind
        show(label, interleaved(sides, kind, given.repeats), BATCH[given.network])
    for side in sides.values():
        side.end()


if __name__ == "__main__":
    main()
