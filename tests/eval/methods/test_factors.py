import pytest
import torch
from learned_editors import EDITS, FAMILIES
from tiny_models import tiny_llm

import recipe_ray.eval.methods.factors as factors_module
from recipe_ray.eval.methods.factors import AnswerRows, edit_factors, ridge_shift, shifted
from recipe_ray.eval.methods.layers import mlp_projection, weight_DI

QUESTIONS = [(edit.prompt, edit.target) for edit in EDITS]


def projections_of(llm):
    return [mlp_projection(llm, layer) for layer in (0, 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_factors_of_all_tokens_multiply_to_the_gradient_of_the_weights(family):
    llm = tiny_llm(family)
    projections = projections_of(llm)
    factors = edit_factors(llm, projections, QUESTIONS[:1], answer_end=".", tokens="all")
    prompt, target = llm.tokenize(QUESTIONS[0][0]), llm.tokenize_answer(f" {QUESTIONS[0][1]}.")
    weights = [one.weight.requires_grad_() for one in projections]
    log_p = llm.model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    loss = -log_p[range(len(target)), target].mean()
    wanted = torch.autograd.grad(loss, weights)
    for place, gradient in enumerate(wanted):
        got_DI = factors.gradients[place].T @ factors.inputs[place]
        is_DI = weights[place].shape == got_DI.shape
        torch.testing.assert_close(got_DI if is_DI else got_DI.T, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", ["all", "answer"])
def test_an_edit_has_the_same_factors_whatever_stands_beside_it(family, tokens, monkeypatch):
    monkeypatch.setattr(factors_module, "BATCH_SIZE", 2)  # so that the third edit comes in another batch
    llm = tiny_llm(family)
    projections = projections_of(llm)
    together = edit_factors(llm, projections, QUESTIONS, answer_end=".", tokens=tokens)
    for edit, question in enumerate(QUESTIONS):
        alone = edit_factors(llm, projections, [question], answer_end=".", tokens=tokens)
        rows = together.edit_N == edit
        for place in range(2):
            torch.testing.assert_close(together.inputs[place][rows], alone.inputs[place], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(together.gradients[place][rows], alone.gradients[place], rtol=1e-4, atol=1e-6)


def test_answer_tokens_are_those_that_predict_the_answer():
    llm = tiny_llm()
    factors = edit_factors(llm, projections_of(llm), QUESTIONS, answer_end=".", tokens="answer")
    lengths = [len(llm.tokenize_answer(f" {target}.")) for _, target in QUESTIONS]
    assert torch.bincount(factors.edit_N).tolist() == lengths
    # Of the last layer, below a loss on answer tokens alone, no other token has a gradient.
    everywhere = edit_factors(llm, projections_of(llm), QUESTIONS, answer_end=".", tokens="all")
    reached = everywhere.gradients[1].abs().sum(1) > 0
    torch.testing.assert_close(everywhere.gradients[1][reached], factors.gradients[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shift_computes_as_shifted_weights_do_a_group_at_a_time(family):
    llm = tiny_llm(family)
    projection = mlp_projection(llm, -1)
    width, inner = weight_DI(projection).shape
    shifts = torch.randn(2, inner, width, generator=torch.Generator().manual_seed(0))
    questions = [QUESTIONS[0], QUESTIONS[0]]
    rows = AnswerRows.make(llm, questions, answer_end=".")
    with torch.no_grad():
        unshifted = rows.logits(llm)
        with shifted([projection], [shifts]):
            got = rows.logits(llm)
        torch.testing.assert_close(rows.logits(llm), unshifted, rtol=0, atol=0)
        weight = weight_DI(projection)
        was = weight.clone()
        for group in range(2):
            weight.copy_(was + shifts[group].T)
            torch.testing.assert_close(got[group], rows.logits(llm)[group], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_tokens", [3, 20])
def test_ridge_shift_solves_the_normal_equations(num_tokens):
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(num_tokens, 8, generator=generator)
    values = torch.randn(num_tokens, 5, generator=generator)
    shift = ridge_shift(keys, values, 0.3)
    torch.testing.assert_close((keys.T @ keys + 0.3 * torch.eye(8)) @ shift, keys.T @ values, rtol=1e-4, atol=1e-5)
