"""ROME: one fact written into one MLP projection by a rank-one update (Meng et al. 2022, arXiv 2202.05262).

Shape letters: N edits, D LLM width, I width of the MLP inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.covariance import Moments
from recipe_ray.eval.methods.in_place import InPlace
from recipe_ray.eval.methods.layers import last_subject_token, mlp_projection, weight_DI
from recipe_ray.eval.methods.values import ValueArgs, mean_keys, sample_prefixes, value_shifts
from recipe_ray.model.llm import FrozenLLM


@dataclass(frozen=True, slots=True, kw_only=True)
class ROMEArgs:
    """Where facts are written, and how.

    Attributes:
        layer: whose projection is edited; negative numbers count from the last (GPT-J 5, Llama-2-7B 5).
        value: how values are looked for.
    """

    layer: int
    value: ValueArgs = field(default_factory=ValueArgs)

    @property
    def layers(self) -> tuple[int, ...]:
        """Where second moments are needed."""
        return (self.layer,)


PRESETS = {
    "testbed": ROMEArgs(layer=1, value=ValueArgs(prefix_lengths=(5,) * 5, batch_size=64)),
    # The authors' for GPT-J (appendix E.5 and their code), which others took over for Llama-2-7B.
    "7b": ROMEArgs(layer=5),
}


def cholesky(moment_II: Tensor) -> Tensor:
    """The factor [I, I] by which C⁻¹k is solved for every edit; made once a layer."""
    return torch.linalg.cholesky(moment_II)


def rank_one(shifts_ND: Tensor, keys_NI: Tensor, factor_II: Tensor) -> tuple[Tensor, Tensor]:
    """Of each edit the two sides Λ [N, D] and u [N, I] of its update, W' = W + Λ uᵀ (equation 2), in float64.

    u = C⁻¹k*, Λ = (v* - W k*) / (uᵀk*); with v* - W k* = δ, W' k* is v* = W k* + δ. k* is the mean key in both places,
    as the equation has it; the authors' code takes the prompt's own key in one, which makes models collapse in sequence
    (Gupta et al. 2024, arXiv 2403.07175).

    Args:
        shifts_ND: δ.
        keys_NI: k*.
        factor_II: `cholesky` of C.
    """
    keys_NI = keys_NI.to(factor_II.dtype)
    solved_NI = torch.cholesky_solve(keys_NI.T, factor_II).T
    scale_N = (solved_NI * keys_NI).sum(-1)
    return shifts_ND.to(factor_II.dtype) / scale_N[:, None], solved_NI


class ROME(InPlace):
    """Edits one after the other: each looks for its value in the LLM that the ones before it left.

    Args:
        llm: the LLM to edit.
        args: where and how.
        moments: C at `args.layer`, measured in the unedited LLM.
        seed: of the contexts' prefixes.

    Raises:
        EditorError: the LLM lacks the layer, its family is not known, or `moments` are not its own.
    """

    name = "ROME"

    def __init__(self, llm: FrozenLLM, args: ROMEArgs, *, moments: Moments, seed: int = 0) -> None:
        self.args = args
        self._projection = mlp_projection(llm, args.layer)
        super().__init__(llm, [self._projection])
        self._factor_II = cholesky(moments.of(llm, args.layer))
        self._prefixes = sample_prefixes(llm, args.value.prefix_lengths, seed=seed)

    @torch.no_grad()
    def _edit(self, edits: Sequence[Edit]) -> None:
        for edit in edits:
            last_subject_token(self.llm, edit.prompt, edit.subject)
        weight = weight_DI(self._projection)
        for edit in edits:
            keys_NI = mean_keys(self.llm, self._projection, [edit], self._prefixes)
            with torch.enable_grad():
                shifts_ND = value_shifts(self.llm, self._projection, [edit], self._prefixes, self.args.value)
            left_ND, right_NI = rank_one(shifts_ND, keys_NI, self._factor_II)
            weight.add_((left_ND.T @ right_NI).to(weight.dtype))
