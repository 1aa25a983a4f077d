"""Images a second of ADM's networks: forward pass, training step, guided sampling step; alone or against another.

    python benchmarks/step_networks.py                          # network A, fp32
    python benchmarks/step_networks.py --network B --precision bf16
    python benchmarks/step_networks.py --other adapter.py       # interleaved with another implementation

An adapter is a Python file with one function, `build(name) -> torch.nn.Module`, that returns the other
implementation's network "A" or "B" (below), called as `module(x, timesteps)` and returning 6 channels. Where its
parameters have the names and shapes of ours, our weights are copied into it and the outputs are compared. It is timed
in float32 as it comes; forward pass and sampling without gradients. Its training step is the plain one: this project's
loss, `torch.optim.AdamW` as it comes, and an average kept parameter by parameter.

Both are stepped in turn in one process, because timings on a shared machine compare only so. A ratio is the other's
time over ours, best over best; the median of all rounds' ratios stands beside it. The ratio of processors' seconds
knows nothing of waiting for other programs, though it does of what they leave of caches and memory.
"""

import argparse
import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

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


@dataclass
class Seconds:
    """Of every repeat of a step: by the clock, and of all processors in this process."""

    elapsed: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


def interleaved(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, Seconds]:
    """What every step took, in turn after two rounds of warm-up."""
    seconds = {name: Seconds() for name in steps}
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            began, used = time.perf_counter(), time.process_time()
            step()
            if repeat >= 2:
                seconds[name].elapsed.append(time.perf_counter() - began)
                seconds[name].processor.append(time.process_time() - used)
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
    parser.add_argument("--only", choices=("forward", "training", "guided"), help="one of the three")
    chosen = parser.parse_args()
    config, batch = NETWORKS[chosen.network], BATCH[chosen.network]
    torch.manual_seed(0)
    network = UNet(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    network.eval().requires_grad_(requires_grad=False)
    images = torch.randn(batch, 3, config.image_size, config.image_size).clamp(-1, 1)
    print(f"network {chosen.network}: {sum(p.numel() for p in network.parameters()):,} parameters, {batch} images")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    other = None
    if chosen.other is not None:
        other = load_other(chosen.other, chosen.network).eval()
        print(f"other: {other.load_state_dict(network.state_dict())}")
        expected = forward(other, images)()
        set_precision(network, chosen.precision)
        difference = (forward(network, images)() - expected).norm() / expected.norm()
        print(f"relative difference of the outputs (L2): {difference:.2e}")
    set_precision(network, chosen.precision)
    makers: dict[str, tuple[Callable[[], Callable[[], object]], Callable[[nn.Module], Callable[[], object]]]] = {
        "forward": (lambda: forward(network, images), lambda module: forward(module, images)),
        "guided": (
            lambda: guided_sampling(network, chosen.network, images),
            lambda module: guided_sampling(module, chosen.network, images),
        ),
        "training": (
            lambda: our_training_step(config, images, chosen.precision),
            lambda module: plain_training_step(module, Diffusion(DiffusionConfig()), images),
        ),
    }
    for what, (make_ours, make_other) in makers.items():
        if chosen.only not in (None, what):
            continue
        steps = {"ours": make_ours()} | ({} if other is None else {"other": make_other(other)})
        label = f"{what} x{GUIDED_STEPS}" if what == "guided" else what
        show(label, interleaved(steps, chosen.repeats), batch)


if __name__ == "__main__":
    main()
