r"""Pretrain a small text encoder on data sets of edits, for an LM of `pretrain_lm`: a stand-in without a hub.

    python -m recipe_ray.datasets.pretrain_encoder --llm LM --output ENCODER \
        --train counterfact:counterfact-train.json.gz

A twentieth of the subjects is set aside to measure on. The same command goes on where it was interrupted.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe_ray.config import DataConfig
from recipe_ray.datasets.sources import read_edit_data
from recipe_ray.pretraining.encoder import new_encoder, train_encoder

SEED = 20264
HIDDEN_WIDTH = 256
MAX_LENGTH = 256
EDITS_PER_STEP = 96
HARD_NEGATIVES = 0.3
SWAPPED_TARGETS = 0.5


def pretrain(llm: Path, output: Path, *, train: Sequence[str], steps: int, learning_rate: float) -> dict[str, float]:
    """Train, save in bfloat16 and measure what was saved."""
    torch.manual_seed(SEED)
    data = read_edit_data(
        DataConfig(sources=tuple(train), hard_negatives=HARD_NEGATIVES, swapped_targets=SWAPPED_TARGETS)
    )
    print(data, flush=True)
    lm = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    lm_embeddings = lm.get_input_embeddings().weight.detach()
    tokenizer = AutoTokenizer.from_pretrained(llm)
    encoder = new_encoder(tokenizer, lm_embeddings, hidden_size=HIDDEN_WIDTH, num_heads=8, max_length=MAX_LENGTH)
    tuning = data.tuning(sum(map(len, data.tuning_edits)), "tuning").batch(0)
    measured = train_encoder(
        encoder,
        lm_embeddings,
        data.training(EDITS_PER_STEP, f"{SEED}/training").batch,
        tuning,
        output=output,
        steps=steps,
        learning_rate=learning_rate,
        seed=SEED,
    )
    (output / "pretraining.json").write_text(json.dumps({"num_tuning": len(tuning), **measured}, indent=2) + "\n")
    return measured


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", type=Path, required=True)
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()
    print(json.dumps(pretrain(**vars(args))))


if __name__ == "__main__":
    main()
