"""Supervised fine-tuning of a copy of an LLM: all weights, or low-rank changes of its attention's inputs.

Shape letters: B rows, A answer length, V vocabulary, R rank.
"""

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from recipe_ray.errors import EditorError
from recipe_ray.eval.methods.layers import decoder_layers
from recipe_ray.model.llm import FrozenLLM

# Query, key and value: Llama, Qwen, Mistral, Gemma, OPT, GPT-J; GPT-2, where they are one.
_ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj", "c_attn")
_LEFT, _RIGHT = ".lora_left", ".lora_right"


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedArgs:
    """How weights are trained.

    Attributes:
        lora_rank: of the change of each weight that reads for query, key and value (Hu et al. 2022, arXiv 2106.09685);
            None trains all weights.
        lora_alpha: the change is scaled by this over the rank.
        learning_rate: of Adam at its highest, after a linear rise and before a cosine fall to 0.
        warmup_share: of the steps, in which it rises.
        num_epochs: how often every row is read.
        batch_size: rows a step.
        max_grad_norm: gradients are scaled down to this norm.
        tokens_per_pass: rows of like length go through the LLM together, up to so many tokens with padding; bounds
            memory and changes no gradient.
    """

    lora_rank: int | None
    lora_alpha: float = 16.0
    learning_rate: float
    warmup_share: float = 0.03
    num_epochs: int = 3
    batch_size: int = 128
    max_grad_norm: float = 1.0
    tokens_per_pass: int = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is read and what must follow, as token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def fine_tune(llm: FrozenLLM, rows: Sequence[Row], args: SupervisedArgs, *, seed: int = 0) -> dict[str, Tensor]:
    """Train a copy of the LLM to give the answers; the loss is the mean of -log P over a batch's answer tokens.

    Training runs in float32 for the weights that are trained, without dropout.

    Returns:
        The change, for `changed_copy`, on the CPU: trained weights in the LLM's dtype by their name or, of each
        low-rank change, its two sides in float32.

    Raises:
        EditorError: low rank is asked of a family whose attention is not known.
    """
    student = FrozenLLM(copy.deepcopy(llm.model), llm.tokenizer, name=llm.name)
    changes: dict[str, _LowRank] = {}
    if args.lora_rank is None:
        student.model.float().requires_grad_(True)
        trained = [one for one in student.model.parameters() if one.is_floating_point()]
    else:
        changes = _attach(student, args.lora_rank, args.lora_alpha / args.lora_rank, seed)
        trained = [one for change in changes.values() for one in (change.left, change.right)]
    _train(student, trained, rows, args, seed)
    if changes:
        return {
            f"{name}{end}": side.detach().cpu()
            for name, change in changes.items()
            for end, side in ((_LEFT, change.scale * change.left), (_RIGHT, change.right))
        }
    dtype = next(llm.model.parameters()).dtype
    return {name: one.detach().to("cpu", dtype) for name, one in student.model.named_parameters()}


@torch.no_grad()
def changed_copy(llm: FrozenLLM, change: Mapping[str, Tensor]) -> FrozenLLM:
    """A copy of the LLM with what `fine_tune` changed; the LLM itself stays as it is.

    Raises:
        EditorError: the change is of an LLM with other weights.
    """
    changed = FrozenLLM(copy.deepcopy(llm.model), llm.tokenizer, name=llm.name)
    weights = dict(changed.model.named_parameters())
    for key, given in change.items():
        if key.endswith(_RIGHT):
            continue
        name = key.removesuffix(_LEFT)
        value = given if name == key else given @ change[f"{name}{_RIGHT}"]
        if name not in weights or weights[name].shape != value.shape:
            raise EditorError(
                f"LLM {llm.name} has no weight {name} of shape {tuple(value.shape)}, which the fine-tuning changed; "
                "give the LLM that was fine-tuned, or fine-tune this one"
            )
        weight = weights[name]
        moved = value.to(weight.device) if name == key else weight.float() + value.to(weight.device)
        weight.copy_(moved)
    return changed


class _LowRank(nn.Module):
    """W + scale · left right, for a weight W of any orientation; 0 at the start."""

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        num_rows, num_columns = weight.shape
        bound = 1 / math.sqrt(num_columns)
        right = torch.empty(rank, num_columns).uniform_(-bound, bound, generator=generator)
        self.left = nn.Parameter(torch.zeros(num_rows, rank, device=weight.device))
        self.right = nn.Parameter(right.to(weight.device))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.scale * self.left @ self.right).to(weight.dtype)


def _attach(student: FrozenLLM, rank: int, scale: float, seed: int) -> dict[str, _LowRank]:
    """Lay a low-rank change over every weight that reads for query, key and value, by the weight's name."""
    layers = set(decoder_layers(student).modules())
    generator = torch.Generator().manual_seed(seed)
    found = {
        f"{name}.weight": module
        for name, module in student.model.named_modules()
        if module in layers and name.rpartition(".")[2] in _ATTENTION_INPUTS
    }
    if not found:
        raise EditorError(
            f"LLM {student.name} ({student.model.config.model_type}) has none of {', '.join(_ATTENTION_INPUTS)}; "
            "fine-tune all its weights: lora_rank None"
        )
    changes = {}
    for name, module in found.items():
        changes[name] = _LowRank(cast(Tensor, module.weight), rank, scale, generator)
        parametrize.register_parametrization(module, "weight", changes[name])
    return changes


def _train(student: FrozenLLM, trained: Sequence[Tensor], rows: Sequence[Row], args: SupervisedArgs, seed: int) -> None:
    optimizer = torch.optim.AdamW(list(trained), lr=args.learning_rate, weight_decay=0.0)
    num_steps = args.num_epochs * math.ceil(len(rows) / args.batch_size)
    num_warmup = max(1, round(args.warmup_share * num_steps))

    def rate(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    rng = random.Random(seed)
    for _ in range(args.num_epochs):
        order = rng.sample(list(rows), len(rows))
        for start in range(0, len(order), args.batch_size):
            batch = order[start : start + args.batch_size]
            num_tokens = sum(len(row.answer) for row in batch)
            optimizer.zero_grad()
            for together in _passes(batch, args.tokens_per_pass):
                (_nll(student, together) / num_tokens).backward()
            torch.nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
            optimizer.step()
            schedule.step()


def _nll(student: FrozenLLM, rows: Sequence[Row]) -> Tensor:
    """Sum of -log P over the answers' tokens."""
    width = max(len(row.answer) for row in rows)
    padded = student.pad([row.prompt + row.answer for row in rows], [0] * len(rows), "first")
    logits_BAV = student.answer_logits(padded, None, num_answer_tokens=width).float()
    lengths_B = torch.tensor([len(row.answer) for row in rows], device=student.device)
    is_answer_BA = torch.arange(width, device=student.device) >= width - lengths_B[:, None]
    answers_BA = padded.ids_BT[:, -width:]
    return functional.cross_entropy(logits_BAV[is_answer_BA], answers_BA[is_answer_BA], reduction="sum")


def _passes(batch: Sequence[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Rows of like length together, one at least."""
    together: list[Row] = []
    for row in sorted(batch, key=lambda row: len(row.prompt) + len(row.answer)):
        length = len(row.prompt) + len(row.answer)
        if together and length * (len(together) + 1) > max_tokens:
            yield together
            together = []
        together.append(row)
    if together:
        yield together
