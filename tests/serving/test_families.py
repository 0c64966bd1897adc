"""Rows of a continuous batch give what each gives alone, in every family of LLMs that is served."""

import numpy as np
import pytest
import torch
from tiny_models import CONTEXT, FAMILIES, LLM_WIDTH, VOCABULARY, byte_tokenizer, tiny_llm
from transformers import MistralConfig, MistralForCausalLM

from recipe_ray.model.chat import place_text
from recipe_ray.model.decoding import Decoder, Job
from recipe_ray.model.llm import FrozenLLM

PROMPTS = [
    "The capital of Ruritania is",
    "Why?",
    "In 1897",
    "x",
    "A rather longer prompt than all of the others that are in this list",
    "The river",
]
NUM_VIRTUAL = (3, 0, 6, 3, 0, 3)  # several facts of three virtual tokens beside one and none
NUM_NEW = (6, 30, 9, 1, 14, 22)
POSITIONS = ("first", "after_bos", "last")


def virtual_tokens(llm, counts=NUM_VIRTUAL, seed=7):
    """Of the size of the LLM's own embeddings."""
    scale = llm.embedding(torch.arange(VOCABULARY)).std().item()
    rng = np.random.default_rng(seed)
    return [scale * rng.standard_normal((num, LLM_WIDTH)).astype(np.float32) if num else None for num in counts]


def alone(llm, position):
    return [
        llm.generate([prompt], [virtual], max_new_tokens=num_new, position=position)[0].token_ids
        for prompt, virtual, num_new in zip(PROMPTS, virtual_tokens(llm), NUM_NEW, strict=True)
    ]


def decode(llm, decoder, *, arrivals, position="first"):
    """Tokens of every row; row i is added before step `arrivals[i]`."""
    virtual, rows = virtual_tokens(llm), {}
    number, ended = 0, set()
    while len(ended) < len(PROMPTS):
        for place, when in enumerate(arrivals):
            if when == number:
                placed = place_text(llm.tokenizer, PROMPTS[place], position)
                job = Job(
                    prompt_ids=placed.token_ids,
                    start=placed.start,
                    virtual_PD=virtual[place],
                    max_new_tokens=NUM_NEW[place],
                )
                rows[place] = decoder.add(job)
        ended |= {piece.row for piece in decoder.step() if piece.finish is not None}
        number += 1
        assert number < 300
    assert not decoder.busy
    return [rows[place].new for place in range(len(PROMPTS))]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_decode_as_alone_whenever_they_join(family, position):
    llm = tiny_llm(family)
    expected = alone(llm, position)
    for arrivals in ((0,) * 6, (0, 3, 5, 6, 11, 13), (9, 0, 0, 2, 4, 7)):
        assert decode(llm, Decoder(llm), arrivals=arrivals, position=position) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_few_slots_nor_prompts_in_parts_change_a_row(family):
    llm = tiny_llm(family)
    expected = alone(llm, "first")
    assert decode(llm, Decoder(llm, max_rows=2, prefill_tokens=16), arrivals=(0,) * 6) == expected
    assert decode(llm, Decoder(llm, max_cached_tokens=120), arrivals=(0, 1, 2, 3, 4, 5)) == expected


def test_the_slots_are_laid_anew_without_a_trace():
    """More tokens go by than a buffer has columns, with a row that stays and rows that come and go."""
    llm = tiny_llm("llama")
    prompts = [f"{number}: {'ab' * (number % 7)}" for number in range(24)]
    (long,) = llm.generate(["Tell me"], [None], max_new_tokens=110)
    expected = [llm.generate([prompt], [None], max_new_tokens=5)[0].token_ids for prompt in prompts]
    decoder = Decoder(llm, max_rows=3)
    stays = decoder.add(Job(prompt_ids=llm.tokenize("Tell me"), max_new_tokens=110))
    rows = [decoder.add(Job(prompt_ids=llm.tokenize(prompt), max_new_tokens=5)) for prompt in prompts]
    while decoder.busy:
        decoder.step()
    assert stays.new == long.token_ids
    assert [row.new for row in rows] == expected


def test_a_sliding_window_is_kept_by_the_mask():
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=LLM_WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
        sliding_window=8,
        eos_token_id=2,
    )
    llm = FrozenLLM(MistralForCausalLM(config), byte_tokenizer(), name="tiny-window")
    unlimited = alone(tiny_llm("mistral"), "first")
    expected = alone(llm, "first")
    assert expected != unlimited
    assert decode(llm, Decoder(llm), arrivals=(0, 3, 5, 6, 11, 13)) == expected
