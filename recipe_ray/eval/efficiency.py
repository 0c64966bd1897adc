"""What editing costs: seconds and memory, on the machine at hand."""

import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from recipe_ray.eval.cases import Ask
from recipe_ray.eval.protocol import Reader

SPEED_TOKENS = 24


def clock(device: torch.device) -> float:
    """Seconds, once a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reading_speed(
    reader: Reader, asks: Callable[[Sequence[str]], list[Ask]], prompts: Sequence[str]
) -> tuple[float | None, float | None]:
    """Median seconds to the first token, and median tokens a second after it, of questions asked one by one.

    Retrieval counts; the first question is asked once before, so that everything is warm. None where there is no
    question, or no answer goes on after its first token.
    """
    first, pace = [], []
    for number, prompt in enumerate([*prompts[:1], *prompts]):
        seconds, tokens = [], []
        for max_new_tokens in (1, SPEED_TOKENS):
            begun = clock(reader.llm.device)
            (generation,) = reader.complete(asks([prompt]), max_new_tokens=max_new_tokens)
            seconds.append(clock(reader.llm.device) - begun)
            tokens.append(len(generation.token_ids))
        if number:
            first.append(seconds[0])
            if tokens[1] > 1 and seconds[1] > seconds[0]:
                pace.append((tokens[1] - 1) / (seconds[1] - seconds[0]))
    return (statistics.median(first) if first else None, statistics.median(pace) if pace else None)


def start_peak_memory(device: torch.device) -> None:
    """Begin a cell's account of GPU memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Of the GPU since `start_peak_memory`; of the process's resident memory since its start where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
