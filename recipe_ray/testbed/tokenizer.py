"""What the tokenizer of the testbed's models is trained on."""

import random

from transformers import PreTrainedTokenizerFast

from recipe_ray.pretraining.tokenizer import train_tokenizer
from recipe_ray.testbed.inventions import Inventor
from recipe_ray.testbed.world import World

VOCABULARY_SIZE = 2048
NUM_INVENTED_NAMES = 20_000


def world_tokenizer(world: World, *, seed: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train on phrasings, invented names and answers, not on the real subjects (but for a few that are answers too).

    A tokenizer that had seen the real subjects would give them pieces that no invented subject ever has, and an
    encoder trained on invented subjects could not tell the real ones apart.
    """
    rng = random.Random(seed)
    inventor = Inventor(world)
    phrasings = [phrasing.replace("{subject}", "") for relation in world.relations for phrasing in relation.trained]
    names = [" " + inventor.subject(rng).name for _ in range(NUM_INVENTED_NAMES)]
    answers = [
        f" {inventor.answer(relation, rng)}." for relation in world.relations for _ in range(NUM_INVENTED_NAMES // 8)
    ]
    texts = phrasings * 20 + names + answers
    return train_tokenizer(texts, vocabulary_size=VOCABULARY_SIZE, max_length=max_length)
