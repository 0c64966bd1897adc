"""The joint loss of a step: retriever, sentinel and prompt encoder behind one forward pass.

Shape letters: B edits of this worker, N questions, F candidate keys, R rows of the LLM, A answer length, K key width,
P virtual tokens, D LLM width, V vocabulary.
"""

from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional

from recipe_ray.config import LossConfig, LossWeights, Precision
from recipe_ray.model.batch import PARTS, Asked, LLMGroup, StepBatch
from recipe_ray.model.editor import Editor
from recipe_ray.model.hub import computing_in
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.losses import (
    answer_nll,
    locality_kl,
    neighbour_nll,
    sentinel_nll_related,
    sentinel_nll_unrelated,
    similarities,
)


class JointTraining(nn.Module):
    """Editor and frozen LLM as one module with one forward pass, as DistributedDataParallel wants it.

    The LLM is no submodule: its parameters are neither trained, nor synchronised, nor saved.

    Args:
        editor: what is trained.
        llm: the LLM it is trained for.
        losses: which terms there are, and over what.
        precision: in which encoder, heads and LLM compute, as `computing_in` takes it; weights and similarities are
            float32.
        rank, num_workers: of this worker; more than one need an initialised process group.
    """

    def __init__(
        self,
        editor: Editor,
        llm: FrozenLLM,
        losses: LossConfig,
        *,
        precision: Precision = "float32",
        rank: int = 0,
        num_workers: int = 1,
    ) -> None:
        super().__init__()
        llm.check_prompt_width(editor.llm_width)
        self.editor = editor
        self.losses = losses
        self.precision = precision
        self.rank = rank
        self.num_workers = num_workers
        self._llm = (llm,)  # in a tuple, so that nn.Module does not look inside
        # Keys of past edits, newest last; an id of -1 stands for none yet. With several workers those of all, so that
        # every worker has the same; no buffers, which DistributedDataParallel would send around at every step.
        self.queue_QK = torch.zeros(losses.queue_size, editor.config.key_width, device=editor.device)
        self.queue_ids_Q = torch.full((losses.queue_size,), -1, dtype=torch.long, device=editor.device)

    @property
    def llm(self) -> FrozenLLM:
        """The LLM, not trained."""
        return self._llm[0]

    def forward(self, batch: StepBatch, weights: LossWeights) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to go back through, and what it is made of.

        Returns:
            A worker's loss, of which the mean over workers (as DistributedDataParallel takes of gradients) is the
            weighted sum of the terms over the whole batch; and metrics without gradient, of which the *sum* over
            workers and turns is the whole batch's value: each term that has a weight, weighted, and the accuracies.
        """
        editor = self.editor
        with computing_in(self.precision, batch.text_order.device):
            outputs = [editor.encoder(group.ids_BT, group.mask_BT) for group in batch.encoder_groups]
            num_edits = len(batch.statement_ids_B)
            sizes = [num_edits, *(len(asked.own_N) for asked in batch.asked), num_edits]
            pooled_keys, *pooled_queries, pooled_locality = torch.cat(outputs)[batch.text_order].split(sizes)
            keys_BK = editor.keys(pooled_keys).float()
            queries = [editor.queries(pooled).float() for pooled in pooled_queries]
            locality_BK = editor.queries(pooled_locality).float()
            sentinel_K = editor.sentinel().float() if editor.config.num_sentinel_tokens else None
            llm_parts = None
            if batch.llm_groups and (weights.edit or weights.locality):
                llm_parts = self._llm_parts(batch.llm_groups, editor.prompts(keys_BK, batch.statement_tokens))
        terms, accuracies = self._contrast(batch, keys_BK, queries, locality_BK, sentinel_K, weights)
        if llm_parts is not None:
            parts = zip(PARTS, llm_parts, (weights.edit, weights.edit, weights.locality), strict=True)
            terms |= {name: weight * value for name, value, weight in parts if weight}
        metrics = {name: term.detach() for name, term in terms.items()} | accuracies
        return torch.stack(list(terms.values())).sum() * self.num_workers, metrics

    def _contrast(
        self,
        batch: StepBatch,
        keys_BK: Tensor,
        queries: list[Tensor],
        locality_BK: Tensor,
        sentinel_K: Tensor | None,
        weights: LossWeights,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both contrastive terms, and how often the batch's own keys and sentinel decide right."""
        margin = self.losses.margin
        keys_FK, ids_F, first = self._candidates(batch, keys_BK)
        candidates_FK = keys_FK if sentinel_K is None else torch.cat([keys_FK, sentinel_K[None]])
        neighbour = keys_FK.new_zeros(())
        sentinel = keys_FK.new_zeros(())
        right_fact = keys_FK.new_zeros(())
        for asked, queries_NK in zip(batch.asked, queries, strict=True):
            own_N = asked.own_N + first
            logits_NF = similarities(queries_NK, candidates_FK) / self.losses.temperature
            logits_NF = _without_same(logits_NF, batch.statement_ids_B, ids_F, asked, own_N)
            neighbour = neighbour + asked.neighbour_N @ neighbour_nll(logits_NF, own_N)
            if sentinel_K is not None:
                sentinel = sentinel + asked.sentinel_N @ sentinel_nll_related(logits_NF, own_N, margin=margin)
            right_fact = asked.weight * (logits_NF.argmax(-1) == own_N).float().sum()  # of the last: generality
        terms, accuracies = {}, {"right_fact": right_fact.detach()}
        if weights.neighbour:
            terms["neighbour"] = weights.neighbour * neighbour
        if sentinel_K is not None:
            logits_BF = similarities(locality_BK, candidates_FK) / self.losses.temperature
            if weights.sentinel:
                unrelated = batch.locality_weight * sentinel_nll_unrelated(logits_BF, margin=margin).sum()
                terms["sentinel"] = weights.sentinel * (sentinel + unrelated)
            none = (logits_BF.argmax(-1) == len(keys_FK)).float().sum()
            accuracies["right_none"] = (none * batch.locality_weight).detach()
        return terms, accuracies

    def _candidates(self, batch: StepBatch, keys_BK: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys to tell apart with their ids, and the row of this worker's first: the step's, then the queue's."""
        keys_FK, ids_F, first = keys_BK, batch.statement_ids_B, 0
        if self.losses.gather_negatives and self.num_workers > 1:
            keys_FK, ids_F, first = _gathered(keys_BK, batch, self.rank)
        size = self.losses.queue_size
        if not size:
            return keys_FK, ids_F, first
        queue_QK, queue_ids_Q = self.queue_QK, self.queue_ids_Q
        if self.training:
            self.queue_QK = torch.cat([queue_QK, keys_FK.detach()])[-size:]
            self.queue_ids_Q = torch.cat([queue_ids_Q, ids_F])[-size:]
        filled = queue_ids_Q >= 0
        return torch.cat([keys_FK, queue_QK[filled]]), torch.cat([ids_F, queue_ids_Q[filled]]), first

    def _llm_parts(self, groups: tuple[LLMGroup, ...], prompts_BPD: Tensor) -> Tensor:
        """Reliability, generality and locality, [3], over the rows of this worker."""
        parts = torch.zeros(len(PARTS), device=prompts_BPD.device)
        for group in groups:
            logits_NV = self.llm.token_logits(group.rows, prompts_BPD[group.own_R], group.mask_RA)
            values = []
            num_asked = group.num_asked_tokens
            if num_asked:
                answers_N = group.answers_RA[group.mask_RA.bool()][:num_asked]
                values.append(answer_nll(logits_NV[:num_asked], answers_N, margin=self.losses.margin))
            if group.unprefixed is not None:
                mask_RA = group.mask_RA[-len(group.unprefixed.ids_BT) :]
                with torch.no_grad():
                    unedited = self.llm.token_logits(group.unprefixed, None, mask_RA)
                values.append(locality_kl(logits_NV[num_asked:], unedited))
            row_N = group.mask_RA.nonzero()[:, 0]
            parts = parts.index_add(0, group.part_R[row_N], torch.cat(values) * group.weight_R[row_N])
        return parts


def _without_same(logits_NF: Tensor, ids_B: Tensor, ids_F: Tensor, asked: Asked, own_N: Tensor) -> Tensor:
    """No other edit of the same prompt is a negative: nothing tells it from a question's own."""
    same_NF = ids_B[asked.own_N][:, None] == ids_F
    same_NF = same_NF.scatter(1, own_N[:, None], value=False)
    num_more = logits_NF.shape[1] - len(ids_F)  # the sentinel
    return logits_NF.masked_fill(functional.pad(same_NF, (0, num_more)), -torch.inf)


def _gathered(keys_BK: Tensor, batch: StepBatch, rank: int) -> tuple[Tensor, Tensor, int]:
    """The keys of all workers, through which gradients go back to their owners, with their ids."""
    padding = max(batch.shares) - len(keys_BK)
    padded_BK = functional.pad(keys_BK, (0, 0, 0, padding))
    keys_WBK = cast(Tensor, _AllGather.apply(padded_BK, rank, len(batch.shares)))  # type: ignore[no-untyped-call]
    ids_WB = _all_gathered(functional.pad(batch.statement_ids_B, (0, padding)), len(batch.shares))
    keys = [one[:size] for one, size in zip(keys_WBK, batch.shares, strict=True)]
    ids = [one[:size] for one, size in zip(ids_WB, batch.shares, strict=True)]
    return torch.cat(keys), torch.cat(ids), sum(batch.shares[:rank])


class _AllGather(torch.autograd.Function):
    """The tensors of all workers, [W, ...]; the gradient of each worker's is the sum of what all have for it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rank: int, num_workers: int) -> Tensor:
        ctx.rank = rank
        return _all_gathered(tensor, num_workers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient[ctx.rank], None, None


def _all_gathered(tensor: Tensor, num_workers: int) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(num_workers)]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)
