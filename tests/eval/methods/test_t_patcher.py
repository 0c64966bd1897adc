"""T-Patcher adds a neuron for each wrong token, which no memory sets off."""

import dataclasses

import pytest
import torch
from memory_edits import EDITS, T_PATCHER, TRAINING, llm_of, logits_of

from recipe_ray.errors import EditorError
from recipe_ray.eval.cases import Ask
from recipe_ray.eval.methods.answers import answer_ids
from recipe_ray.eval.methods.passes import EditRows
from recipe_ray.eval.methods.t_patcher import TPatcher


def patcher(llm, **changes):
    return TPatcher(llm, dataclasses.replace(T_PATCHER, **changes), training=TRAINING)


def num_wrong(llm, edit):
    answer = answer_ids(llm, edit.target)
    rows = EditRows.of(llm, [edit])
    return int(
        (llm.answer_logits(rows.rows, None, num_answer_tokens=len(answer)).argmax(-1) != torch.tensor(answer)).sum()
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_a_wrong_token_is_worth_one_neuron(family):
    llm = llm_of(family)
    made = patcher(llm)
    for edit in EDITS:
        expected = num_wrong(llm, edit)  # with the earlier edits' patches
        made.apply([edit])
        assert len(made.patches[edit.fact_id].keys_ND) == expected > 0
    assert made.state_bytes() == sum(len(patch.keys_ND) for patch in made.patches.values()) * 4 * (32 + 1 + 32)


def test_what_is_answered_already_gets_no_neuron():
    llm = llm_of("llama")
    made = patcher(llm)
    made.apply(EDITS[:1])
    made.apply([dataclasses.replace(EDITS[0], fact_id="again")])
    assert len(made.patches["again"].keys_ND) == 0
    assert made.reader.generate([Ask(EDITS[0].prompt)]) == [EDITS[0].target]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_memories_set_off_no_patch(family):
    llm = llm_of(family)
    made = patcher(llm, num_memories=10_000)
    texts = [f"{record.prompt} {record.target}" for record in TRAINING]
    before = logits_of(llm, texts)
    made.apply(EDITS)
    for patch in made.patches.values():
        assert (made.memories_MD @ patch.keys_ND.T + patch.biases_N).max() <= 0
    # Patches that do not fire leave the LLM as it is, to the bit.
    assert torch.equal(logits_of(llm, texts), before)


def test_a_patch_is_silent_at_earlier_edits_and_later_ones_leave_it_alone():
    llm = llm_of("llama")
    made = patcher(llm)
    made.apply(EDITS[:1])
    first = made.patches["a"]
    made.apply(EDITS[1:])
    assert made.patches["a"] is first
    for edit in EDITS[1:]:
        patch = made.patches[edit.fact_id]
        assert (first.queries_AD @ patch.keys_ND.T + patch.biases_N).max() <= 0


def test_losses_are_those_of_the_paper():
    made = patcher(llm_of("llama"), num_hardest=2, activation_weight=2.0, memory_weight=3.0)
    own, memories = torch.tensor([0.5]), torch.tensor([[-1.0], [-4.0], [-2.0]])
    hardest = torch.tensor([-1.0, -2.0])
    expected = 2 * torch.exp(-own[0]) + 3 * (torch.exp(hardest + 3).mean() + torch.exp(hardest - own + 3).mean())
    assert made._patch_losses(own, memories).item() == pytest.approx(expected.item())


def test_what_it_takes_for_the_head_is_the_llms_own():
    for family in ("llama", "gpt2", "gptj"):
        llm = llm_of(family)
        made = patcher(llm)
        rows = EditRows.of(llm, EDITS[:1])
        _, final = made._read(rows.rows)
        logits = llm.answer_logits(rows.rows, None, num_answer_tokens=3)
        assert torch.allclose(made._logits(final[0, -4:-1]), logits[0], atol=1e-4)


def test_no_training_records_is_refused():
    with pytest.raises(EditorError, match="no training records"):
        TPatcher(llm_of("llama"), T_PATCHER, training=[])
