"""Devices by name."""

from __future__ import annotations

import torch


def check_device(device: torch.device | str, argument: str = "device") -> torch.device:
    """The device, if tensors can be made on it.

    Args:
        device: Such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        argument: Name of the argument, to begin an error with.

    Raises:
        ValueError: There is no such device here, PyTorch was built without it, or it holds no values.
    """
    try:
        if isinstance(device, bool) or not isinstance(device, torch.device | str):
            raise RuntimeError(f"it is of type {type(device).__name__}")
        found = torch.zeros(0, device=device).device
        if found.type == "meta":
            raise RuntimeError("it holds no values")
        return found
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"{argument}: got {str(device)!r}, which PyTorch cannot use here ({str(error).splitlines()[0]}); "
            "pass 'cpu', or leave it out"
        ) from error
