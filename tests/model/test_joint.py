"""One training step: what it sums, what it changes, what it leaves alone, and how workers share it."""

import dataclasses

import numpy as np
import pytest
import torch
from edit_examples import BATCH, example
from tiny_models import LLM_WIDTH, bert, tiny_editor, tiny_llm

from recipe_ray.config import EditorConfig, LossConfig, LossWeights, Stage, TrainConfig
from recipe_ray.errors import EditorError
from recipe_ray.model.batch import BatchMaker, Share
from recipe_ray.model.joint import JointTraining
from recipe_ray.model.training import make_optimizer

PAPER = LossConfig()


def config(**changes):
    return TrainConfig(editor=EditorConfig(llm="tiny", encoder="tiny"), stages=(Stage(num_steps=10),), **changes)


def maker_of(joint, *, answer_end="."):
    editor = joint.editor
    return BatchMaker(
        encoder=editor.encoder,
        llm=joint.llm,
        losses=joint.losses,
        num_virtual_tokens=editor.config.num_virtual_tokens,
        position=editor.config.prompt_position,
        answer_end=answer_end,
    )


def step(joint, examples, weights, *, answer_end=".", share=Share(), seed=0):  # noqa: B008
    """Loss and metrics of a whole step, summed over the turns of a share."""
    made = maker_of(joint, answer_end=answer_end).make(
        examples, seed=seed, share=share, edit=weights.edit > 0, locality=weights.locality > 0
    )
    results = [joint(batch, weights) for batch in made]
    metrics = {name: sum(one[name].item() for _, one in results) for name in results[0][1]}
    return sum(loss for loss, _ in results), metrics


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


@pytest.mark.parametrize("questions", ["both", "alternate"])
@pytest.mark.parametrize("answer_end", ["", "."])
@pytest.mark.parametrize(("similarity", "family"), [("inner_product", "llama"), ("cosine", "gpt2")])
def test_the_joint_loss_is_the_sum_of_slow_references(similarity, family, answer_end, questions):
    editor, llm = tiny_editor(similarity=similarity), tiny_llm(family)
    joint = JointTraining(editor, llm, LossConfig(questions=questions))
    loss, metrics = step(joint, BATCH, LossWeights(), answer_end=answer_end)
    expected = slow_losses(editor, llm, BATCH, answer_end, questions == "alternate")
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3), name
    assert loss.item() == pytest.approx(sum(expected.values()), rel=1e-3)


TEMPLATE = (
    "{% for turn in messages %}{% if turn['role'] == 'system' and strict %}{{ raise_exception('no system') }}"
    "{% endif %}{{ '<s>' + turn['role'] + '|' + turn['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant|{% endif %}"
)
TURNS = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))


def chatting(one):
    """An edit that is asked in its own words as a text, in other words and in a later turn in chats."""
    return dataclasses.replace(
        one,
        generality_messages=(("user", one.generality_prompt),),
        locality_messages=(*TURNS, ("user", one.locality_prompt)),
    )


@torch.no_grad()
def slow_chat(llm, before, behind, answer, prefix):
    """Logits that predict each token of an answer, the prompt between two texts."""
    parts = [llm.tokenize_answer(text) for text in (before, behind, answer)]
    embeds = [llm.embedding(torch.tensor(ids, dtype=torch.long)) for ids in parts]
    if prefix is not None:
        embeds.insert(1, torch.from_numpy(prefix))
    logits = llm.model(inputs_embeds=torch.cat(embeds)[None], use_cache=False).logits[0]
    return logits[-len(parts[2]) - 1 : -1].double().log_softmax(-1), parts[2]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("chat_position", ["as_text", "user_turn", "assistant_turn"])
