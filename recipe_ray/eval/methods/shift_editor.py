"""What editors have in common that compute, from an edit's gradient, a shift of some layers' weights.

Shape letters: I inner width of the MLP, D LLM width.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recipe_ray.eval.cases import Ask
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.factors import Factors, TokenChoice, edit_factors
from recipe_ray.eval.methods.layers import SavedWeights, mlp_projection, weight_DI
from recipe_ray.eval.protocol import Reader
from recipe_ray.model.llm import FrozenLLM


class ShiftEditor(ABC):
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
    changes_llm = True

    def __init__(self, llm: FrozenLLM, layers: Sequence[int], *, answer_end: str, tokens: TokenChoice) -> None:
        self.llm = llm
        self.projections = tuple(mlp_projection(llm, layer) for layer in layers)
        self._answer_end = answer_end
        self._tokens: TokenChoice = tokens
        self._saved = SavedWeights(self.projections)
        self.reader = self._new_reader()

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

    def apply(self, edits: Sequence[Edit]) -> None:
        """Shift the weights once for all edits of the call; of two of one fact_id the later counts."""
        edits = list({edit.fact_id: edit for edit in edits}.values())
        if not edits:
            return
        with torch.no_grad():
            for projection, shift_ID in zip(self.projections, self.shifts(self.factors(edits)), strict=True):
                weight = weight_DI(projection)
                weight.add_(shift_ID.T.to(weight.dtype))
        self.reader = self._new_reader()

    def undo(self) -> None:
        """Put the weights back, to the bit."""
        self._saved.restore()
        self.reader = self._new_reader()

    def asks(self, prompts: Sequence[str]) -> list[Ask]:
        """The prompts themselves."""
        return [Ask(prompt) for prompt in prompts]

    def state_bytes(self) -> int:
        """Size of the changed weights."""
        return self._saved.changed_bytes()

    def _new_reader(self) -> Reader:
        """A reader that remembers no answer of other weights."""
        return Reader(self.llm, np.zeros((0, 0, self.llm.width), np.float32), "first")
