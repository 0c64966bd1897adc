"""The hypernetwork of MEND and MALMEN: from the factors of an edit's gradient to better factors.

Shape letters: N tokens, I inner width of the MLP, D LLM width, C = I + D, R rank, L layers,
G groups of edits.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recipe_ray.errors import EditorError
from recipe_ray.eval.methods.factors import Factors
from recipe_ray.eval.methods.moments import RunningMoments

WEIGHTS_FILE = "hypernetwork.safetensors"
ARGS_FILE = "args.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class HypernetworkArgs:
    """A hypernetwork and its training.

    Attributes:
        layers: whose MLP projections change; negative numbers count from the last.
        rank: R, of each block's matrix. MEND and MALMEN: 1,920.
        num_blocks: blocks. MEND and MALMEN: 2.
        edit_lr: the learned step size of an edit as training begins, one a layer.
        edit_lr_rate: Adam's rate for `edit_lr`.
        meta_lr: Adam's rate for all else.
        edit_weight: of the edit loss.
        locality_weight: of the locality loss.
        max_grad_norm: gradients are scaled down to this norm.
        num_steps: of training.
        batch_size: edits a step, for whoever makes the batches.
        group_sizes: edits made at once, a number a step in turn; each divides `batch_size`.
        answer_end: text behind every target that the edited LLM must say too, so that answers end.
    """

    layers: tuple[int, ...]
    rank: int
    num_blocks: int = 2
    edit_lr: float
    edit_lr_rate: float
    meta_lr: float
    edit_weight: float
    locality_weight: float = 1.0
    max_grad_norm: float
    num_steps: int
    batch_size: int
    group_sizes: tuple[int, ...]
    answer_end: str = "."


class Block(nn.Module):
    """z + ReLU(s ⊙ (z A B + b) + o), with s and o for each layer its own (MEND, section 3).

    B starts at zero, so the block starts as the identity. `clamp`, unlike `relu`, passes the gradient at 0, where all
    units then stand.
    """

    def __init__(self, width: int, rank: int, num_layers: int) -> None:
        super().__init__()
        self.down_CR = nn.Parameter(torch.randn(width, rank) / width**0.5)
        self.up_RC = nn.Parameter(torch.zeros(rank, width))
        self.bias_C = nn.Parameter(torch.zeros(width))
        self.scale_LC = nn.Parameter(torch.ones(num_layers, width))
        self.offset_LC = nn.Parameter(torch.zeros(num_layers, width))

    def forward(self, z_NC: Tensor, layer: int) -> Tensor:
        """[N, C] for the layer of this number."""
        inner = z_NC @ self.down_CR @ self.up_RC + self.bias_C
        return z_NC + (self.scale_LC[layer] * inner + self.offset_LC[layer]).clamp(min=0)


class Hypernetwork(nn.Module, ABC):
    """Blocks that all layers share, over factors normalised a layer at a time.

    Args:
        inner_width: I.
        width: D.
        args: its shape, and the step size to begin with.
    """

    def __init__(self, inner_width: int, width: int, args: HypernetworkArgs) -> None:
        super().__init__()
        self.widths = (inner_width, width)
        num_layers = len(args.layers)
        self.moments = nn.ModuleList(RunningMoments(inner_width + width) for _ in args.layers)
        self.blocks = nn.ModuleList(Block(inner_width + width, args.rank, num_layers) for _ in range(args.num_blocks))
        self.edit_lr_L = nn.Parameter(torch.full((num_layers,), args.edit_lr))

    @abstractmethod
    def shift(self, inputs_NI: Tensor, pseudo_inputs_NI: Tensor, pseudo_gradients_ND: Tensor, layer: int) -> Tensor:
        """The shift [I, D] of a layer's weights for edits made at once, from their tokens."""

    def see(self, factors: Factors) -> None:
        """Count factors of the training's edits in the statistics by which factors are normalised."""
        for moments, inputs_NI, gradients_ND in zip(self.moments, factors.inputs, factors.gradients, strict=True):
            cast(RunningMoments, moments).update(torch.cat([inputs_NI, gradients_ND], 1))

    def forward(self, inputs_NI: Tensor, gradients_ND: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Pseudo-inputs [N, I] and pseudo-gradients [N, D] of the layer of this number."""
        z_NC = self.moments[layer](torch.cat([inputs_NI, gradients_ND], 1))
        for block in self.blocks:
            z_NC = block(z_NC, layer)
        pseudo_inputs_NI, pseudo_gradients_ND = z_NC.split(self.widths, 1)
        return pseudo_inputs_NI, pseudo_gradients_ND

    def shifts(self, factors: Factors, *, group_size: int, num_groups: int) -> list[Tensor]:
        """For each layer the shifts [G, I, D] of groups of edits, each group made apart from the others."""
        sizes = torch.bincount(factors.edit_N // group_size, minlength=num_groups).tolist()
        shifts = []
        for layer, (inputs_NI, gradients_ND) in enumerate(zip(factors.inputs, factors.gradients, strict=True)):
            pseudo_inputs_NI, pseudo_gradients_ND = self(inputs_NI, gradients_ND, layer)
            groups = zip(
                inputs_NI.split(sizes), pseudo_inputs_NI.split(sizes), pseudo_gradients_ND.split(sizes), strict=True
            )
            shifts.append(torch.stack([self.shift(*group, layer) for group in groups]))
        return shifts


Network = TypeVar("Network", bound=Hypernetwork)


def save_hypernetwork(hypernetwork: Hypernetwork, args: HypernetworkArgs, folder: Path) -> None:
    """Write weights, statistics and arguments into a folder, which is made where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in hypernetwork.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE)
    (folder / ARGS_FILE).write_text(json.dumps(dataclasses.asdict(args), indent=2) + "\n")


def load_hypernetwork(
    folder: Path, network_class: type[Network], *, shape: tuple[int, int]
) -> tuple[Network, HypernetworkArgs]:
    """Read what `save_hypernetwork` wrote.

    Args:
        folder: where.
        network_class: of the method.
        shape: I and D of the LLM that is to be edited.

    Raises:
        EditorError: not there, unreadable, of another method, or trained for an LLM of another shape.
    """
    try:
        stored: dict[str, Any] = json.loads((folder / ARGS_FILE).read_text())
        fields: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in stored.items()}
        args = HypernetworkArgs(**fields)
        network = network_class(*shape, args)
        state = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise EditorError(
            f"{folder}: holds no hypernetwork of this method ({type(error).__name__}: {error}); "
            "train one and save it there"
        ) from error
    try:
        network.load_state_dict(state)
    except RuntimeError as error:  # torch's, for names and shapes that differ
        raise EditorError(
            f"{folder}: its hypernetwork is of another method, or for an LLM of another shape than inner width "
            f"{shape[0]} and width {shape[1]}; train one for this LLM"
        ) from error
    return network, args
