import dataclasses

import pytest
import torch
from learned_editors import (
    EDITS,
    FAMILIES,
    MALMEN_ARGS,
    MEND_ARGS,
    ULTRA_ARGS,
    Examples,
    editors,
    logits,
    num_hooks,
    parameters,
)
from tiny_models import tiny_llm

from recipe_ray.errors import EditorError
from recipe_ray.eval.methods import hypernetwork_editor
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.factors import Factors
from recipe_ray.eval.methods.hypernetwork import WEIGHTS_FILE
from recipe_ray.eval.methods.layers import weight_DI
from recipe_ray.eval.methods.malmen import Malmen, MalmenNetwork
from recipe_ray.eval.methods.mend import Mend, MendNetwork
from recipe_ray.eval.methods.ultra_edit import PRESETS, UltraEdit
from recipe_ray.model.llm import load_llm
from recipe_ray.testbed.world import counterfactual_edits, load_world


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_change_the_answers_and_undo_restores_the_llm_to_the_bit(family):
    for editor in editors(family):
        llm = editor.llm
        before, said = parameters(llm), logits(llm)
        asks = editor.asks([edit.prompt for edit in EDITS])
        answers = editor.reader.generate(asks)
        unedited_bytes = editor.state_bytes()
        editor.apply(EDITS[:2])
        editor.apply(EDITS[2:])
        changed = [not torch.equal(a, b) for a, b in zip(before, parameters(llm), strict=True)]
        assert sum(changed) == 2  # the weight of either layer's projection, and nothing else
        weights_bytes = sum(one.weight.numel() * 4 for one in editor.projections)
        assert editor.state_bytes() == unedited_bytes + weights_bytes
        assert not torch.equal(logits(llm), said)
        edited = editor.reader.generate(asks)
        editor.undo()
        assert equal(parameters(llm), before)
        assert torch.equal(logits(llm), said)
        assert num_hooks(llm) == 0
        assert not any(one.requires_grad for one in llm.model.parameters())
        assert editor.reader.generate(asks) == answers
        assert edited != answers or editor.name == "UltraEdit"


def test_after_undo_the_same_edits_give_the_same_weights():
    for editor in editors("llama"):
        editor.apply(EDITS)
        first = parameters(editor.llm)
        editor.undo()
        editor.apply(EDITS)
        assert equal(parameters(editor.llm), first)


