"""A training's start, its learning rates, and the threshold of an editor without sentinel."""

import math

import numpy as np
import pytest
import torch
from edit_examples import BATCH, example
from tiny_models import tiny_editor, tiny_llm

from recipe_ray.config import EditorConfig, LossConfig, LossWeights, Stage, TrainConfig
from recipe_ray.model.batch import BatchMaker
from recipe_ray.model.joint import JointTraining
from recipe_ray.model.training import RIDGE, fit_threshold, make_optimizer, take_step, warm_start


def config(**changes):
    return TrainConfig(editor=EditorConfig(llm="tiny", encoder="tiny"), stages=(Stage(num_steps=10),), **changes)


def test_the_optimiser_has_every_parameter_of_the_editor_once():
    editor = tiny_editor()
    optimizer, _ = make_optimizer(editor, config())
    optimized = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(optimized) == sorted(id(parameter) for parameter in editor.parameters())


@pytest.mark.parametrize("num_layers", [0, 1])
def test_a_step_leaves_what_is_frozen_of_the_encoder_alone(num_layers):
    editor = tiny_editor(trained_encoder_layers=num_layers)
    before = {name: one.detach().clone() for name, one in editor.named_parameters()}
    joint = JointTraining(editor, tiny_llm(), LossConfig())
    one_step(joint, batch_of(joint))
    changed = {name for name, one in editor.named_parameters() if not torch.equal(one, before[name])}
    trained = {name for name in before if not name.startswith("encoder.")}
    if num_layers:
        trained |= {name for name in before if name.startswith("encoder.model.encoder.layer.1.")}
    assert changed <= trained
    assert {name for name, one in editor.named_parameters() if one.requires_grad} == trained
    assert {name.split(".")[0] for name in changed} >= {"key_head", "sentinel_SH", "prompt_encoder"}
    assert any(name.startswith("encoder.") for name in changed) == bool(num_layers)


def test_each_part_has_its_learning_rate_that_rises_and_falls():
    editor = tiny_editor(similarity="cosine")
    wanted = config(encoder_lr=1e-3, head_lr=2e-3, prompt_lr=4e-3, warmup_share=0.2)
    optimizer, schedule = make_optimizer(editor, wanted)
    rate_of = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in editor.named_parameters():
        rate = {"encoder": 1e-3, "prompt_encoder": 4e-3}.get(name.split(".")[0], 2e-3)
        assert rate_of[id(parameter)] == rate, name
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0] / 1e-3)
        optimizer.step()
        schedule.step()
    fall = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates == pytest.approx([0.5, 1.0, *fall])


@pytest.mark.parametrize("similarity", ["inner_product", "cosine"])
def test_a_warm_start_is_the_ridge_regression_of_prompts_on_the_answers_tokens(similarity):
    editor, llm = tiny_editor(similarity=similarity, num_virtual_tokens=2), tiny_llm("gemma")
    editor.prompt_encoder.scale.fill_(0.3)
    words = llm.embedding(torch.arange(259)).numpy()
    answers = [llm.tokenize_answer(f" {one.target}") for one in BATCH]
    assert [len(ids) for ids in answers] == [9, 17, 2]
    keys, _ = editor.encode_facts([one.statement for one in BATCH])
    keys *= np.sqrt(24) if similarity == "cosine" else 1
    layer = editor.prompt_encoder.transform
    hidden = np.maximum(keys @ layer.weight.detach().numpy().T + layer.bias.detach().numpy(), 0) + keys
    inputs = np.concatenate([hidden, np.ones((3, 1))], 1)

    def dealt(ids):
        return np.average(words[ids], axis=0, weights=[0.5**place for place in range(len(ids))])

    wanted = np.stack([[dealt(ids[slot::2]) for slot in range(2)] for ids in answers]).reshape(3, -1)
    penalty = np.sqrt(RIDGE * 3) * np.eye(inputs.shape[1])
    solution = np.linalg.lstsq(
        np.concatenate([inputs, penalty]),
        np.concatenate([wanted, np.zeros((len(penalty), wanted.shape[1]))]),
        rcond=None,
    )[0]
    warm_start(editor, llm, BATCH)
    _, prompts = editor.encode_facts([one.statement for one in BATCH])
    np.testing.assert_allclose(prompts.reshape(3, -1), inputs @ solution, rtol=1e-3, atol=1e-3)
    assert np.abs(prompts.reshape(3, -1) - wanted).max() < 0.5 * np.abs(wanted).max()


