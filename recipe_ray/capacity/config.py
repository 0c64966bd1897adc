"""What a capacity plan is asked for."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from recipe_ray.capacity.constants import BYTES_OF, ENCODERS, GPUS, LLMS, EncoderShape, Gpu, LlmShape
from recipe_ray.errors import ConfigError
from recipe_ray.presets import MULTILINGUAL, ROBERTA, SMALL_ROBERTA, preset

LlmDtype = Literal["float32", "bfloat16", "float16", "int8", "int4"]
VectorDtype = Literal["float16", "float32"]
IndexKind = Literal["auto", "exact", "hnsw"]

_ENCODER_NAMES = {ROBERTA: "roberta-base", MULTILINGUAL: "xlm-roberta-base", SMALL_ROBERTA: "distilroberta"}
_SHAPE = ("llm_width", "llm_layers", "llm_kv_width", "llm_parameters")


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityConfig:
    """What is to be held and answered, and on which machines.

    Attributes:
        facts: live facts.
        requests_per_s: at the busiest time.
        prompt_tokens: of a request, before the continuous prompt.
        answer_tokens: of an answer.
        latency_s: seconds that a whole answer may take.
        llm: a preset's name, or custom, which wants the four flags below.
        llm_width: D of a custom LLM.
        llm_layers: of a custom LLM.
        llm_kv_width: of a custom LLM: key-value heads times their width; D without grouped heads.
        llm_parameters: of a custom LLM.
        llm_dtype: of its weights.
        encoder: the preset's if not given; roberta-base for a custom LLM.
        key_width: K; the preset's if not given, 4096 for a custom LLM.
        num_virtual_tokens: P.
        vector_dtype: of stored keys and prompts.
        text_bytes: of a fact's texts together: id, statement, prompt, target, subject, source.
        statement_tokens: of a fact, as the encoder reads it.
        query_tokens: of a question, likewise.
        index_kind: auto scans shards below 20,000 facts and walks a graph beyond.
        index_dimensions: numbers a key in a graph; 96 of 512 of K if not given.
        delta: share of the facts that a night changes.
        history_days: for which older events and versions stay, between compactions.
        replicas: at least, of everything that answers.
        utilisation: share of what a replica can do that is planned with.
        node_memory_gib: of a machine for index shards.
        node_memory_share: of that memory for the index.
        node_cpus: of such a machine, and of the one that builds indexes.
        network_gbit_s: of a machine.
        versions_in_memory: indexes of a shard at a time; 2 while a new one is taken up.
        gpu: by name.
        gpu_memory_gb: of a GPU, in place of the name's.
        gpu_bandwidth_gb_s: likewise.
        gpu_tflops: likewise, dense bfloat16.
        max_batch_size: prompts that one engine completes together.
        ingest_cpus: cores that ingest.
        ingest_gpus: GPUs that encode; 0 encodes on the cores.
        night_hours: that ingest and index may take.
        json: print JSON.
    """

    facts: int = 1_000_000
    requests_per_s: float = 10.0
    prompt_tokens: int = 64
    answer_tokens: int = 32
    latency_s: float = 2.0
    llm: str = "llama-3.1-8b"
    llm_width: int | None = None
    llm_layers: int | None = None
    llm_kv_width: int | None = None
    llm_parameters: float | None = None
    llm_dtype: LlmDtype = "bfloat16"
    encoder: str | None = None
    key_width: int | None = None
    num_virtual_tokens: int | None = None
    vector_dtype: VectorDtype = "float16"
    text_bytes: int = 160
    statement_tokens: int = 25
    query_tokens: int = 20
    index_kind: IndexKind = "auto"
    index_dimensions: int | None = None
    delta: float = 0.01
    history_days: int = 7
    replicas: int = 2
    utilisation: float = 0.7
    node_memory_gib: float = 256.0
    node_memory_share: float = 0.8
    node_cpus: int = 32
    network_gbit_s: float = 25.0
    versions_in_memory: int = 2
    gpu: str = "a100-80gb"
    gpu_memory_gb: float | None = None
    gpu_bandwidth_gb_s: float | None = None
    gpu_tflops: float | None = None
    max_batch_size: int = 64
    ingest_cpus: int = 32
    ingest_gpus: int = 0
    night_hours: float = 8.0
    json: bool = False

    def __post_init__(self) -> None:
        for name in ("ingest_gpus", "history_days"):
            self._at_least(name, 0)
        for name in (
            *("facts", "prompt_tokens", "answer_tokens", "text_bytes", "statement_tokens", "query_tokens", "replicas"),
            *("node_cpus", "versions_in_memory", "max_batch_size", "ingest_cpus"),
            *("key_width", "num_virtual_tokens", "index_dimensions", "llm_width", "llm_layers", "llm_kv_width"),
        ):
            self._at_least(name, 1)
        for name in (
            *("requests_per_s", "latency_s", "node_memory_gib", "network_gbit_s", "night_hours", "llm_parameters"),
            *("gpu_memory_gb", "gpu_bandwidth_gb_s", "gpu_tflops"),
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value:g}; give a number above 0")
        for name, least in (("utilisation", "above 0"), ("node_memory_share", "above 0"), ("delta", "from 0")):
            value = getattr(self, name)
            if not (0 <= value <= 1) or (value == 0 and least == "above 0"):
                raise ConfigError(f"{name} is {value:g}; give a share {least} to 1")
        _among("llm_dtype", self.llm_dtype, get_args(LlmDtype))
        _among("vector_dtype", self.vector_dtype, get_args(VectorDtype))
        _among("index_kind", self.index_kind, get_args(IndexKind))
        _among("llm", self.llm, (*LLMS, "custom"))
        _among("gpu", self.gpu, tuple(GPUS))
        if self.encoder is not None:
            _among("encoder", self.encoder, tuple(ENCODERS))
        self._check_llm()
        if self.index_dimensions is not None:
            if self.index_kind == "exact":
                raise ConfigError(
                    f"index_kind is exact and index_dimensions is {self.index_dimensions}: a scan reads whole keys; "
                    "leave index_dimensions out, or give index_kind hnsw"
                )
            if self.index_dimensions > self.keys:
                raise ConfigError(
                    f"index_dimensions is {self.index_dimensions}, but key_width is {self.keys}; give at most that"
                )

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; give {least} or more")

    def _check_llm(self) -> None:
        given = [name for name in _SHAPE if getattr(self, name) is not None]
        if self.llm == "custom" and len(given) < len(_SHAPE):
            missing = next(name for name in _SHAPE if name not in given)
            raise ConfigError(f"llm is custom, but {missing} is not given; give {', '.join(_SHAPE)}")
        if self.llm != "custom" and given:
            raise ConfigError(f"llm is {self.llm} and {given[0]} is given; give llm custom, or leave {given[0]} out")

    @property
    def llm_shape(self) -> LlmShape:
        """Of the LLM."""
        if self.llm != "custom":
            return LLMS[self.llm]
        assert self.llm_width and self.llm_layers and self.llm_kv_width and self.llm_parameters
        return LlmShape(
            width=self.llm_width,
            num_layers=self.llm_layers,
            kv_width=self.llm_kv_width,
            num_parameters=self.llm_parameters,
        )

    @property
    def llm_bytes(self) -> float:
        """Of the weights."""
        return self.llm_shape.num_parameters * BYTES_OF[self.llm_dtype]

    @property
    def encoder_shape(self) -> EncoderShape:
        """Of the encoder."""
        return ENCODERS[self.encoder or self._preset_encoder]

    @property
    def _preset_encoder(self) -> str:
        if self.llm == "custom":
            return "roberta-base"
        name = preset(self.llm).editor.encoder
        return _ENCODER_NAMES.get(name, name)

    @property
    def keys(self) -> int:
        """K."""
        return self.key_width or (4096 if self.llm == "custom" else preset(self.llm).editor.key_width)

    @property
    def virtual_tokens(self) -> int:
        """P."""
        return self.num_virtual_tokens or (3 if self.llm == "custom" else preset(self.llm).editor.num_virtual_tokens)

    @property
    def gpu_card(self) -> Gpu:
        """The GPU, with what was given in place of its data sheet."""
        card = GPUS[self.gpu]
        return Gpu(
            memory_gb=self.gpu_memory_gb or card.memory_gb,
            bandwidth_gb_s=self.gpu_bandwidth_gb_s or card.bandwidth_gb_s,
            tflops=self.gpu_tflops or card.tflops,
        )


def _among(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; give one of {', '.join(choices)}")
