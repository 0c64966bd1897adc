"""What the registry says of editors holds for those that it makes."""

import pytest
import torch

from recipe_ray.config import TESTBED
from recipe_ray.eval import testbed
from recipe_ray.eval.evaluation import edit_of
from recipe_ray.eval.methods.context import Context
from recipe_ray.eval.methods.registry import METHODS, build
from recipe_ray.examples import EditRecord
from recipe_ray.model.llm import load_llm


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    training = [EditRecord(prompt=case.prompt, target=case.target) for case in testbed.testbed_tuning_cases(20)]
    state = str(tmp_path_factory.mktemp("trained"))
    return Context(llm=load_llm(TESTBED, "cpu"), preset="testbed", state=state, training=training)


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
