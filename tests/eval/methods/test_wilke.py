"""WILKE writes each edit, by ROME's update, into the layer whose weights that changes least."""

import pytest
import torch
from tiny_models import tiny_llm

from recipe_ray.errors import EditorError
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.covariance import second_moments
from recipe_ray.eval.methods.layers import mlp_projection, weight_DI
from recipe_ray.eval.methods.rome import ROME, ROMEArgs
from recipe_ray.eval.methods.values import ValueArgs
from recipe_ray.eval.methods.wilke import WILKE, WILKEArgs
from recipe_ray.model.llm import FrozenLLM

EDITS = [
    Edit(fact_id="1", prompt="The capital of Ruritania is", target="Zenda", subject="Ruritania"),
    Edit(fact_id="2", prompt="Gold has the symbol", target="Xx", subject="Gold"),
]
TEXTS = [f"{name} is a word of {len(name)} letters, but {name[::-1]} is none." for name in ("Ruritania", "Gold", "x")]
VALUE = ValueArgs(num_steps=4, prefix_lengths=(3,))
LAYERS = (0, 1, 2)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gptj"])
def llm(request):
    small = tiny_llm(request.param)
    config = small.model.config
    config.num_hidden_layers = 4
    torch.manual_seed(0)
    return FrozenLLM(type(small.model)(config), small.tokenizer, name=f"tiny-{request.param}")


@pytest.fixture(scope="module")
def moments(llm):
    return second_moments(llm, TEXTS, LAYERS)


def weights(llm):
    return {layer: weight_DI(mlp_projection(llm, layer)).clone() for layer in LAYERS}


def test_each_edit_is_romes_at_the_layer_of_least_relative_change_and_undone_to_the_bit(llm, moments):
    before = {name: one.clone() for name, one in llm.model.state_dict().items()}
    ids = torch.tensor([llm.tokenize("Why is this so?")])
    said = llm.model(input_ids=ids).logits
    method = WILKE(llm, WILKEArgs(layers=LAYERS, value=VALUE), moments=moments)
    wanted = []
    for edit in EDITS:
        was = weights(llm)
        byhand = {}
        for layer in LAYERS:
            rome = ROME(llm, ROMEArgs(layer=layer, value=VALUE), moments=moments)
            rome.apply([edit])
            byhand[layer] = weights(llm)[layer]
            rome.undo()
        changes = {layer: (byhand[layer] - was[layer]).norm() / was[layer].norm() for layer in LAYERS}
        assert len({round(float(change), 6) for change in changes.values()}) == len(LAYERS)
        wanted.append(min(LAYERS, key=changes.__getitem__))
        method.apply([edit])
        assert method.chosen == wanted, changes
        for layer, weight in weights(llm).items():
            expected = byhand[layer] if layer == wanted[-1] else was[layer]
            torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)
            assert torch.equal(weight, was[layer]) == (layer != wanted[-1])
        assert method.state_bytes() == len(set(wanted)) * was[0].numel() * 4
    method.undo()
    assert method.chosen == []
    assert method.state_bytes() == 0
    for name, one in llm.model.state_dict().items():
        assert torch.equal(one, before[name]), name
    assert torch.equal(llm.model(input_ids=ids).logits, said)


def test_edits_at_once_are_the_edits_one_after_the_other(llm, moments):
    method = WILKE(llm, WILKEArgs(layers=LAYERS, value=VALUE), moments=moments)
    method.apply(EDITS)
    at_once = weights(llm)
    method.undo()
    for edit in EDITS:
        method.apply([edit])
    for layer, weight in weights(llm).items():
        assert torch.equal(weight, at_once[layer])
    method.undo()


def test_an_edit_without_its_subject_is_refused_before_any_is_made(llm, moments):
    method = WILKE(llm, WILKEArgs(layers=LAYERS, value=VALUE), moments=moments)
    was = weights(llm)
    with pytest.raises(EditorError, match="its subject '' does not stand in it"):
        method.apply([EDITS[0], Edit(fact_id="3", prompt="Nothing is", target="x")])
    assert all(torch.equal(one, was[layer]) for layer, one in weights(llm).items())
    with pytest.raises(EditorError, match="layers of WILKE is empty"):
        WILKEArgs(layers=())
