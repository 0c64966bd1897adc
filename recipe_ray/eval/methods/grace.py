"""GRACE: a codebook of edits between two layers of a frozen LLM.

Hartvigsen, Sankaranarayanan, Palangi, Kim, Ghassemi 2023, "Aging with GRACE: Lifelong Model Editing with Discrete
Key-Value Adaptors", arXiv 2211.11031: equation 1 (the lookup) and Algorithm 1 (how the codebook grows).
Shape letters: B rows, E entries, I width of the keys (what the MLP's last projection reads), D LLM width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recipe_ray.errors import ConfigError
from recipe_ray.eval.methods.base import Edit, ReadsAsGiven, latest
from recipe_ray.eval.methods.layers import mlp_projection, weight_DI
from recipe_ray.eval.methods.passes import EditRows, PassesReader, PromptPasses
from recipe_ray.model.llm import FrozenLLM

# Keys nearer than this are one key: the same prompt read in another batch. A split would leave both without a radius.
SAME_KEY = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceArgs:
    """Hyperparameters of GRACE.

    Attributes:
        layer: whose MLP's last projection is adapted; negative numbers count from the last layer.
        initial_radius: ε_init, the deferral radius of a new entry, Euclidean, in units of the keys (paper: 1).
        num_steps: of gradient descent on a value, at most (authors' code: 50 to 100).
        learning_rate: of Adam on a value (authors' code: 1).
        stop_loss: a value is learnt when -log f(answer | prompt) falls below this, in nats a token; None to take all
            steps.
        batch_size: edits of one call whose values are learnt side by side. Values do not act on each other's edits, so
            this changes nothing but time.
    """

    layer: int
    initial_radius: float
    num_steps: int
    learning_rate: float
    stop_loss: float | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        if min(self.initial_radius, self.num_steps, self.learning_rate, self.batch_size) <= 0:
            raise ConfigError("GRACE: initial_radius, num_steps, learning_rate and batch_size must be above 0")


PRESETS = {
    "testbed": GraceArgs(layer=-2, initial_radius=2.0, num_steps=50, learning_rate=0.5, stop_loss=0.05),
    # The values that EasyEdit, where RECIPE's authors ran GRACE, gives Llama-2-7B: layer 27 of 32.
    "7b": GraceArgs(layer=-5, initial_radius=1.0, num_steps=50, learning_rate=1.0),
}


class Codebook:
    """Keys, values, labels and deferral radii; what a query finds, and how an edit changes it.

    Attributes:
        keys_EI: float32.
        radii_E: float32, ε.
        values_ED: float32.
        labels: of each entry, the target that its value stands for.
        members: of each entry, the facts whose edits made or widened it.
    """

    def __init__(self, key_width: int, value_width: int, device: torch.device) -> None:
        self.keys_EI = torch.zeros(0, key_width, device=device)
        self.radii_E = torch.zeros(0, device=device)
        self.values_ED = torch.zeros(0, value_width, device=device)
        self.labels: list[str] = []
        self.members: list[set[str]] = []

    def __len__(self) -> int:
        return len(self.labels)

    def nearest(self, queries_BI: Tensor) -> tuple[Tensor, Tensor]:
        """For each query the nearest key's distance [B] and its entry, int64 [B]."""
        # The product formula loses half of the digits near a key, where the radius decides.
        distances_BE = torch.cdist(queries_BI.float(), self.keys_EI, compute_mode="donot_use_mm_for_euclid_dist")
        found = distances_BE.min(dim=1)
        return found.values, found.indices

    def lookup(self, queries_BI: Tensor) -> Tensor:
        """The entry that each query is within the radius of, int64 [B]; -1 for none (equation 1)."""
        if not len(self):
            return torch.full((len(queries_BI),), -1, device=queries_BI.device)
        distance_B, entry_B = self.nearest(queries_BI)
        return torch.where(distance_B <= self.radii_E[entry_B], entry_B, -1)

    def insert(self, key_I: Tensor, value_D: Tensor, edit: Edit, initial_radius: float) -> int:
        """Make room for an edit (Algorithm 1): a new entry, a wider one of the same label, or a split.

        Args:
            key_I: the query at the edit's prompt.
            value_D: what a new entry's value starts from.
            edit: the edit.
            initial_radius: ε_init.

        Returns:
            The entry that answers for the edit and whose value is to be learnt.
        """
        self._forget(edit.fact_id)
        if len(self):
            distance_B, entry_B = self.nearest(key_I[None])
            distance, entry = distance_B.item(), int(entry_B)
            if distance <= self.radii_E[entry].item() + initial_radius:
                if self.labels[entry] == edit.target:
                    self.radii_E[entry] = max(distance, self.radii_E[entry].item())
                    self.members[entry].add(edit.fact_id)
                    return entry
                if distance < SAME_KEY:
                    self.labels[entry], self.members[entry] = edit.target, {edit.fact_id}
                    self.values_ED[entry] = value_D
                    return entry
                self.radii_E[entry] = initial_radius = distance / 2
        self.keys_EI = torch.cat([self.keys_EI, key_I[None].float()])
        self.radii_E = torch.cat([self.radii_E, self.radii_E.new_tensor([initial_radius])])
        self.values_ED = torch.cat([self.values_ED, value_D[None].float()])
        self.labels.append(edit.target)
        self.members.append({edit.fact_id})
        return len(self) - 1

    def _forget(self, fact_id: str) -> None:
        """Take a fact out of its entry, and the entry with it where it served no other."""
        for entry, members in enumerate(self.members):
            if fact_id in members:
                members.remove(fact_id)
                if not members:
                    left = [place for place in range(len(self)) if place != entry]
                    self.keys_EI, self.radii_E = self.keys_EI[left], self.radii_E[left]
                    self.values_ED = self.values_ED[left]
                    del self.labels[entry], self.members[entry]
                return


class Grace(ReadsAsGiven):
    """A codebook of edits at one layer of a frozen LLM, looked up at the prompt's last token.

    The adapted layer is the MLP's last projection: the key is what it reads at the prompt's last token, the value what
    it gives there in its stead, as in the authors' code (`replace_last`). Behind the prompt nothing is looked up; what
    is generated sees the value through attention. A value starts from the projection's own output, not from noise: the
    first step is then the unedited LLM's. Edits of one call grow the codebook one after the other, and their values are
    learnt side by side, which is the same as one by one but where an entry is widened: its value is then learnt for all
    of the call's prompts that it answers.

    Args:
        llm: left as it is but for a hook while edits are in force.
        args: hyperparameters.
    """

    name = "GRACE"
    changes_llm = True

    def __init__(self, llm: FrozenLLM, args: GraceArgs) -> None:
        self.llm = llm
        self.args = args
        self._projection = mlp_projection(llm, args.layer)
        self._passes = PromptPasses()
        self.reader = PassesReader(llm, self._passes)
        self._handles: list[Any] = []
        self._learnt: tuple[Tensor, Tensor] | None = None  # values [E, D] under training and each row's entry [B]
        self.undo()

    def apply(self, edits: Sequence[Edit]) -> None:
        """Add edits to the codebook."""
        if not self._handles:
            self._handles = [
                self._passes.follow(self.llm),
                self._projection.register_forward_hook(self._replace),
            ]
        edits = latest(edits)
        for start in range(0, len(edits), self.args.batch_size):
            self._apply(edits[start : start + self.args.batch_size])
        self.reader.clear()

    def undo(self) -> None:
        """Empty the codebook and take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        value_width, key_width = weight_DI(self._projection).shape
        self.codebook = Codebook(key_width, value_width, self.llm.device)
        self.reader.clear()

    def state_bytes(self) -> int:
        """Keys, values and radii."""
        book = self.codebook
        return book.keys_EI.nbytes + book.values_ED.nbytes + book.radii_E.nbytes

    def _apply(self, edits: Sequence[Edit]) -> None:
        keys_BI, outputs_BD = self._read(edits)
        for edit, key_I, output_D in zip(edits, keys_BI, outputs_BD, strict=True):
            self.codebook.insert(key_I, output_D, edit, self.args.initial_radius)
        # Asked only now: an entry's number changes when one before it is forgotten.
        entry_of = {fact: entry for entry, members in enumerate(self.codebook.members) for fact in members}
        taught = [edit for edit in edits if edit.fact_id in entry_of]
        if taught:
            self._learn(taught, torch.tensor([entry_of[edit.fact_id] for edit in taught], device=self.llm.device))

    @torch.no_grad()
    def _read(self, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        """What the projection reads [B, I] and gives [B, D] at the prompts' last tokens in the unedited LLM."""
        read: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            read.extend((self._passes.by_row(args[0])[:, -1], self._passes.by_row(output)[:, -1]))

        rows = self.llm.pad([self.llm.tokenize(edit.prompt) for edit in edits], [0] * len(edits), "first")
        handle = self._projection.register_forward_hook(keep, prepend=True)
        try:
            self.llm.answer_logits(rows, None, num_answer_tokens=0)
        finally:
            handle.remove()
        return read[0], read[1]

    def _learn(self, edits: Sequence[Edit], entry_B: Tensor) -> None:
        """Learn the values of these edits' entries by gradient descent on -log f(answer | prompt)."""
        learnt, place_B = entry_B.unique(return_inverse=True)
        rows = EditRows.of(self.llm, edits)
        values_LD = self.codebook.values_ED[learnt].clone().requires_grad_(True)
        final_LD = values_LD.detach().clone()
        open_L = torch.ones(len(learnt), dtype=torch.bool, device=self.llm.device)
        optimizer = torch.optim.Adam([values_LD], self.args.learning_rate)
        self._learnt = (values_LD, place_B)
        try:
            for step in range(self.args.num_steps + 1):
                losses_B = rows.losses(self.llm, self._passes)
                # An entry is as good as the worst of its prompts.
                worst_L = losses_B.new_zeros(len(learnt)).scatter_reduce(0, place_B, losses_B.detach(), "amax")
                final_LD[open_L] = values_LD.detach()[open_L]
                if self.args.stop_loss is not None:
                    open_L &= worst_L > self.args.stop_loss
                if step == self.args.num_steps or not open_L.any():
                    break
                optimizer.zero_grad()
                losses_B.sum().backward()
                optimizer.step()
                going_on = open_L[place_B]
                if 2 * going_on.sum() <= len(edits):  # most are learnt: read the others alone
                    edits = [edit for edit, stays in zip(edits, going_on.tolist(), strict=True) if stays]
                    rows, place_B = EditRows.of(self.llm, edits), place_B[going_on]
                    self._learnt = (values_LD, place_B)
        finally:
            self._learnt = None
        self.codebook.values_ED[learnt] = final_LD

    def _replace(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """The value in place of the output at the last prompt token of rows that find an entry."""
        if not self._passes.reads_prompts:
            return None
        read_BTI, output_BTD = self._passes.by_row(args[0]), self._passes.by_row(output)
        row_B, last_B = torch.arange(len(read_BTI), device=output.device), self._passes.last_B
        if self._learnt is not None:
            values_LD, place_B = self._learnt
            values_BD = values_LD[place_B].to(output.dtype)
            return output_BTD.index_put((row_B, last_B), values_BD).reshape(output.shape)
        entry_B = self.codebook.lookup(read_BTI[row_B, last_B])
        found_F = (entry_B >= 0).nonzero()[:, 0]
        values_FD = self.codebook.values_ED[entry_B[found_F]].to(output.dtype)
        return output_BTD.index_put((found_F, last_B[found_F]), values_FD).reshape(output.shape)
