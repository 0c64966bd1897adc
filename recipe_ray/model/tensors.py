"""An editor's tensors on disk: one file as they are, or, of a published editor, small files and bfloat16."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS_FILE = "editor.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
MAX_SHARD_BYTES = 4 * 2**20
PUBLIC_MODE = 0o644
_HEADER_BYTES = 2**16  # of a shard are left to the names and shapes of its tensors
_PART = "#"  # before the number of a part, of a tensor that is too large for a shard; no name of a module holds it


def rounded(tensor: Tensor) -> Tensor:
    """What a published editor keeps of a tensor: matrices in bfloat16.

    Vectors and scalars, a hundredth of the size, stay as they are: the prompts' scale in bfloat16 moves each prompt.
    """
    return tensor.bfloat16() if tensor.ndim > 1 and tensor.is_floating_point() else tensor


def write_whole(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """All in one file, to the bit."""
    save_file(dict(tensors), folder / WEIGHTS_FILE)


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Rounded, in files of at most MAX_SHARD_BYTES with an index; of a tensor that is larger, rows by rows."""
    limit = MAX_SHARD_BYTES - _HEADER_BYTES
    parts: dict[str, Tensor] = {}
    for name, tensor in ((name, rounded(tensor)) for name, tensor in tensors.items()):
        if tensor.nbytes <= limit:
            parts[name] = tensor
        else:
            num_rows = max(1, limit * len(tensor) // tensor.nbytes)
            parts |= {f"{name}{_PART}{number}": rows.clone() for number, rows in enumerate(tensor.split(num_rows))}
    save_torch_state_dict(parts, folder, filename_pattern="editor{suffix}.safetensors", max_shard_size=limit)
    for file in folder.glob("editor*.safetensors"):
        file.chmod(PUBLIC_MODE)  # safetensors lets the owner alone read, and a wheel keeps that


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """What was written there, either way.

    Raises:
        OSError, SafetensorError, ValueError: a file is missing or damaged.
    """
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for file in sorted(set(_file_of(folder).values())) or [WEIGHTS_FILE]:
        for saved, tensor in load_file(folder / file).items():
            name, _, number = saved.partition(_PART)
            parts.setdefault(name, []).append((int(number or 0), tensor))
    return {
        name: found[0][1]
        if len(found) == 1
        else torch.cat([tensor for _, tensor in sorted(found, key=lambda part: part[0])])
        for name, found in parts.items()
    }


def read_vector(folder: Path, name: str) -> npt.NDArray[Any]:
    """One tensor that was not rounded, without the others.

    Raises:
        OSError, SafetensorError, ValueError: as `read_tensors`.
    """
    with safe_open(folder / _file_of(folder).get(name, WEIGHTS_FILE), framework="numpy") as weights:
        vector: npt.NDArray[np.float32] = weights.get_tensor(name)
    return vector


def _file_of(folder: Path) -> dict[str, str]:
    """By saved name its file; nothing where all lie in one."""
    path = folder / INDEX_FILE
    if not path.is_file():
        return {}
    index = json.loads(path.read_text())
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{INDEX_FILE} is no index of shards")
    return files
