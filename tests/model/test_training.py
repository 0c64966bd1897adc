"""One training step: what it sums, what it changes, and what it leaves alone."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from tiny_models import LLM_WIDTH, bert, tiny_editor, tiny_llm

from recipe_ray.config import EditorConfig, LossWeights, Stage, TrainConfig
from recipe_ray.errors import EditorError
from recipe_ray.examples import EditExample
from recipe_ray.model.training import RIDGE, JointTraining, make_optimizer, warm_start

EDITORS = EditorConfig(llm="tiny", encoder="tiny")


def example(subject, target, other, other_target, *, relation="capital"):
    prompt = f"The {relation} of {subject} is"
    return EditExample(
        statement=f"{prompt} {target}",
        prompt=prompt,
        target=target,
        generality_prompt=f"{subject} has as its {relation}",
        generality_target=f"{target}, of course",
        locality_prompt=f"The {relation} of {other} is",
        locality_target=other_target,
    )


BATCH = [
    example("Ruritania", "Strelsau", "Syldavia", "Klow"),
    example("Borduria", "Szohod the Great", "Ohio", "Columbus"),
    example("Graustark", "E", "Utah", "Salt Lake City, in the West", relation="river"),
]


def config(**changes):
    return TrainConfig(editor=EDITORS, stages=(Stage(num_steps=10),), **changes)


def surprise(logits_V, token):
    return float(-torch.log_softmax(logits_V.double(), -1)[token])


def row_logits(llm, prompt, answer, prefix):
    """Logits that predict each answer token of one unpadded row, the prompt in front."""
    ids = llm.tokenize(prompt) + llm.tokenize_answer(answer)
    embeds = llm.embedding(torch.tensor(ids))
    if prefix is not None:
        embeds = torch.cat([torch.from_numpy(prefix), embeds])
    with torch.no_grad():
        logits = llm.model(inputs_embeds=embeds[None], use_cache=False).logits[0]
    num = len(llm.tokenize_answer(answer))
    return logits[-num - 1 : -1], llm.tokenize_answer(answer)


def slow_losses(editor, llm, batch, answer_end, split=False):
    """All four terms, an edit, a token and a negative at a time, from the editor's own arrays."""
    keys, prompts = editor.encode_facts([one.statement for one in batch])
    sentinel = editor.identity().sentinel_K
    queries = {
        name: editor.encode_queries([getattr(one, name) for one in batch])
        for name in ("prompt", "generality_prompt", "locality_prompt")
    }

    def contrast(query, right, negatives):
        wanted = np.exp(np.float64(query @ right))
        return -np.log(wanted / (wanted + sum(np.exp(np.float64(query @ key)) for key in negatives)))

    terms = {name: ([], [], []) for name in ("prompt", "generality_prompt", "locality_prompt")}
    for row, one in enumerate(batch):
        others = [key for fact, key in enumerate(keys) if fact != row]
        for name in ("prompt", "generality_prompt"):
            if split and (name == "prompt") == bool(row % 2):
                continue
            neighbour, sentinels, surprises = terms[name]
            neighbour.append(contrast(queries[name][row], keys[row], [*others, sentinel]))
            sentinels.append(contrast(queries[name][row], sentinel, others))
            wanted = one.target if name == "prompt" else one.generality_target
            logits, answer = row_logits(llm, getattr(one, name), f" {wanted}{answer_end}", prompts[row])
            surprises += [surprise(logits[place], token) for place, token in enumerate(answer)]
        terms["locality_prompt"][1].append(contrast(queries["locality_prompt"][row], sentinel, list(keys)))

    locality = []
    for row, one in enumerate(batch):
        answer = f" {one.locality_target}{answer_end}"
        edited, _ = row_logits(llm, one.locality_prompt, answer, prompts[row])
        unedited, _ = row_logits(llm, one.locality_prompt, answer, None)
        for got, kept in zip(edited.double().log_softmax(-1), unedited.double().log_softmax(-1), strict=True):
            locality.append(float((kept.exp() * (kept - got)).sum()))
    return {
        "neighbour": sum(np.mean(terms[name][0]) for name in ("prompt", "generality_prompt")),
        "sentinel": sum(np.mean(sentinels) for _, sentinels, _ in terms.values()),
        "reliability": np.mean(terms["prompt"][2]),
        "generality": np.mean(terms["generality_prompt"][2]),
        "locality": np.mean(locality),
    }


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("answer_end", ["", "."])
@pytest.mark.parametrize(("similarity", "family"), [("inner_product", "llama"), ("cosine", "gpt2")])
def test_the_joint_loss_is_the_sum_of_slow_references(similarity, family, answer_end, split):
    editor, llm = tiny_editor(similarity=similarity), tiny_llm(family)
    joint = JointTraining(editor, llm, answer_end=answer_end, split_queries=split)
    loss, metrics = joint(BATCH, LossWeights())
    expected = slow_losses(editor, llm, BATCH, answer_end, split)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3), name
    assert loss.item() == pytest.approx(sum(expected.values()), rel=1e-3)


