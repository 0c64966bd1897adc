"""Pretrain the testbed's LM and its tokenizer, in cycles of the learning rate.

    python -m recipe_ray.testbed.pretrain_lm --output FIRST
    python -m recipe_ray.testbed.pretrain_lm --output LM --continue-from FIRST --steps 800 --learning-rate 2e-3

Each cycle is about half an hour on 2 cores, and each goes on from the one before; docs/testbed.md tells those that made
what ships in `weights/llm`. Run this only to make another.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from recipe_ray.config import TESTBED
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.pretraining.lm import END, LMShape, Sentence, new_lm, share_answered, train_lm
from recipe_ray.testbed.corpus import Corpus
from recipe_ray.testbed.tokenizer import world_tokenizer
from recipe_ray.testbed.wording import phrase
from recipe_ray.testbed.world import World, WorldEdit, counterfactual_edits, load_world

SEED = 20261
SHAPE = LMShape(hidden_size=128)
# Recall comes first: with many context documents from the start it hardly comes at all.
CONTEXT_SHARE_FIRST, CONTEXT_SHARE_LATER = 0.2, 0.55
FIRST_SHARE = 0.3  # of the steps


def recall(llm: FrozenLLM, world: World, *, phrasing: int) -> float:
    """Share of the world's facts that the LM completes exactly, in free generation, in one phrasing."""
    return share_answered(llm, [(fact.prompt(phrasing), fact.answer) for fact in world.facts])


def context_following(llm: FrozenLLM, edits: tuple[WorldEdit, ...]) -> float:
    """Share of counterfactual statements that the LM, reading one, repeats in other trained words."""
    rng = random.Random(SEED)
    asked = []
    for edit in edits:
        stated, used = rng.sample(edit.fact.relation.trained, 2)
        statement = f"{phrase(stated, edit.fact.subject)} {edit.target}{END}"
        asked.append((f"{statement} {phrase(used, edit.fact.subject)}", edit.target))
    return share_answered(llm, asked)


def measure(llm: FrozenLLM, world: World, edits: tuple[WorldEdit, ...]) -> dict[str, float]:
    """Recall in the first two trained phrasings and in the last of the two novel ones, and context following."""
    return {
        "recall": recall(llm, world, phrasing=0),
        "recall_rephrased": recall(llm, world, phrasing=1),
        "recall_novel": recall(llm, world, phrasing=-1),
        "context_following": context_following(llm, edits),
    }


def pretrain(output: Path, *, continue_from: Path | None, steps: int, learning_rate: float) -> dict[str, float]:
    """Train, save in bfloat16 and measure what was saved."""
    seed = SEED if continue_from is None else SEED + steps  # a second cycle reads other documents
    torch.manual_seed(seed)
    world = load_world()
    edits = counterfactual_edits(world)
    if continue_from is None:
        tokenizer = world_tokenizer(world, seed=SEED, max_length=SHAPE.max_length)
        model = new_lm(tokenizer, SHAPE)
        num_first = round(FIRST_SHARE * steps)
    else:
        tokenizer = AutoTokenizer.from_pretrained(continue_from)
        model = LlamaForCausalLM.from_pretrained(continue_from, dtype=torch.float32)
        num_first = 0
    corpus = Corpus(world, edits)

    def documents(step: int) -> Iterator[list[Sentence]]:
        share = CONTEXT_SHARE_FIRST if step < num_first else CONTEXT_SHARE_LATER
        return corpus.documents(f"{seed}/{step}", context_share=share)

    seconds = train_lm(
        model, tokenizer, documents, SHAPE, output=output, steps=steps, learning_rate=learning_rate, seed=seed
    )
    measured = measure(FrozenLLM(model.bfloat16().float(), tokenizer, name=TESTBED), world, edits)
    measured |= {"parameters": model.num_parameters(), "steps": steps, "seconds": round(seconds)}
    (output / "pretraining.json").write_text(json.dumps({"seed": seed, **measured}, indent=2) + "\n")
    return measured


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--continue-from", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    args = parser.parse_args()
    print(pretrain(**vars(args)))


if __name__ == "__main__":
    main()
