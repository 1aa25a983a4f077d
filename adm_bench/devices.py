"""The choice of device."""

import torch

from adm_bench.errors import InputError


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; InputError for a device that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: not usable here ({reason}); try --device auto or cpu") from error
    return device


def describe_device(device: torch.device) -> str:
    """Its name as a record states it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
