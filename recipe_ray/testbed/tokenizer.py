"""The BPE tokenizer that the testbed's LM and encoder share."""

import random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from recipe_ray.testbed.inventions import Inventor
from recipe_ray.testbed.world import World

VOCABULARY_SIZE = 2048
NUM_INVENTED_NAMES = 20_000
BOS, EOS, PAD, MASK = "<s>", "</s>", "<pad>", "<mask>"


def train_tokenizer(world: World, *, seed: int, max_length: int) -> PreTrainedTokenizerFast:
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
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BOS, EOS, MASK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(phrasings * 20 + names + answers, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        mask_token=MASK,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
