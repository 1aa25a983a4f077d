"""From a name, a configuration or a weights file to a network, and to the process that it was trained for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import torch

from generators.adm.config import KINDS, AdmConfig, GuideConfig, NetworkConfig, UpsamplerConfig, kind_of
from generators.adm.presets import PRESETS, preset
from generators.configuration import from_mapping, to_mapping, unknown_name, with_changes
from generators.diffusion.process import Diffusion, DiffusionConfig
from generators.diffusion.schedule import Respacing
from generators.unet import checkpoint
from generators.unet.checkpoint import Shapes, WeightsFile, describe, function_differences, require_fit, shapes_of
from generators.unet.classifier import Classifier
from generators.unet.config import ClassifierConfig, EncoderConfig, SuperResolutionConfig, UNetConfig
from generators.unet.super_resolution import SuperResolutionUNet
from generators.unet.unet import UNet

Network = UNet | SuperResolutionUNet | Classifier
TRAINING_ALONE = ("model.dropout", "diffusion.loss", "diffusion.timestep_sampler")
"""Fields of network and process that trained weights no longer depend on."""


@overload
def build_network(config: AdmConfig) -> UNet: ...
@overload
def build_network(config: UpsamplerConfig) -> SuperResolutionUNet: ...
@overload
def build_network(config: GuideConfig) -> Classifier: ...
def build_network(config: NetworkConfig) -> Network:
    """The network that a configuration describes, with fresh weights, on torch's default device."""
    return _build(config.model)


def _build(model: EncoderConfig) -> Network:
    if isinstance(model, ClassifierConfig):
        return Classifier(model)
    if isinstance(model, SuperResolutionConfig):
        return SuperResolutionUNet(model)
    assert isinstance(model, UNetConfig)  # there are no others
    return UNet(model)


def create_network(source: str | NetworkConfig | EncoderConfig, **changes: Any) -> Network:
    """A network with fresh weights: of a preset by its name, or of a configuration, with some fields changed.

    Fields are those of the network's own configuration, as `channels=64`; `channel_mult=None` beside another
    `image_size` takes the usual multipliers of that size. ValueError in one line where a field is unknown or
    no network can be built so.
    """
    config = preset(source).config if isinstance(source, str) else source
    model: EncoderConfig = config if isinstance(config, EncoderConfig) else config.model
    return _build(with_changes(model, changes))


def create_diffusion(
    source: str | NetworkConfig | DiffusionConfig,
    *,
    respacing: Respacing = None,
    device: torch.device | str = "cpu",
    **changes: Any,
) -> Diffusion:
    """The process of a preset by its name, or of a configuration, with some fields changed, as `num_timesteps=4000`.

    `respacing` keeps some of its steps: so many (250 or "250"), so many of each of equal sections
    ((90, 60, 60, 20, 20) or "90,60,60,20,20"), or an integer stride as DDIM's ("ddim25"). ValueError in one
    line where that cannot be.
    """
    config = preset(source).config if isinstance(source, str) else source
    diffusion = config if isinstance(config, DiffusionConfig) else config.diffusion
    return Diffusion(with_changes(diffusion, changes), respacing=respacing, device=device)


def load_weights(network: Network, path: Path | str) -> None:
    """Fill a network from a weights file: our own, or of OpenAI's form (`.pt`).

    ValueError where names or shapes are not the network's, and where the file is known (by its header, or as
    one that OpenAI released) to be of a network that computes otherwise from weights of these shapes.
    """
    path = Path(path)
    file = describe(path)
    fitting = fitting_presets(file.shapes)
    require_fit(file, shapes_of(network), " or ".join(fitting))
    if file.header is None and fitting:
        differing = function_differences(PRESETS[fitting[0]].config.model, network.config)
        if differing:
            raise ValueError(
                f"{path}: looks like {fitting[0]}, a network with {differing}; build the network with these values, "
                "or, if the weights are others, convert them once with their own configuration"
            )
    checkpoint.load_weights(network, path)


def fitting_presets(shapes: Shapes) -> list[str]:
    """The released checkpoints that have these names and shapes: several where they share a network."""
    digest = checkpoint.tensors_digest(shapes)
    return [name for name, row in PRESETS.items() if row.tensors_sha256 == digest]


def config_for(
    path: Path, preset_name: str | None = None, kind: str | None = None, *, option: str = "--preset"
) -> NetworkConfig:
    """The configuration of a weights file: its own, the named preset's, or that of the released file it is named after.

    ValueError where there is none, where file and preset contradict each other, or where the network is not
    of the wanted kind (a name in `KINDS`); `option` is what a preset is given by.
    """
    file = describe(path)
    config = _own_config(file) if file.header is not None else _preset_config(file, preset_name, option)
    if kind is not None and kind_of(config) != kind:
        raise ValueError(f"{path}: weights of kind '{kind_of(config)}', expected '{kind}'")
    if file.header is not None and preset_name is not None:
        _require_agreement(path, config, preset_name, option)
    return config


def _own_config(file: WeightsFile) -> NetworkConfig:
    assert file.header is not None
    if file.header.kind not in KINDS:
        raise ValueError(f"{file.path}: {unknown_name('kind of weights', file.header.kind, KINDS)}")
    return from_mapping(KINDS[file.header.kind], file.header.config, f"{file.path}: ")


def _preset_config(file: WeightsFile, preset_name: str | None, option: str) -> NetworkConfig:
    fitting = fitting_presets(file.shapes)
    if preset_name is not None:
        config = preset(preset_name).config
        require_config_fits(file, config)
        return config
    if file.path.stem in fitting:
        return PRESETS[file.path.stem].config
    if fitting:
        raise ValueError(f"{file.path}: looks like {' or '.join(fitting)}; pass {option} {fitting[0]}")
    raise ValueError(
        f"{file.path}: does not say what network it is of, and is none that OpenAI released; pass {option} NAME, "
        "or convert it once with adm-bench convert --preset NAME --set FIELD=VALUE"
    )


def require_config_fits(file: WeightsFile, config: NetworkConfig) -> None:
    """ValueError unless a file's names and shapes are those of a configuration's network."""
    with torch.device("meta"):
        wanted = shapes_of(_build(config.model))
    require_fit(file, wanted, " or ".join(fitting_presets(file.shapes)))


def _require_agreement(path: Path, config: NetworkConfig, preset_name: str, option: str) -> None:
    """A file that has its own configuration needs no preset; one that says otherwise is a mistake."""
    stated = preset(preset_name).config
    where = f"{path}: carries its own configuration, which {option} {preset_name} contradicts; leave {option} away"
    if kind_of(stated) != kind_of(config):
        raise ValueError(f"{where} (kind '{kind_of(config)}', not '{kind_of(stated)}')")
    own, other = (_sampled(c) for c in (config, stated))
    differing = [f"{key} {own[key]!r}, not {other[key]!r}" for key in own if own[key] != other[key]]
    if differing:
        raise ValueError(f"{where} ({'; '.join(differing[:3])})")


def _sampled(config: NetworkConfig) -> Mapping[str, Any]:
    """What of a configuration matters once the weights are there, by dotted field."""
    tables = {"model": to_mapping(config.model), "diffusion": to_mapping(config.diffusion)}
    flat = {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}
    return {key: value for key, value in flat.items() if key not in TRAINING_ALONE}
