"""Classifier guidance (Dhariwal & Nichol 2021, section 4)."""

import torch
from torch import Tensor

from generators.diffusion.process import Denoiser
from generators.diffusion.samplers import Guidance


def classifier_guidance(classifier: Denoiser, labels: Tensor, scale: float) -> Guidance:
    """The gradient of scale * log p(label | x_t) with respect to x_t, in float32.

    `classifier` maps (x_t, timesteps) to logits (B, classes); its parameters must not require gradients.
    """

    def gradient(x: Tensor, timesteps: Tensor) -> Tensor:
        with torch.inference_mode(mode=False), torch.enable_grad():
            # clones, because tensors made in inference mode cannot take part in a gradient
            watched = x.clone().requires_grad_()
            log_probabilities = classifier(watched, timesteps.clone()).float().log_softmax(dim=1)
            chosen = log_probabilities.gather(1, labels[:, None].clone()).sum()
            # not autograd.grad, which torch's FLOP counter cannot follow
            torch.autograd.backward(chosen, inputs=(watched,))
        assert watched.grad is not None
        return scale * watched.grad

    return gradient