def test_a_chat_is_trained_as_its_template_lays_it_out_with_the_prompt_where_it_stands(chat_position, strict):
    editor, llm = tiny_editor(), tiny_llm()
    llm.tokenizer.chat_template = TEMPLATE.replace("strict", str(strict).lower())
    examples = [chatting(one) for one in BATCH]
    joint = JointTraining(editor, llm, PAPER)
    maker = dataclasses.replace(maker_of(joint), chat_position=chat_position, answer_eos=True)
    (batch,) = maker.make(examples, edit=True, locality=True)
    _, metrics = joint(batch, LossWeights())

    _, prompts = editor.encode_facts([one.statement for one in BATCH])
    later = "<s>user|Hi</s><s>assistant|Hello</s>"
    system = "" if strict else "<s>system|Be brief.</s>"
    surprises, divergences = [], []
    for one, prompt in zip(BATCH, prompts, strict=True):
        for before, words, target in (
            ("", one.generality_prompt, one.generality_target),
            (system + later, one.locality_prompt, one.locality_target),
        ):
            layout = [before + "<s>user|", words + "</s>", "<s>assistant|"]
            cut = {"as_text": 0, "user_turn": 1, "assistant_turn": 2}[chat_position]
            laid = "".join(layout[:cut]), "".join(layout[cut:]), f"{target}.</s>"
            edited, answer = slow_chat(llm, *laid, prompt)
            if target == one.generality_target:
                surprises += [-float(edited[place, token]) for place, token in enumerate(answer)]
            else:
                kept, _ = slow_chat(llm, *laid, None)
                divergences += (kept.exp() * (kept - edited)).sum(-1).tolist()
    assert metrics["generality"].item() == pytest.approx(np.mean(surprises), rel=1e-3)
    assert metrics["locality"].item() == pytest.approx(np.mean(divergences), rel=1e-3)


def test_weights_scale_their_terms_and_zero_leaves_them_out():
    editor, llm = tiny_editor(), tiny_llm()
    joint = JointTraining(editor, llm, PAPER)
    _, one = step(joint, BATCH, LossWeights())
    loss, weighted = step(joint, BATCH, LossWeights(neighbour=2, sentinel=3, edit=5, locality=7))
    factors = {"neighbour": 2, "sentinel": 3, "reliability": 5, "generality": 5, "locality": 7}
    for name, factor in factors.items():
        assert weighted[name] == pytest.approx(factor * one[name], rel=1e-4)
    assert loss.item() == pytest.approx(sum(factor * one[name] for name, factor in factors.items()), rel=1e-4)
    loss, metrics = step(joint, BATCH, LossWeights(sentinel=0, edit=0, locality=0))
    assert set(metrics) == {"neighbour", "right_fact", "right_none"}
    assert loss.item() == pytest.approx(one["neighbour"], rel=1e-4)


def test_accuracies_count_the_right_fact_and_no_fact_within_the_batch():
    editor = tiny_editor()
    torch.nn.init.normal_(editor.query_head.project.weight)
    joint = JointTraining(editor, tiny_llm(), PAPER)
    _, metrics = step(joint, BATCH, LossWeights(edit=0, locality=0))
    keys, _ = editor.encode_facts([one.statement for one in BATCH])
    rivals = [*keys, editor.identity().sentinel_K]
    asked = editor.encode_queries([one.generality_prompt for one in BATCH])
    spared = editor.encode_queries([one.locality_prompt for one in BATCH])
    right_fact = [int(np.argmax([query @ key for key in rivals])) == row for row, query in enumerate(asked)]
    right_none = [int(np.argmax([query @ key for key in rivals])) == len(BATCH) for query in spared]
    assert metrics["right_fact"] == pytest.approx(np.mean(right_fact))
    assert metrics["right_none"] == pytest.approx(np.mean(right_none))


@pytest.mark.parametrize("position", ["first", "after_bos", "last"])
def test_training_learns_and_leaves_the_llm_as_it_was_to_the_bit(position):
    editor, llm = tiny_editor(similarity="cosine", prompt_position=position), tiny_llm("gpt2")
    joint = JointTraining(editor, llm, PAPER)
    optimizer, schedule = make_optimizer(editor, config(encoder_lr=1e-3, head_lr=1e-2, prompt_lr=1e-2))
    before = {name: tensor.clone() for name, tensor in llm.model.state_dict().items()}
    untrained = {name: parameter.detach().clone() for name, parameter in editor.named_parameters()}
    losses = []
    for _ in range(10):
        loss, _ = step(joint, BATCH, LossWeights())
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


def test_no_parameter_of_the_llm_is_trained_or_saved():
    editor, llm = tiny_editor(), tiny_llm()
    joint = JointTraining(editor, llm, LossConfig(queue_size=4))
    assert not {id(one) for one in llm.model.parameters()} & {id(one) for one in joint.parameters()}
    assert set(joint.state_dict()) == {f"editor.{name}" for name in editor.state_dict()}


def test_an_editor_of_another_width_is_refused_with_both_widths():
    editor = tiny_editor()
    editor.llm_width = LLM_WIDTH + 1
    with pytest.raises(EditorError, match="width 32, but the editor's prompts have width 33"):
        JointTraining(editor, tiny_llm(), PAPER)


