"""Editors whose shifts a hypernetwork gives: its training, and the editor with it.

Shape letters: G groups of edits, I inner width of the MLP, D LLM width.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from recipe_ray.errors import EditorError
from recipe_ray.eval.methods.factors import BATCH_SIZE, AnswerRows, Factors, TokenChoice, edit_factors, shifted
from recipe_ray.eval.methods.hypernetwork import (
    Hypernetwork,
    HypernetworkArgs,
    load_hypernetwork,
    save_hypernetwork,
)
from recipe_ray.eval.methods.layers import mlp_projection, weight_DI
from recipe_ray.eval.methods.shift_editor import ShiftEditor
from recipe_ray.examples import Batches, EditExample
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.losses import answer_nll, locality_kl


class HypernetworkEditor(ShiftEditor):
    """An editor with a trained hypernetwork.

    Args:
        llm: the LLM; its weights change with `apply` and come back with `undo`.
        args: how the hypernetwork was trained.
        network: the hypernetwork, for this LLM.

    Raises:
        EditorError: the LLM has no such layer, or is of a family whose MLP is not known.
    """

    network_class: ClassVar[type[Hypernetwork]]
    tokens: ClassVar[TokenChoice]

    def __init__(self, llm: FrozenLLM, args: HypernetworkArgs, *, network: Hypernetwork) -> None:
        super().__init__(llm, args.layers, answer_end=args.answer_end, tokens=self.tokens)
        self.args = args
        self.network = network.to(llm.device).eval()

    @classmethod
    def train(
        cls,
        llm: FrozenLLM,
        args: HypernetworkArgs,
        batches: Batches,
        *,
        seed: int = 0,
        report: Callable[[int, dict[str, float]], None] | None = None,
    ) -> Self:
        """Train a hypernetwork for an LLM, which is left as it is.

        A step makes a batch's edits, `group_sizes` of them at once, each group apart from the others, and lowers the
        edited LLMs' negative log-likelihood of the targets, after the edits' own prompts and in other words, and their
        divergence from the unedited LLM behind locality prompts (MEND, section 3; MALMEN has the same).

        Args:
            llm: the LLM.
            args: how.
            batches: training data, of `batch_size` edits each.
            seed: of the weights that training starts with.
            report: called with each step's number and its losses `edit` and `locality`, nats an answer token.

        Raises:
            EditorError: a batch cannot be taken in groups, or the LLM's family is not known.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = cls.network_class(*_shape(llm, args.layers[-1]), args).to(llm.device).train()
        optimizer = torch.optim.Adam(
            [
                {"params": [network.edit_lr_L], "lr": args.edit_lr_rate},
                {"params": [one for one in network.parameters() if one is not network.edit_lr_L], "lr": args.meta_lr},
            ]
        )
        for step in range(args.num_steps):
            group_size = args.group_sizes[step % len(args.group_sizes)]
            optimizer.zero_grad()
            losses = _backward(llm, network, args, batches.batch(step), group_size, cls.tokens)
            torch.nn.utils.clip_grad_norm_(network.parameters(), args.max_grad_norm)
            optimizer.step()
            if report is not None:
                report(step, losses)
        return cls(llm, args, network=network)

    @classmethod
    def load(cls, llm: FrozenLLM, folder: Path) -> Self:
        """The editor that `save` wrote.

        Raises:
            EditorError: not there, unreadable, or trained for an LLM of another shape.
        """
        # The layers are the saved arguments'; every layer's projection has the last one's shape.
        network, args = load_hypernetwork(folder, cls.network_class, shape=_shape(llm, -1))
        return cls(llm, args, network=network)

    def save(self, folder: Path) -> None:
        """Write the hypernetwork and its arguments into a folder, which is made where there is none."""
        save_hypernetwork(self.network, self.args, folder)

    @torch.no_grad()
    def shifts(self, factors: Factors) -> list[Tensor]:
        """The hypernetwork's shifts, for all edits at once."""
        size = int(factors.edit_N[-1]) + 1
        return [shift[0] for shift in self.network.shifts(factors, group_size=size, num_groups=1)]


