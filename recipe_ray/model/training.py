"""Training the editor: the joint loss of a batch of edits, the optimiser and its schedule.

Shape letters: B edits, T tokens, A answer length, K key width, P virtual tokens, D LLM width, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipe_ray.config import LossWeights, TrainConfig
from recipe_ray.examples import EditExample
from recipe_ray.model.editor import Editor
from recipe_ray.model.encoder import TextEncoder
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.losses import (
    answer_loss,
    locality_loss,
    neighbour_loss,
    sentinel_loss_related,
    sentinel_loss_unrelated,
    similarities,
)

RIDGE = 0.02  # beside features of unit size
NUM_LENGTH_GROUPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRows:
    """Answers aligned with the last columns of padded rows.

    Attributes:
        ids_BA: int64 answer tokens, right-aligned, 0 before them.
        mask_BA: 1 where an answer token stands.
    """

    ids_BA: Tensor
    mask_BA: Tensor


class JointTraining(nn.Module):
    """Editor and frozen LLM as one module with one forward pass, as DistributedDataParallel wants it.

    The LLM is no submodule: its parameters are neither trained, nor synchronised, nor saved.

    Args:
        editor: what is trained.
        llm: the LLM it is trained for.
        answer_end: text behind every target.
        split_queries: ask every other edit in its own words and the rest in other words, not each in both. A step then
            takes twice the edits in the same time, and each has twice the negatives.
    """

    def __init__(self, editor: Editor, llm: FrozenLLM, *, answer_end: str, split_queries: bool = False) -> None:
        super().__init__()
        llm.check_prompt_width(editor.llm_width)
        self.editor = editor
        self.split_queries = split_queries
        self.answer_end = answer_end
        self._llm = (llm,)  # in a tuple, so that nn.Module does not look inside

    @property
    def llm(self) -> FrozenLLM:
        """The LLM, not trained."""
        return self._llm[0]

    def forward(self, batch: Sequence[EditExample], weights: LossWeights) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the losses whose weight is not 0, and each of them with the batch's accuracies."""
        editor = self.editor
        # Questions about edits, each with the row of its edit and its answer.
        asked = {
            "reliability": [(row, example.prompt, example.target) for row, example in enumerate(batch)],
            "generality": [
                (row, example.generality_prompt, example.generality_target) for row, example in enumerate(batch)
            ],
        }
        if self.split_queries:
            asked = {name: questions[place::2] for place, (name, questions) in enumerate(asked.items())}
        texts = [example.statement for example in batch]
        texts += [prompt for part in asked.values() for _, prompt, _ in part]
        texts += [example.locality_prompt for example in batch]
        pooled_keys, *pooled_queries, pooled_locality = _pooled(editor.encoder, texts).split(
            [len(batch), *map(len, asked.values()), len(batch)]
        )
        keys_BK = editor.keys(pooled_keys)
        queries = {name: editor.queries(pooled) for name, pooled in zip(asked, pooled_queries, strict=True)}
        own = {name: torch.tensor([row for row, _, _ in part], device=keys_BK.device) for name, part in asked.items()}
        locality_BK = editor.queries(pooled_locality)
        sentinel_K = editor.sentinel()

        losses: dict[str, Tensor] = {}
        if weights.neighbour:
            terms = [neighbour_loss(queries[name], keys_BK, sentinel_K, own[name]) for name in asked]
            losses["neighbour"] = weights.neighbour * torch.stack(terms).sum()
        if weights.sentinel:
            terms = [sentinel_loss_related(queries[name], keys_BK, sentinel_K, own[name]) for name in asked]
            terms.append(sentinel_loss_unrelated(locality_BK, keys_BK, sentinel_K))
            losses["sentinel"] = weights.sentinel * torch.stack(terms).sum()
        if weights.edit or weights.locality:
            losses |= self._edit_losses(batch, asked, editor.prompts(keys_BK), weights)
        metrics = {name: loss.item() for name, loss in losses.items()}
        metrics |= _accuracies(queries["generality"], locality_BK, keys_BK, sentinel_K, own["generality"])
        return torch.stack(list(losses.values())).sum(), metrics

    def _edit_losses(
        self,
        batch: Sequence[EditExample],
        asked: Mapping[str, Sequence[tuple[int, str, str]]],
        prompts_BPD: Tensor,
        weights: LossWeights,
    ) -> dict[str, Tensor]:
        """All rows of the terms that have a weight go through the LLM as one padded batch."""
        llm, position = self.llm, self.editor.config.prompt_position
        num_virtual_tokens = self.editor.config.num_virtual_tokens
        parts = dict(asked) if weights.edit else {}
        if weights.locality:
            parts["locality"] = [
                (row, example.locality_prompt, example.locality_target) for row, example in enumerate(batch)
            ]
        rows = [row for part in parts.values() for row in part]
        answer_ids = [llm.tokenize_answer(f" {answer}{self.answer_end}") for _, _, answer in rows]
        token_ids = [llm.tokenize(prompt) + ids for (_, prompt, _), ids in zip(rows, answer_ids, strict=True)]
        aligned = _align(answer_ids, llm.device)
        num_answer_tokens = aligned.ids_BA.shape[1]
        logits = llm.answer_logits(
            llm.pad(token_ids, [num_virtual_tokens] * len(rows), position),
            prompts_BPD[[row for row, _, _ in rows]],
            num_answer_tokens=num_answer_tokens,
        )
        losses = {}
        end = 0
        for name, of_part in parts.items():
            part = slice(end, end := end + len(of_part))
            if name == "locality":
                with torch.no_grad():
                    unedited = llm.answer_logits(
                        llm.pad(token_ids[part], [0] * len(of_part), position),
                        None,
                        num_answer_tokens=num_answer_tokens,
                    )
                loss = weights.locality * locality_loss(logits[part], unedited, aligned.mask_BA[part])
            else:
                loss = weights.edit * answer_loss(logits[part], aligned.ids_BA[part], aligned.mask_BA[part])
            losses[name] = loss
        return losses