def test_of_two_edits_of_a_fact_in_one_call_the_later_counts():
    for editor in editors("llama"):
        again = Edit(fact_id="a", prompt=EDITS[0].prompt, target="blue")
        editor.apply([again, EDITS[1]])
        wanted = parameters(editor.llm)
        editor.undo()
        editor.apply([EDITS[0], EDITS[1], again])
        for got, want in zip(parameters(editor.llm), wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_no_edits_change_nothing():
    for editor in editors("llama"):
        before = parameters(editor.llm)
        editor.apply([])
        assert equal(parameters(editor.llm), before)


def mend_network(inner=6, width=4):
    torch.manual_seed(0)
    network = MendNetwork(inner, width, MEND_ARGS)
    for block in network.blocks:
        torch.nn.init.normal_(block.up_RC)
    factors = Factors(
        inputs=(torch.randn(5, inner),) * 2,
        gradients=(torch.randn(5, width),) * 2,
        edit_N=torch.tensor([0, 0, 1, 2, 2]),
    )
    network.see(factors)
    return network, factors


def test_mend_gives_a_step_of_rank_one_a_token_that_its_learning_rate_scales():
    network, factors = mend_network()
    with torch.no_grad():
        shifts = network.shifts(factors, group_size=1, num_groups=3)
        for shift in shifts:
            assert [torch.linalg.matrix_rank(one).item() for one in shift] == [2, 1, 2]
        network.edit_lr_L *= torch.tensor([3.0, 0.5])
        scaled = network.shifts(factors, group_size=1, num_groups=3)
    torch.testing.assert_close(scaled[0], 3 * shifts[0])
    torch.testing.assert_close(scaled[1], 0.5 * shifts[1])


def test_mend_starts_as_a_step_down_the_normalised_gradient():
    torch.manual_seed(0)
    network = MendNetwork(6, 4, MEND_ARGS)
    inputs, gradients = torch.randn(5, 6), torch.randn(5, 4)
    factors = Factors(inputs=(inputs,) * 2, gradients=(gradients,) * 2, edit_N=torch.zeros(5, dtype=torch.long))
    network.see(factors)
    normal = [(one - one.mean(0)) / one.std(0) for one in (inputs, gradients)]
    shift = network.shifts(factors, group_size=1, num_groups=1)[0][0]
    torch.testing.assert_close(shift, -MEND_ARGS.edit_lr * normal[0].T @ normal[1], rtol=1e-4, atol=1e-6)


def test_groups_are_made_apart_and_edits_of_a_group_add_up():
    network, factors = mend_network()
    with torch.no_grad():
        apart = network.shifts(factors, group_size=1, num_groups=3)[0]
        pairs = network.shifts(factors, group_size=2, num_groups=2)[0]
    torch.testing.assert_close(pairs, torch.stack([apart[0] + apart[1], apart[2]]), rtol=1e-4, atol=1e-6)


def malmen_step(log_ridge):
    torch.manual_seed(0)
    network = MalmenNetwork(6, 4, MALMEN_ARGS)
    torch.nn.init.normal_(network.blocks[0].up_RC)
    torch.nn.init.constant_(network.log_ridge_L, log_ridge)
    inputs, gradients = torch.randn(5, 6), torch.randn(5, 4)
    factors = Factors(inputs=(inputs,) * 2, gradients=(gradients,) * 2, edit_N=torch.zeros(5, dtype=torch.long))
    network.see(factors)
    with torch.no_grad():
        return network, factors, network.shifts(factors, group_size=1, num_groups=1)[0][0]


@pytest.mark.parametrize("log_ridge", [-2.0, 0.0, 3.0])
def test_malmen_of_one_edit_is_the_ridge_solution_of_its_tokens_moves(log_ridge):
    network, factors, shift = malmen_step(log_ridge)
    keys, gradients = factors.inputs[0], factors.gradients[0]
    with torch.no_grad():
        pseudo_keys, pseudo_gradients = network(keys, gradients, 0)
        values = -MALMEN_ARGS.edit_lr * (keys * pseudo_keys).sum(1)[:, None] * pseudo_gradients
    gram = keys.T @ keys + torch.tensor(log_ridge).exp() * torch.eye(6)
    torch.testing.assert_close(shift, torch.linalg.inv(gram) @ keys.T @ values, rtol=1e-3, atol=1e-6)


def test_malmen_of_a_large_ridge_moves_nothing():
    sizes = [malmen_step(log_ridge)[2].norm().item() for log_ridge in (0.0, 5.0, 20.0)]
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 1e-6 * sizes[0]


@pytest.mark.parametrize("kind", [Mend, Malmen])
def test_training_lowers_its_loss_repeats_itself_and_leaves_the_llm(kind):
    args = MEND_ARGS if kind is Mend else MALMEN_ARGS
    llm = tiny_llm()
    before = parameters(llm)
    losses = []
    first = kind.train(llm, args, Examples(), report=lambda step, loss: losses.append(loss["edit"]))
    assert equal(parameters(llm), before)
    assert num_hooks(llm) == 0
    again = kind.train(llm, args, Examples())
    assert equal(first.network.state_dict().values(), again.network.state_dict().values())
    assert len(losses) == args.num_steps
    assert losses[2] < losses[0]  # of the same edits, in groups of the same size


@pytest.mark.parametrize("group_size", [1, 4])
def test_rows_that_go_through_the_llm_in_parts_train_alike(group_size, monkeypatch):
    args = dataclasses.replace(MALMEN_ARGS, num_steps=2, group_sizes=(group_size,))
    whole = Malmen.train(tiny_llm(), args, Examples()).network.state_dict()
    monkeypatch.setattr(hypernetwork_editor, "BATCH_SIZE", 3)
    parts = Malmen.train(tiny_llm(), args, Examples()).network.state_dict()
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [Mend, Malmen])
def test_a_saved_editor_makes_the_same_edit(kind, tmp_path):
    args = MEND_ARGS if kind is Mend else MALMEN_ARGS
    editor = kind.train(tiny_llm(), args, Examples())
    editor.save(tmp_path / "new" / "folder")
    loaded = kind.load(tiny_llm(), tmp_path / "new" / "folder")
    assert loaded.args == args
    for one in (editor, loaded):
        one.apply(EDITS)
    assert equal(parameters(editor.llm), parameters(loaded.llm))


