"""An LLM's input embeddings alone, for who reads statements as the LLM does and runs nothing of it."""

import contextlib
import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from recipe_ray.model.hub import loading, model_source
from recipe_ray.model.llm import load_llm


def load_embedding(name: str, *, safetensors_only: bool = False) -> tuple[PreTrainedTokenizerBase, nn.Module]:
    """Load an LLM's tokenizer and input embeddings onto the CPU, and nothing else of it.

    Of safetensors the one tensor is mapped into memory, where all processes of a machine share it; of weights in other
    formats the whole LLM is loaded, and let go.

    Args:
        name: as for `load_llm`.
        safetensors_only: likewise.

    Raises:
        ModelError: as `load_llm`.
    """
    source = model_source(name, "llm")
    with loading(name, "LLM"):
        tokenizer = AutoTokenizer.from_pretrained(source)
        config = AutoConfig.from_pretrained(source)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        embedding: nn.Module = model.get_input_embeddings()
        weights = _embedding_weights(source, model)
    if weights is None:
        return tokenizer, load_llm(name, "cpu", safetensors_only=safetensors_only).embedding
    buffers = [(one, *buffer) for one in embedding.modules() for buffer in one.named_buffers(recurse=False)]
    if buffers:  # computed from the configuration, such as Gemma's scale
        for module, buffer_name, buffer in buffers:
            setattr(module, buffer_name, torch.empty_like(buffer, device="cpu"))
        model.initialize_weights()  # of what is still on the meta device nothing is computed
    if type(embedding) is not nn.Embedding:  # it computes with what it looks up, in the dtype of its weights
        weights = {tensor_name: tensor.float() for tensor_name, tensor in weights.items()}
    embedding.load_state_dict(weights, assign=True)
    return tokenizer, embedding.eval().requires_grad_(False)


def _embedding_weights(source: str, model: Any) -> dict[str, Tensor] | None:
    """Tensors of an LM's input embeddings, by their names in that module; None where no safetensors name them."""
    embedding = model.get_input_embeddings()
    (path,) = (name for name, module in model.named_modules() if module is embedding)
    base = f"{model.base_model_prefix}."
    file_of = _safetensors_of(source)
    weights: dict[str, Tensor] = {}
    for name in embedding.state_dict():
        full = f"{path}.{name}"
        # Checkpoints of a base model lack its prefix, and some of a whole LM have one more.
        saved = next((one for one in (full, full.removeprefix(base), base + full) if one in file_of), None)
        if saved is None:
            return None
        with safe_open(cached_file(source, file_of[saved]), framework="pt") as tensors:
            weights[name] = tensors.get_tensor(saved)
    return weights


def _safetensors_of(source: str) -> dict[str, str]:
    """By the name of each tensor of a model the file that holds it; nothing where there are no safetensors."""
    with contextlib.suppress(OSError):  # no such file
        index = json.loads(Path(cached_file(source, SAFE_WEIGHTS_INDEX_NAME)).read_text())
        return cast("dict[str, str]", index["weight_map"])
    with contextlib.suppress(OSError), safe_open(cached_file(source, SAFE_WEIGHTS_NAME), framework="pt") as tensors:
        return dict.fromkeys(tensors.keys(), SAFE_WEIGHTS_NAME)
    return {}
