"""Group normalisation as ADM uses it: in float32, followed by scale and shift and by SiLU, in one go."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

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
        # In half precision, where autocast leaves scale, most of a small one would be lost beside the 1.
        multiplier = None if scale is None else 1 + scale.float()
        if _folds(input):
            factor, offset = self.weight[None], self.bias[None]
            if multiplier is not None and shift is not None:
                offset = torch.addcmul(shift.float(), offset, multiplier)
                factor = factor * multiplier
            folded: Tensor = FoldedNorm.apply(  # type: ignore[no-untyped-call]
                input, factor, offset, self.num_groups, self.eps, activate
            )
            return folded
        # torch.group_norm, unlike F.group_norm, takes groups of a single value: a 1x1 map of 32 channels.
        out = torch.group_norm(input.float(), self.num_groups, self.weight, self.bias, self.eps)
        if multiplier is not None and shift is not None:
            out = torch.addcmul(_over_positions(shift.float(), out), out, _over_positions(multiplier, out))
        return (F.silu(out) if activate else out).to(input.dtype)


class FoldedNorm(torch.autograd.Function):
    """Norm, scale, shift and SiLU of channels-last images as one product and sum an element, and their gradients.

    torch's own kernels are several times slower in this layout when groups have few channels. The mean is taken off
    before anything is squared, so that maps that are nearly flat keep their digits. The backward pass keeps nothing
    of the input's size but the input. What is written goes into the same memory again and again: touching fresh memory
    costs as much as the arithmetic, so that a difference is computed twice sooner than kept.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, factor: Tensor, offset: Tensor, groups: int, eps: float, activate: bool
    ) -> Tensor:
        """SiLU, if told to, of factor * (x - mean) / deviation + offset; x (B, C, H, W), factor and offset (B or 1, C).

        At least float32; the result has the type of x.
        """
        rows = _rows(x)
        kind = torch.promote_types(x.dtype, torch.float32)
        mean = _group_means(rows.mean(1, dtype=kind), groups)
        out = torch.sub(rows, mean[:, None])
        rate = _group_means(out.square_().mean(1), groups).add_(eps).rsqrt_()
        torch.sub(rows, mean[:, None], out=out)
        torch.addcmul(offset[:, None], out, (factor * rate)[:, None], out=out)
        if activate:
            F.silu(out, inplace=True)
        ctx.save_for_backward(x, factor, offset, mean, rate)
        ctx.groups, ctx.activate = groups, activate  # type: ignore[attr-defined]
        return _image(out.to(x.dtype), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, with d for that before SiLU and z = (x - mean) / deviation.

        Of the offset, the sum of d over an image; of the factor, of d z; of x, with means over groups,
        (factor d - mean(factor d) - z mean(factor d z)) / deviation.
        """
        x, factor, offset, mean, rate = ctx.saved_tensors  # type: ignore[attr-defined]
        groups: int = ctx.groups  # type: ignore[attr-defined]
        rows, d = _rows(x), _rows(grad).to(mean.dtype)
        slope = factor * rate
        out = torch.sub(rows, mean[:, None])
        if ctx.activate:  # type: ignore[attr-defined]
            before = torch.addcmul(offset[:, None], out, slope[:, None])
            d = torch.ops.aten.silu_backward(d, before, grad_input=before)
        num_positions = rows.shape[1]
        offset_grad = d.sum(1)
        factor_grad = out.mul_(d).sum(1).mul_(rate)
        constant = _group_means(offset_grad * slope, groups).div_(-num_positions)
        linear = _group_means(factor_grad * slope, groups).mul_(rate).div_(-num_positions)
        torch.sub(rows, mean[:, None], out=out)
        torch.addcmul(constant[:, None], out, linear[:, None], out=out).addcmul_(d, slope[:, None])
        x_grad = _image(out.to(x.dtype), x)
        return x_grad, factor_grad.sum_to_size(factor.shape), offset_grad.sum_to_size(offset.shape), None, None, None


def _folds(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
    )


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H * W, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    batch, channels, height, width = like.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _group_means(values: Tensor, groups: int) -> Tensor:
    """(B, C) with every channel's value replaced by the mean over its group."""
    means = values.view(len(values), groups, -1).mean(2, keepdim=True)
    return means.expand(-1, -1, values.shape[1] // groups).reshape(values.shape)


def _over_positions(values: Tensor, x: Tensor) -> Tensor:
    return values.view(*values.shape, *(1,) * (x.ndim - 2))
