"""AlphaEdit: MEMIT with updates that cannot reach preserved keys (Fang et al. 2025, arXiv 2410.02355).

Shape letters: N edits, D LLM width, I width of the MLP inside, R width of the null space.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recipe_ray.errors import EditorError
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.covariance import Moments, null_space
from recipe_ray.eval.methods.memit import VALUE_7B, VALUE_TESTBED, Spread
from recipe_ray.eval.methods.values import ValueArgs
from recipe_ray.model.llm import FrozenLLM


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaEditArgs:
    """Where facts are written, and how.

    Attributes:
        layers: as MEMIT's (GPT-J 3 to 8, Llama-3-8B 4 to 8).
        null_threshold: eigenvectors of the mean second moment with an eigenvalue below it make up the null space
            (GPT-J 0.02, the authors' code).
        ridge: weight of the update's own size, 1 in section 3.3 (authors' code for GPT-J 10).
        value: how values are looked for, as MEMIT does.
    """

    layers: tuple[int, ...]
    null_threshold: float = 0.02
    ridge: float = 10.0
    value: ValueArgs = field(default_factory=lambda: VALUE_7B)


PRESETS = {
    "testbed": AlphaEditArgs(layers=(0, 1), null_threshold=0.02, ridge=1.0, value=VALUE_TESTBED),
    "7b": AlphaEditArgs(layers=(3, 4, 5, 6, 7, 8)),  # the authors' for GPT-J
}


def projected(
    residuals_ND: Tensor, keys_NI: Tensor, basis_IR: Tensor, earlier_RR: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """The update of section 3.3, [D, I] in float64, and the sum over earlier keys with these in it.

    Δ = R K₁ᵀ P (K_p K_pᵀ P + K₁ K₁ᵀ P + ridge)⁻¹, solved inside the null space: with P = U Uᵀ it is
    R K₁ᵀ U (Uᵀ(K_p K_pᵀ + K₁ K₁ᵀ)U + ridge)⁻¹ Uᵀ, symmetric and of width R, and what keeps earlier edits is one matrix
    however many they are. Keys in the span of the eigenvectors left out are not moved at all.

    Args:
        residuals_ND: R, what the values still lack.
        keys_NI: K₁.
        basis_IR: U.
        earlier_RR: Uᵀ K_p K_pᵀ U.
        ridge: weight of the update's own size.
    """
    inside_NR = keys_NI.to(basis_IR.dtype) @ basis_IR
    held_RR = earlier_RR + inside_NR.T @ inside_NR
    ridge_RR = ridge * torch.eye(len(held_RR), device=held_RR.device, dtype=held_RR.dtype)
    solved_RN = torch.cholesky_solve(inside_NR.T, torch.linalg.cholesky(held_RR + ridge_RR))
    return residuals_ND.to(basis_IR.dtype).T @ solved_RN.T @ basis_IR.T, held_RR


class AlphaEdit(Spread):
    """Edits of all facts of a call at once, inside the null space of preserved keys; keys of earlier calls are kept.

    Args:
        llm: the LLM to edit.
        args: where and how.
        moments: the second moments at `args.layers`, measured in the unedited LLM.
        seed: of the contexts' prefixes.

    Raises:
        EditorError: the LLM lacks a layer, its family is not known, `moments` are not its own, or nothing lies below
            the threshold.
    """

    name = "AlphaEdit"

    def __init__(self, llm: FrozenLLM, args: AlphaEditArgs, *, moments: Moments, seed: int = 0) -> None:
        super().__init__(llm, args.layers, args.value, seed=seed)
        self.args = args
        self._bases = {layer: null_space(moments.of(llm, layer), args.null_threshold) for layer in self._layers}
        for layer, basis_IR in self._bases.items():
            if basis_IR.shape[1] == 0:
                raise EditorError(
                    f"LLM {llm.name}: no direction of layer {layer}'s keys lies below null_threshold "
                    f"{args.null_threshold:g}; give a higher one"
                )
        self._forget()

    def _forget(self) -> None:
        self._earlier = {layer: basis_IR.new_zeros((basis_IR.shape[1],) * 2) for layer, basis_IR in self._bases.items()}
        self._num_edits = 0

    def _edit(self, edits: Sequence[Edit]) -> None:
        super()._edit(edits)
        self._num_edits += len(edits)

    def _update(self, layer: int, residuals_ND: Tensor, keys_NI: Tensor) -> Tensor:
        update_DI, self._earlier[layer] = projected(
            residuals_ND, keys_NI, self._bases[layer], self._earlier[layer], self.args.ridge
        )
        return update_DI

    def undo(self) -> None:
        """Put the weights back to the bit, and forget the keys."""
        super().undo()
        self._forget()

    def state_bytes(self) -> int:
        """The changed weights, and the sums over earlier keys that further edits need."""
        sums = sum(one.numel() * one.element_size() for one in self._earlier.values()) if self._num_edits else 0
        return super().state_bytes() + sums