@torch.no_grad()
def warm_start(editor: Editor, llm: FrozenLLM, examples: Sequence[EditExample]) -> None:
    """Fit the prompt encoder's last layer, by ridge regression, to the embeddings of the answers' own tokens.

    Not of the paper. Through a frozen LLM the edit loss alone stands still for hundreds of steps, until the prompts
    carry something of the answer; this start takes seconds. Answer token a is dealt to virtual token a mod P, which
    aims at the mean of its tokens, each of half the weight of the one before, so that their order shows; a virtual
    token that is dealt none aims at the mean over all answers.
    """
    encoder = editor.prompt_encoder
    num_virtual_tokens = encoder.shape[0]
    keys, _ = editor.encode_facts([example.statement for example in examples])
    features_FK = encoder.features(editor.prompt_inputs(torch.from_numpy(keys).to(editor.device)))
    answers = [llm.tokenize_answer(f" {example.target}") for example in examples]
    tokens = torch.tensor(sorted({token for ids in answers for token in ids}), device=llm.device)
    embedding = dict(zip(tokens.tolist(), llm.embedding(tokens).float().to(editor.device), strict=True))
    mean_D = torch.stack([embedding[token] for ids in answers for token in ids]).mean(0)
    wanted_FPD = mean_D.repeat(len(examples), num_virtual_tokens, 1)
    for row, ids in enumerate(answers):
        for slot in range(min(num_virtual_tokens, len(ids))):
            dealt = torch.stack([embedding[token] for token in ids[slot::num_virtual_tokens]])
            weights = 0.5 ** torch.arange(len(dealt), device=dealt.device)
            wanted_FPD[row, slot] = weights @ dealt / weights.sum()
    ones_F1 = torch.ones(len(examples), 1, device=editor.device)
    inputs = torch.cat([features_FK, ones_F1], 1).double()
    ridge = RIDGE * len(examples) * torch.eye(inputs.shape[1], device=editor.device, dtype=torch.double)
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ wanted_FPD.flatten(1).double())
    solution = (solution / encoder.scale).to(encoder.project.weight.dtype)
    encoder.project.weight.copy_(solution[:-1].T)
    encoder.project.bias.copy_(solution[-1])


def make_optimizer(editor: Editor, config: TrainConfig) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Adam with a rate of its own for encoder, retrieval heads and prompt encoder; linear rise, cosine fall."""
    encoder = list(editor.encoder.parameters())
    prompt_encoder = list(editor.prompt_encoder.parameters())
    taken = {id(parameter) for parameter in encoder + prompt_encoder}
    heads = [parameter for parameter in editor.parameters() if id(parameter) not in taken]
    optimizer = torch.optim.AdamW(
        [
            {"params": encoder, "lr": config.encoder_lr},
            {"params": heads, "lr": config.head_lr},
            {"params": prompt_encoder, "lr": config.prompt_lr},
        ],
        weight_decay=0.0,
    )
    warmup = max(1, round(config.warmup_share * config.num_steps))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.num_steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def _pooled(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Pooled vectors [B, C], texts of like length together: on a CPU padding costs as much as tokens do."""
    token_ids = encoder.tokenize(texts)
    order = sorted(range(len(texts)), key=lambda row: len(token_ids[row]))
    num_groups = NUM_LENGTH_GROUPS if encoder.model.device.type == "cpu" else 1
    size = math.ceil(len(texts) / num_groups)
    groups = [[token_ids[row] for row in order[start : start + size]] for start in range(0, len(texts), size)]
    pooled = torch.cat([encoder(*encoder.pad(group)) for group in groups])
    place_of = {row: place for place, row in enumerate(order)}
    return pooled[[place_of[row] for row in range(len(texts))]]


def _align(answer_ids: Sequence[Sequence[int]], device: torch.device) -> AnswerRows:
    width = max(map(len, answer_ids))
    ids = [[0] * (width - len(row)) + list(row) for row in answer_ids]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in answer_ids]
    return AnswerRows(ids_BA=torch.tensor(ids, device=device), mask_BA=torch.tensor(mask, device=device))


@torch.no_grad()
def _accuracies(
    generality_BK: Tensor, locality_BK: Tensor, keys_BK: Tensor, sentinel_K: Tensor, own_B: Tensor
) -> dict[str, float]:
    """Right fact within the batch for rephrased prompts (the sentinel in the way), none for unrelated ones."""
    fact = similarities(generality_BK, keys_BK, sentinel_K).argmax(-1) == own_B
    none = similarities(locality_BK, keys_BK, sentinel_K).argmax(-1) == len(keys_BK)
    return {"right_fact": fact.float().mean().item(), "right_none": none.float().mean().item()}