def test_the_order_of_a_batch_does_not_matter():
    joint = JointTraining(tiny_editor(bert(seed=4)), tiny_llm(), PAPER)
    forth, _ = step(joint, BATCH, LossWeights())
    back, _ = step(joint, BATCH[::-1], LossWeights())
    assert forth.item() == pytest.approx(back.item(), rel=1e-4)
    longer = dataclasses.replace(BATCH[0], locality_target=BATCH[0].locality_target * 4)
    other, _ = step(joint, [longer, *BATCH[1:]], LossWeights(locality=0))
    assert other.item() == pytest.approx(step(joint, BATCH, LossWeights(locality=0))[0].item(), rel=1e-4)


def test_of_each_edit_a_random_question_counts_in_each_contrastive_term():
    editor, llm = tiny_editor(), tiny_llm()
    weights = LossWeights(edit=0, locality=0)
    both = {
        name: step(JointTraining(editor, llm, PAPER), BATCH, one)[1][name]
        for name, one in (("neighbour", LossWeights(sentinel=0, edit=0, locality=0)), ("sentinel", weights))
    }
    joint = JointTraining(editor, llm, LossConfig(questions="random"))
    drawn = [step(joint, BATCH, weights, seed=seed)[1] for seed in range(64)]
    # A question and its counterpart swap terms: on average half of each question's terms.
    unrelated = both["sentinel"] - _related(joint)
    assert np.mean([one["neighbour"] for one in drawn]) == pytest.approx(both["neighbour"] / 2, rel=0.02)
    assert np.mean([one["sentinel"] for one in drawn]) == pytest.approx(
        unrelated + (both["sentinel"] - unrelated) / 2, rel=0.02
    )
    assert len({round(one["neighbour"], 5) for one in drawn}) > 4


def _related(joint):
    """The sentinel's terms of questions about edits alone: without the one of locality questions."""
    (batch,) = maker_of(joint).make(BATCH, edit=False, locality=False)
    weights = LossWeights(edit=0, locality=0)
    both = dataclasses.replace(
        batch,
        asked=tuple(dataclasses.replace(one, sentinel_N=torch.full_like(one.sentinel_N, 1 / 3)) for one in batch.asked),
    )
    return joint(dataclasses.replace(both, locality_weight=0.0), weights)[1]["sentinel"].item()


def test_a_temperature_divides_similarities():
    editor, llm = tiny_editor(), tiny_llm()
    weights = LossWeights(edit=0, locality=0)
    _, cold = step(JointTraining(editor, llm, LossConfig(temperature=0.5)), BATCH, weights)
    editor.query_head.transform.weight.data *= 2  # ReLU(W2 x + b2) + x, all of it twice
    editor.query_head.transform.bias.data *= 2
    editor.query_head.project.weight.data *= 2
    editor.query_head.project.bias.data *= 2
    editor.query_head.transform.weight.data /= 2
    _, scaled = step(JointTraining(editor, llm, PAPER), BATCH, weights)
    assert cold["neighbour"] == pytest.approx(scaled["neighbour"], rel=1e-4)
    assert cold["sentinel"] == pytest.approx(scaled["sentinel"], rel=1e-4)


def test_a_queue_adds_the_keys_of_past_edits_but_for_those_of_the_same_prompt():
    editor, llm = tiny_editor(), tiny_llm()
    weights = LossWeights(sentinel=0, edit=0, locality=0)
    queued = JointTraining(editor, llm, LossConfig(queue_size=2)).train()
    past = [example("Alpha", "a", "Beta", "b"), example("Gamma", "c", "Delta", "d")]
    _, alone = step(queued, past, weights)
    _, paper = step(JointTraining(editor, llm, PAPER), past, weights)
    assert alone["neighbour"] == pytest.approx(paper["neighbour"])
    _, with_queue = step(queued, BATCH, weights)
    keys, _ = editor.encode_facts([one.statement for one in [*BATCH, *past]])
    rivals = np.concatenate([keys, editor.identity().sentinel_K[None]])
    expected = 0.0
    for name in ("prompt", "generality_prompt"):
        scores = np.exp(editor.encode_queries([getattr(one, name) for one in BATCH]) @ rivals.T)
        expected -= np.mean([np.log(row[own] / row.sum()) for own, row in enumerate(scores)])
    assert with_queue["neighbour"] == pytest.approx(expected, rel=1e-4)
    # The queue now holds the last two of BATCH; asked again, they are no negatives of themselves.
    own, rest = BATCH[1:], keys[1:3]
    _, again = step(queued, own, weights)
    assert again["neighbour"] == pytest.approx(
        step(JointTraining(editor, llm, PAPER), own, weights)[1]["neighbour"]
        + _extra_from_the_other(editor, own, rest),
        rel=1e-4,
    )