def test_a_warm_start_aims_spare_virtual_tokens_at_the_mean_answer():
    editor, llm = tiny_editor(num_virtual_tokens=4, key_width=64), tiny_llm()
    editor.key_head.project.weight.data *= 30  # the fit is then all but exact
    edits = [example("Ruritania", "E", "x", "y"), example("Borduria", "Pa", "x", "y")]
    warm_start(editor, llm, edits)
    answers = [llm.tokenize_answer(f" {one.target}") for one in edits]
    mean = llm.embedding(torch.tensor([token for ids in answers for token in ids])).mean(0).numpy()
    _, prompts = editor.encode_facts([one.statement for one in edits])
    np.testing.assert_allclose(prompts[0, 2:], [mean, mean], atol=0.02)
    np.testing.assert_allclose(prompts[1, 3], mean, atol=0.02)
    np.testing.assert_allclose(prompts[1, :3], llm.embedding(torch.tensor(answers[1])).numpy(), atol=0.02)


def test_a_threshold_is_where_most_questions_are_decided_right():
    editor = tiny_editor(num_sentinel_tokens=0, similarity="cosine")
    torch.nn.init.normal_(editor.query_head.project.weight)
    fit_threshold(editor, [*BATCH, BATCH[0]])
    keys, _ = editor.encode_facts([one.statement for one in BATCH])
    asked = [
        (row if name != "locality_prompt" else None, keys @ editor.encode_queries([getattr(one, name)])[0])
        for row, one in enumerate(BATCH)
        for name in ("prompt", "generality_prompt", "locality_prompt")
    ]

    def num_right(threshold):
        return sum(
            scores.max() <= threshold if own is None else scores.max() > threshold and scores.argmax() == own
            for own, scores in asked
        )

    fitted = editor.threshold.item()
    best = max(num_right(threshold) for threshold in np.linspace(-25, 25, 2001))
    assert num_right(fitted) == best
    assert best < 9  # a random editor is wrong somewhere
    assert editor.thresholds(np.zeros((2, 24), np.float32)).tolist() == pytest.approx([fitted] * 2)


def one_step(joint, turns, *, max_grad_norm=1.0, lr=1e-3):
    optimizer, schedule = make_optimizer(joint.editor, config(encoder_lr=lr, head_lr=lr, prompt_lr=lr, warmup_share=0))
    _, norm = take_step(
        joint, turns, LossWeights(), optimizer=optimizer, schedule=schedule, max_grad_norm=max_grad_norm
    )
    return norm, schedule


def batch_of(joint):
    maker = BatchMaker(
        encoder=joint.editor.encoder,
        llm=joint.llm,
        losses=joint.losses,
        num_virtual_tokens=3,
        position="first",
        answer_end=".",
    )
    return maker.make(BATCH, edit=True, locality=True)


def test_a_step_clips_the_gradient_to_its_norm():
    joint = JointTraining(tiny_editor(), tiny_llm(), LossConfig())
    norm, _ = one_step(joint, batch_of(joint), max_grad_norm=0.01)
    clipped = torch.cat([one.grad.flatten() for one in joint.editor.parameters()]).norm().item()
    assert norm > 0.01
    assert clipped == pytest.approx(0.01, rel=1e-3)


def test_a_step_whose_gradient_is_no_number_changes_no_weight():
    joint = JointTraining(tiny_editor(), tiny_llm(), LossConfig())
    with torch.no_grad():
        joint.editor.prompt_encoder.project.bias[0] = torch.nan
    before = {name: one.detach().clone() for name, one in joint.editor.named_parameters()}
    norm, schedule = one_step(joint, batch_of(joint))
    assert math.isnan(norm)
    assert schedule.last_epoch == 0
    for name, one in joint.editor.named_parameters():
        assert torch.equal(one.nan_to_num(), before[name].nan_to_num()), name
