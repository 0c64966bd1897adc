"""WISE: side memories beside one projection of a frozen LLM, and a router that says which of them answers.

Wang, Li, Zhang, Xu, Yao, Jiang, Xie, Huang, Chen 2024, "WISE: Rethinking the Knowledge Memory for Lifelong Model
Editing of Large Language Models", arXiv 2405.14768: section 2.3 (routing by activation, its margin loss, sharding and
merging); the merge is TIES, Yadav, Tam, Choshen, Raffel, Bansal 2023, arXiv 2306.01708.
Shape letters: B rows, T columns, I inner width of the MLP, D LLM width, S shards, R memories.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recipe_ray.errors import ConfigError, EditorError
from recipe_ray.eval.methods.base import Edit, ReadsAsGiven, latest
from recipe_ray.eval.methods.layers import mlp_projection, weight_DI
from recipe_ray.eval.methods.passes import EditRows, PassesReader, PromptPasses
from recipe_ray.examples import EditRecord
from recipe_ray.model.llm import FrozenLLM

_IRRELEVANT_POOL = 256  # irrelevant prompts whose activations are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class WiseArgs:
    """Hyperparameters of WISE.

    Attributes:
        layer: whose MLP's last projection has side memories; negative numbers count from the last layer.
        num_steps: of gradient descent on one batch of edits, at most (paper: 70).
        learning_rate: of plain gradient descent (paper: 1).
        max_change: no weight of a side memory moves further than this from the main memory's (authors' code: 1).
        alpha: what the routing activation of irrelevant prompts stays below (paper: 5).
        beta: what that of edited prompts rises above (paper: 20).
        gamma: by how much it rises above that of irrelevant prompts (paper: 10).
        threshold_ratio: a memory answers above this share of its edits' least activation (authors' code: 0.88).
        mask_ratio: ρ, the share of the weights that one shard may change (paper: 0.2).
        edits_per_shard: n, edits between two masks (paper: 500).
        num_shards: k, shards that are merged into one memory (paper: 2).
        density: the share of a shard's weights, the largest, that its merge keeps (authors' code: 0.53).
        num_contexts: each edit is also learnt behind so many training statements (paper: texts that the LLM makes up).
        num_irrelevant: irrelevant prompts that a step sees (authors' code: 1).
        batch_size: edits of one call that are learnt together (paper: 1).
        num_replayed: edits of the open shard, the latest, that are learnt again along with new ones. The paper has
            none (its appendix B.3 replays for the router alone); a memory of few weights forgets them without.
        stop_loss: a batch is learnt when its loss is below this.
    """

    layer: int
    num_steps: int
    learning_rate: float
    max_change: float = 1.0
    alpha: float = 5.0
    beta: float = 20.0
    gamma: float = 10.0
    threshold_ratio: float = 0.88
    mask_ratio: float = 0.2
    edits_per_shard: int = 500
    num_shards: int = 2
    density: float = 0.53
    num_contexts: int = 10
    num_irrelevant: int = 1
    batch_size: int = 1
    num_replayed: int = 0
    stop_loss: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.mask_ratio <= self.density <= 1:
            raise ConfigError(
                f"WISE: mask_ratio is {self.mask_ratio} and density {self.density}; a merge that keeps less than a "
                "shard holds loses edits, give 0 < mask_ratio <= density <= 1"
            )
        if min(self.num_steps, self.edits_per_shard, self.num_shards, self.num_irrelevant, self.batch_size) < 1:
            raise ConfigError(
                "WISE: num_steps, edits_per_shard, num_shards, num_irrelevant and batch_size must be at least 1"
            )


PRESETS = {
    "testbed": WiseArgs(
        layer=-2,
        num_steps=30,
        learning_rate=5.0,
        max_change=2.0,
        alpha=2.0,
        beta=6.0,
        gamma=3.0,
        edits_per_shard=10,
        num_contexts=0,
        num_irrelevant=16,
        batch_size=10,
        num_replayed=9,
    ),
    # The paper's values for Llama-2-7B, by the authors' configuration: layer 27 of 32.
    "7b": WiseArgs(layer=-5, num_steps=70, learning_rate=1.0),
}


@dataclass(slots=True, kw_only=True)
class SideMemory:
    """A side memory as its difference from the main memory.

    Attributes:
        change_DI: float32, W' - W.
        least_activation: of its edits, when each had been learnt; infinite before the first.
    """

    change_DI: Tensor
    least_activation: float = float("inf")

    def activations(self, inner_BTI: Tensor, prompt_BT: Tensor) -> Tensor:
        """Δ_act(x) = ‖A(x)(W' - W)‖₂ (equation 5), the mean over a prompt's tokens [B]."""
        norms_BT = (inner_BTI.float() @ self.change_DI.T).norm(dim=-1)
        return (norms_BT * prompt_BT).sum(1) / prompt_BT.sum(1)


class Wise(ReadsAsGiven):
    """Side memories of one projection: WISE-Retrieve, of which WISE-Merge is the case that all fits into one memory.

    Edits go to one shard after the other, each a side memory that may change a share ρ of the weights, drawn anew;
    k full shards are merged into one memory. A prompt goes to the memory with the highest routing activation of those
    above their own threshold, if there is one, else to the main memory, which is the unedited LLM to the bit. The
    prompt alone decides, once, for all that is generated behind it; the authors' code decides anew for each token.
    An edit of a fact that an earlier shard holds does not take it out there.

    Args:
        llm: left as it is but for a hook while edits are in force.
        args: hyperparameters.
        training: of other facts; the locality questions (or, without any, the prompts) are the irrelevant prompts, the
            statements the contexts.

    Raises:
        EditorError: no training records.
    """

    name = "WISE"
    changes_llm = True

    def __init__(self, llm: FrozenLLM, args: WiseArgs, *, training: Sequence[EditRecord]) -> None:
        if not training:
            raise EditorError(
                "WISE: no training records, which its irrelevant prompts are; give records of other facts"
            )
        self.llm = llm
        self.args = args
        self._projection = mlp_projection(llm, args.layer)
        self._passes = PromptPasses()
        self.reader = PassesReader(llm, self._passes)
        self._handles: list[Any] = []
        self._learnt: Tensor | None = None  # the change under training
        self._contexts = [f"{record.prompt} {record.true_target or record.target}." for record in training]
        spared = [one.prompt for record in training for kind in record.locality.values() for one in kind]
        pool = spared or [record.prompt for record in training]
        pool = random.Random(0).sample(pool, min(len(pool), _IRRELEVANT_POOL))
        self._irrelevant = self._inner(pool)
        self.undo()

    def apply(self, edits: Sequence[Edit]) -> None:
        """Learn edits in batches, a shard after the other."""
        if not self._handles:
            self._handles = [self._passes.follow(self.llm), self._projection.register_forward_hook(self._answer)]
        edits = latest(edits)
        while edits:
            num = min(self.args.batch_size, self.args.edits_per_shard - len(self._in_shard))
            num_replayed = min(self.args.num_replayed, len(self._in_shard))
            replayed = self._in_shard[len(self._in_shard) - num_replayed :]
            self._in_shard += edits[:num]
            self._learn(latest([*replayed, *edits[:num]]))
            edits = edits[num:]
            if len(self._in_shard) == self.args.edits_per_shard:
                self._close_shard()
        self.reader.clear()

    def undo(self) -> None:
        """Drop all side memories and take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._random = random.Random(0)
        self._generator = torch.Generator().manual_seed(0)
        self.merged: list[SideMemory] = []
        self.shards: list[SideMemory] = []  # of the memory to come; the last is open
        self._open_shard()
        self.reader.clear()

    def state_bytes(self) -> int:
        """Side memories that hold an edit."""
        return sum(memory.change_DI.nbytes for memory in self._memories())

    def _memories(self) -> list[SideMemory]:
        return [memory for memory in (*self.merged, *self.shards) if memory.least_activation < float("inf")]

    def _open_shard(self) -> None:
        shape = weight_DI(self._projection).shape
        self.shards.append(SideMemory(change_DI=torch.zeros(shape, device=self.llm.device)))
        # Exactly ρ of the weights: a merge keeps so many, and what a mask had beyond would be lost in it.
        num_free = int(self.args.mask_ratio * shape.numel())
        free = torch.randperm(shape.numel(), generator=self._generator)[:num_free]
        mask_DI = torch.zeros(shape.numel(), dtype=torch.bool).index_fill(0, free, True).reshape(shape)
        self._mask_DI = mask_DI.to(self.llm.device)
        self._in_shard: list[Edit] = []

    def _close_shard(self) -> None:
        if len(self.shards) == self.args.num_shards:
            changes_SDI = torch.stack([shard.change_DI for shard in self.shards])
            self.merged.append(
                SideMemory(
                    change_DI=ties_merge(changes_SDI, density=self.args.density),
                    least_activation=min(shard.least_activation for shard in self.shards),
                )
            )
            self.shards = []
        self._open_shard()

    @torch.no_grad()
    def _inner(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What the projection reads at prompts [B, T, I], and which columns are theirs [B, T]; no memory changes it."""
        read: list[Tensor] = []
        rows = self.llm.pad([self.llm.tokenize(prompt) for prompt in prompts], [0] * len(prompts), "first")
        handle = self._projection.register_forward_pre_hook(lambda module, args: read.append(args[0]))
        try:
            self.llm.answer_logits(rows, None, num_answer_tokens=0)
        finally:
            handle.remove()
        return read[0].reshape(*rows.mask_BT.shape, -1), rows.mask_BT.bool()

    def _learn(self, edits: Sequence[Edit]) -> None:
        """Gradient descent on the edit loss and the routing's margin loss, within the shard's mask."""
        args, shard = self.args, self.shards[-1]
        learnt = [
            Edit(fact_id=edit.fact_id, prompt=f"{context}{edit.prompt}", target=edit.target)
            for edit in edits
            for context in ("", *(f"{self._random.choice(self._contexts)} " for _ in range(args.num_contexts)))
        ]
        rows = EditRows.of(self.llm, learnt)
        inner, prompt = self._inner([edit.prompt for edit in learnt])
        change_DI = shard.change_DI.clone().requires_grad_(True)
        optimizer = torch.optim.SGD([change_DI], args.learning_rate)
        side = SideMemory(change_DI=change_DI)
        self._learnt = change_DI
        try:
            for _ in range(args.num_steps):
                drawn = torch.tensor(self._random.choices(range(len(self._irrelevant[0])), k=args.num_irrelevant))
                drawn = drawn.to(self.llm.device)
                margin_loss = self._margin_loss(
                    side.activations(inner, prompt),
                    side.activations(self._irrelevant[0][drawn], self._irrelevant[1][drawn]),
                )
                loss = rows.losses(self.llm, self._passes).mean() + margin_loss
                if loss.item() < args.stop_loss:
                    break
                optimizer.zero_grad()
                loss.backward()
                assert change_DI.grad is not None
                change_DI.grad *= self._mask_DI
                optimizer.step()
                with torch.no_grad():
                    change_DI.clamp_(-args.max_change, args.max_change)
        finally:
            self._learnt = None
        shard.change_DI = change_DI.detach()
        least = shard.activations(*self._inner([edit.prompt for edit in edits])).min().item()
        shard.least_activation = least if len(edits) >= len(self._in_shard) else min(shard.least_activation, least)

    def _margin_loss(self, edited_B: Tensor, irrelevant_R: Tensor) -> Tensor:
        """Equation 6: irrelevant below α, edited above β, and γ between them; each a mean over what violates it."""
        args = self.args
        apart = args.gamma - (edited_B[:, None] - irrelevant_R)
        violations = (irrelevant_R - args.alpha, args.beta - edited_B, apart.flatten())
        return torch.stack([one.clamp(min=0).sum() / (one > 0).sum().clamp(min=1) for one in violations]).sum()

    def _answer(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """What the memories of the rows' routes give in place of the main memory."""
        if self._learnt is not None:
            return output + (args[0].float() @ self._learnt.T).to(output.dtype)
        memories = self._memories()
        inner_BTI, output_BTD = self._passes.by_row(args[0]), self._passes.by_row(output)
        if self._passes.reads_prompts:
            self._route_B = self._route(memories, inner_BTI)
        for number, memory in enumerate(memories):
            routed_R = (self._route_B == number).nonzero()[:, 0]
            if len(routed_R):
                added = (inner_BTI[routed_R].float() @ memory.change_DI.T).to(output.dtype)
                output_BTD = output_BTD.index_put((routed_R,), output_BTD[routed_R] + added)
        return output_BTD.reshape(output.shape)

    def _route(self, memories: Sequence[SideMemory], inner_BTI: Tensor) -> Tensor:
        """For each row the memory that answers, int64 [B]; -1 for the main memory."""
        main_B = torch.full((len(inner_BTI),), -1, device=inner_BTI.device)
        best_B = torch.zeros(len(inner_BTI), device=inner_BTI.device)
        for number, memory in enumerate(memories):
            activation_B = memory.activations(inner_BTI, self._passes.prompt_BT)
            threshold = self.args.threshold_ratio * memory.least_activation
            better_B = (activation_B > threshold) & (activation_B > best_B)
            main_B, best_B = main_B.where(~better_B, number), best_B.where(~better_B, activation_B)
        return main_B


def ties_merge(changes_SDI: Tensor, *, density: float) -> Tensor:
    """Merge changes of one weight [D, I]: trim, elect a sign, mean of what has that sign (TIES, algorithm 1).

    Args:
        changes_SDI: the changes, float32.
        density: of each change so many of its entries, the largest, are kept; the rest counts as 0.
    """
    num_shards = len(changes_SDI)
    size = changes_SDI[0].numel()
    flat = changes_SDI.reshape(num_shards, size)
    kept = flat.abs().topk(max(1, int(density * size)), dim=1).indices
    trimmed = torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept))
    sign = trimmed.sum(0).sign()
    agrees = (trimmed.sign() == sign) & (sign != 0)
    merged = (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    return merged.reshape(changes_SDI.shape[1:])
