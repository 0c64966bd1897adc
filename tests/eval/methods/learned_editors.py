"""Tiny LLMs and edits for the editors that work on gradients."""

import dataclasses

import torch
from tiny_models import tiny_llm

from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.malmen import PRESETS as MALMEN
from recipe_ray.eval.methods.malmen import Malmen
from recipe_ray.eval.methods.mend import PRESETS as MEND
from recipe_ray.eval.methods.mend import Mend
from recipe_ray.eval.methods.ultra_edit import UltraEdit, UltraEditArgs
from recipe_ray.examples import EditExample

FAMILIES = ("llama", "gpt2", "gptj")
EDITS = (
    Edit(fact_id="a", prompt="The hue of A is", target="red"),
    Edit(fact_id="b", prompt="Bo lives in", target="Rome"),
    Edit(fact_id="c", prompt="C", target="no"),
)


class Examples:
    """Training data: the same batch again and again."""

    def batch(self, number):
        return [
            EditExample(
                statement=edit.statement,
                prompt=edit.prompt,
                target=edit.target,
                generality_prompt=f"Say: {edit.prompt}",
                generality_target=edit.target,
                locality_prompt="Two and two",
                locality_target="four",
            )
            for edit in (*EDITS, dataclasses.replace(EDITS[0], target="blue"))
        ]


def small(args, **changes):
    return dataclasses.replace(args, layers=(-2, -1), rank=8, num_steps=3, batch_size=4, group_sizes=(1, 2), **changes)


MEND_ARGS = small(MEND["testbed"], meta_lr=1e-2, edit_lr=1e-2)
MALMEN_ARGS = small(MALMEN["testbed"], meta_lr=1e-2, edit_lr=1e-2)
ULTRA_ARGS = UltraEditArgs(layers=(-2, -1), edit_lr=1e-2)


def editors(family):
    """One of each kind, with an LLM of its own."""
    return [
        Mend.train(tiny_llm(family), MEND_ARGS, Examples()),
        Malmen.train(tiny_llm(family), MALMEN_ARGS, Examples()),
        UltraEdit(tiny_llm(family), ULTRA_ARGS, seen=[Edit(fact_id="s", prompt="Sun", target="hot")]),
    ]


def parameters(llm):
    return [one.detach().clone() for one in llm.model.parameters()]


def logits(llm, text="The hue of B is red"):
    with torch.inference_mode():
        return llm.model(torch.tensor([llm.tokenize(text)])).logits


def num_hooks(llm):
    return sum(len(module._forward_hooks) for module in llm.model.modules())
