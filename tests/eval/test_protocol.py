"""The numbers are those a person would count, by what the LLM really says."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_models import tiny_llm

from recipe_ray.errors import ConfigError
from recipe_ray.eval.cases import Ask, EvalCase
from recipe_ray.eval.editors import Unedited
from recipe_ray.eval.protocol import MAX_NEW_TOKENS, Reader, evaluate
from recipe_ray.model.llm import Generation

PROMPTS_NPD = np.zeros((4, 3, 32), np.float32)
CASES = [
    EvalCase(
        fact_id=name,
        statement=f"{name} is {target}",
        prompt=f"{name} is",
        target=target,
        generality_prompt=f"so {name} is",
        novel_prompt=f"hence {name} is",
        locality_prompt=f"not {name} is",
    )
    for name, target in (("a", "red"), ("b", "blue"), ("c", "green"), ("d", "grey"))
]


class ToyLlm:
    """Says what a table says, and keeps what it was asked."""

    def __init__(self, said):
        self.said = said
        self.asked = []

    def generate(self, prompts, prefixes, *, max_new_tokens, position, stop):
        assert (max_new_tokens, position, stop) == (MAX_NEW_TOKENS, "after_bos", ["."])
        asks = [(prompt, prefix is not None) for prompt, prefix in zip(prompts, prefixes, strict=True)]
        self.asked += asks
        return [
            Generation(text=text, token_ids=self.tokenize_answer(text), num_prompt_tokens=1, finish_reason="stop")
            for text in (self.said.get(ask, " unsaid") for ask in asks)
        ]

    def tokenize_answer(self, text):
        return [ord(char) for char in text]


class Scripted:
    """Applies fact 0 where the table says so."""

    def __init__(self, applied):
        self.applied = applied

    def asks(self, kind, num_edits):
        return [Ask(case.question(kind), fact=0 if case.fact_id in self.applied else -1) for case in CASES]


def toy_reader(said, accuracies=None):
    reader = Reader(ToyLlm(said), PROMPTS_NPD, "after_bos")
    table = accuracies or {}
    reader._token_accuracies = lambda pairs: [
        table.get((ask.text, "".join(map(chr, ids)).removeprefix(" ")), 0.0) for ask, ids in pairs
    ]
    return reader


def test_free_generation_counts_answers_that_are_the_target_and_nothing_but_the_target():
    said = {
        ("a is", True): " red",
        ("b is", False): "blue ",
        ("c is", False): " greenish",
        ("d is", False): " Grey",
        ("so a is", True): " red, red",
        ("hence a is", True): " red",
        ("not a is", True): " old",
        ("not a is", False): " old",
        ("not b is", False): " older",
    }
    metrics = evaluate(toy_reader(said), Scripted({"a"}), CASES, num_edits=4)["free"]
    assert metrics == {"reliability": 0.5, "generality": 0.0, "generality_novel": 0.25, "locality": 1.0}


def test_locality_compares_with_what_the_unedited_llm_says():
    said = {("not a is", False): " old", ("not a is", True): " new", ("not b is", True): " unsaid"}
    metrics = evaluate(toy_reader(said), Scripted({"a", "b"}), CASES, num_edits=4)["free"]
    assert metrics["locality"] == 0.75


def test_teacher_forcing_is_a_mean_over_cases_of_the_target_or_of_the_unedited_answer():
    accuracies = {("a is", "red"): 1.0, ("b is", "blue"): 0.5, ("not a is", "old"): 1.0, ("not a is", "new"): 0.0}
    said = {("not a is", False): " old", ("not a is", True): " new"}
    metrics = evaluate(toy_reader(said, accuracies), Scripted({"a"}), CASES, num_edits=4)["teacher_forced"]
    assert metrics == {"reliability": 0.375, "generality": 0.0, "generality_novel": 0.0, "locality": 0.25}


def test_a_question_is_asked_once_and_an_edited_one_is_another():
    reader = toy_reader({("a is", True): " red"})
    asks = [Ask("a is"), Ask("a is", fact=0), Ask("a is"), Ask("a is", fact=0)]
    assert reader.generate(asks) == ["unsaid", "red", "unsaid", "red"]
    assert reader.generate(asks[:1]) == ["unsaid"]
    assert sorted(reader.llm.asked) == [("a is", False), ("a is", True)]


@pytest.mark.parametrize("num_edits", [0, 3, 5, 8, -1])
def test_groups_that_do_not_come_out_even_are_refused(num_edits):
    with pytest.raises(ConfigError, match=f"4 cases cannot be taken in groups of {num_edits}; give a divisor"):
        evaluate(toy_reader({}), Scripted(set()), CASES, num_edits=num_edits)


def test_what_the_unedited_llm_says_is_what_it_is_held_to_token_by_token():
    """Whatever it says: words that no text gives back as the same tokens, or nothing but an end."""
    llm = tiny_llm()
    cases = [dataclasses.replace(case, locality_prompt=f"{case.prompt} {row}") for row, case in enumerate(CASES)]
    metrics = evaluate(Reader(llm, PROMPTS_NPD, "first"), Unedited(cases), cases, num_edits=4)
    assert metrics["free"]["locality"] == metrics["teacher_forced"]["locality"] == 1.0


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