def test_weights_scale_their_terms_and_zero_leaves_them_out():
    editor, llm = tiny_editor(), tiny_llm()
    joint = JointTraining(editor, llm, answer_end=".")
    _, one = joint(BATCH, LossWeights())
    loss, weighted = joint(BATCH, LossWeights(neighbour=2, sentinel=3, edit=5, locality=7))
    factors = {"neighbour": 2, "sentinel": 3, "reliability": 5, "generality": 5, "locality": 7}
    for name, factor in factors.items():
        assert weighted[name] == pytest.approx(factor * one[name], rel=1e-4)
    assert loss.item() == pytest.approx(sum(factor * one[name] for name, factor in factors.items()), rel=1e-4)
    loss, metrics = joint(BATCH, LossWeights(sentinel=0, edit=0, locality=0))
    assert set(metrics) == {"neighbour", "right_fact", "right_none"}
    assert loss.item() == pytest.approx(one["neighbour"], rel=1e-4)


def test_accuracies_count_the_right_fact_and_no_fact_within_the_batch():
    editor = tiny_editor()
    torch.nn.init.normal_(editor.query_head.project.weight)
    _, metrics = JointTraining(editor, tiny_llm(), answer_end="")(BATCH, LossWeights(edit=0, locality=0))
    keys, _ = editor.encode_facts([one.statement for one in BATCH])
    rivals = [*keys, editor.identity().sentinel_K]
    asked = editor.encode_queries([one.generality_prompt for one in BATCH])
    spared = editor.encode_queries([one.locality_prompt for one in BATCH])
    right_fact = [int(np.argmax([query @ key for key in rivals])) == row for row, query in enumerate(asked)]
    right_none = [int(np.argmax([query @ key for key in rivals])) == len(BATCH) for query in spared]
    assert metrics["right_fact"] == pytest.approx(np.mean(right_fact))
    assert metrics["right_none"] == pytest.approx(np.mean(right_none))


@pytest.mark.parametrize("position", ["first", "after_bos"])
def test_training_learns_and_leaves_the_llm_as_it_was_to_the_bit(position):
    editor, llm = tiny_editor(similarity="cosine", prompt_position=position), tiny_llm("gpt2")
    joint = JointTraining(editor, llm, answer_end=".")
    optimizer, schedule = make_optimizer(editor, config(encoder_lr=1e-3, head_lr=1e-2, prompt_lr=1e-2))
    before = {name: tensor.clone() for name, tensor in llm.model.state_dict().items()}
    untrained = {name: parameter.detach().clone() for name, parameter in editor.named_parameters()}
    losses = []
    for _ in range(10):
        loss, _ = joint(BATCH, LossWeights())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    assert all(torch.equal(llm.model.state_dict()[name], tensor) for name, tensor in before.items())
    assert not llm.model.training
    assert all(parameter.grad is None for parameter in llm.model.parameters())
    # The encoder's position and word embeddings include rows that no text uses, but no parameter stands still.
    assert [name for name, value in editor.named_parameters() if torch.equal(value, untrained[name])] == []


def test_no_parameter_of_the_llm_is_trained_or_saved_with_the_editor():
    editor, llm = tiny_editor(), tiny_llm()
    joint = JointTraining(editor, llm, answer_end="")
    frozen = {id(parameter) for parameter in llm.model.parameters()}
    optimizer, _ = make_optimizer(editor, config())
    optimized = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert not frozen & set(optimized)
    assert not frozen & {id(parameter) for parameter in joint.parameters()}
    assert set(joint.state_dict()) == {f"editor.{name}" for name in editor.state_dict()}
    # Every parameter of the editor, once.
    assert sorted(optimized) == sorted(id(parameter) for parameter in editor.parameters())


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


def test_an_editor_of_another_width_is_refused_with_both_widths():
    editor = tiny_editor()
    editor.llm_width = LLM_WIDTH + 1
    with pytest.raises(EditorError, match="width 32, but the editor's prompts have width 33"):
        JointTraining(editor, tiny_llm(), answer_end="")


def test_the_order_of_a_batch_does_not_matter():
    joint = JointTraining(tiny_editor(bert(seed=4)), tiny_llm(), answer_end=".")
    forth, _ = joint(BATCH, LossWeights())
    back, _ = joint(BATCH[::-1], LossWeights())
    assert forth.item() == pytest.approx(back.item(), rel=1e-4)
    longer = dataclasses.replace(BATCH[0], locality_target=BATCH[0].locality_target * 4)
    other, _ = joint([longer, *BATCH[1:]], LossWeights(locality=0))
    assert other.item() == pytest.approx(joint(BATCH, LossWeights(locality=0))[0].item(), rel=1e-4)
