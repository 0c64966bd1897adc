"""What the registry says of editors holds for those that it makes."""

import dataclasses
from functools import partial

import pytest
import torch

from recipe_ray.config import TESTBED
from recipe_ray.errors import ConfigError
from recipe_ray.eval import testbed
from recipe_ray.eval.evaluation import edit_of
from recipe_ray.eval.methods import r_rome, registry, rome
from recipe_ray.eval.methods.context import Context
from recipe_ray.eval.methods.registry import METHODS, build, hyperparameters
from recipe_ray.examples import EditRecord
from recipe_ray.model.llm import load_llm


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    training = [EditRecord(prompt=case.prompt, target=case.target) for case in testbed.testbed_tuning_cases(20)]
    state = str(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "testbed_texts", partial(registry.testbed_texts, 150))  # thousands take half a minute
        yield Context(llm=load_llm(TESTBED, "cpu"), preset="testbed", state=state, training=training)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.one_by_one])
def test_where_it_says_so_a_batch_is_the_same_as_one_edit_after_another(context, name):
    method = build(name, context)
    edits = [edit_of(case) for case in testbed.testbed_tuning_cases(3)]
    ids = torch.tensor([context.llm.tokenize(edits[0].prompt)])

    def logits():
        with torch.no_grad():
            return context.llm.model(input_ids=ids).logits

    unedited = logits()
    method.apply(edits)
    together = logits()
    method.undo()
    for edit in edits:
        method.apply([edit])
    one_by_one = logits()
    method.undo()
    assert torch.equal(together, one_by_one)
    assert not torch.equal(together, unedited)


def test_hyperparameters_are_the_presets_with_what_was_set_for_that_editor():
    settings = ["rome.layer=2", "rome.value.prefix_lengths=[3]", "memit.layers=[3]", "r_rome.rome.layer=0"]
    preset = rome.PRESETS["testbed"]
    assert hyperparameters("rome", "testbed") is preset
    changed = dataclasses.replace(preset, layer=2, value=dataclasses.replace(preset.value, prefix_lengths=(3,)))
    assert hyperparameters("rome", "testbed", settings) == changed
    assert hyperparameters("r_rome", "testbed", settings).rome == dataclasses.replace(preset, layer=0)
    assert hyperparameters("unedited", "testbed", settings) is None


@pytest.mark.parametrize(
    ("name", "setting", "complaint"),
    [
        (
            "rome",
            "rome.layers=[2]",
            r"set names 'rome\.layers', which is no setting; there are rome\.layer, ",
        ),
        ("rome", "rome.layer=two", r"set gives rome\.layer 'two': input should be a valid integer"),
        ("rome", "rome.layer", r"set is 'rome\.layer'; give rome\.NAME=VALUE"),
        (
            "t_patcher",
            "t_patcher.num_steps=0",
            "num_memories, num_steps, learning_rate and num_hardest must be above",
        ),
        ("in_context", "in_context.layer=2", r"set names in_context\.layer=2, but in_context has no hyperparameters"),
    ],
)
def test_what_cannot_be_set_is_said(name, setting, complaint):
    with pytest.raises(ConfigError, match=complaint):
        hyperparameters(name, "testbed", [setting])


def test_what_is_set_reaches_the_editor_also_where_tuning_edits_would_choose(context):
    cases = testbed.testbed_tuning_cases(20)
    given = {"tuning": cases, "encoder": TESTBED}
    chosen = build("r_rome", dataclasses.replace(context, **given, settings=["r_rome.rome.layer=0"]))
    assert chosen.args.rome.layer == 0
    assert chosen.args.threshold != r_rome.PRESETS["testbed"].threshold
    told = build("r_rome", dataclasses.replace(context, **given, settings=["r_rome.threshold=0.125"]))
    assert told.args.threshold == 0.125