def test_a_folder_that_holds_no_fitting_hypernetwork_is_refused(tmp_path):
    with pytest.raises(EditorError, match="holds no hypernetwork"):
        Mend.load(tiny_llm(), tmp_path)
    Mend.train(tiny_llm(), MEND_ARGS, Examples()).save(tmp_path)
    with pytest.raises(EditorError, match="another method"):
        Malmen.load(tiny_llm(), tmp_path)
    with pytest.raises(EditorError, match="inner width 128"):
        Mend.load(tiny_llm("gpt2"), tmp_path)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"no weights")
    with pytest.raises(EditorError, match="holds no hypernetwork"):
        Mend.load(tiny_llm(), tmp_path)


def test_batches_that_do_not_fall_into_groups_are_refused():
    args = dataclasses.replace(MEND_ARGS, group_sizes=(3,))
    with pytest.raises(EditorError, match="4 edits of a batch do not fall into groups of 3"):
        Mend.train(tiny_llm(), args, Examples())


def test_ultra_edit_counts_every_edit_so_far_in_its_statistics():
    editor = UltraEdit(tiny_llm(), ULTRA_ARGS)
    seen = []
    for batch in (EDITS[:2], EDITS[2:]):
        factors = editor.factors(batch)  # in the LLM as this call finds it
        seen.append(torch.cat([factors.inputs[1], factors.gradients[1]], 1).double())
        editor.apply(batch)
    exact = torch.cat(seen).numpy()
    torch.testing.assert_close(editor.moments[1].mean_C, torch.from_numpy(exact.mean(0)))
    torch.testing.assert_close(editor.moments[1].std_C, torch.from_numpy(exact.std(0, ddof=1)))
    editor.undo()
    assert editor.moments[1].count == 0


@pytest.mark.parametrize("seen", [(), EDITS[2:]])
def test_ultra_edit_solves_the_normal_equations_for_normalised_moves(seen):
    editor = UltraEdit(tiny_llm(), ULTRA_ARGS, seen=seen)
    before = [weight_DI(one).clone() for one in editor.projections]
    factors = editor.factors(EDITS[:2])
    all_factors = [factors, editor.factors(seen)] if seen else [factors]
    editor.apply(EDITS[:2])
    for place, projection in enumerate(editor.projections):
        u, delta = factors.inputs[place].double(), factors.gradients[place].double()
        known = torch.cat([torch.cat([one.inputs[place], one.gradients[place]], 1) for one in all_factors]).double()
        mean, std = known.mean(0), known.std(0)
        u_hat, delta_hat = ((torch.cat([u, delta], 1) - mean) / (std + 1e-7)).split([u.shape[1], delta.shape[1]], 1)
        values = -ULTRA_ARGS.edit_lr * (u_hat**2).sum(1, keepdim=True) * delta_hat
        gram = u.T @ u + ULTRA_ARGS.ridge * torch.eye(u.shape[1])
        wanted = torch.linalg.solve(gram, u.T @ values).T
        got = (weight_DI(projection) - before[place]).double()
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def test_ultra_edit_makes_single_edits_of_the_testbed():
    edits = [
        Edit(fact_id=str(number), prompt=edit.fact.prompt(0), target=edit.target)
        for number, edit in enumerate(counterfactual_edits(load_world(), 40, seed=5))
    ]
    editor = UltraEdit(load_llm("testbed", "cpu"), PRESETS["testbed"], seen=edits[6:])
    made = []
    for edit in edits[:6]:
        editor.apply([edit])
        made += editor.reader.generate(editor.asks([edit.prompt]))
        editor.undo()
    assert sum(answer == edit.target for answer, edit in zip(made, edits, strict=False)) >= 5
