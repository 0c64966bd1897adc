"""WISE's router sends a prompt to the memory that its activation speaks for; shards and their merge keep apart."""

import dataclasses

import pytest
import torch
from memory_edits import EDITS, OTHERS, TRAINING, WISE, llm_of, logits_of

from recipe_ray.errors import ConfigError, EditorError
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.layers import mlp_projection, weight_DI
from recipe_ray.eval.methods.wise import SideMemory, Wise, ties_merge


def editor(llm, **changes):
    return Wise(llm, dataclasses.replace(WISE, **changes), training=TRAINING)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_a_prompt_below_the_threshold_reads_the_main_memory_to_the_bit(family):
    llm = llm_of(family)
    prompts = [EDITS[0].prompt, *OTHERS]
    before = logits_of(llm, prompts)
    made = editor(llm)
    made.apply(EDITS[:1])
    shard = made.shards[-1]
    activations = shard.activations(*made._inner(prompts))
    shard.least_activation = activations[0].item()  # all but the edited prompt lie below, or the others are no others
    spared = activations <= made.args.threshold_ratio * shard.least_activation
    assert spared.tolist()[0] is False
    assert spared[1:].any()
    # Four tokens of the prompts are wanted as answers, yet all of a row is its prompt unless somebody says otherwise.
    after = logits_of(llm, prompts)
    for row, is_spared in enumerate(spared.tolist()):
        assert torch.equal(after[row], before[row]) == is_spared


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_a_routed_prompt_reads_the_side_memory_all_along(family):
    llm = llm_of(family)
    made = editor(llm)
    made.apply(EDITS)
    memory = made.shards[-1]
    memory.least_activation = 0.0  # everything is routed
    got = logits_of(llm, OTHERS)
    made.undo()
    weight = weight_DI(mlp_projection(llm, 0))
    weight += memory.change_DI
    assert torch.allclose(got, logits_of(llm, OTHERS), atol=1e-3)


def test_the_memory_with_the_highest_activation_above_its_own_threshold_answers():
    made = editor(llm_of("llama"))
    inner = torch.ones(1, 1, 64)
    made._passes.prompt_BT = torch.ones(1, 1, dtype=torch.bool)
    one = torch.zeros(32, 64)
    one[0, 0] = 1.0  # its activation here is 1

    def routed(*memories):
        made_of = [SideMemory(change_DI=one * size, least_activation=least) for size, least in memories]
        return made._route(made_of, inner).item()

    assert routed((1.0, 0.5), (2.0, 0.5)) == 1
    assert routed((1.0, 0.5), (2.0, 5.0)) == 0  # the higher one does not reach its threshold
    assert routed((1.0, 2.0), (2.0, 5.0)) == -1
    assert routed() == -1


def test_activation_is_the_mean_norm_over_the_prompts_tokens():
    memory = SideMemory(change_DI=torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    inner = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    prompt = torch.tensor([[False, True, True, False], [True, True, True, True]])
    for row in range(2):
        norms = [torch.linalg.norm(memory.change_DI @ token) for token in inner[row][prompt[row]]]
        assert memory.activations(inner, prompt)[row].item() == pytest.approx(
            torch.stack(norms).mean().item(), rel=1e-5
        )


def test_the_margin_loss_counts_what_violates_it():
    made = editor(llm_of("llama"), alpha=1.0, beta=3.0, gamma=1.0)
    assert made._margin_loss(torch.tensor([4.0, 5.0]), torch.tensor([0.5])).item() == 0
    # Edited: 2.5 lacks 0.5 of β. Irrelevant: 2.0 is 1.0 above α. Between them: 0.5 short of γ.
    assert made._margin_loss(torch.tensor([2.5, 9.0]), torch.tensor([2.0])).item() == pytest.approx(0.5 + 1.0 + 0.5)


def test_one_shard_merged_is_the_shard_itself():
    change = torch.randn(6, 7, generator=torch.Generator().manual_seed(0)) * (torch.arange(42).reshape(6, 7) % 5 == 0)
    assert torch.equal(ties_merge(change[None], density=0.5), change)


def test_a_merge_keeps_the_sign_of_the_greater_sum_and_averages_what_has_it():
    shards = torch.tensor([[[1.0, 4.0, 0.0, 3.0]], [[3.0, -1.0, 0.0, -3.0]], [[0.0, -2.0, 5.0, 0.0]]])
    assert ties_merge(shards, density=1.0).tolist() == [[2.0, 4.0, 5.0, 0.0]]
    # Trimmed to its two largest, the second shard votes for the first and the last entry alone.
    assert ties_merge(shards[1:2], density=0.5).tolist() == [[3.0, 0.0, 0.0, -3.0]]


def test_edits_fill_shards_whose_masks_differ_and_full_ones_are_merged():
    llm = llm_of("llama")
    made = editor(llm, edits_per_shard=2, num_shards=2, num_steps=3, mask_ratio=0.3)
    edits = [Edit(fact_id=str(number), prompt=f"Number {number} is", target="N") for number in range(5)]
    made.apply(edits[:3])
    assert (len(made.merged), len(made.shards)) == (0, 2)
    first, second = (shard.change_DI != 0 for shard in made.shards)
    for changed in (first, second):
        assert 0.1 < changed.float().mean() <= 0.4
    assert not torch.equal(first, second)
    least = [shard.least_activation for shard in made.shards]
    made.apply(edits[3:4])
    assert (len(made.merged), len(made.shards)) == (1, 1)
    assert made.merged[0].least_activation <= min(least)
    assert ((made.merged[0].change_DI != 0) <= (first | second)).all()
    assert made.state_bytes() == 32 * 64 * 4
    made.apply(edits[4:])
    assert made.state_bytes() == 2 * 32 * 64 * 4


def test_a_merge_that_would_lose_edits_is_refused_and_so_is_no_training():
    with pytest.raises(ConfigError, match=r"mask_ratio is 0\.6 and density 0\.53"):
        dataclasses.replace(WISE, mask_ratio=0.6)
    with pytest.raises(EditorError, match="no training records"):
        Wise(llm_of("llama"), WISE, training=[])
