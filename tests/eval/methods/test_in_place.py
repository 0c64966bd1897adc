"""Editors of weights change what they say they change, by the formulas of their papers, and put it back to the bit."""

import dataclasses

import pytest
import torch
from tiny_models import tiny_llm

from recipe_ray.config import TESTBED
from recipe_ray.errors import EditorError
from recipe_ray.eval.evaluation import edit_of
from recipe_ray.eval.methods import alphaedit, fine_tuning, memit, rome
from recipe_ray.eval.methods.alphaedit import AlphaEdit, AlphaEditArgs, projected
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.covariance import RIDGE, Moments, null_space, second_moments, testbed_texts
from recipe_ray.eval.methods.fine_tuning import FT, FTArgs
from recipe_ray.eval.methods.layers import decoder_layers, mlp_projection, weight_DI
from recipe_ray.eval.methods.memit import MEMIT, MEMITArgs, least_squares
from recipe_ray.eval.methods.rome import ROME, ROMEArgs, cholesky, rank_one
from recipe_ray.eval.methods.values import ValueArgs, mean_keys, outputs_at_subject, sample_prefixes, value_shifts
from recipe_ray.eval.testbed import testbed_tuning_cases
from recipe_ray.model.llm import FrozenLLM, load_llm

FAMILIES = ("llama", "gpt2", "gptj")
EDITS = [
    Edit(fact_id="1", prompt="The capital of Ruritania is", target="Zenda", subject="Ruritania"),
    Edit(fact_id="2", prompt="Gold has the symbol", target="Xx", subject="Gold"),
]
TEXTS = [
    f"{name} is a word of {len(name)} letters, and {name[::-1]} is another." for name in ("Ruritania", "Gold", "x")
]
VALUE = ValueArgs(num_steps=12, prefix_lengths=(3, 4), clamp_factor=20.0, weight_decay=0.0)


@pytest.fixture(params=FAMILIES)
def llm(request):
    """Three layers: at the last one, nothing that is said of a subject reaches the words behind it."""
    small = tiny_llm(request.param)
    config = small.model.config
    config.num_hidden_layers = 3
    torch.manual_seed(0)
    return FrozenLLM(type(small.model)(config), small.tokenizer, name=f"tiny-{request.param}")


@pytest.fixture
def moments(llm):
    return second_moments(llm, TEXTS, [0, 1])


def methods(llm, moments):
    return [
        ROME(llm, ROMEArgs(layer=0, value=VALUE), moments=moments),
        MEMIT(llm, MEMITArgs(layers=(0, 1), moment_weight=0.1, value=VALUE), moments=moments),
        AlphaEdit(llm, AlphaEditArgs(layers=(0, 1), null_threshold=1e9, ridge=0.1, value=VALUE), moments=moments),
        FT(llm, FTArgs(layer=1, learning_rate=1e-2)),
    ]


def parameters(llm):
    return {name: one.detach().clone() for name, one in llm.model.named_parameters()}


def changed(llm, before):
    return {name for name, one in llm.model.named_parameters() if not torch.equal(one, before[name])}


def test_every_editor_changes_its_layers_alone_and_puts_all_weights_back_to_the_bit(llm, moments):
    before = parameters(llm)
    ids = torch.tensor([llm.tokenize("Why is this so?")])
    logits = llm.model(input_ids=ids).logits
    names = {id(one): name for name, one in llm.model.named_parameters()}
    for method, layers in zip(methods(llm, moments), [(0,), (0, 1), (0, 1), (1,)], strict=True):
        answers = method.reader.generate(method.asks(["Why?"]))
        for _ in range(2):
            method.apply(EDITS)
            edited = changed(llm, before)
            assert edited == {names[id(mlp_projection(llm, layer).weight)] for layer in layers}
            assert method.state_bytes() >= sum(before[name].numel() * 4 for name in edited)
            method.undo()
            assert changed(llm, before) == set()
            assert method.state_bytes() == 0
        assert method.reader.generate(method.asks(["Why?"])) == answers
        assert torch.equal(llm.model(input_ids=ids).logits, logits)
        assert not any(one.requires_grad or one.grad is not None for one in llm.model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in llm.model.modules())


@pytest.fixture(scope="module")
def testbed():
    return load_llm(TESTBED, "cpu")


@pytest.fixture(scope="module")
def testbed_moments(testbed):
    return second_moments(testbed, testbed_texts(150), [0, 1])


@pytest.mark.parametrize(
    "make",
    [
        lambda llm, moments: ROME(llm, rome.PRESETS[TESTBED], moments=moments),
        lambda llm, moments: MEMIT(llm, memit.PRESETS[TESTBED], moments=moments),
        lambda llm, moments: AlphaEdit(llm, alphaedit.PRESETS[TESTBED], moments=moments),
        lambda llm, _: FT(llm, fine_tuning.PRESETS[TESTBED]),
    ],
)
def test_the_testbeds_lm_says_what_it_is_edited_to_and_no_more_after_undo(testbed, testbed_moments, make):
    method = make(testbed, testbed_moments)
    cases = testbed_tuning_cases(3)
    asks = method.asks([case.prompt for case in cases])
    unedited = method.reader.generate(asks)
    method.apply([edit_of(case) for case in cases])
    assert method.reader.generate(asks) == [case.target for case in cases] != unedited
    method.undo()
    assert method.reader.generate(asks) == unedited


