"""What an editor is made of, and how it is known: configuration that travels with every artefact."""

import dataclasses
import itertools
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
        ConfigError: a field is missing, unknown or of another type, with the place.
    """
    types = {field.name: field.type if field.type is int else str for field in dataclasses.fields(EditorConfig)}
    if wrong := sorted(set(values) ^ set(types)):
        raise ConfigError(f"{place}: field {wrong[0]!r} is missing or unknown; was it written by another version?")
    for name, expected in ({**types, "pooling": (list, tuple)}).items():
        if not isinstance(values[name], expected):
            raise ConfigError(f"{place}: {name} is {values[name]!r}; was it written by another version?")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """Weights of the loss terms; 0 leaves a term out. The LLM runs only where edit or locality has a weight.

    Attributes:
        neighbour: queries against their own key (both contrastive terms of the paper have weight 1).
        sentinel: queries against the Knowledge Sentinel.
        edit: reliability and generality.
        locality: KL between the edited and the unedited LLM.
    """

    neighbour: float = 1.0
    sentinel: float = 1.0
    edit: float = 1.0
    locality: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ConfigError(f"loss weight {field.name} is {getattr(self, field.name)}; give 0 or more")
        if not any(getattr(self, field.name) for field in dataclasses.fields(self)):
            raise ConfigError("all loss weights are 0; there is nothing to train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of training with its own loss weights."""

    num_steps: int
    weights: LossWeights = LossWeights()

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"a stage has {self.num_steps} steps; give 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How an editor is trained.

    Attributes:
        editor: shape of the trained modules, and the LLM and encoder they are trained for.
        stages: one after another.
        data: what to train on: `testbed` alone, or data sets, each `FORM:PATH` (see `recipe_ray.datasets.forms`), of
            which every edit is drawn with equal chance.
        batch_size: edits a step and worker.
        encoder_lr: peak learning rate of the text encoder (paper: 1e-5 for everything, with pretrained RoBERTa).
        head_lr: of heads, sentinel and temperature.
        prompt_lr: of the prompt encoder.
        num_warm_start: edits to whose answers' embeddings the prompt encoder is fitted, by least squares, before the
            first step (see `recipe_ray.model.training.warm_start`); 0 for the paper's cold start.
        split_queries: each step asks every other edit in its own words and the rest in other words, not each in both
            as the paper does.
        warmup_share: share of all steps over which the rates rise; they fall along a cosine to nothing afterwards.
        max_grad_norm: gradients are scaled down to this norm.
        answer_end: text behind every target that the edited LLM must say too, so that answers end; empty for none.
        seed: of weights and data.
        num_workers: data-parallel workers of one training.
        cpus_per_worker: CPUs a worker reserves and computes with; None shares out what the cluster has.
        device: auto, cpu or cuda.
        log_every: steps between two reports of the metrics, each their mean since the last.
        checkpoint_every: steps between two checkpoints.
    """

    editor: EditorConfig
    stages: tuple[Stage, ...]
    data: tuple[str, ...] = (TESTBED,)
    batch_size: int = 8
    encoder_lr: float = 1e-5
    head_lr: float = 1e-5
    prompt_lr: float = 1e-5
    num_warm_start: int = 0
    split_queries: bool = False
    warmup_share: float = 0.05
    max_grad_norm: float = 1.0
    answer_end: str = ""
    seed: int = 0
    num_workers: int = 1
    cpus_per_worker: float | None = None
    device: str = "auto"
    log_every: int = 25
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("stages is empty; give at least one stage of training")
        if not self.data:
            raise ConfigError(f"data is empty; give {TESTBED!r}, or FORM:PATH")
        if TESTBED in self.data and len(self.data) > 1:
            raise ConfigError(f"data names {TESTBED!r} beside other sources; it is mixed with none, give it alone")
        for name in ("batch_size", "num_workers", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("encoder_lr", "head_lr", "prompt_lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a positive number")
        if not 0 <= self.warmup_share < 1:
            raise ConfigError(f"warmup_share is {self.warmup_share}; give a share from 0 to below 1")
        if self.num_warm_start < 0:
            raise ConfigError(f"num_warm_start is {self.num_warm_start}; give 0 or more")
        if self.batch_size < 2:
            raise ConfigError("batch_size is 1; contrastive losses need other edits beside each, give 2 or more")
        if self.cpus_per_worker is not None and self.cpus_per_worker <= 0:
            raise ConfigError(f"cpus_per_worker is {self.cpus_per_worker}; give a positive number, or leave it out")

    @property
    def num_steps(self) -> int:
        """Of all stages."""
        return sum(stage.num_steps for stage in self.stages)

    def stretched(self, num_steps: int) -> "TrainConfig":
        """The same training in `num_steps` steps, its stages in the proportions they have.

        Raises:
            ConfigError: fewer steps than stages.
        """
        if num_steps < len(self.stages):
            raise ConfigError(f"num_steps is {num_steps}; give at least {len(self.stages)}, one for each stage")
        shares = itertools.accumulate(stage.num_steps / self.num_steps for stage in self.stages)
        ends = [0]
        for num_later, share in zip(reversed(range(len(self.stages))), shares, strict=True):
            ends.append(min(max(round(share * num_steps), ends[-1] + 1), num_steps - num_later))
        stages = (
            dataclasses.replace(stage, num_steps=end - begin)
            for stage, (begin, end) in zip(self.stages, itertools.pairwise(ends), strict=True)
        )
        return dataclasses.replace(self, stages=tuple(stages))

    def weights_at(self, step: int) -> LossWeights:
        """Loss weights of a step, counted from 0."""
        for stage in self.stages:
            if step < stage.num_steps:
                return stage.weights
            step -= stage.num_steps
        return self.stages[-1].weights


def _among(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name} is {value!r}; give one of {', '.join(get_args(choices))}")
