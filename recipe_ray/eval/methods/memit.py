"""MEMIT: many facts at once, spread over the MLP projections of several layers (Meng et al. 2023, arXiv 2210.07229).

Shape letters: N edits, D LLM width, I width of the MLP inside.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recipe_ray.errors import EditorError
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.covariance import Moments
from recipe_ray.eval.methods.in_place import InPlace
from recipe_ray.eval.methods.layers import decoder_layers, mlp_projection, weight_DI
from recipe_ray.eval.methods.rome import cholesky
from recipe_ray.eval.methods.values import ValueArgs, mean_keys, outputs_at_subject, sample_prefixes, value_shifts
from recipe_ray.model.llm import FrozenLLM

VALUE_7B = ValueArgs(num_steps=25, clamp_factor=0.75, prefix_lengths=(10,) * 5)
VALUE_TESTBED = ValueArgs(num_steps=25, clamp_factor=4.0, prefix_lengths=(5, 5), batch_size=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class MEMITArgs:
    """Where facts are written, and how.

    Attributes:
        layers: consecutive ones, first to last, whose projections are edited; values are looked for at the last
            (GPT-J 3 to 8, Llama-2-7B 4 to 8). Negative numbers count from the LLM's last.
        moment_weight: λ, what the mean second moment C weighs against the edits' keys (GPT-J 15,000).
        value: how values are looked for.
    """

    layers: tuple[int, ...]
    moment_weight: float = 15_000.0
    value: ValueArgs = field(default_factory=lambda: VALUE_7B)


PRESETS = {
    "testbed": MEMITArgs(layers=(0, 1), moment_weight=150.0, value=VALUE_TESTBED),
    # Appendix B and the authors' code for GPT-J; Llama-2-7B in later work takes 4 to 8 with the same weight.
    "7b": MEMITArgs(layers=(3, 4, 5, 6, 7, 8)),
}


def least_squares(residuals_ND: Tensor, keys_NI: Tensor, factor_II: Tensor, moment_weight: float) -> Tensor:
    """The update Δ = R Kᵀ (λC + K Kᵀ)⁻¹ of equation 14, [D, I] in float64.

    Solved as R (1 + Kᵀ (λC)⁻¹ K)⁻¹ Kᵀ (λC)⁻¹, the same by Woodbury's identity, with C's factor made once. With one edit
    it is ROME's update times s / (λ + s), s = k*ᵀC⁻¹k*: ROME's own as λ goes to 0.

    Args:
        residuals_ND: R, what the values still lack.
        keys_NI: K.
        factor_II: `cholesky` of C.
        moment_weight: λ.
    """
    keys_NI = keys_NI.to(factor_II.dtype)
    solved_NI = torch.cholesky_solve(keys_NI.T, factor_II).T / moment_weight
    gram_NN = solved_NI @ keys_NI.T + torch.eye(len(keys_NI), device=keys_NI.device, dtype=keys_NI.dtype)
    return residuals_ND.to(factor_II.dtype).T @ torch.linalg.solve(gram_NN, solved_NI)


class Spread(InPlace):
    """Values looked for at one layer, and layers up to it that each take a share; how is said by `_update`.

    One call of `apply` is one batch: all values are looked for in the LLM as the call finds it.

    Args:
        llm: the LLM to edit.
        layers: as in `MEMITArgs`.
        value: how values are looked for.
        seed: of the contexts' prefixes.
    """

    def __init__(self, llm: FrozenLLM, layers: Sequence[int], value: ValueArgs, *, seed: int) -> None:
        self._layers = _in_order(llm, layers)
        self._projections = {layer: mlp_projection(llm, layer) for layer in self._layers}
        super().__init__(llm, list(self._projections.values()))
        self._value = value
        self._prefixes = sample_prefixes(llm, value.prefix_lengths, seed=seed)

    @abstractmethod
    def _update(self, layer: int, residuals_ND: Tensor, keys_NI: Tensor) -> Tensor:
        """The update [D, I] of one layer's projection."""

    @torch.no_grad()
    def _edit(self, edits: Sequence[Edit]) -> None:
        site = decoder_layers(self.llm)[self._layers[-1]]
        wanted_ND = outputs_at_subject(self.llm, site, edits)
        with torch.enable_grad():
            wanted_ND = wanted_ND + value_shifts(self.llm, site, edits, self._prefixes, self._value)
        for layer in self._layers:  # MEMIT's algorithm 1: each takes its share of what those before it left
            keys_NI = mean_keys(self.llm, self._projections[layer], edits, self._prefixes)
            lacking_ND = wanted_ND - outputs_at_subject(self.llm, site, edits)
            weight = weight_DI(self._projections[layer])
            update_DI = self._update(layer, lacking_ND / (self._layers[-1] - layer + 1), keys_NI)
            weight.add_(update_DI.to(weight.dtype))


class MEMIT(Spread):
    """Edits of all facts of a call at once, by least squares.

    Args:
        llm: the LLM to edit.
        args: where and how.
        moments: C at `args.layers`, measured in the unedited LLM.
        seed: of the contexts' prefixes.

    Raises:
        EditorError: the LLM lacks a layer, its family is not known, or `moments` are not its own.
    """

    name = "MEMIT"

    def __init__(self, llm: FrozenLLM, args: MEMITArgs, *, moments: Moments, seed: int = 0) -> None:
        super().__init__(llm, args.layers, args.value, seed=seed)
        self.args = args
        self._factors = {layer: cholesky(moments.of(llm, layer)) for layer in self._layers}

    def _update(self, layer: int, residuals_ND: Tensor, keys_NI: Tensor) -> Tensor:
        return least_squares(residuals_ND, keys_NI, self._factors[layer], self.args.moment_weight)


def _in_order(llm: FrozenLLM, layers: Sequence[int]) -> tuple[int, ...]:
    num_layers = len(decoder_layers(llm))
    for layer in layers:
        mlp_projection(llm, layer)  # says which layer the LLM lacks
    places = tuple(layer % num_layers for layer in layers)
    if not places or list(places) != list(range(places[0], places[-1] + 1)):
        raise EditorError(
            f"LLM {llm.name}: layers {tuple(layers)} are to be edited; give consecutive ones, first to last"
        )
    return places
