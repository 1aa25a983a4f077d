"""ADM's upsampler as a generator: small images in, large ones out ("ADM-U")."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from generators.adm.config import SamplerConfig, UpsamplerConfig
from generators.adm.loading import find_config, load_network, respaced, with_released_preset
from generators.adm.sampler import DiffusionSampler
from generators.diffusion.process import Diffusion
from generators.levels import from_uint8, to_uint8
from generators.protocol import Ingredients, idle
from generators.unet.super_resolution import SuperResolutionUNet, enlarge


class AdmUpsampler:
    """Enlarges images with a trained super-resolution model: the second half of an upsampling stack."""

    Options: ClassVar[type[SamplerConfig]] = SamplerConfig

    def __init__(self, options: SamplerConfig, network: SuperResolutionUNet, diffusion: Diffusion) -> None:
        self.options = options
        self.sampler = DiffusionSampler(network, diffusion, options)
        self.image_size = network.config.image_size
        self.base_size = network.config.low_resolution
        self.num_classes = network.config.num_classes
        self.network_evaluations = len(diffusion)

    @classmethod
    def build(cls, options: SamplerConfig, ingredients: Ingredients) -> "AdmUpsampler":
        """Load the weights; ValueError where they are no upsampler's."""
        weights, device = ingredients.weights, ingredients.device
        options = with_released_preset(options, weights)
        config = find_config(UpsamplerConfig, weights, options.preset, device, option="--preset")
        diffusion = respaced(config.diffusion, options, device)
        network = load_network(config, weights, device, options.precision)
        assert isinstance(network, SuperResolutionUNet)
        return cls(options, network, diffusion)

    @staticmethod
    def check(options: SamplerConfig, config: object, guide: object | None) -> None:
        """ValueError where a network of this configuration cannot sample so: told before anything is trained."""
        if not isinstance(config, UpsamplerConfig) or guide is not None:
            raise ValueError("weights are to be an upsampler's, and guidance belongs to the base; they are not")
        respaced(config.diffusion, options, torch.device("cpu"))

    def upsample(
        self, images: Tensor, seeds: Sequence[int], labels: Tensor | None, evaluated: Callable[[], None] = idle
    ) -> Tensor:
        """See `generators.protocol.Upsampler`."""
        if self.num_classes is not None and labels is None:
            raise ValueError(f"labels are missing: this upsampler knows {self.num_classes} classes")
        with torch.inference_mode():
            small = from_uint8(images.to(self.sampler.diffusion.device))
            denoiser = self.sampler.denoiser(labels, enlarge(small, self.image_size, self.image_size))
            return to_uint8(self.sampler.draw(seeds, denoiser, evaluated=evaluated), self.options.rounding)

    def settings(self) -> dict[str, Any]:
        """See `generators.protocol.Described`."""
        return self.sampler.settings()

    def evaluate_once(self) -> None:
        """See `generators.protocol.Generator`."""
        labels = None if self.num_classes is None else torch.zeros(1, dtype=torch.int64)
        with torch.inference_mode():
            beside = torch.zeros(1, 3, self.image_size, self.image_size, device=self.sampler.diffusion.device)
            self.sampler.advance_once(self.sampler.denoiser(labels, beside))
