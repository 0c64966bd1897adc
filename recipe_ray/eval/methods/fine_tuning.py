"""FT: fine-tuning of one layer's MLP projection on the edits, the baseline of Meng et al. (2022, arXiv 2202.05262).

With `norm_limit` it is FT-L, in which no weight leaves a small interval (Zhu et al. 2020, arXiv 2012.00363).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipe_ray.eval.methods.answers import answer_ids
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.in_place import InPlace
from recipe_ray.eval.methods.layers import mlp_projection
from recipe_ray.eval.protocol import STOP
from recipe_ray.model.llm import FrozenLLM


@dataclass(frozen=True, slots=True, kw_only=True)
class FTArgs:
    """What is trained, and for how long.

    Attributes:
        layer: whose projection is trained; negative numbers count from the last (GPT-J 21; with a limit 0).
        learning_rate: of Adam (5e-4).
        num_steps: passes over the edits of a call at most (25).
        stop_loss: a batch whose mean loss is below is passed over, and training ends when the mean over all is (0.03,
            appendix E.1).
        norm_limit: FT-L: no weight moves further than this in a call (GPT-J 5e-5, GPT-2 XL 5e-4); None for FT.
        batch_size: edits a step of Adam.
        target_end: as in `ValueArgs`.
    """

    layer: int
    learning_rate: float = 5e-4
    num_steps: int = 25
    stop_loss: float = 0.03
    norm_limit: float | None = None
    batch_size: int = 32
    target_end: str = STOP


PRESETS = {
    # The best on tuning edits, 100 in sequence, of layers 0 to 3 and rates of 1e-3, 3e-3, 1e-2: reliability 0.78,
    # generality 0.64, locality 0.72.
    "testbed": FTArgs(layer=2, learning_rate=3e-3),
    "7b": FTArgs(layer=21),  # GPT-J, appendix E.1 and the authors' code
}
LIMITED_PRESETS = {
    # Of limits from 1e-3 to 4e-2 on tuning edits, 50 in sequence: 0.96, 0.86, 0.84; below 1e-2 nothing is learnt.
    "testbed": FTArgs(layer=2, learning_rate=3e-3, norm_limit=4e-2),
    "7b": FTArgs(layer=0, norm_limit=5e-5),
}


class FT(InPlace):
    """Adam on -log P(target | prompt), from the weights that a call finds, until the loss is low.

    Args:
        llm: the LLM to edit.
        args: what and for how long.

    Raises:
        EditorError: the LLM lacks the layer, or its family is not known.
    """

    def __init__(self, llm: FrozenLLM, args: FTArgs) -> None:
        self.args = args
        self.name = "FT" if args.norm_limit is None else "FT-L"
        self._projection = mlp_projection(llm, args.layer)
        super().__init__(llm, [self._projection])

    def _edit(self, edits: Sequence[Edit]) -> None:
        batches = [edits[start : start + self.args.batch_size] for start in range(0, len(edits), self.args.batch_size)]
        weight: nn.Parameter = self._projection.weight  # type: ignore[assignment]
        before = weight.detach().float().clone()
        exact = before.clone().requires_grad_()  # steps of Adam are too small for bfloat16 to keep
        optimizer = torch.optim.Adam([exact], lr=self.args.learning_rate)
        try:
            weight.requires_grad_(True)
            for _ in range(self.args.num_steps):
                losses = [self._step(batch, weight, exact, before, optimizer) for batch in batches]
                if sum(
                    loss * len(batch) for loss, batch in zip(losses, batches, strict=True)
                ) < self.args.stop_loss * len(edits):
                    break
        finally:
            weight.requires_grad_(False)
            weight.grad = None

    def _step(
        self, edits: Sequence[Edit], weight: nn.Parameter, exact: Tensor, before: Tensor, optimizer: torch.optim.Adam
    ) -> float:
        """One step on a batch; its loss before the step."""
        loss = self._loss(edits)
        if loss.item() >= self.args.stop_loss:
            weight.grad = None
            loss.backward()
            assert weight.grad is not None
            exact.grad = weight.grad.float()
            optimizer.step()
            with torch.no_grad():
                if self.args.norm_limit is not None:
                    exact.copy_(torch.clamp(exact, before - self.args.norm_limit, before + self.args.norm_limit))
                weight.copy_(exact)
        return loss.item()

    def _loss(self, edits: Sequence[Edit]) -> Tensor:
        """Mean over edits of the mean over the target's tokens of -log P."""
        llm = self.llm
        answers = [answer_ids(llm, edit.target, self.args.target_end) for edit in edits]
        rows = llm.pad(
            [llm.tokenize(edit.prompt) + answer for edit, answer in zip(edits, answers, strict=True)],
            [0] * len(edits),
            "first",
        )
        width = max(map(len, answers))
        logits_NAV = llm.answer_logits(rows, None, num_answer_tokens=width).float()
        nll_NA = functional.cross_entropy(
            logits_NAV.flatten(0, 1), rows.ids_BT[:, -width:].flatten(), reduction="none"
        ).view(len(edits), width)
        lengths_N = torch.tensor([len(answer) for answer in answers], device=llm.device)
        mask_NA = torch.arange(width, device=llm.device) >= width - lengths_N[:, None]
        return ((nll_NA * mask_NA).sum(1) / lengths_N).mean()
