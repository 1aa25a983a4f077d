"""torchvision, whether or not its compiled library fits this torch.

The wheel on PyPI is built for torch with CUDA. Beside a torch for CPUs only, its library does not load; then the
Python side stops at "operator torchvision::nms does not exist", because it describes two operators which nobody has
defined. Networks of other packages (torch-fidelity's among them) import torchvision without ever calling these two.
"""

import importlib
from types import ModuleType

import torch

MISSING = "operator torchvision::nms does not exist"
DESCRIBED = ("nms", "qnms")
"""The operators that torchvision's Python side describes on import: non-maximum suppression, plain and quantised."""


def import_torchvision() -> ModuleType:
    """Import torchvision, before whatever imports it too; a missing or otherwise broken one fails as it always does.

    Where its library did not load, the two operators are declared, without an implementation: everything written in
    Python works, and whoever calls one of them gets an error.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if MISSING not in str(error):
            raise
    for name in DESCRIBED:
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision")