def _extra_from_the_other(editor, examples, queue):
    """How much the other edit's queued key, a second time, adds to the neighbour term."""
    keys, _ = editor.encode_facts([one.statement for one in examples])
    sentinel = editor.identity().sentinel_K
    extra = 0.0
    for name in ("prompt", "generality_prompt"):
        for row, query in enumerate(editor.encode_queries([getattr(one, name) for one in examples])):
            before = sum(np.exp(query @ key) for key in [*keys, sentinel])
            extra += (np.log(before + np.exp(query @ queue[1 - row])) - np.log(before)) / len(examples)
    return extra


def test_turns_add_up_to_the_step_where_negatives_are_not_in_play():
    editor, llm = tiny_editor(), tiny_llm()
    joint = JointTraining(editor, llm, PAPER)
    weights = LossWeights(neighbour=0, sentinel=0)
    whole, metrics = step(joint, BATCH, weights)
    whole.backward()
    gradient = editor.prompt_encoder.project.weight.grad.clone()
    editor.zero_grad()
    turns, in_turns = step(joint, BATCH, weights, share=Share(num_turns=3))
    turns.backward()
    assert turns.item() == pytest.approx(whole.item(), rel=1e-5)
    assert in_turns == pytest.approx(
        {**in_turns, **{name: metrics[name] for name in ("reliability", "generality", "locality")}}, rel=1e-5
    )
    assert (editor.prompt_encoder.project.weight.grad - gradient).abs().max() < 1e-5 * gradient.abs().max()


def test_bfloat16_is_near_and_leaves_weights_and_similarities_float32():
    editor, llm = tiny_editor(), tiny_llm()
    for weight in llm.model.parameters():
        weight.data *= 0.2  # random weights this large are chaotic
    full, _ = step(JointTraining(editor, llm, PAPER), BATCH, LossWeights())
    half, _metrics = step(JointTraining(editor, llm, PAPER, precision="bfloat16"), BATCH, LossWeights())
    assert half.item() == pytest.approx(full.item(), rel=0.05)
    assert half.item() != full.item()
    half.backward()
    assert all(one.grad is None or one.grad.dtype == torch.float32 for one in editor.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_saving_memory_changes_no_gradient_and_recomputes_layers(family):
    plain, saving = (JointTraining(tiny_editor(), tiny_llm(family), PAPER) for _ in range(2))
    saving.llm.save_memory()
    calls = []
    layers = max((one for one in saving.llm.model.modules() if isinstance(one, torch.nn.ModuleList)), key=len)
    layers[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    gradients = []
    for joint in (plain, saving):
        step(joint, BATCH, LossWeights())[0].backward()
        gradients.append(joint.editor.prompt_encoder.project.weight.grad)
    torch.testing.assert_close(*gradients)
    num_forward = len(calls)
    loss, _ = step(saving, BATCH, LossWeights())
    num_forward = len(calls) - num_forward
    loss.backward()
    assert len(calls) > 2 * num_forward - num_forward // 2  # each layer once more on the way back


def test_an_ablation_without_prompts_and_sentinel_has_the_neighbour_term_alone():
    editor = tiny_editor(num_virtual_tokens=0, num_sentinel_tokens=0)
    joint = JointTraining(editor, tiny_llm(), PAPER)
    weights = LossWeights(sentinel=0, edit=0, locality=0)
    loss, metrics = step(joint, BATCH, weights)
    keys, prompts = editor.encode_facts([one.statement for one in BATCH])
    assert prompts.shape == (3, 0, LLM_WIDTH)
    expected = 0.0
    for name in ("prompt", "generality_prompt"):
        scores = np.exp(editor.encode_queries([getattr(one, name) for one in BATCH]) @ keys.T)
        expected -= np.mean([np.log(row[own] / row.sum()) for own, row in enumerate(scores)])
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert set(metrics) == {"neighbour", "right_fact"}
