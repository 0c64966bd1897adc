"""MALMEN: each token of each edit says how an output should move, and least squares finds one shift for all.

Tan, Zhang and Fu, "Massive Editing for Large Language Models via Meta Learning", ICLR 2024, arXiv 2311.04661.

Shape letters: N tokens of all edits made at once, I inner width of the MLP, D LLM width, L layers.
"""

import torch
from torch import Tensor, nn

from recipe_ray.eval.methods.factors import ridge_shift
from recipe_ray.eval.methods.hypernetwork import Hypernetwork, HypernetworkArgs
from recipe_ray.eval.methods.hypernetwork_editor import HypernetworkEditor

PRESETS = {
    "testbed": HypernetworkArgs(
        layers=(-2, -1),
        rank=256,
        edit_lr=2e-2,
        edit_lr_rate=5e-4,
        meta_lr=1e-3,
        edit_weight=1.0,
        max_grad_norm=1.0,
        num_steps=150,
        batch_size=16,
        group_sizes=(1, 4, 16),
    ),
    # The authors' setting for GPT-J: the last six layers, rank 1,920, the step size learned from 1e-6, Adam at 1e-5.
    # They train for the number of edits that is to be made at once, thousands; here 1,024.
    "7b": HypernetworkArgs(
        layers=(-6, -5, -4, -3, -2, -1),
        rank=1920,
        edit_lr=1e-6,
        edit_lr_rate=1e-5,
        meta_lr=1e-5,
        edit_weight=1.0,
        max_grad_norm=1.0,
        num_steps=1000,
        batch_size=1024,
        group_sizes=(1024,),
    ),
}


class MalmenNetwork(Hypernetwork):
    """S = (KᵀK + λ 1)⁻¹ Kᵀ V with k = u and v = -η ⟨ũ, u⟩ δ̃, the move that MEND's rank-one step gives its own token.

    The regularised least squares of Σ ‖S k - v‖² + λ ‖S‖², by the normal equation; η and λ are learned, a layer apart.
    """

    def __init__(self, inner_width: int, width: int, args: HypernetworkArgs) -> None:
        super().__init__(inner_width, width, args)
        self.log_ridge_L = nn.Parameter(torch.zeros(len(args.layers)))

    def shift(self, inputs_NI: Tensor, pseudo_inputs_NI: Tensor, pseudo_gradients_ND: Tensor, layer: int) -> Tensor:
        """The least squares solution [I, D] over the edits' tokens."""
        sizes_N1 = (inputs_NI * pseudo_inputs_NI).sum(1, keepdim=True)
        values_ND = -self.edit_lr_L[layer] * sizes_N1 * pseudo_gradients_ND
        return ridge_shift(inputs_NI, values_ND, self.log_ridge_L[layer].exp())


class Malmen(HypernetworkEditor):
    """MALMEN: one call of `apply` is one batch, whose shifts least squares reconciles; calls add up."""

    name = "MALMEN"
    network_class = MalmenNetwork
    tokens = "answer"
