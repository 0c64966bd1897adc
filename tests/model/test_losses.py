"""Each loss equals a slow reference in NumPy."""

import numpy as np
import pytest
import torch

from recipe_ray.model.losses import (
    answer_nll,
    locality_kl,
    neighbour_nll,
    sentinel_nll_related,
    sentinel_nll_unrelated,
    similarities,
)

NUM_ANSWER_TOKENS = 7  # of all edits, one behind another
VOCABULARY = 11


def log_softmax(logits):
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def answer_tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits_AV, unedited_AV = 3 * torch.randn(2, NUM_ANSWER_TOKENS, VOCABULARY, generator=generator)
    return logits_AV, unedited_AV, torch.randint(VOCABULARY, (NUM_ANSWER_TOKENS,), generator=generator)


def test_the_answer_loss_is_the_surprise_of_each_answer_token():
    logits, _, answers = answer_tensors()
    nll = answer_nll(logits, answers)
    for place in range(NUM_ANSWER_TOKENS):
        expected = -log_softmax(logits[place].double().numpy())[answers[place]]
        assert nll[place].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("margin", [1.0, 1.2, 5.0])
def test_a_margin_drops_what_exceeds_the_second_best_by_that_factor_and_nothing_else(margin):
    logits, _, answers = answer_tensors()
    logits[4, answers[4]] = logits[4].max() + 1  # e times the second best, which was the best
    logits[1, answers[1]] = logits[1].max() + 0.1
    logits[3, answers[3]] = logits[3].max() + 3
    kept, dropped = answer_nll(logits, answers), answer_nll(logits, answers, margin=margin)
    seen = set()
    for place in range(NUM_ANSWER_TOKENS):
        chances = np.exp(log_softmax(logits[place].double().numpy()))
        right = chances[answers[place]]
        won = right > margin * np.delete(chances, answers[place]).max()
        assert dropped[place].item() == pytest.approx(0 if won else kept[place].item())
        seen.add(bool(won))
    assert seen == {False, True}


def test_the_locality_loss_is_the_divergence_of_the_edited_from_the_unedited_llm():
    edited, unedited, _ = answer_tensors()
    kl = locality_kl(edited, unedited)
    for place in range(NUM_ANSWER_TOKENS):
        log_edited = log_softmax(edited[place].double().numpy())
        log_unedited = log_softmax(unedited[place].double().numpy())
        expected = sum(np.exp(log_unedited) * (log_unedited - log_edited))
        assert kl[place].item() == pytest.approx(expected, rel=1e-5)
    assert locality_kl(edited, edited).abs().max().item() == pytest.approx(0, abs=1e-6)
    assert kl.sum().item() != pytest.approx(locality_kl(unedited, edited).sum().item(), rel=1e-2)


def vectors():
    generator = torch.Generator().manual_seed(2)
    queries_BK, keys_FK = torch.randn(4, 6, generator=generator), torch.randn(5, 6, generator=generator)
    return queries_BK, keys_FK, torch.randn(6, generator=generator), torch.tensor([3, 0, 4, 0])


def candidates(keys, sentinel):
    return torch.cat([keys, sentinel[None]])


def surprises(queries, right, negatives):
    """-log(exp(right) / (exp(right) + sum of exp(negatives))) of each query, inner products in float64."""
    found = []
    for row, query in enumerate(queries.double().numpy()):
        wanted = np.exp(query @ right(row).double().numpy())
        others = sum(np.exp(query @ negative.double().numpy()) for negative in negatives(row))
        found.append(-np.log(wanted / (wanted + others)))
    return pytest.approx(np.array(found), rel=1e-5)


def test_the_neighbour_loss_sets_the_own_key_against_the_others_and_the_sentinel():
    queries, keys, sentinel, own = vectors()
    expected = surprises(
        queries,
        lambda row: keys[own[row]],
        lambda row: [*(key for fact, key in enumerate(keys) if fact != own[row]), sentinel],
    )
    assert neighbour_nll(similarities(queries, candidates(keys, sentinel)), own).numpy() == expected


def test_an_unrelated_query_sets_the_sentinel_against_every_key():
    queries, keys, sentinel, _ = vectors()
    expected = surprises(queries, lambda row: sentinel, lambda row: list(keys))
    assert sentinel_nll_unrelated(similarities(queries, candidates(keys, sentinel))).numpy() == expected


def test_a_related_query_sets_the_sentinel_against_every_key_but_its_own():
    queries, keys, sentinel, own = vectors()
    expected = surprises(
        queries, lambda row: sentinel, lambda row: [key for fact, key in enumerate(keys) if fact != own[row]]
    )
    assert sentinel_nll_related(similarities(queries, candidates(keys, sentinel)), own).numpy() == expected


def test_a_margin_drops_sentinel_terms_that_are_won_whatever_the_own_key_says():
    logits = torch.tensor([[9.0, 1.0, 2.0], [0.0, 3.0, 2.9], [0.0, 1.0, 1.1]])
    own = torch.tensor([0, 0, 0])
    won = [True, False, False]  # e¹ and 1/e⁰·¹ and e⁰·¹ times the other key that is left
    kept, dropped = (sentinel_nll_related(logits, own, margin=margin) for margin in (None, 1.2))
    assert dropped.tolist() == pytest.approx([0 if gone else one for gone, one in zip(won, kept.tolist(), strict=True)])
    spared = sentinel_nll_unrelated(torch.tensor([[0.0, 1.0], [0.0, 0.1]]), margin=1.2)
    assert [bool(one) for one in spared] == [False, True]


def test_the_own_key_gets_no_gradient_from_the_related_sentinel_term():
    queries, keys, sentinel, own = vectors()
    keys.requires_grad_()
    sentinel_nll_related(similarities(queries[:1], candidates(keys, sentinel)), own[:1]).sum().backward()
    assert keys.grad.isfinite().all()
    assert [bool(row.any()) for row in keys.grad] == [fact != own[0] for fact in range(len(keys))]
