"""Images to latents and back: DDIM run backwards, and the way between two latents (Song et al. 2020, section 5)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.diffusion.process import Denoiser, Diffusion

PARALLEL_BELOW = 1e-3  # sine of the angle under which chord and arc are one, to float32


def ddim_encode_step(diffusion: Diffusion, denoiser: Denoiser, x: Tensor, step: int, *, clip: bool = True) -> Tensor:
    """x_t (B, C, H, W) to x_{t+1}: DDIM at eta 0 the other way; from the last step to noise without any image.

    `clip` clamps the guessed image to [-1, 1] on the way.
    """
    x0, epsilon = _split(diffusion, denoiser, x, step, clip=clip)
    abar_after = diffusion.at(diffusion.abar_after, step)
    return abar_after.sqrt() * x0 + torch.sqrt(1 - abar_after) * epsilon


def encode(
    diffusion: Diffusion,
    denoiser: Denoiser,
    x0: Tensor,
    *,
    clip: bool = True,
    evaluated: Callable[[], None] | None = None,
) -> Tensor:
    """The latent x_T (B, C, H, W) from which `sample` with `ddim_step` makes x0 again, but for the steps' coarseness.

    Its moves mirror the decoder's, one network evaluation each: from x0, which has no noise, to the level of
    step 0, and on from level to level up to the last step's. It ends there, and not in noise without any
    image, because that level is where decoding starts. `evaluated` is called after every move.
    """
    _, epsilon = _split(diffusion, denoiser, x0, 0, clip=clip)
    x = diffusion.add_noise(x0, 0, epsilon)
    for step in range(len(diffusion)):
        if step > 0:
            x = ddim_encode_step(diffusion, denoiser, x, step - 1, clip=clip)
        if evaluated is not None:
            evaluated()
    return x


def _split(diffusion: Diffusion, denoiser: Denoiser, x: Tensor, step: int, *, clip: bool) -> tuple[Tensor, Tensor]:
    """What the network takes x for: an image, and the noise in it."""
    x0 = diffusion.posterior(diffusion.call(denoiser, x, step), x, step, clip=clip).x0
    return x0, diffusion.epsilon_from_x0(x, step, x0)


def interpolate(first: Tensor, second: Tensor, fractions: Sequence[float]) -> Tensor:
    """Latents on the great circle from `first` to `second`, row by row (Song et al. 2020, equation 67).

    (B, C, H, W) twice and F fractions of the way to (F, B, C, H, W); as Dhariwal & Nichol's Figure 10. Rows on
    one line through the origin, which has no such circle, are joined by a straight line. ValueError where
    the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"latents of shapes {tuple(first.shape)} and {tuple(second.shape)}; expected two of one shape")
    angle = F.cosine_similarity(first.flatten(1), second.flatten(1)).clamp(-1, 1).arccos()
    on_one_line = angle.sin() < PARALLEL_BELOW
    far = torch.tensor(fractions, dtype=first.dtype, device=first.device)[:, None]

    def weight(share: Tensor) -> Tensor:
        on_arc = torch.sin(share * angle) / angle.sin()
        return torch.where(on_one_line, share, on_arc)[:, :, None, None, None]

    return weight(1 - far) * first + weight(far) * second
