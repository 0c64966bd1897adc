"""The LLM is read as it really answers, whatever else is in the batch."""

import numpy as np
import pytest
import torch
from tiny_models import byte_tokenizer, tiny_llm

from recipe_ray.eval.cases import Ask
from recipe_ray.eval.protocol import MAX_NEW_TOKENS, Reader
from recipe_ray.model.llm import Generation

PROMPTS_NPD = np.zeros((4, 3, 32), np.float32)


class ToyLlm:
    """Says what a table says, and keeps what it was asked."""

    def __init__(self, said):
        self.said = said
        self.asked = []
        self.tokenizer = byte_tokenizer()
        self.device = torch.device("cpu")

    def generate_placed(self, placed, prefixes, *, max_new_tokens, stop):
        assert (max_new_tokens, stop, {one.start for one in placed}) == (MAX_NEW_TOKENS, ["."], {1})
        prompts = [self.tokenizer.decode(one.token_ids[1:]) for one in placed]
        asks = [(prompt, prefix is not None) for prompt, prefix in zip(prompts, prefixes, strict=True)]
        self.asked += asks
        return [
            Generation(text=text, token_ids=self.tokenize_answer(text), num_prompt_tokens=1, finish_reason="stop")
            for text in (self.said.get(ask, " unsaid") for ask in asks)
        ]

    def tokenize_answer(self, text):
        return [ord(char) for char in text]


def toy_reader(said):
    return Reader(ToyLlm(said), PROMPTS_NPD, "after_bos")


def test_a_question_is_asked_once_and_an_edited_one_is_another():
    reader = toy_reader({("a is", True): " red"})
    asks = [Ask("a is"), Ask("a is", fact=0), Ask("a is"), Ask("a is", fact=0)]
    assert reader.generate(asks) == ["unsaid", "red", "unsaid", "red"]
    assert reader.generate(asks[:1]) == ["unsaid"]
    assert sorted(reader.llm.asked) == [("a is", False), ("a is", True)]


def test_a_reader_that_forgets_asks_again():
    reader = toy_reader({("a is", False): " red"})
    assert reader.generate([Ask("a is")]) == ["red"]
    reader.llm.said[("a is", False)] = " blue"
    assert reader.generate([Ask("a is")]) == ["red"]
    reader.clear()
    assert reader.generate([Ask("a is")]) == ["blue"]


def slow_share(llm, text, answer_ids, prefix):
    """Share of the answer's tokens that are most likely after the right ones before them; one row, no batch."""
    ids = llm.tokenize(text)
    right = 0
    for place, token in enumerate(answer_ids):
        embeds = llm.embedding(torch.tensor([*ids, *answer_ids[:place]]))
        if prefix is not None:
            embeds = torch.cat([embeds[:1], torch.from_numpy(prefix), embeds[1:]])
        with torch.no_grad():
            right += int(llm.model(inputs_embeds=embeds[None]).logits[0, -1].argmax()) == token
    return right / len(answer_ids)


def ascii_llm():
    """A tiny LLM that says printable ASCII only, so that what it says is text that comes back as the same tokens."""
    llm = tiny_llm()
    kept = torch.tensor([text.isascii() and text.isprintable() for text in map(llm.tokenizer.decode, range(259))])
    kept[:3] = False
    with torch.no_grad():
        llm.model.lm_head.weight[~kept] = 0
    return llm


def test_token_accuracies_of_a_mixed_batch_are_those_of_single_rows():
    llm = ascii_llm()
    prompts = np.random.default_rng(0).standard_normal((4, 3, llm.width)).astype(np.float32)
    reader = Reader(llm, prompts, "after_bos")
    asks = [Ask("The capital of Ruritania is"), Ask("x", fact=2), Ask("Why is it", fact=0), Ask("In 1897")]
    prefixes = [None if ask.fact < 0 else prompts[ask.fact] for ask in asks]
    # What the LLM would say and something else, of different length.
    said = llm.generate([f"{ask.text} " for ask in asks], prefixes, max_new_tokens=3, position="after_bos")
    answers = reader.answer_ids([one.text + "~!~!~!"[: 2 * row] for row, one in enumerate(said)])
    shares = reader.token_accuracies(asks, answers)
    rows = zip(asks, answers, prefixes, strict=True)
    assert shares == pytest.approx([slow_share(llm, ask.text, answer, prefix) for ask, answer, prefix in rows])
    assert 0 < min(shares) < max(shares) <= 1


def test_an_answer_ends_before_its_first_full_stop():
    llm = ascii_llm()
    texts = [f"{number}: the capital of Ruritania is" for number in range(20)]
    free = [row.text for row in llm.generate(texts, [None] * 20, max_new_tokens=MAX_NEW_TOKENS)]
    assert any("." in text for text in free)
    said = Reader(llm, PROMPTS_NPD, "first").generate([Ask(text) for text in texts])
    assert said == [text.split(".")[0].strip() for text in free]
