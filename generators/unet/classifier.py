"""The classifier of noisy images that guides sampling (section 4.1): the U-Net's encoder and a head."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generators.unet.config import ClassifierConfig
from generators.unet.encoder import Encoder
from generators.unet.layers import attend, without_autocast, zero_init
from generators.unet.normalisation import GroupNorm

SPATIAL_HIDDEN_WIDTH = 2048


class AttentionPool(nn.Module):
    """Pools positions by attention: the mean of all positions asks, and its answer is projected.

    Its qkv rows are always in qkv-major order, whatever the encoder's are (so are the released files').
    """

    def __init__(self, size: int, channels: int, head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / math.sqrt(channels))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out_channels)."""
        rows = x.flatten(2).transpose(1, 2)
        rows = torch.cat([rows.mean(dim=1, keepdim=True), rows], dim=1)
        rows = rows + self.positional_embedding.T.to(rows.dtype)
        qkv = F.linear(rows, self.qkv_proj.weight.squeeze(2), self.qkv_proj.bias)
        pooled = attend(qkv, self.heads, "qkv-major")[:, 0]
        return F.linear(pooled, self.c_proj.weight.squeeze(2), self.c_proj.bias)


class Classifier(Encoder):
    """Class logits of noisy images."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config)
        self.config = config
        width = config.widths[-1]
        classes = config.num_classes
        if config.pool == "attention":
            assert config.head_channels is not None  # ClassifierConfig has checked it
            pool = AttentionPool(config.level_sizes[-1], width, config.head_channels, classes)
            self.out = nn.Sequential(GroupNorm(width), nn.SiLU(), pool)
        elif config.pool == "adaptive":
            head = zero_init(nn.Conv2d(width, classes, 1))
            self.out = nn.Sequential(GroupNorm(width), nn.SiLU(), nn.AdaptiveAvgPool2d(1), head, nn.Flatten())
        else:
            first = nn.Linear(sum(self.skip_widths) + width, SPATIAL_HIDDEN_WIDTH)
            last = nn.Linear(SPATIAL_HIDDEN_WIDTH, classes)
            if config.pool == "spatial":
                self.out = nn.Sequential(first, nn.ReLU(), last)
            else:
                self.out = nn.Sequential(first, GroupNorm(SPATIAL_HIDDEN_WIDTH), nn.SiLU(), last)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) in [-1, 1] plus noise and timesteps (B,) to logits (B, classes)."""
        return self.classify(x, self.time_embedding(timesteps))

    def classify(self, x: Tensor, time_embedding: Tensor) -> Tensor:
        """As `forward`, from an embedding (B or 1, E) that was computed before."""
        h, skips = self.encode(x, F.silu(time_embedding))
        with without_autocast(h.device):
            if self.config.pool.startswith("spatial"):
                h = torch.cat([feature_map.float().mean(dim=(2, 3)) for feature_map in (*skips, h)], dim=1)
            out: Tensor = self.out(h.float())
            return out
