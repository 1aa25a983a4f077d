"""A network on a schedule with a sampler: what every diffusion generator here draws batches with."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from generators.adm.config import SamplerConfig
from generators.configuration import to_mapping
from generators.diffusion.noise import SeededNoise
from generators.diffusion.process import Denoiser, Diffusion
from generators.diffusion.samplers import Guidance, GuidancePoint, SamplerStep, ddim_step, ddpm_step, sample, tempered
from generators.protocol import idle
from generators.unet.encoder import Encoder
from generators.unet.unet import UNet


class ScheduledEmbedding:
    """A network's embeddings of all timesteps of a process, computed once."""

    def __init__(self, network: Encoder, diffusion: Diffusion) -> None:
        self.timesteps = diffusion.network_timesteps
        with torch.no_grad():
            self.embeddings = network.time_embedding(self.timesteps)

    def __call__(self, timesteps: Tensor) -> Tensor:
        """The (1, E) embedding of timesteps (B,), which are one of the process, the same for the whole batch."""
        return self.embeddings[torch.searchsorted(self.timesteps, timesteps[:1])]


class DiffusionSampler:
    """Draws batches of images; all its tables lie on the device of its process."""

    def __init__(
        self, network: UNet, diffusion: Diffusion, options: SamplerConfig, guidance_at: GuidancePoint = "x_t"
    ) -> None:
        self.network = network
        self.diffusion = diffusion
        self.options = options
        self.embedding = ScheduledEmbedding(network, diffusion)
        self.predict = torch.compile(network.predict) if options.compile else network.predict
        self.step: SamplerStep = partial(ddpm_step, guidance_at=guidance_at)
        if options.sampler == "ddim":
            self.step = partial(ddim_step, eta=options.eta)

    def denoiser(self, labels: Tensor | None, beside: Tensor | None = None) -> Denoiser:
        """The network with labels (B,) bound, which an unconditional one ignores, and perhaps images beside x."""
        bound = None if self.network.config.num_classes is None or labels is None else labels.to(self.diffusion.device)

        def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
            seen = x if beside is None else torch.cat([x, beside], dim=1)
            output: Tensor = self.predict(seen, self.embedding(timesteps), bound)
            return output

        return tempered(denoise, self.diffusion, self.options.epsilon_temperature)

    def settings(self) -> dict[str, Any]:
        """How it samples, completely, as plain data."""
        timesteps = self.diffusion.schedule.timesteps
        return {
            **to_mapping(self.options),
            "sampling_steps": len(timesteps),
            "first_timesteps": list(timesteps[:3]),
            "last_timesteps": list(timesteps[-3:]),
            "diffusion": to_mapping(self.diffusion.config),
            "model": to_mapping(self.network.config),
        }

    def noise(self, seeds: Sequence[int]) -> SeededNoise:
        """Noise of images of the network's size, a seed an image."""
        size = self.network.config.image_size
        return SeededNoise(seeds, (3, size, size), self.diffusion.device)

    def draw(
        self,
        seeds: Sequence[int],
        denoiser: Denoiser,
        guidance: Guidance | None = None,
        *,
        latent: Tensor | None = None,
        evaluated: Callable[[], None] = idle,
    ) -> Tensor:
        """Images (B, 3, H, W) about in [-1, 1], from noise of their seeds or from a latent of that shape.

        FloatingPointError where they are not finite.
        """
        images = sample(
            self.step,
            self.diffusion,
            denoiser,
            self.noise(seeds),
            guidance=guidance,
            clip=self.options.clip,
            noise_temperature=self.options.noise_temperature,
            latent=latent,
            evaluated=evaluated,
        )
        if not images.isfinite().all():
            raise FloatingPointError("the images are not finite; check the weights, and lower the guidance scale")
        return images

    def advance_once(self, denoiser: Denoiser, guidance: Guidance | None = None) -> None:
        """One step of one image, whose cost is that of every other."""
        noise = self.noise([0])
        with torch.compiler.set_stance("force_eager"):  # what is compiled cannot be counted
            self.step(self.diffusion, denoiser, noise(), 1, noise, guidance=guidance)
