"""What editors have in common that compute, from an edit's gradient, a shift of some layers' weights.

Shape letters: I inner width of the MLP, D LLM width.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.factors import Factors, TokenChoice, edit_factors
from recipe_ray.eval.methods.in_place import InPlace
from recipe_ray.eval.methods.layers import mlp_projection, weight_DI
from recipe_ray.model.llm import FrozenLLM


class ShiftEditor(InPlace):
    """An editor that adds a shift to the MLP projections of some layers, all edits of a call at once.

    Args:
        llm: the LLM; its weights change with `apply` and come back with `undo`.
        layers: whose projections change; negative numbers count from the last.
        answer_end: text behind every target that the edited LLM must say too.
        tokens: whose factors `shifts` wants.

    Raises:
        EditorError: the LLM has no such layer, or is of a family whose MLP is not known.
    """

    name: str

    def __init__(self, llm: FrozenLLM, layers: Sequence[int], *, answer_end: str, tokens: TokenChoice) -> None:
        self.projections = tuple(mlp_projection(llm, layer) for layer in layers)
        super().__init__(llm, self.projections)
        self._answer_end = answer_end
        self._tokens: TokenChoice = tokens

    @abstractmethod
    def shifts(self, factors: Factors) -> list[Tensor]:
        """For each projection the shift [I, D] that makes the edits whose tokens these are."""

    def factors(self, edits: Sequence[Edit]) -> Factors:
        """The edits' factors in the LLM as it is now."""
        return edit_factors(
            self.llm,
            self.projections,
            [(edit.prompt, edit.target) for edit in edits],
            answer_end=self._answer_end,
            tokens=self._tokens,
        )

    @torch.no_grad()
    def _edit(self, edits: Sequence[Edit]) -> None:
        if not edits:
            return
        with torch.enable_grad():
            factors = self.factors(edits)
        for projection, shift_ID in zip(self.projections, self.shifts(factors), strict=True):
            weight = weight_DI(projection)
            weight.add_(shift_ID.T.to(weight.dtype))
