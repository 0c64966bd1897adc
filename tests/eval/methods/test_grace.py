"""GRACE's codebook changes as its Algorithm 1 says, and acts where a radius says and nowhere else."""

import dataclasses

import pytest
import torch
from memory_edits import EDITS, GRACE, OTHERS, llm_of, logits_of, small_world

from recipe_ray.errors import ConfigError
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.grace import PRESETS, Codebook, Grace

VALUE_D = torch.tensor([1.0, 2.0, 3.0])


def codebook(*inserted, initial_radius=1.0):
    book = Codebook(2, 3, torch.device("cpu"))
    for number, (key, target) in enumerate(inserted):
        fact = Edit(fact_id=f"f{number}", prompt="p", target=target)
        book.insert(torch.tensor(key), VALUE_D, fact, initial_radius)
    return book


def test_a_far_key_is_a_new_entry():
    book = codebook(([0.0, 0.0], "x"), ([2.1, 0.0], "y"))
    assert (book.labels, book.radii_E.tolist()) == (["x", "y"], [1.0, 1.0])


def test_a_near_key_of_the_same_label_widens_the_entry():
    book = codebook(([0.0, 0.0], "x"), ([1.5, 0.0], "x"))
    assert (len(book), book.radii_E.tolist(), book.members) == (1, [1.5], [{"f0", "f1"}])
    # One that is inside already widens nothing.
    assert codebook(([0.0, 0.0], "x"), ([0.5, 0.0], "x")).radii_E.tolist() == [1.0]


def test_a_near_key_of_another_label_splits_the_radius():
    book = codebook(([0.0, 0.0], "x"), ([1.5, 0.0], "y"))
    assert (book.labels, book.radii_E.tolist()) == (["x", "y"], [0.75, 0.75])
    assert book.lookup(torch.tensor([[0.7, 0.0], [0.8, 0.0], [0.0, 0.9]])).tolist() == [0, 1, -1]


def test_the_nearest_entry_answers_and_none_beyond_its_radius():
    book = codebook(([0.0, 0.0], "x"), ([10.0, 0.0], "y"))
    assert book.lookup(torch.tensor([[0.0, 1.0], [9.5, 0.0], [0.0, 1.01], [5.0, 0.0]])).tolist() == [0, 1, -1, -1]


def test_the_same_key_with_another_label_is_taken_over():
    book = codebook(([0.0, 0.0], "x"), ([0.0, 1e-5], "y"))
    assert (book.labels, book.members, book.radii_E.tolist()) == (["y"], [{"f1"}], [1.0])


def test_a_fact_edited_again_leaves_no_entry_behind():
    book = codebook(([0.0, 0.0], "x"), ([9.0, 0.0], "y"))
    book.insert(torch.tensor([0.0, 9.0]), VALUE_D, Edit(fact_id="f0", prompt="p", target="z"), 1.0)
    assert (book.labels, book.members, book.keys_EI.tolist()) == (
        ["y", "z"],
        [{"f1"}, {"f0"}],
        [[9.0, 0.0], [0.0, 9.0]],
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_outside_all_radii_the_llm_is_the_unedited_one_to_the_bit(family):
    llm = llm_of(family)
    prompts = [EDITS[0].prompt, *OTHERS]
    before = logits_of(llm, prompts)
    # In GPT-J the MLP stands beside attention: the first one's key is the last token alone, and all of these share it.
    made = Grace(llm, dataclasses.replace(GRACE, layer=1))
    made.apply(EDITS[1:])
    assert torch.equal(logits_of(llm, prompts), before)
    made.apply(EDITS[:1])
    after = logits_of(llm, prompts)
    assert torch.equal(after[1:], before[1:])
    assert not torch.equal(after[0], before[0])


def test_edits_at_once_are_what_they_are_one_by_one():
    llm = llm_of("llama")
    made = Grace(llm, dataclasses.replace(GRACE, num_steps=20, stop_loss=None))
    made.apply(EDITS)
    at_once = made.codebook
    made.undo()
    for edit in EDITS:
        made.apply([edit])
    one_by_one = made.codebook
    assert at_once.labels == one_by_one.labels
    assert torch.allclose(at_once.keys_EI, one_by_one.keys_EI, atol=1e-4)
    assert torch.allclose(at_once.values_ED, one_by_one.values_ED, atol=1e-2)


def test_a_widened_entry_answers_all_its_prompts():
    llm, edits, _ = small_world()
    edits = [dataclasses.replace(edit, target=edits[0].target) for edit in edits]
    made = Grace(llm, dataclasses.replace(PRESETS["testbed"], initial_radius=1e4))
    made.apply(edits)
    assert len(made.codebook) == 1
    assert made.reader.generate(made.asks([edit.prompt for edit in edits])) == [edits[0].target] * 3
    made.undo()


def test_state_is_keys_values_and_radii():
    llm = llm_of("llama")
    made = Grace(llm, GRACE)
    made.apply(EDITS)
    assert made.state_bytes() == len(EDITS) * 4 * (64 + 32 + 1)


def test_a_radius_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="initial_radius"):
        dataclasses.replace(PRESETS["testbed"], initial_radius=0.0)
