"""Images a second of the digits networks: training step, forward pass, guided sampling step."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from generators.adm.config import AdmConfig, GuideConfig, SamplingConfig
from generators.adm.generator import Adm, ClassifierGuide
from generators.adm.loading import respaced
from generators.adm.presets import PRESETS
from generators.adm.trainer import AdmTrainer, ClassifierTrainer
from generators.protocol import TrainingBatch
from generators.unet.classifier import Classifier
from generators.unet.unet import UNet

CPU = torch.device("cpu")
BATCH = 64


def config(name: str) -> AdmConfig | GuideConfig:
    return PRESETS[name].config


@pytest.mark.parametrize("name", ["digits8", "digits8_classifier", "digits16", "digits16_classifier"])
def bench_training_step(name: str, benchmark: BenchmarkFixture) -> None:
    chosen = config(name)
    make = AdmTrainer if isinstance(chosen, AdmConfig) else ClassifierTrainer
    trainer = make(chosen, CPU, "fp32")  # type: ignore[arg-type]
    size = chosen.model.image_size
    images = torch.randint(256, (BATCH, 3, size, size), dtype=torch.uint8)
    benchmark.extra_info["images"] = BATCH
    batch = TrainingBatch(step=0, images=images, labels=torch.arange(BATCH) % 10, seeds=range(BATCH))
    benchmark.pedantic(trainer.train_step, (batch,), rounds=10, warmup_rounds=3)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["digits8", "digits16"])
def bench_forward(name: str, memory_format: torch.memory_format, benchmark: BenchmarkFixture) -> None:
    chosen = config(name)
    assert isinstance(chosen, AdmConfig)
    network = UNet(chosen.model).to(memory_format=memory_format).eval()
    x = torch.randn(BATCH, 3, chosen.model.image_size, chosen.model.image_size).to(memory_format=memory_format)
    benchmark.extra_info["images"] = BATCH
    with torch.inference_mode():
        benchmark.pedantic(network, (x, torch.zeros(BATCH), torch.arange(BATCH) % 10), rounds=20, warmup_rounds=5)


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def bench_sampling(guided: bool, benchmark: BenchmarkFixture) -> None:
    """Ten ancestral steps of a batch."""
    chosen, guide = config("digits8"), config("digits8_classifier")
    assert isinstance(chosen, AdmConfig)
    assert isinstance(guide, GuideConfig)
    options = SamplingConfig(sampling_steps=10)
    diffusion = respaced(chosen.diffusion, options, CPU)
    classifier = Classifier(guide.model).eval().requires_grad_(requires_grad=False)
    network = UNet(chosen.model).eval().requires_grad_(requires_grad=False)
    guidance = ClassifierGuide(classifier, diffusion, 1.0, compiled=False) if guided else None
    generator = Adm(options, network, diffusion, guidance)
    benchmark.extra_info["images"] = BATCH
    benchmark.pedantic(generator.sample, (range(BATCH), torch.arange(BATCH) % 10), rounds=5, warmup_rounds=1)
