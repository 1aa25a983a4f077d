"""From options and files to a network and a process that are ready to sample."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from generators.adm.config import KINDS, NetworkConfig, SamplerConfig, kind_of
from generators.adm.networks import Network, build_network, config_for, load_weights
from generators.adm.preset_row import PresetSampling
from generators.adm.presets import preset
from generators.adm.released import RELEASED
from generators.diffusion.process import Diffusion, DiffusionConfig, Spacing
from generators.diffusion.schedule import section_timesteps
from generators.unet.precision import Precision, memory_format, set_precision

C = TypeVar("C", bound=NetworkConfig)
O = TypeVar("O", bound=SamplerConfig)  # noqa: E741  options


def find_config(
    config_type: type[C], weights: Path | None, preset_name: str | None, device: torch.device, *, option: str
) -> C:
    """The configuration of weights, from their file or from a preset; ValueError where neither has it.

    On the meta device, where networks are costed and not run, a preset will do without weights. `option` is
    what a preset is given by.
    """
    kind = next(name for name, known in KINDS.items() if known is config_type)
    if weights is not None:
        config = config_for(weights, preset_name, kind, option=option)
    elif preset_name is not None and device.type == "meta":
        config = preset(preset_name).config
        if kind_of(config) != kind:
            raise ValueError(f"{option} {preset_name}: is of kind '{kind_of(config)}', expected '{kind}'")
    else:
        raise ValueError(f"needs trained weights of kind '{kind}'; train some, or name their file or run")
    assert isinstance(config, config_type)  # both ways have checked it
    return config


def with_released_preset(options: O, weights: Path | None) -> O:
    """The options with the preset of a released file's name, where none is given: its sampling settings apply."""
    if options.preset is None and weights is not None and weights.stem in RELEASED:
        return replace(options, preset=weights.stem)
    return options


def load_network(config: NetworkConfig, weights: Path | None, device: torch.device, precision: Precision) -> Network:
    """A network with a file's weights, for inference: evaluation mode, no gradients of parameters."""
    with torch.device("meta"):
        network = build_network(config)
    if device.type != "meta":
        assert weights is not None  # find_config has seen to it
        network.to_empty(device="cpu")
        load_weights(network, weights)
    set_precision(network, precision)
    network.to(device)
    network.to(memory_format=memory_format(device, precision))  # type: ignore[call-overload]
    return network.eval().requires_grad_(requires_grad=False)


def suggested_sampling(options: SamplerConfig) -> PresetSampling:
    """The preset's settings, or none where there is no preset."""
    suggested = None if options.preset is None else preset(options.preset).sampling
    return suggested or PresetSampling()


def respaced(config: DiffusionConfig, options: SamplerConfig, device: torch.device) -> Diffusion:
    """The process on the steps that sampling takes; ValueError where it has no such steps."""
    if options.timesteps:
        return Diffusion.with_timesteps(config, options.timesteps, device)
    if options.section_steps:
        return Diffusion.with_timesteps(config, section_timesteps(config.num_timesteps, options.section_steps), device)
    num_steps = options.sampling_steps or suggested_sampling(options).sampling_steps
    spacing: Spacing = "ddim" if options.sampler == "ddim" else "even"
    return Diffusion(config, num_steps=num_steps, spacing=spacing, device=device)
