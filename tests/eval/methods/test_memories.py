"""What holds for editors that keep edits beside a frozen LLM: GRACE, T-Patcher and WISE alike."""

import dataclasses

import numpy as np
import pytest
import torch
from memory_edits import EDITS, FAMILIES, GRACE, OTHERS, T_PATCHER, TRAINING, WISE, llm_of, logits_of, small_world

from recipe_ray.eval.methods import grace, t_patcher, wise
from recipe_ray.eval.methods.answers import answer_ids
from recipe_ray.eval.protocol import plain_reader

METHODS = {
    "grace": lambda llm: grace.Grace(llm, GRACE),
    "t_patcher": lambda llm: t_patcher.TPatcher(llm, T_PATCHER, training=TRAINING),
    "wise": lambda llm: wise.Wise(llm, WISE, training=TRAINING),
}


def num_hooks(llm):
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in llm.model.modules())


TESTBED_METHODS = {
    "grace": lambda llm, records: grace.Grace(llm, grace.PRESETS["testbed"]),
    "t_patcher": lambda llm, records: t_patcher.TPatcher(llm, t_patcher.PRESETS["testbed"], training=records),
    "wise": lambda llm, records: wise.Wise(llm, wise.PRESETS["testbed"], training=records),
}


def target_losses(made):
    """-log f(target | prompt) of each edit as the reader sees the LLM, in nats a token."""
    answers = [tuple(answer_ids(made.llm, edit.target)) for edit in EDITS]
    logits = made.reader.answer_logits(made.asks([edit.prompt for edit in EDITS]), answers)
    return np.array(
        [
            torch.nn.functional.cross_entropy(row[-len(ids) :], torch.tensor(ids)).item()
            for row, ids in zip(logits, answers, strict=True)
        ]
    )


@pytest.mark.parametrize("method", METHODS)
def test_edited_prompts_give_their_targets_exactly(method):
    llm, edits, records = small_world()
    made = TESTBED_METHODS[method](llm, records)
    asks, targets = made.asks([edit.prompt for edit in edits]), [edit.target for edit in edits]
    assert not set(targets) & set(made.reader.generate(asks))
    made.apply(edits)
    assert made.reader.generate(asks) == targets
    assert made.reader.token_accuracies(asks, made.reader.answer_ids(targets)) == [1.0] * len(edits)
    # The last edit again, in a call of its own, with the target of the first: the later counts.
    made.apply([dataclasses.replace(edits[-1], target=targets[0])])
    assert made.reader.generate(asks[-1:]) == targets[:1]
    made.undo()


@pytest.mark.parametrize("method", METHODS)
def test_of_two_edits_of_a_fact_in_one_call_the_later_counts(method):
    llm, edits, records = small_world()
    made = TESTBED_METHODS[method](llm, records)
    made.apply([dataclasses.replace(edits[0], target=edits[1].target), edits[0]])
    assert made.reader.generate(made.asks([edits[0].prompt])) == [edits[0].target]
    made.undo()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_edits_act_in_every_family_and_are_undone_to_the_bit(method, family):
    llm = llm_of(family)
    made = METHODS[method](llm)
    weights = {name: value.clone() for name, value in llm.model.state_dict().items()}
    prompts = [edit.prompt for edit in EDITS] + OTHERS
    before, hooks, losses = logits_of(llm, prompts), num_hooks(llm), target_losses(made)
    unedited = plain_reader(llm).generate(made.asks(prompts))
    assert made.reader.generate(made.asks(prompts)) == unedited
    made.apply(EDITS)
    # Random weights are not steered to a target in so few steps, but each comes nearer by more than a nat a token.
    assert (target_losses(made) < losses - 1).all()
    assert made.reader.generate(made.asks(prompts)) != unedited
    assert made.state_bytes() > 0

    made.undo()
    assert made.reader.generate(made.asks(prompts)) == unedited
    assert torch.equal(logits_of(llm, prompts), before)
    assert all(torch.equal(value, weights[name]) for name, value in llm.model.state_dict().items())
    assert not any(one.requires_grad for one in llm.model.parameters())
    assert (num_hooks(llm), made.state_bytes()) == (hooks, 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_neither_batch_nor_cache_changes_an_answer(method, family):
    llm = llm_of(family)
    made = METHODS[method](llm)
    made.apply(EDITS)
    asks = made.asks([edit.prompt for edit in EDITS] + OTHERS)
    together, ids = made.reader.generate(asks), made.reader.generated_ids(asks)
    # What was generated token by token is what one pass over prompt and answer finds most likely.
    assert made.reader.token_accuracies(asks, ids) == [1.0] * len(asks)
    for ask, text, answer in zip(asks, together, ids, strict=True):
        made.reader.clear()
        assert made.reader.generate([ask]) == [text]
        assert made.reader.token_accuracies([ask], [answer]) == [1.0]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_edits_give_the_same_again(method):
    llm = llm_of("llama")
    made = METHODS[method](llm)
    outcomes = []
    for _ in range(2):
        made.apply(EDITS[:2])
        outcomes.append(logits_of(llm, [EDITS[0].prompt, *OTHERS]))
        made.undo()
    assert torch.equal(*outcomes)
