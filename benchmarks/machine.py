"""What a measurement ran on, for the models' benchmarks; needs torch and transformers alone."""

import platform
from typing import Any

import torch
import transformers


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def described(device: torch.device) -> dict[str, Any]:
    """Device, threads and versions, as keys of a benchmark's JSON."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
