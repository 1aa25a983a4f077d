"""The building blocks of ADM's networks, with the module names that OpenAI's checkpoints have.

Shapes: B batch, C channels, H and W sides of a feature map, T = H * W positions, E embedding width.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generators.unet.config import AttentionOrder
from generators.unet.normalisation import GroupNorm

M = TypeVar("M", bound=nn.Module)


def zero_init(module: M) -> M:
    """Start a layer at zero, so that the block around it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Types as they are, whatever autocast is on around."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def plus(fresh: Tensor, other: Tensor) -> Tensor:
    """The sum, in the memory of `fresh`, which nobody else may hold, where no gradient needs it."""
    return fresh + other if torch.is_grad_enabled() else fresh.add_(other)


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoids of (B,) timesteps, which may be fractional, as (B, width) float32: cosines first.

    Frequencies fall from 1 to nearly 1/10000 (Ho et al. 2020); an odd width ends in a column of zeros.
    """
    half = width // 2
    indices = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps[:, None].float() * torch.exp(-math.log(10_000.0) * indices / half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


def attend(qkv: Tensor, heads: int, order: AttentionOrder) -> Tensor:
    """Self-attention from (B, T, 3C) rows of query, key and value; returns (B, T, C), head-major.

    The 3C channels are (head, q|k|v, width) in the order `head-major` and (q|k|v, head, width) in
    `qkv-major`. Softmax runs in float32 inside the fused kernel.
    """
    batch, positions, channels = qkv.shape
    if order == "head-major":
        q, k, v = qkv.view(batch, positions, heads, 3, -1).permute(3, 0, 2, 1, 4)
    else:
        q, k, v = qkv.view(batch, positions, 3, heads, -1).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(batch, positions, channels // 3)


class AttentionBlock(nn.Module):
    """Multi-head self-attention over the positions of a feature map, added to its input."""

    def __init__(self, channels: int, heads: int, order: AttentionOrder) -> None:
        super().__init__()
        self.heads = heads
        self.order = order
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        batch, channels, height, width = x.shape
        rows = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        qkv = F.linear(rows, self.qkv.weight.squeeze(2), self.qkv.bias)
        out = F.linear(attend(qkv, self.heads, self.order), self.proj_out.weight.squeeze(2), self.proj_out.bias)
        return plus(out.view(batch, height, width, channels).permute(0, 3, 1, 2), x)


class Downsample(nn.Module):
    """Halves the sides: a strided convolution, or 2x2 means without weights."""

    def __init__(self, channels: int, *, learned: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Doubles the sides by repeating pixels, then convolves if `learned`."""

    def __init__(self, channels: int, *, learned: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class ResBlock(nn.Module):
    """Residual block conditioned on the embedding by AdaGN, or by addition (section 3.1 and Table 3).

    `resample` is applied, without weights, between activation and first convolution and on the skip path
    (BigGAN's up- and downsampling block). `rescale` divides the sum by sqrt(2).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        *,
        adaptive_norm: bool,
        dropout: float,
        rescale: bool = False,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.adaptive_norm = adaptive_norm
        self.rescale = rescale
        self.in_layers = nn.Sequential(
            GroupNorm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(embedding_width, 2 * out_channels if adaptive_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip_connection = nn.Conv2d(in_channels, out_channels, 1)
        self.resample = resample or nn.Identity()

    def forward(self, x: Tensor, activated_embedding: Tensor) -> Tensor:
        """(B, C, H, W) and SiLU of the (B or 1, E) embedding, which all blocks share, to (B, C', H', W')."""
        norm, _, conv = self.in_layers
        h = conv(self.resample(norm(x, activate=True)))
        condition = self.emb_layers[1](activated_embedding)
        norm, _, dropout, conv = self.out_layers
        if self.adaptive_norm:
            h = norm(h, *condition.chunk(2, dim=1), activate=True)
        else:
            h = norm(plus(h, condition.to(h.dtype)[:, :, None, None]), activate=True)
        out = plus(conv(dropout(h)), self.skip_connection(self.resample(x)))
        return out * math.sqrt(0.5) if self.rescale else out