def _backward(
    llm: FrozenLLM,
    network: Hypernetwork,
    args: HypernetworkArgs,
    examples: Sequence[EditExample],
    group_size: int,
    tokens: TokenChoice,
) -> dict[str, float]:
    """Add a batch's gradients to the hypernetwork's, and say its losses, each a mean over questions.

    The gradients go back to the shifts first, some rows of the LLM after others, and from the shifts to the
    hypernetwork once (MALMEN, figure 2), so that memory does not grow with the number of edits.
    """
    num_groups, left_over = divmod(len(examples), group_size)
    if left_over:
        raise EditorError(f"{len(examples)} edits of a batch do not fall into groups of {group_size}; give a divisor")
    projections = [mlp_projection(llm, layer) for layer in args.layers]
    edits = [(one.prompt, one.target) for one in examples]
    factors = edit_factors(llm, projections, edits, answer_end=args.answer_end, tokens=tokens)
    network.see(factors)
    shifts = network.shifts(factors, group_size=group_size, num_groups=num_groups)
    leaves = [shift.detach().requires_grad_() for shift in shifts]
    losses = {"edit": 0.0, "locality": 0.0}
    for groups, rows in _turns(num_groups, group_size):
        part = examples[rows]
        # A group's rows stand together, as `shifted` wants them.
        asked = [
            (
                (one.prompt, one.target),
                (one.generality_prompt, one.generality_target),
                (one.locality_prompt, one.locality_target),
            )
            for one in part
        ]
        batch = AnswerRows.make(llm, [question for three in asked for question in three], answer_end=args.answer_end)
        spared = AnswerRows.make(llm, [three[2] for three in asked], answer_end=args.answer_end)
        with torch.no_grad():
            unedited = spared.logits(llm)
        with shifted(projections, [leaf[groups] for leaf in leaves]):
            edited = batch.logits(llm)
        is_spared = torch.arange(len(edited), device=llm.device) % 3 == 2
        mask_BA, kept_BA = batch.mask_BA[~is_spared].bool(), spared.mask_BA.bool()
        nll_A = answer_nll(edited[~is_spared][mask_BA], batch.answers_BA[~is_spared][mask_BA])
        kl_A = locality_kl(edited[is_spared, -unedited.shape[1] :][kept_BA], unedited[kept_BA])
        edit = nll_A @ (mask_BA / mask_BA.sum(1, keepdim=True))[mask_BA] / (2 * len(examples))
        locality = kl_A @ (kept_BA / kept_BA.sum(1, keepdim=True))[kept_BA] / len(examples)
        (args.edit_weight * edit + args.locality_weight * locality).backward()
        losses["edit"] += edit.item()
        losses["locality"] += locality.item()
    torch.autograd.backward(shifts, [leaf.grad for leaf in leaves])
    return losses


def _turns(num_groups: int, group_size: int) -> Iterator[tuple[slice, slice]]:
    """Groups and their edits: as many whole groups as fit through the LLM at once, or a large group in parts."""
    if group_size <= BATCH_SIZE:
        step = BATCH_SIZE // group_size
        for first in range(0, num_groups, step):
            groups = slice(first, min(first + step, num_groups))
            yield groups, slice(groups.start * group_size, groups.stop * group_size)
        return
    for group in range(num_groups):
        end = (group + 1) * group_size
        for start in range(group * group_size, end, BATCH_SIZE):
            yield slice(group, group + 1), slice(start, min(start + BATCH_SIZE, end))


def _shape(llm: FrozenLLM, layer: int) -> tuple[int, int]:
    """I and D of a layer."""
    width, inner_width = weight_DI(mlp_projection(llm, layer)).shape
    return inner_width, width
