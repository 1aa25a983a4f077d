"""Training of ADM, of upsamplers and of the classifiers that guide (Dhariwal & Nichol 2021, appendices C and H)."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from generators.adm.config import AdmConfig, GuideConfig, NetworkConfig, UpsamplerConfig
from generators.diffusion.losses import training_losses
from generators.diffusion.noise import training_draws
from generators.diffusion.process import Diffusion
from generators.diffusion.timesteps import TimestepSampler, UniformTimesteps, timestep_sampler
from generators.protocol import Mean, Parallel, TrainingBatch
from generators.training.network_trainer import ALONE, LOSS, NetworkTrainer
from generators.unet.classifier import Classifier
from generators.unet.encoder import Encoder
from generators.unet.super_resolution import SuperResolutionUNet
from generators.unet.unet import UNet

TIMESTEP_SAMPLER = "timestep_sampler"
TIMESTEP = "timestep"
WEIGHT = "weight"
ACCURACY_AT_1 = "accuracy_at_1"
ACCURACY_AT_5 = "accuracy_at_5"
QUARTILES = 4


class DiffusionTrainer(NetworkTrainer):
    """Trains a network on the timesteps of a process, drawn uniformly or by their losses.

    Subclasses give `terms`. An image's timestep and noise are drawn from its seed alone.
    """

    def __init__(
        self,
        network: Encoder,
        config: NetworkConfig,
        device: torch.device,
        precision: str,
        parallel: Parallel = ALONE,
    ) -> None:
        super().__init__(network, config.training, device, precision, parallel)
        self.diffusion = Diffusion(config.diffusion, device=device)
        self.timesteps = timestep_sampler(config.diffusion.timestep_sampler, len(self.diffusion))

    @abstractmethod
    def terms(self, images: Tensor, labels: Tensor | None, steps: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """`loss` and what else a log shows of images noised to their steps (B,), each (B,)."""

    def losses(self, images: Tensor, labels: Tensor | None, seeds: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """See `NetworkTrainer`; what is minimised estimates the mean over all timesteps."""
        return self.weighted_losses(images, labels, seeds, self.timesteps)

    def weighted_losses(
        self, images: Tensor, labels: Tensor | None, seeds: Sequence[int], timesteps: TimestepSampler
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses` at timesteps of a sampler's choice."""
        uniforms, noise = training_draws(seeds, tuple(images.shape[1:]), self.device)
        steps, weights = (drawn.to(self.device, non_blocking=True) for drawn in timesteps.draw(uniforms))
        terms = self.terms(images, labels, steps, noise)
        shown = {name: value.detach() for name, value in terms.items()}
        return terms[LOSS] * weights, shown | {TIMESTEP: steps, WEIGHT: weights}

    def learn(self, seen: Mapping[str, Tensor]) -> None:
        """See `NetworkTrainer`."""
        self.timesteps.update(seen[TIMESTEP].long(), seen[LOSS])

    def means(self, seen: Mapping[str, Tensor]) -> dict[str, Mean]:
        """Each term, and each by the quartile of t (`loss_q0` to `loss_q3`) where there were images in it.

        Losses are weighted as they are minimised, as ADM's logs are; accuracies are not.
        """
        columns = {name: column.numpy() for name, column in seen.items()}
        quartiles = columns.pop(TIMESTEP).astype(np.int64) * QUARTILES // len(self.diffusion)
        weights = columns.pop(WEIGHT)
        counts = np.bincount(quartiles, minlength=QUARTILES)
        means = {}
        for name, column in columns.items():
            values = column if name in (ACCURACY_AT_1, ACCURACY_AT_5) else column * weights
            means[name] = Mean(float(values.sum()), float(len(values)))
            totals = np.bincount(quartiles, values, minlength=QUARTILES)
            for quartile in counts.nonzero()[0].tolist():
                means[f"{name}_q{quartile}"] = Mean(float(totals[quartile]), float(counts[quartile]))
        return means

    def state(self) -> dict[str, dict[str, Tensor]]:
        """See `generators.protocol.Trainable`; with what the timestep sampler has learned, if anything."""
        learned = self.timesteps.state()
        return super().state() | ({TIMESTEP_SAMPLER: learned} if learned else {})

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """See `generators.protocol.Trainable`."""
        self.timesteps.load_state(state.get(TIMESTEP_SAMPLER, {}))
        super().load_state(state)


class AdmTrainer(DiffusionTrainer):
    """Trains a denoising U-Net."""

    Config: ClassVar[type[AdmConfig]] = AdmConfig

    def __init__(self, config: AdmConfig, device: torch.device, precision: str, parallel: Parallel = ALONE) -> None:
        super().__init__(UNet(config.model), config, device, precision, parallel)
        self.conditional = config.model.num_classes is not None

    def terms(self, images: Tensor, labels: Tensor | None, steps: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The configured loss and its parts."""
        condition = labels if self.conditional else None

        def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
            output: Tensor = self.called(x, timesteps, condition)
            return output

        return training_losses(self.diffusion, denoise, images, steps, noise)


class UpsamplerTrainer(DiffusionTrainer):
    """Trains a super-resolution U-Net on images and their reductions by area averages."""

    Config: ClassVar[type[UpsamplerConfig]] = UpsamplerConfig

    def __init__(
        self, config: UpsamplerConfig, device: torch.device, precision: str, parallel: Parallel = ALONE
    ) -> None:
        super().__init__(SuperResolutionUNet(config.model), config, device, precision, parallel)
        self.conditional = config.model.num_classes is not None
        self.low_resolution = config.model.low_resolution

    def terms(self, images: Tensor, labels: Tensor | None, steps: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The configured loss and its parts; what is enlarged is reduced here, after crops and flips."""
        condition = labels if self.conditional else None
        small = F.adaptive_avg_pool2d(images, self.low_resolution)

        def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
            output: Tensor = self.called(x, timesteps, condition, low_resolution=small)
            return output

        return training_losses(self.diffusion, denoise, images, steps, noise)


class ClassifierTrainer(DiffusionTrainer):
    """Trains a classifier of noisy images."""

    Config: ClassVar[type[GuideConfig]] = GuideConfig

    def __init__(self, config: GuideConfig, device: torch.device, precision: str, parallel: Parallel = ALONE) -> None:
        super().__init__(Classifier(config.model), config, device, precision, parallel)

    def terms(self, images: Tensor, labels: Tensor | None, steps: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Cross-entropy, and whether the label is the likeliest class, and among the five likeliest of more."""
        if labels is None:
            raise ValueError("a classifier needs labelled images, and these have no labels")
        noisy = self.diffusion.add_noise(images, steps, noise)
        logits = self.diffusion.call(self.called, noisy, steps).float()
        likeliest = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        terms = {LOSS: F.cross_entropy(logits, labels, reduction="none"), ACCURACY_AT_1: likeliest[:, 0].float()}
        if logits.shape[1] > 5:
            terms[ACCURACY_AT_5] = likeliest.any(dim=1).float()
        return terms

    def validate(self, batch: TrainingBatch) -> dict[str, Mean]:
        """See `generators.protocol.Validated`: of the weights that sampling takes, at uniform timesteps."""
        uniform = UniformTimesteps(len(self.diffusion))
        parts = []
        with self.as_sampled():
            for images, labels, seeds, _ in self.microbatches(batch):
                with self.autocast():
                    parts.append(self.weighted_losses(images, labels, seeds, uniform)[1])
        return self.means(self.gathered({name: torch.cat([part[name] for part in parts]) for name in parts[0]}))
