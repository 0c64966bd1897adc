"""How many GPUs the LLM takes: a roofline over weights, keys and values, and FLOP/s. Nothing here was measured."""

import math
from dataclasses import dataclass

from recipe_ray.capacity import constants as c
from recipe_ray.capacity.config import CapacityConfig
from recipe_ray.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """Replicas of the LLM.

    Attributes:
        gpus_per_engine: over which one replica is spread.
        batch_size: prompts in step.
        requests_per_s: of one replica, fully busy.
        answer_s: seconds of an answer in a full batch, retrieval included.
        memory_per_gpu: bytes of weights, keys and values in a full batch.
        num_engines: replicas.
        total_cpus: a core for each.
    """

    gpus_per_engine: int
    batch_size: int
    requests_per_s: float
    answer_s: float
    memory_per_gpu: float
    num_engines: int
    total_cpus: int

    @property
    def total_gpus(self) -> int:
        """All of them."""
        return self.gpus_per_engine * self.num_engines


def plan_engines(config: CapacityConfig, *, retrieval_s: float) -> EnginePlan:
    """Take the fewest GPUs an engine that hold the LLM and answer in time, and the largest batch that does.

    Raises:
        ConfigError: no engine holds the LLM, or none is fast enough.
    """
    reasons = []
    num_gpus = 1
    while num_gpus <= c.MAX_TENSOR_PARALLEL:
        engine = _Engine(config, num_gpus)
        most = min(engine.most_prompts, config.max_batch_size)
        if most < 1:
            reasons.append(
                f"llm needs {(config.llm_bytes + engine.prompt_bytes) / c.GB:.0f} GB for its weights and one request, "
                f"and {num_gpus} GPUs have {engine.memory / c.GB:.0f}; give a larger gpu, fewer tokens, or llm_dtype "
                "int8"
            )
        else:
            batch = max(
                (size for size in range(1, most + 1) if engine.cycle_s(size) + retrieval_s <= config.latency_s),
                default=0,
            )
            if batch:
                return _plan(config, engine, batch, retrieval_s)
            reasons.append(
                f"latency_s is {config.latency_s:g}, but an answer of {config.answer_tokens} tokens takes "
                f"{engine.cycle_s(1) + retrieval_s:.3g} alone on {num_gpus} GPUs; give latency_s above that, fewer "
                "answer_tokens, or a faster gpu"
            )
        num_gpus *= 2
    raise ConfigError(reasons[-1])


def _plan(config: CapacityConfig, engine: "_Engine", batch: int, retrieval_s: float) -> EnginePlan:
    cycle_s = engine.cycle_s(batch)
    rate = batch / cycle_s
    num_engines = max(config.replicas, math.ceil(config.requests_per_s / (rate * config.utilisation)))
    return EnginePlan(
        gpus_per_engine=engine.num_gpus,
        batch_size=batch,
        requests_per_s=rate,
        answer_s=cycle_s + retrieval_s,
        memory_per_gpu=(config.llm_bytes + batch * engine.prompt_bytes) / engine.num_gpus,
        num_engines=num_engines,
        total_cpus=num_engines,
    )


class _Engine:
    """One LLM over some GPUs."""

    def __init__(self, config: CapacityConfig, num_gpus: int) -> None:
        card, shape = config.gpu_card, config.llm_shape
        faster = num_gpus * (c.TENSOR_PARALLEL_SHARE if num_gpus > 1 else 1.0)
        wide = config.llm_dtype == "float32"
        self.num_gpus = num_gpus
        self.memory = num_gpus * card.memory_gb * c.GB * c.GPU_MEMORY_SHARE
        self._bytes_per_s = card.bandwidth_gb_s * c.GB * c.GPU_BANDWIDTH_SHARE * faster
        self._flops = card.tflops * 1e12 * c.GPU_FLOPS_SHARE * faster / (2 if wide else 1)
        self._token_flops = 2 * shape.num_parameters
        # Several GPUs an engine are vLLM's affair, which replays a step's kernels as one graph.
        self._launch_s = shape.num_layers * c.LAYER_STEP_S if num_gpus == 1 else 0.0
        self._weight_bytes = config.llm_bytes
        self._read = config.prompt_tokens + config.virtual_tokens
        self._written = config.answer_tokens
        self.prompt_bytes = (self._read + self._written) * 2 * shape.num_layers * shape.kv_width * (4 if wide else 2)

    @property
    def most_prompts(self) -> int:
        """Whose keys and values fit beside the weights."""
        return math.floor((self.memory - self._weight_bytes) / self.prompt_bytes)

    def cycle_s(self, batch: int) -> float:
        """Seconds to read in and answer a full batch: prompts read by FLOP/s, each token by what is slower."""
        reading = max(batch * self._read * self._token_flops / self._flops, self._weight_bytes / self._bytes_per_s)
        step = max(
            (self._weight_bytes + batch * self.prompt_bytes) / self._bytes_per_s,
            batch * self._token_flops / self._flops,
            self._launch_s,
        )
        return (reading + self._written * step) / c.ENGINE_RATIO
