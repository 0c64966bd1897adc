"""WILKE: ROME's update at the layer that an edit disturbs least, chosen anew for every edit.

Hu et al. 2024, "WilKE: Wise-Layer Knowledge Editor for Lifelong Knowledge Editing", arXiv 2402.10987.

Shape letters: D LLM width, I width of the MLP inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recipe_ray.errors import EditorError
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.covariance import Moments
from recipe_ray.eval.methods.in_place import InPlace
from recipe_ray.eval.methods.layers import last_subject_token, mlp_projection, weight_DI
from recipe_ray.eval.methods.rome import cholesky, rank_one
from recipe_ray.eval.methods.values import ValueArgs, mean_keys, sample_prefixes, value_shifts
from recipe_ray.model.llm import FrozenLLM


@dataclass(frozen=True, slots=True, kw_only=True)
class WILKEArgs:
    """Where facts may be written, and how.

    Attributes:
        layers: to choose from; negative numbers count from the last.
        value: how values are looked for, as in ROME.

    Raises:
        EditorError: no layer to choose from.
    """

    layers: tuple[int, ...]
    value: ValueArgs = field(default_factory=ValueArgs)

    def __post_init__(self) -> None:
        if not self.layers:
            raise EditorError("layers of WILKE is empty; give those to choose from")


PRESETS = {
    "testbed": WILKEArgs(layers=(0, 1), value=ValueArgs(num_steps=30, clamp_factor=10.0, prefix_lengths=(5, 5))),
    # The authors' for GPT-J, 7 of 28 layers (their code; on GPT2-XL the first 24 of 48). Values as ROME's.
    "7b": WILKEArgs(layers=tuple(range(7))),
}


def relative_change(left_D: Tensor, right_I: Tensor, weight_DI: Tensor) -> float:
    """‖Λ uᵀ‖ / ‖W‖ in the Frobenius norm: how little it is, is how well the layer's pattern matches the knowledge.

    As the authors' code measures it; the layer where it is smallest is chosen. With C = 1 it is ‖δ‖ / (‖k*‖ ‖W‖).
    """
    return float(left_D.norm() * right_I.norm() / weight_DI.to(left_D.dtype).norm())


class WILKE(InPlace):
    """Edits one after the other: each is worked out at every layer in the LLM that the ones before it left.

    Args:
        llm: the LLM to edit.
        args: where and how.
        moments: C at all of `args.layers`, measured in the unedited LLM.
        seed: of the contexts' prefixes.

    Attributes:
        chosen: the layer of every edit in force, in order, as `args.layers` calls it.

    Raises:
        EditorError: the LLM lacks a layer, its family is not known, or `moments` are not its own.
    """

    name = "WILKE"

    def __init__(self, llm: FrozenLLM, args: WILKEArgs, *, moments: Moments, seed: int = 0) -> None:
        self.args = args
        self.chosen: list[int] = []
        self._projections = [mlp_projection(llm, layer) for layer in args.layers]
        super().__init__(llm, self._projections)
        self._factors = [cholesky(moments.of(llm, layer)) for layer in args.layers]
        self._prefixes = sample_prefixes(llm, args.value.prefix_lengths, seed=seed)

    def undo(self) -> None:
        """Put the weights back to the bit."""
        super().undo()
        self.chosen.clear()

    def updates(self, edit: Edit) -> list[tuple[Tensor, Tensor]]:
        """Of each layer the sides Λ [D] and u [I] of ROME's update there, in float64; no weight is changed.

        Raises:
            EditorError: the edit's subject is empty or does not stand in its prompt.
        """
        found = []
        for projection, factor_II in zip(self._projections, self._factors, strict=True):
            keys_NI = mean_keys(self.llm, projection, [edit], self._prefixes)
            shifts_ND = value_shifts(self.llm, projection, [edit], self._prefixes, self.args.value)
            left_ND, right_NI = rank_one(shifts_ND, keys_NI, factor_II)
            found.append((left_ND[0], right_NI[0]))
        return found

    def _edit(self, edits: Sequence[Edit]) -> None:
        for edit in edits:
            last_subject_token(self.llm, edit.prompt, edit.subject)
        weights = [weight_DI(projection) for projection in self._projections]
        for edit in edits:
            updates = self.updates(edit)
            changes = [relative_change(*update, weight) for update, weight in zip(updates, weights, strict=True)]
            place = changes.index(min(changes))
            left_D, right_I = updates[place]
            with torch.no_grad():
                weights[place].add_(torch.outer(left_D, right_I).to(weights[place].dtype))
            self.chosen.append(self.args.layers[place])
