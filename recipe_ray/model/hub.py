"""Where models come from: a name, and what `from_pretrained` is given for it.

A name is a Hugging Face id, the path of a Hugging Face folder or of a GGUF file, or a short name: `testbed`, whose
models ship with this package, or one of `weights.PACKAGED`, whose models other packages carry.
"""

import contextlib
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from recipe_ray.config import TESTBED, Precision
from recipe_ray.errors import ConfigError, ModelError
from recipe_ray.model.weights import PACKAGED, dequantised, packaged, without_bars

SHORT_NAMES = (TESTBED, *PACKAGED)
GGUF_SUFFIX = ".gguf"
_PATH_STARTS = ("/", "./", "../", "~")


def absolute_model(name: str) -> str:
    """Write a model's name as every process may be given it: a path absolute, an id or a short name as it is.

    What Ray starts runs in folders of its own. As with `from_pretrained`, a directory comes before an id of its name;
    a short name comes before both.
    """
    path = Path(name).expanduser()
    if name not in SHORT_NAMES and (_is_path(name) or (path / "config.json").is_file()):
        return os.path.abspath(path)  # noqa: PTH100 -- resolve() would replace links that machines share
    return name


def model_source(name: str, part: Literal["llm", "encoder"]) -> str:
    """What to hand to `from_pretrained`: the folder of a model that is here, else the Hugging Face id itself.

    A GGUF file is dequantised first, unless that was done before; every machine does it for itself.

    Raises:
        ModelError: the name looks like a path and there is nothing, so that no hub is asked for it; a package is
            missing or of another version; a GGUF file cannot be read, or is to be an encoder.
        OutputError: the cache for what is made of a GGUF file cannot be written.
    """
    if name == TESTBED:
        return str(Path(str(files("recipe_ray.testbed"))) / "weights" / part)
    if name not in PACKAGED and not _is_path(name):
        return name
    path = packaged(name, part) if name in PACKAGED else Path(name).expanduser()
    if path.suffix == GGUF_SUFFIX and not path.is_dir():
        if part == "encoder":
            raise ModelError(f"encoder {name}: a GGUF file holds a causal LM; give a bidirectional encoder")
        path = dequantised(path, f"{part} {name}")
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{part} {name}: no config.json there; give the directory of a Hugging Face model, or a GGUF file"
        )
    return str(path)


def _is_path(name: str) -> bool:
    return name.startswith(_PATH_STARTS) or name.endswith(GGUF_SUFFIX)


@contextlib.contextmanager
def loading(name: str, part: str) -> Iterator[None]:
    """Translate what goes wrong while transformers loads a model into one `ModelError`; no bar is shown."""
    try:
        with without_bars():
            yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{part} {name}: cannot be loaded ({reason}); give a Hugging Face id that this machine can reach, "
            f"a local directory, a GGUF file, or one of {', '.join(SHORT_NAMES)}"
        ) from error


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers of a transformer, the lowest first: its longest list of modules."""
    return max((one for one in model.modules() if isinstance(one, nn.ModuleList)), key=len)


def is_causal(model_type: str) -> bool:
    """Whether an architecture is that of a causal LM alone; many bidirectional ones can be run as one too."""
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_bidirectional(model_type)


def is_bidirectional(model_type: str) -> bool:
    """Whether an architecture is that of a bidirectional encoder."""
    return model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU; anything else is PyTorch's device string.

    Where it is a GPU, this process computes attention without cuDNN from then on.

    Raises:
        ConfigError: not a device, or one that this machine lacks.
    """
    try:
        picked = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r}; give auto, cpu, cuda or cuda:N") from error
    if picked.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device is {device!r}, but PyTorch sees no GPU here; give auto or cpu")
        # cuDNN plans each new shape of attention for seconds, and batches of texts have new shapes all the time.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return picked


def computing_in(precision: Precision, device: torch.device) -> torch.autocast:
    """Autocast of a precision on a device; `auto` is bfloat16 where the device multiplies it faster than float32.

    A CPU without the instructions emulates it: with AVX2 a product of matrices takes 40 to 80 times as long.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes_in_bfloat16(precision, device))


def computes_in_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether that autocast does anything."""
    return precision == "bfloat16" or (precision == "auto" and _multiplies_bfloat16(device))


def _multiplies_bfloat16(device: torch.device) -> bool:
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() in ("AVX512", "SVE256")
