"""What an editor is made of, and how it is known: configuration that travels with every artefact."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from recipe_ray.errors import ConfigError

Pooling = Literal["max", "min", "mean", "pooler"]
Similarity = Literal["inner_product", "cosine"]
PromptPosition = Literal["first", "after_bos"]

TESTBED = "testbed"  # the id of the LM and the encoder that ship with the package


@dataclass(frozen=True, slots=True, kw_only=True)
class EditorConfig:
    """Shape of the trained modules.

    Attributes:
        llm: Hugging Face id or path of the frozen causal LM, or `testbed`.
        encoder: Hugging Face id or path of the bidirectional encoder, or `testbed`.
        key_width: K, width of keys, queries and sentinel (paper: 4096).
        num_virtual_tokens: P, length of a continuous prompt (paper: 3).
        num_sentinel_tokens: learned embedding vectors behind the Knowledge Sentinel (paper: 10).
        pooling: what is concatenated of the encoder's token outputs (paper: max, min, mean; the authors' code adds the
            pooler output).
        similarity: inner_product divides by the square root of K (paper); cosine normalises keys, queries and sentinel
            and learns the temperature.
        prompt_position: the continuous prompt stands first (the authors' code) or after the LLM's BOS token.
    """

    llm: str
    encoder: str
    key_width: int = 4096
    num_virtual_tokens: int = 3
    num_sentinel_tokens: int = 10
    pooling: tuple[Pooling, ...] = ("max", "min", "mean")
    similarity: Similarity = "inner_product"
    prompt_position: PromptPosition = "first"

    def __post_init__(self) -> None:
        for name in ("key_width", "num_virtual_tokens", "num_sentinel_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 1 or more")
        _among("similarity", self.similarity, Similarity)
        _among("prompt_position", self.prompt_position, PromptPosition)
        if not self.pooling or len(set(self.pooling)) < len(self.pooling):
            raise ConfigError(f"pooling is {self.pooling}; name each part once, at least one")
        for part in self.pooling:
            _among("pooling", part, Pooling)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `editor_config_from_dict` is the inverse."""
        return dataclasses.asdict(self)


def editor_config_from_dict(values: Mapping[str, Any], *, place: str) -> EditorConfig:
    """Rebuild a config that `EditorConfig.to_dict` made.

    Raises:
        ConfigError: a field is missing or unknown, with the place.
    """
    known = {field.name for field in dataclasses.fields(EditorConfig)}
    if wrong := sorted(set(values) ^ known):
        raise ConfigError(f"{place}: field {wrong[0]!r} is missing or unknown; was it written by another version?")
    return EditorConfig(**{**values, "pooling": tuple(values["pooling"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class EditorIdentity:
    """What a table says of the editor that encoded it.

    Attributes:
        fingerprint: hex digest over the trained modules' weights and shape; keys of one fingerprint only compare with
            queries of the same.
        encoder, llm: the ids the editor was trained with, informative.
        llm_width: D, width of the LLM's input embeddings.
        key_width: K.
        num_virtual_tokens: P.
        sentinel_K: float32, the Knowledge Sentinel's key.
    """

    fingerprint: str
    encoder: str
    llm: str
    llm_width: int
    key_width: int
    num_virtual_tokens: int
    sentinel_K: npt.NDArray[np.float32]


def _among(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name} is {value!r}; give one of {', '.join(get_args(choices))}")
