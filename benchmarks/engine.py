r"""What a fact costs where it is applied: time to first token and tokens a second, edited against unedited.

    python benchmarks/engine.py --llm testbed                                       # on a CPU
    python benchmarks/engine.py --config llama-2-7b --device cuda                   # of random weights, bfloat16

The continuous batch of the transformers engine answers the same prompts with three virtual tokens each and without, in
turn and in changing order. Needs torch and transformers alone. The last line is one JSON object; `ratio` is the
smallest, over batch sizes and both figures, of the unedited time over the edited one, each the median of its rounds.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from recipe_ray.eval.efficiency import measured_on
from recipe_ray.model.decoding import Decoder, Job
from recipe_ray.model.hub import pick_device
from recipe_ray.model.llm import load_llm
from recipe_ray.model.shapes import LLAMA_2_7B, random_llm

NUM_VIRTUAL = 3  # of the paper


@dataclass
class Rounds:
    """Seconds of each round: until a row's first token, mean over the rows; until the last token of all."""

    first_s: list[float] = field(default_factory=list)
    all_s: list[float] = field(default_factory=list)


def answer(
    decoder: Decoder, prompts: list[list[int]], virtual_PD: npt.NDArray[np.float32] | None, num_new: int
) -> tuple[float, float]:
    """Complete prompts together; seconds until a row's first token, on average, and until all is done."""
    begun = time.perf_counter()
    rows = [
        decoder.add(Job(prompt_ids=ids, virtual_PD=virtual_PD, max_new_tokens=num_new, stream=True)) for ids in prompts
    ]
    first_s: dict[int, float] = {}
    while decoder.busy:
        for piece in decoder.step():  # tokens are on the CPU by then, so the GPU is done
            first_s.setdefault(id(piece.row), time.perf_counter() - begun)
    end = time.perf_counter()
    assert all(len(row.new) == num_new for row in rows)
    return statistics.mean(first_s.values()), end - begun


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--llm", help="Hugging Face id, path or short name")
    which.add_argument("--config", choices=["llama-2-7b"], help="random weights of that shape")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    device = pick_device(args.device)
    llm = load_llm(args.llm, str(device)) if args.llm else random_llm(LLAMA_2_7B, device)
    llm.eos_token_ids = []  # every answer has the same length
    random = np.random.default_rng(0)
    vocabulary = int(llm.model.config.get_text_config().vocab_size)
    scale = llm.embedding(torch.arange(vocabulary, device=device)[:1000]).float().std().item()
    virtual_PD = (scale * random.standard_normal((NUM_VIRTUAL, llm.width))).astype(np.float32)

    cells = []
    for batch_size in args.batch_sizes:
        decoder = Decoder(llm, max_rows=batch_size)
        prompts = random.integers(4, vocabulary, (batch_size, args.prompt_tokens)).tolist()
        edited, unedited = Rounds(), Rounds()
        for number in range(args.rounds + 1):
            pair = [(edited, virtual_PD), (unedited, None)]
            for rounds, virtual in pair if number % 2 else reversed(pair):
                first_s, all_s = answer(decoder, prompts, virtual, args.new_tokens)
                if number:  # the first warms up
                    rounds.first_s.append(first_s)
                    rounds.all_s.append(all_s)
        cells.append(cell(batch_size, args.new_tokens, edited, unedited))
    result = {
        "ratio": min(min(one["first_token_ratio"], one["tokens_ratio"]) for one in cells),
        "cells": cells,
        "llm": llm.name,
        "dtype": str(llm.model.dtype).removeprefix("torch."),
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
        "virtual_tokens": NUM_VIRTUAL,
        "rounds": args.rounds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        **measured_on(device),
    }
    print(json.dumps(result))


def cell(batch_size: int, num_new: int, edited: Rounds, unedited: Rounds) -> dict[str, float]:
    """Figures of one batch size."""
    first = {name: statistics.median(rounds.first_s) for name, rounds in (("edited", edited), ("unedited", unedited))}
    whole = {name: statistics.median(rounds.all_s) for name, rounds in (("edited", edited), ("unedited", unedited))}
    return {
        "batch_size": batch_size,
        "first_token_ratio": first["unedited"] / first["edited"],
        "tokens_ratio": whole["unedited"] / whole["edited"],
        "first_token_s": first["edited"],
        "unedited_first_token_s": first["unedited"],
        "tokens_per_s": batch_size * num_new / whole["edited"],
        "unedited_tokens_per_s": batch_size * num_new / whole["unedited"],
    }


if __name__ == "__main__":
    main()
