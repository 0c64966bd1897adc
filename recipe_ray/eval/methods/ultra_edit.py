"""UltraEdit: a shift of weights in closed form from hidden states and gradients, normalised over all edits so far.

Gu et al., "UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language Models", 2025, arXiv
2505.14679. Nothing is trained; of earlier edits only the mean and variance of their features are kept.

Shape letters: N tokens of all edits of a call, I inner width of the MLP, D LLM width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.factors import Factors, ridge_shift
from recipe_ray.eval.methods.moments import RunningMoments
from recipe_ray.eval.methods.shift_editor import ShiftEditor
from recipe_ray.model.llm import FrozenLLM


@dataclass(frozen=True, slots=True, kw_only=True)
class UltraEditArgs:
    """How UltraEdit edits.

    Attributes:
        layers: whose MLP projections change; negative numbers count from the last. Paper: near the end, by LLM.
        edit_lr: η, by which the wanted change of an output is scaled. Paper: 1e-6.
        ridge: weight of ‖S‖² beside the squared errors. Paper: 1.
        answer_end: text behind every target that the edited LLM must say too, so that answers end.
    """

    layers: tuple[int, ...]
    edit_lr: float = 1e-6
    ridge: float = 1.0
    answer_end: str = "."


PRESETS = {
    # Beside 100 edits in `seen`; without them single edits want 1e-2, and spare less.
    "testbed": UltraEditArgs(layers=(-1,), edit_lr=4e-3),
    # The authors' setting for GPT-J on zsRE: layers 18 to 26 of 28.
    "7b": UltraEditArgs(layers=tuple(range(-10, -1))),
}


class UltraEdit(ShiftEditor):
    """Edits by least squares on normalised features.

    At each token from which an answer token is predicted, z = [u, δ], the projection's input and the gradient in its
    output; ẑ is z normalised by mean and standard deviation of all z so far, those of this call included; the output is
    wanted to move by v = -η ‖û‖² δ̂, and the shift of the weights is (UᵀU + ridge 1)⁻¹ Uᵀ V with the u as they are.

    The paper edits many facts a turn. With a first edit by itself, mean and deviation are those of its own few tokens,
    and what they have in common, which is what to change, is subtracted; `seen` is for that.

    Args:
        llm: the LLM; its weights change with `apply` and come back with `undo`.
        args: how.
        seen: edits whose features count in the statistics before the first edit, and that are not made. Not of the
            paper, whose first turns do it; "More Edits, More Stable" (2026, arXiv 2605.11836) has a stage of warm-up.

    Raises:
        EditorError: the LLM has no such layer, or is of a family whose MLP is not known.
    """

    name = "UltraEdit"

    def __init__(self, llm: FrozenLLM, args: UltraEditArgs, *, seen: Sequence[Edit] = ()) -> None:
        super().__init__(llm, args.layers, answer_end=args.answer_end, tokens="answer")
        self.args = args
        self._start = self.factors(seen) if seen else None
        self.moments: list[RunningMoments] = []
        self._reset()

    def undo(self) -> None:
        """Put the weights back, to the bit, and forget the edits' features."""
        super().undo()
        self._reset()

    def shifts(self, factors: Factors) -> list[Tensor]:
        """The closed form above, a projection at a time; the features count in the statistics from here on."""
        self._see(factors)
        shifts = []
        for moments, inputs_NI, gradients_ND in zip(self.moments, factors.inputs, factors.gradients, strict=True):
            normal = moments(torch.cat([inputs_NI, gradients_ND], 1))
            inputs_hat, gradients_hat = normal.split([inputs_NI.shape[1], gradients_ND.shape[1]], 1)
            values_ND = -self.args.edit_lr * (inputs_hat**2).sum(1, keepdim=True) * gradients_hat
            shifts.append(ridge_shift(inputs_NI, values_ND, self.args.ridge))
        return shifts

    def state_bytes(self) -> int:
        """Size of the changed weights and of the statistics."""
        buffers = [one for moments in self.moments for one in moments.buffers()]
        return super().state_bytes() + sum(one.numel() * one.element_size() for one in buffers)

    def _see(self, factors: Factors) -> None:
        for moments, inputs_NI, gradients_ND in zip(self.moments, factors.inputs, factors.gradients, strict=True):
            moments.update(torch.cat([inputs_NI, gradients_ND], 1))

    def _reset(self) -> None:
        widths = [sum(projection.weight.shape) for projection in self.projections]
        self.moments = [RunningMoments(width).to(self.llm.device) for width in widths]
        if self._start is not None:
            self._see(self._start)
