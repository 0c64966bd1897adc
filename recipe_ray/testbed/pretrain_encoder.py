r"""Pretrain the testbed's encoder, in two cycles of the learning rate.

    python -m recipe_ray.testbed.pretrain_encoder --llm LM --output FIRST
    python -m recipe_ray.testbed.pretrain_encoder --llm LM --output ENCODER --continue-from FIRST \
        --steps 1000 --learning-rate 1.2e-3

As RoBERTa is to a real LLM, so is this to the testbed's: a small bidirectional encoder that knows the language, not the
facts: it learns over invented subjects without end.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe_ray.model.encoder import load_encoder
from recipe_ray.pretraining.encoder import POOLING, new_encoder, train_encoder
from recipe_ray.testbed.edits import EditStream
from recipe_ray.testbed.world import load_world

SEED = 20262
HIDDEN_WIDTH = 192
MAX_LENGTH = 128
EDITS_PER_STEP = 96
NUM_TUNING = 8 * EDITS_PER_STEP


def pretrain(
    llm: Path, output: Path, *, continue_from: Path | None, steps: int, learning_rate: float
) -> dict[str, float]:
    """Train, save in bfloat16 and measure what was saved."""
    seed = SEED if continue_from is None else SEED + steps  # a second cycle reads other edits
    torch.manual_seed(seed)
    world = load_world()
    lm = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    lm_embeddings = lm.get_input_embeddings().weight.detach()
    if continue_from is None:
        encoder = new_encoder(
            AutoTokenizer.from_pretrained(llm),
            lm_embeddings,
            hidden_size=HIDDEN_WIDTH,
            num_heads=6,
            max_length=MAX_LENGTH,
        )
    else:
        encoder = load_encoder(str(continue_from), POOLING)
    measured = train_encoder(
        encoder,
        lm_embeddings,
        EditStream(world, batch_size=EDITS_PER_STEP, seed=f"{seed}/training").batch,
        EditStream(world, batch_size=NUM_TUNING, seed=f"{SEED}/tuning").batch(0),
        output=output,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
    )
    (output / "pretraining.json").write_text(json.dumps({"seed": seed, **measured}, indent=2) + "\n")
    return measured


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--continue-from", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    args = parser.parse_args()
    print(pretrain(**vars(args)))


if __name__ == "__main__":
    main()
