"""R-ROME applies one patch a row, the retrieved one, and leaves every other row to the bit."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_models import tiny_llm

from recipe_ray.errors import EditorError
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.covariance import second_moments
from recipe_ray.eval.methods.layers import mlp_projection, weight_DI
from recipe_ray.eval.methods.r_rome import RROME, RROMEArgs
from recipe_ray.eval.methods.rome import ROME, ROMEArgs
from recipe_ray.eval.methods.values import ValueArgs
from recipe_ray.eval.protocol import plain_reader

EDITS = [
    Edit(fact_id="1", prompt="The capital of Ruritania is", target="Zenda", subject="Ruritania"),
    Edit(fact_id="2", prompt="Gold has the symbol", target="Xx", subject="Gold"),
]
PROMPTS = ["The capital of Ruritania is", "Why?", "Gold has the symbol", "The capital of old Ruritania is"]
TEXTS = ["Ruritania is a word of nine letters.", "Gold and x are words, too, and this goes on for a while."]
ROME_ARGS = ROMEArgs(layer=0, value=ValueArgs(num_steps=8, prefix_lengths=(3,), clamp_factor=20.0, weight_decay=0.0))
ARGS = RROMEArgs(rome=ROME_ARGS, threshold=0.6)


def encode(texts):
    """Counts of letters, which is enough to tell these prompts apart."""
    return np.array([[text.lower().count(chr(letter)) for letter in range(97, 123)] for text in texts], np.float32)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gptj"])
def llm(request):
    return tiny_llm(request.param)


@pytest.fixture(scope="module")
def moments(llm):
    return second_moments(llm, TEXTS, [0])


def test_rows_with_different_patches_give_together_what_each_gives_alone(llm, moments):
    method = RROME(llm, ARGS, moments=moments, encode=encode)
    method.apply(EDITS)
    asks = method.asks(PROMPTS)
    assert [ask.fact for ask in asks] == [0, -1, 1, 0]
    answers = method.reader.answer_ids(["Zenda", "Xx", "Xx", "Zenda"])
    together = method.reader.generate(asks), method.reader.token_accuracies(asks, answers)
    for row, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
        method.reader.clear()
        assert method.reader.generate([ask]) == [together[0][row]]
        assert method.reader.token_accuracies([ask], [answer]) == [together[1][row]]
    unedited = plain_reader(llm)
    plain = unedited.generate(method.asks(PROMPTS)[1:2])
    assert plain == together[0][1:2]
    assert together[0][0] != unedited.generate([dataclasses.replace(asks[0], fact=-1)])[0]


def test_a_patch_is_romes_edit_of_the_weights(llm, moments):
    """Logits through the patch equal those of the LLM that ROME edited."""
    rome, method = ROME(llm, ROME_ARGS, moments=moments), RROME(llm, ARGS, moments=moments, encode=encode)
    ids = torch.tensor([llm.tokenize(PROMPTS[0])])
    rome.apply(EDITS[:1])
    edited = llm.model(input_ids=ids).logits
    rome.undo()
    plain = llm.model(input_ids=ids).logits
    method.apply(EDITS[:1])
    with method.reader._patches.applied(mlp_projection(llm, 0), [0]):
        patched = llm.model(input_ids=ids).logits
    torch.testing.assert_close(patched, edited, atol=1e-3, rtol=1e-3)
    assert (edited - plain).abs().max() > 0.1


def test_an_unrelated_row_is_the_unedited_llm_to_the_bit_beside_patched_ones(llm, moments):
    method = RROME(llm, ARGS, moments=moments, encode=encode)
    method.apply(EDITS)
    rows = llm.pad([[*llm.tokenize(prompt), 5] for prompt in PROMPTS], [0] * len(PROMPTS), "first")
    with torch.inference_mode():
        plain = llm.answer_logits(rows, None, num_answer_tokens=1)
        with method.reader._patches.applied(mlp_projection(llm, 0), [0, -1, 1, 0]):
            patched = llm.answer_logits(rows, None, num_answer_tokens=1)
    assert torch.equal(patched[1], plain[1])
    assert not any(torch.equal(patched[row], plain[row]) for row in (0, 2, 3))


def test_the_weights_never_change_and_what_was_asked_before_undo_is_answered_after_it(llm, moments):
    before = weight_DI(mlp_projection(llm, 0)).clone()
    method = RROME(llm, ARGS, moments=moments, encode=encode)
    assert method.asks(PROMPTS[:1])[0].fact == -1
    method.apply(EDITS[1:])
    asks = method.asks(PROMPTS)
    expected = method.reader.generate(asks)
    width, inner = weight_DI(mlp_projection(llm, 0)).shape
    assert method.state_bytes() == 4 * (width + inner + 26)
    method.undo()
    method.apply(EDITS[:1])
    method.reader.clear()
    assert method.reader.generate(asks) == expected
    method.undo()
    assert method.state_bytes() == 0
    assert [ask.fact for ask in method.asks(PROMPTS)] == [-1] * len(PROMPTS)
    assert torch.equal(weight_DI(mlp_projection(llm, 0)), before)


def test_a_later_edit_of_a_fact_replaces_its_patch(llm, moments):
    method = RROME(llm, ARGS, moments=moments, encode=encode)
    method.apply(EDITS)
    method.apply([dataclasses.replace(EDITS[0], target="Hentzau")])
    found = method.retrieve(PROMPTS)
    assert found.fact_ids_B[0] == "1"
    assert found.applied_B.tolist() == [True, False, True, True]
    assert [ask.fact for ask in method.asks(PROMPTS)] == [2, -1, 1, 2]


def test_an_edit_without_subject_is_refused_and_no_patch_is_kept(llm, moments):
    method = RROME(llm, ARGS, moments=moments, encode=encode)
    with pytest.raises(EditorError, match="subject"):
        method.apply([EDITS[0], dataclasses.replace(EDITS[1], subject="")])
    assert method.state_bytes() == 0
