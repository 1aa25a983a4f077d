"""What networks cost: of every kind, counted alike."""

import json
from collections.abc import Callable
from dataclasses import replace

import torch
from click.testing import Result

from adm_bench.compute import measure_forward, network_cost
from generators.adm.config import AdmConfig, UpsamplerConfig
from generators.adm.presets import PRESETS
from generators.unet.config import SuperResolutionConfig, UNetConfig

Run = Callable[..., Result]
PLAIN = UNetConfig(image_size=16, channels=32, attention_resolutions=(8,), head_channels=32, num_classes=10)
UPSAMPLER = UpsamplerConfig(
    model=SuperResolutionConfig(
        image_size=16, low_resolution=8, channels=32, attention_resolutions=(8,), head_channels=32, num_classes=10
    )
)


def test_an_upsampler_costs_three_more_channels_of_one_convolution() -> None:
    plain, upsampler = network_cost(AdmConfig(model=PLAIN)), network_cost(UPSAMPLER)
    weights = 3 * 32 * 3 * 3
    assert upsampler.parameters - plain.parameters == weights
    assert upsampler.forward_macs_per_image - plain.forward_macs_per_image == weights * 16 * 16
    assert upsampler.forward_flops_per_image == 2 * upsampler.forward_macs_per_image


def test_labels_cost_no_products() -> None:
    with_labels, without = (network_cost(AdmConfig(model=replace(PLAIN, num_classes=n))) for n in (10, None))
    assert with_labels.parameters - without.parameters == 10 * 4 * 32
    assert with_labels.forward_macs_per_image == without.forward_macs_per_image


def test_sampling_is_counted_for_what_samples(run: Run) -> None:
    for preset, samples in (("digits8", True), ("digits8_16_upsampler", True), ("digits8_classifier", False)):
        values = json.loads(run("compute", "--preset", preset, "--sampling-steps", "20", "--json").stdout)
        assert ("sampling_flops_per_image" in values) == samples
        assert not samples or values["sampling_flops_per_image"] == 20 * values["forward_flops_per_image"]


def test_every_kind_is_timed() -> None:
    for config in (PRESETS["digits8"].config, PRESETS["digits8_classifier"].config, UPSAMPLER):
        assert measure_forward(config, torch.device("cpu"), 2).images_per_sec > 0