def test_rome_maps_the_key_to_its_value_by_a_change_of_rank_one(llm, moments):
    args = ROMEArgs(layer=0, value=VALUE)
    projection = mlp_projection(llm, 0)
    prefixes = sample_prefixes(llm, VALUE.prefix_lengths)
    key_I = mean_keys(llm, projection, EDITS[:1], prefixes)[0]
    value_D = weight_DI(projection) @ key_I + value_shifts(llm, projection, EDITS[:1], prefixes, VALUE)[0]
    was_DI = weight_DI(projection).clone()
    method = ROME(llm, args, moments=moments)
    method.apply(EDITS[:1])
    torch.testing.assert_close(weight_DI(projection) @ key_I, value_D, atol=1e-4, rtol=1e-4)
    assert torch.linalg.matrix_rank(weight_DI(projection) - was_DI, rtol=1e-4).item() == 1
    method.undo()


def test_a_key_is_the_mean_over_contexts_of_what_the_projection_reads_at_the_subjects_end(llm):
    prefixes = ("One. ", "And two more. ")
    projection = mlp_projection(llm, 1)
    read = []
    handle = projection.register_forward_pre_hook(lambda _, given: read.append(given[0][0, -1]))
    for prefix in ("", *prefixes):
        llm.model(input_ids=torch.tensor([llm.tokenize(f"{prefix}The capital of Ruritania")]))
    handle.remove()
    got = mean_keys(llm, projection, EDITS, prefixes)
    torch.testing.assert_close(got[0], torch.stack(read).mean(0), atol=1e-4, rtol=1e-4)


def test_second_moments_are_the_mean_over_tokens_whatever_the_batches_and_survive_a_folder(llm, moments, tmp_path):
    projection = mlp_projection(llm, 1)
    read = []
    handle = projection.register_forward_pre_hook(lambda _, given: read.append(given[0][0]))
    for text in TEXTS:
        llm.model(input_ids=torch.tensor([llm.tokenize(text)]))
    handle.remove()
    keys = torch.cat(read)
    torch.testing.assert_close(moments.by_layer[1], keys.T @ keys / len(keys), atol=1e-4, rtol=1e-4)
    one_by_one = second_moments(llm, TEXTS, [-2], batch_size=1)
    torch.testing.assert_close(one_by_one.by_layer[1], moments.by_layer[1], atol=1e-4, rtol=1e-4)
    moments.save(tmp_path)
    loaded = Moments.load(tmp_path)
    assert loaded.num_tokens == moments.num_tokens == len(keys)
    assert all(torch.equal(loaded.by_layer[layer], moments.by_layer[layer]) for layer in (0, 1))
    exact = moments.by_layer[1].double()
    assert torch.equal(loaded.of(llm, -2), exact + RIDGE * exact.diagonal().mean() * torch.eye(len(exact)).double())
    with pytest.raises(EditorError, match="no second moments"):
        Moments.load(tmp_path / "none")
    with pytest.raises(EditorError, match=r"layers \[1\], layer 0"):
        one_by_one.of(llm, 0)


def test_values_looked_for_together_are_those_looked_for_alone(llm):
    site = decoder_layers(llm)[0]
    for args in (VALUE, dataclasses.replace(VALUE, stop_loss=3.0, clamp_factor=0.5)):
        alone = value_shifts(llm, site, EDITS, ("Well. ",), args)
        together = value_shifts(llm, site, EDITS, ("Well. ",), dataclasses.replace(args, batch_size=2))
        torch.testing.assert_close(together, alone, atol=2e-3, rtol=2e-3)
    norms = outputs_at_subject(llm, site, EDITS).norm(dim=-1)
    assert (alone.norm(dim=-1) <= 0.5 * norms * (1 + 1e-5)).all()


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_memit_of_one_edit_is_romes_update_scaled_by_how_c_is_weighed():
    basis = draw(12, 12)
    moment, shift, key = basis @ basis.T, draw(1, 5), draw(1, 12)
    left, right = rank_one(shift, key, cholesky(moment))
    s = (key @ torch.linalg.inv(moment) @ key.T).item()
    for weight in (1e-9, 0.3, 20.0):
        update = least_squares(shift, key, cholesky(moment), weight)
        torch.testing.assert_close(update, left.T @ right * s / (weight + s))


def test_memit_solves_equation_14():
    basis = draw(12, 12)
    moment, residuals, keys = basis @ basis.T, draw(20, 5), draw(20, 12)  # more edits than the keys are wide
    slow = residuals.T @ keys @ torch.linalg.inv(7.0 * moment + keys.T @ keys)
    torch.testing.assert_close(least_squares(residuals, keys, cholesky(moment), 7.0), slow)


