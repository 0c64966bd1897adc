"""Each loss equals a slow reference in NumPy, and what a mask hides changes nothing."""

import numpy as np
import pytest
import torch

from recipe_ray.model.losses import (
    answer_loss,
    locality_loss,
    neighbour_loss,
    sentinel_loss_related,
    sentinel_loss_unrelated,
)

NUM_ANSWER_TOKENS = (2, 4, 1)  # of three edits; right-aligned, as rows of an LLM are
VOCABULARY = 11


def log_softmax(logits):
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def answer_tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = max(NUM_ANSWER_TOKENS)
    logits_BAV, unedited_BAV = 3 * torch.randn(2, len(NUM_ANSWER_TOKENS), width, VOCABULARY, generator=generator)
    answers_BA = torch.randint(VOCABULARY, (len(NUM_ANSWER_TOKENS), width), generator=generator)
    mask_BA = torch.tensor([[0] * (width - num) + [1] * num for num in NUM_ANSWER_TOKENS])
    return logits_BAV, unedited_BAV, answers_BA, mask_BA


def places(mask_BA):
    return [tuple(place) for place in mask_BA.nonzero().tolist()]


def test_the_answer_loss_is_the_mean_surprise_of_answer_tokens():
    logits, _, answers, mask = answer_tensors()
    expected = np.mean([-log_softmax(logits[place].double().numpy())[answers[place]] for place in places(mask)])
    assert answer_loss(logits, answers, mask).item() == pytest.approx(expected, rel=1e-5)


def test_the_locality_loss_is_the_divergence_of_the_edited_from_the_unedited_llm():
    edited, unedited, _, mask = answer_tensors()
    terms = []
    for place in places(mask):
        log_edited = log_softmax(edited[place].double().numpy())
        log_unedited = log_softmax(unedited[place].double().numpy())
        terms.append(sum(np.exp(log_unedited) * (log_unedited - log_edited)))
    assert locality_loss(edited, unedited, mask).item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert locality_loss(edited, edited, mask).item() == pytest.approx(0, abs=1e-6)
    assert locality_loss(edited, unedited, mask).item() != pytest.approx(
        locality_loss(unedited, edited, mask).item(), rel=1e-2
    )


def test_positions_before_an_answer_change_neither_loss_nor_gradient():
    logits, unedited, answers, mask = answer_tensors()
    noise, noise_unedited, other_answers, _ = answer_tensors(seed=1)
    hidden = mask == 0
    dirty = torch.where(hidden[..., None], noise, logits).requires_grad_()
    dirty_unedited = torch.where(hidden[..., None], noise_unedited, unedited)
    dirty_answers = torch.where(hidden, other_answers, answers)
    assert torch.equal(answer_loss(dirty, dirty_answers, mask), answer_loss(logits, answers, mask))
    assert torch.equal(locality_loss(dirty, dirty_unedited, mask), locality_loss(logits, unedited, mask))
    (answer_loss(dirty, dirty_answers, mask) + locality_loss(dirty, dirty_unedited, mask)).backward()
    assert not dirty.grad[hidden].any()
    assert dirty.grad[~hidden].any()


def vectors():
    generator = torch.Generator().manual_seed(2)
    queries_BK, keys_FK = torch.randn(4, 6, generator=generator), torch.randn(5, 6, generator=generator)
    return queries_BK, keys_FK, torch.randn(6, generator=generator), torch.tensor([3, 0, 4, 0])


def mean_surprise(queries, right, negatives):
    """Mean of -log(exp(right) / (exp(right) + sum of exp(negatives))), inner products in float64."""
    total = 0.0
    for row, query in enumerate(queries.double().numpy()):
        wanted = np.exp(query @ right(row).double().numpy())
        others = sum(np.exp(query @ negative.double().numpy()) for negative in negatives(row))
        total -= np.log(wanted / (wanted + others))
    return total / len(queries)


def test_the_neighbour_loss_sets_the_own_key_against_the_others_and_the_sentinel():
    queries, keys, sentinel, own = vectors()
    expected = mean_surprise(
        queries,
        lambda row: keys[own[row]],
        lambda row: [*(key for fact, key in enumerate(keys) if fact != own[row]), sentinel],
    )
    assert neighbour_loss(queries, keys, sentinel, own).item() == pytest.approx(expected, rel=1e-5)


def test_an_unrelated_query_sets_the_sentinel_against_every_key():
    queries, keys, sentinel, _ = vectors()
    expected = mean_surprise(queries, lambda row: sentinel, lambda row: list(keys))
    assert sentinel_loss_unrelated(queries, keys, sentinel).item() == pytest.approx(expected, rel=1e-5)


def test_a_related_query_sets_the_sentinel_against_every_key_but_its_own():
    queries, keys, sentinel, own = vectors()
    expected = mean_surprise(
        queries, lambda row: sentinel, lambda row: [key for fact, key in enumerate(keys) if fact != own[row]]
    )
    assert sentinel_loss_related(queries, keys, sentinel, own).item() == pytest.approx(expected, rel=1e-5)


def test_the_own_key_gets_no_gradient_from_the_related_sentinel_term():
    queries, keys, sentinel, own = vectors()
    keys.requires_grad_()
    sentinel_loss_related(queries[:1], keys, sentinel, own[:1]).backward()
    assert keys.grad.isfinite().all()
    assert [bool(row.any()) for row in keys.grad] == [fact != own[0] for fact in range(len(keys))]
