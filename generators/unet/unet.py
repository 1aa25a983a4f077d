"""The denoising U-Net of "Diffusion Models Beat GANs on Image Synthesis" (section 3, Table 11)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generators.unet.config import UNetConfig
from generators.unet.encoder import Encoder
from generators.unet.layers import Upsample, without_autocast, zero_init
from generators.unet.normalisation import GroupNorm


class UNet(Encoder):
    """Predicts noise (and variance) from noisy images, timesteps and labels.

    A fresh network's output is exactly zero, because the head starts at zero.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config, config.num_classes)
        self.config = config
        width = config.widths[-1]
        unused_skips = list(self.skip_widths)
        stages = []
        levels = list(zip(config.widths, config.level_sizes, strict=True))
        for level, (level_width, size) in reversed(list(enumerate(levels))):
            for index in range(config.num_res_blocks + 1):
                stage = self.residual_stage(width + unused_skips.pop(), level_width, size, config.heads_upsample)
                width = level_width
                if level > 0 and index == config.num_res_blocks:
                    stage.append(self.upsampler(width))
                stages.append(stage)
        self.output_blocks = nn.ModuleList(stages)
        self.out = nn.Sequential(
            GroupNorm(width), nn.SiLU(), zero_init(nn.Conv2d(width, config.out_channels, 3, padding=1))
        )

    def upsampler(self, width: int) -> nn.Module:
        """What ends a decoder level: BigGAN's block, or an upsampling layer with or without weights."""
        if self.config.resampling == "biggan":
            return self.res_block(width, width, nn.Upsample(scale_factor=2.0, mode="nearest"))
        return Upsample(width, learned=self.config.resampling == "conv")

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images (B, in_channels, H, W) in [-1, 1] plus noise, timesteps (B,) and labels (B,) int64.

        Returns (B, out_channels, H, W). Labels are given if and only if the network is class-conditional;
        ValueError otherwise.
        """
        return self.predict(x, self.time_embedding(timesteps), labels)

    def predict(self, x: Tensor, time_embedding: Tensor, labels: Tensor | None = None) -> Tensor:
        """As `forward`, from an embedding (B or 1, E) that was computed before."""
        if (labels is None) != (self.config.num_classes is None):
            raise ValueError(
                "labels are missing: the network is class-conditional"
                if labels is None
                else "labels were given to an unconditional network"
            )
        if labels is not None and labels.shape != x.shape[:1]:
            raise ValueError(f"labels are {tuple(labels.shape)}; expected one for each of {len(x)} images")
        embedding = F.silu(time_embedding if labels is None else time_embedding + self.label_emb(labels))
        h, skips = self.encode(x, embedding)
        for stage in self.output_blocks:
            h = self.run(stage, torch.cat([h, skips.pop()], dim=1), embedding)
        norm, _, head = self.out
        with without_autocast(h.device):
            out: Tensor = head(norm(h.float(), activate=True))
            return out