def test_memit_of_one_layer_and_one_edit_edits_as_rome_does(llm, moments):
    args = MEMITArgs(layers=(0,), moment_weight=1e-9, value=VALUE)
    rank_one_editor, spread_editor = (
        ROME(llm, ROMEArgs(layer=0, value=VALUE), moments=moments),
        MEMIT(llm, args, moments=moments),
    )
    weights = []
    for method in (rank_one_editor, spread_editor):
        method.apply(EDITS[:1])
        weights.append(weight_DI(mlp_projection(llm, 0)).clone())
        method.undo()
    torch.testing.assert_close(weights[1], weights[0], atol=2e-3, rtol=2e-3)


def test_alphaedit_solves_its_equation_and_leaves_preserved_keys_alone():
    basis = draw(12, 12)
    basis[:, :7] *= 1e-3
    moment = basis @ basis.T
    null = null_space(moment, 1e-2)
    assert null.shape == (12, 7)
    project = null @ null.T
    keys, earlier, residuals = draw(3, 12), draw(4, 12), draw(3, 5)
    inside = null.T @ earlier.T @ earlier @ null
    update, held = projected(residuals, keys, null, inside, 2.0)
    first, second = earlier.T @ earlier @ project, keys.T @ keys @ project
    slow = residuals.T @ keys @ project @ torch.linalg.inv(first + second + 2.0 * torch.eye(12))
    torch.testing.assert_close(update, slow)
    preserved = torch.linalg.eigh(moment)[1][:, 7:]  # P K0 = 0
    torch.testing.assert_close(update @ preserved, torch.zeros(5, 5, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(held, null.T @ (earlier.T @ earlier + keys.T @ keys) @ null)


def test_alphaedit_in_an_llm_leaves_preserved_keys_alone_and_forgets_earlier_ones_on_undo(llm, moments):
    threshold = torch.linalg.eigvalsh(moments.of(llm, 1)).median().item()
    method = AlphaEdit(
        llm, AlphaEditArgs(layers=(1,), null_threshold=threshold, ridge=0.1, value=VALUE), moments=moments
    )
    weight_was = weight_DI(mlp_projection(llm, 1)).clone()
    method.apply(EDITS[:1])
    once = weight_DI(mlp_projection(llm, 1)).clone()
    values, vectors = torch.linalg.eigh(moments.of(llm, 1))
    preserved = vectors[:, values >= threshold]
    change = (once - weight_was).double()
    assert (change @ preserved).norm() < 1e-5 * change.norm() * len(change)
    method.apply(EDITS[1:])
    method.undo()
    method.apply(EDITS[:1])
    assert torch.equal(weight_DI(mlp_projection(llm, 1)), once)
    method.undo()
    with pytest.raises(EditorError, match="null_threshold"):
        AlphaEdit(llm, AlphaEditArgs(layers=(1,), null_threshold=0.0), moments=moments)


def test_ft_l_stays_within_its_limit_and_ft_stops_early(llm):
    was = weight_DI(mlp_projection(llm, 0)).clone()
    limited = FT(llm, FTArgs(layer=0, learning_rate=1e-2, norm_limit=1e-3))
    limited.apply(EDITS)
    assert 0 < (weight_DI(mlp_projection(llm, 0)) - was).abs().max() <= 1e-3 * (1 + 1e-3)
    limited.undo()
    done = FT(llm, FTArgs(layer=0, stop_loss=1e9))
    done.apply(EDITS)
    assert torch.equal(weight_DI(mlp_projection(llm, 0)), was)
    assert (done.name, limited.name) == ("FT", "FT-L")


def test_an_edit_without_its_subject_is_refused_in_one_line_and_changes_nothing(llm, moments):
    before = parameters(llm)
    for method in methods(llm, moments)[:3]:
        for subject in ("", "Atlantis"):
            with pytest.raises(EditorError, match="subject") as raised:
                method.apply([EDITS[0], dataclasses.replace(EDITS[1], subject=subject)])
            assert "\n" not in str(raised.value)
            assert changed(llm, before) == set()


def test_of_two_edits_of_one_fact_the_later_counts(llm, moments):
    method = ROME(llm, ROMEArgs(layer=0, value=VALUE), moments=moments)
    method.apply([dataclasses.replace(EDITS[0], target="Other"), EDITS[0]])
    both = weight_DI(mlp_projection(llm, 0)).clone()
    method.undo()
    method.apply(EDITS[:1])
    assert torch.equal(weight_DI(mlp_projection(llm, 0)), both)
    method.undo()


def test_layers_of_memit_follow_each_other_and_exist(llm, moments):
    with pytest.raises(EditorError, match="consecutive"):
        MEMIT(llm, MEMITArgs(layers=(1, 0)), moments=moments)
    with pytest.raises(EditorError, match="layer 7"):
        MEMIT(llm, MEMITArgs(layers=(1, 7)), moments=moments)
