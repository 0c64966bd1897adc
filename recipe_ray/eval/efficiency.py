"""What editing costs: seconds and memory, on the machine at hand."""

import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from recipe_ray.eval.cases import Ask
from recipe_ray.eval.protocol import Reader

SPEED_TOKENS = 24


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"


def measured_on(device: torch.device) -> dict[str, Any]:
    """Device, threads and versions, as a benchmark's JSON states them."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def clock(device: torch.device) -> float:
    """Seconds, once a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True, slots=True)
class Way:
    """How an LLM is asked: what reads, and what it reads for a prompt."""

    reader: Reader
    asks: Callable[[Sequence[str]], list[Ask]]


@dataclass(frozen=True, slots=True)
class Speed:
    """Median seconds to the first token, and median tokens a second after it; None where no question gave any."""

    ttft_s: float | None
    tokens_per_s: float | None


def reading_speeds(ways: Sequence[Way], prompts: Sequence[str]) -> list[Speed]:
    """How fast questions are answered that come one by one, retrieval included.

    The ways take turns question by question, so that what else the machine does meets them alike; the first question
    is asked once before, so that everything is warm.
    """
    first: list[list[float]] = [[] for _ in ways]
    pace: list[list[float]] = [[] for _ in ways]
    for number, prompt in enumerate([*prompts[:1], *prompts]):
        for way, first_s, per_s in zip(ways, first, pace, strict=True):
            seconds, tokens = [], []
            for max_new_tokens in (1, SPEED_TOKENS):
                begun = clock(way.reader.llm.device)
                (generation,) = way.reader.complete(way.asks([prompt]), max_new_tokens=max_new_tokens)
                seconds.append(clock(way.reader.llm.device) - begun)
                tokens.append(len(generation.token_ids))
            if number:
                first_s.append(seconds[0])
                if tokens[1] > 1 and seconds[1] > seconds[0]:
                    per_s.append((tokens[1] - 1) / (seconds[1] - seconds[0]))
    return [Speed(_median(first_s), _median(per_s)) for first_s, per_s in zip(first, pace, strict=True)]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def start_peak_memory(device: torch.device) -> None:
    """Begin a cell's account of GPU memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Of the GPU since `start_peak_memory`; of the process's resident memory since its start where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
