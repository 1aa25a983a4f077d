"""Features of anybody's network, handed in as a TorchScript file: FD in whatever space the user trusts."""

from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from metrics.protocol import EvaluationProtocol
from metrics.statistics import FeatureBatch

STYLEGAN_OPTION = "return_features"
"""What StyleGAN's own TorchScript metric networks are told, to give features in place of class probabilities."""


class TorchScriptFeatures:
    """`metrics.protocol.Features` of a scripted module: uint8 [B, 3, H, W] in, floats [B, D] out.

    Resizing and normalising are the module's own business; it is told `return_features=True` where it knows that
    option. There is no spatial layer and there are no logits, so neither sFID nor Inception Score.
    """

    name = "torchscript"
    protocol = EvaluationProtocol(name="torchscript", version=1)
    weights_name = None
    layers = frozenset(("pool",))

    def __init__(self, module: torch.jit.ScriptModule, *, path: Path, digest: str, device: torch.device) -> None:
        self.module = module
        self.path = path
        self._width: int | None = None
        self.digest = digest
        self.device = device
        known = {argument.name for argument in module.forward.schema.arguments}  # type: ignore[attr-defined]
        self._options: dict[str, Any] = {STYLEGAN_OPTION: True} if STYLEGAN_OPTION in known else {}

    @classmethod
    def load(cls, device: torch.device, weights: Path | None = None) -> Self:
        """Load a scripted module; ValueError where there is no file, or it is something else.

        A TorchScript file is a program of tensor operations and is run as such: take it from whom you trust.
        """
        if weights is None:
            raise ValueError("torchscript features need a file: name a scripted module (torch.jit.save)")
        try:
            module = torch.jit.load(str(weights), map_location=device).eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{weights}: no TorchScript file ({reason}); save the module by torch.jit.save") from error
        return cls(module, path=Path(weights), digest=sha256(Path(weights).read_bytes()).hexdigest(), device=device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> FeatureBatch:
        """Return features of uint8 images [B, 3, H, W]; a module that gives no [B, D] floats is a ValueError."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"found images {images.dtype} {tuple(images.shape)}; expected torch.uint8 [B, 3, H, W]")
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            try:
                rows = self.module(images.to(self.device), **self._options)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise ValueError(f"{self.path}: fails on images uint8 {tuple(images.shape)}: {reason}") from error
        expected = (len(images), self._width or (rows.shape[-1] if isinstance(rows, Tensor) and rows.ndim else 0))
        if not isinstance(rows, Tensor) or rows.shape != expected or not rows.is_floating_point() or not rows.numel():
            found = f"{rows.dtype} {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(
                f"{self.path}: gives {found} for {len(images)} images; expected floats [{len(images)}, "
                f"{self._width or 'features'}]: let the module's forward return that"
            )
        self._width = rows.shape[1]
        return FeatureBatch(pool=rows.float(), spatial=None, logits=None)
