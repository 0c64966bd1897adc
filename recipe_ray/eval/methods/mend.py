"""MEND: a hypernetwork turns the factors of an edit's gradient into those of a better step.

Mitchell et al., "Fast Model Editing at Scale", ICLR 2022, arXiv 2110.11309.

Shape letters: N tokens of all edits made at once, I inner width of the MLP, D LLM width.
"""

from torch import Tensor

from recipe_ray.eval.methods.hypernetwork import Hypernetwork, HypernetworkArgs
from recipe_ray.eval.methods.hypernetwork_editor import HypernetworkEditor

PRESETS = {
    "testbed": HypernetworkArgs(
        layers=(-2, -1),
        rank=256,
        edit_lr=1e-3,
        edit_lr_rate=1e-4,
        meta_lr=1e-3,
        edit_weight=1.0,
        max_grad_norm=1.0,
        num_steps=200,
        batch_size=16,
        group_sizes=(1,),
    ),
    # The authors' setting, as EasyEdit gives it for GPT-J: the last three layers, rank 1,920, c_edit 0.1, a step size
    # learned from 1e-4 at 1e-4, Adam at 1e-6, gradients over ten single edits. They edit both matrices of an MLP, we
    # the second alone, as all methods here.
    "7b": HypernetworkArgs(
        layers=(-3, -2, -1),
        rank=1920,
        edit_lr=1e-4,
        edit_lr_rate=1e-4,
        meta_lr=1e-6,
        edit_weight=0.1,
        max_grad_norm=100.0,
        num_steps=100_000,
        batch_size=10,
        group_sizes=(1,),
    ),
}


class MendNetwork(Hypernetwork):
    """W̃ = W - α Σ δ̃ ũᵀ over the tokens, of rank one a token (section 3)."""

    def shift(self, inputs_NI: Tensor, pseudo_inputs_NI: Tensor, pseudo_gradients_ND: Tensor, layer: int) -> Tensor:
        """-α Ũᵀ Δ̃ [I, D]; edits made at once add up."""
        return -self.edit_lr_L[layer] * pseudo_inputs_NI.T @ pseudo_gradients_ND


class Mend(HypernetworkEditor):
    """MEND. Later edits take the gradient of the LLM that the earlier ones left."""

    name = "MEND"
    network_class = MendNetwork
    tokens = "all"
