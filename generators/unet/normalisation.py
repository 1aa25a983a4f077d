"""Group normalisation as ADM uses it: in float32, followed by scale and shift and by SiLU, in one go."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generators.unet.config import NORM_GROUPS


class GroupNorm(nn.GroupNorm):
    """Group normalisation with 32 groups, in float32 whatever the input's type."""

    def __init__(self, channels: int) -> None:
        super().__init__(NORM_GROUPS, channels, eps=1e-5)

    def forward(
        self,
        input: Tensor,  # noqa: A002  the name that nn.GroupNorm gives it
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        *,
        activate: bool = False,
    ) -> Tensor:
        """Normalise (B, C, ...), then multiply by 1 + scale, add shift, both (B or 1, C), and apply SiLU if told to.

        All of it is float32; the result has the input's type.
        """
        if _folds(input):
            return self._folded(input, scale, shift, activate=activate)
        # torch.group_norm, unlike F.group_norm, takes groups of a single value: a 1x1 map of 32 channels.
        out = torch.group_norm(input.float(), self.num_groups, self.weight, self.bias, self.eps)
        if scale is not None and shift is not None:
            out = torch.addcmul(_over_positions(shift, out), out, 1 + _over_positions(scale, out))
        return (F.silu(out) if activate else out).to(input.dtype)

    def _folded(self, x: Tensor, scale: Tensor | None, shift: Tensor | None, *, activate: bool) -> Tensor:
        """The same for channels-last images that need no gradient: norm, scale and shift as one product and sum.

        torch's own kernel is several times slower in this layout when groups have few channels. The mean is taken off
        before anything is squared, so that maps that are nearly flat keep their digits.
        """
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels).float()
        count = height * width * (channels // self.num_groups)
        mean = rows.sum(1).view(batch, self.num_groups, -1).sum(2, keepdim=True) / count
        out = rows - mean.expand(-1, -1, channels // self.num_groups).reshape(batch, 1, channels)
        square = (out * out).sum(1).view(batch, self.num_groups, -1).sum(2, keepdim=True)
        deviation = (square / count).add_(self.eps).sqrt_()
        factor = (self.weight.view(self.num_groups, -1) / deviation).view(batch, channels)
        offset = self.bias.expand(batch, channels)
        if scale is not None and shift is not None:
            factor, offset = factor * (1 + scale), torch.addcmul(shift, offset, 1 + scale)
        torch.addcmul(offset[:, None], out, factor[:, None], out=out)
        if activate:
            F.silu(out, inplace=True)
        return out.to(x.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)


def _folds(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and not torch.is_grad_enabled()
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
    )


def _over_positions(values: Tensor, x: Tensor) -> Tensor:
    return values.view(*values.shape, *(1,) * (x.ndim - 2))
