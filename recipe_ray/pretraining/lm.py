"""Pretraining of a small causal LM on documents of statements, each a prompt and its answer."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from recipe_ray.model.hub import computing_in
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.pretraining.state import remove_state, restore_state, save_state

WARMUP_SHARE = 0.05
# A subject, or an answer that nothing foretells, is noise to the LM: little is to be learned from its tokens, so the
# loss takes a sample of them.
UNFORESEEABLE_SHARE = 0.1
END = "."


@dataclass(frozen=True, slots=True)
class Sentence:
    """`prompt + ' ' + answer + '.'`; `foreseeable` where a reader of all that came before could know the answer."""

    prompt: str
    answer: str
    foreseeable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LMShape:
    """Size of a Llama, and of the rows that it is trained on."""

    hidden_size: int
    num_layers: int = 4
    num_heads: int = 4
    max_length: int = 512
    row_tokens: int = 112
    rows_per_step: int = 40


def new_lm(tokenizer: PreTrainedTokenizerBase, shape: LMShape) -> LlamaForCausalLM:
    """A Llama with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=3 * shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=shape.max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def document_tokens(document: list[Sentence], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[float]]:
    """Token ids of a document, BOS and EOS included, and the chance of each to be a target."""
    pieces, shares = [], []
    for number, sentence in enumerate(document):
        pieces += [(" " if number else "") + sentence.prompt, f" {sentence.answer}{END}"]
        shares += [UNFORESEEABLE_SHARE, 1.0 if sentence.foreseeable else UNFORESEEABLE_SHARE]
    encoded = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    ids, id_shares = [tokenizer.bos_token_id], [0.0]
    for piece_ids, share in zip(encoded, shares, strict=True):
        ids += piece_ids
        id_shares += [share] * len(piece_ids)
    return [*ids, tokenizer.eos_token_id], [*id_shares, UNFORESEEABLE_SHARE]


def packed(
    documents: Iterator[list[Sentence]], tokenizer: PreTrainedTokenizerBase, shape: LMShape
) -> tuple[Tensor, Tensor]:
    """Ids and chances to be a target, both [rows_per_step, row_tokens + 1], of as many documents as that takes.

    A row holds whole documents, one behind another, and padding: half a document would restate what was cut off.
    """
    width = shape.row_tokens + 1
    rows: list[tuple[list[int], list[float]]] = []
    ids: list[int] = []
    shares: list[float] = []
    while len(rows) < shape.rows_per_step:
        new_ids, new_shares = document_tokens(next(documents), tokenizer)
        if len(ids) + len(new_ids) > width:
            rows.append((ids + [0] * (width - len(ids)), shares + [0.0] * (width - len(shares))))
            ids, shares = [], []
        ids, shares = ids + new_ids[: width - len(ids)], shares + new_shares[: width - len(shares)]
    return torch.tensor([row for row, _ in rows]), torch.tensor([row for _, row in rows])


def train_lm(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    documents: Callable[[int], Iterator[list[Sentence]]],
    shape: LMShape,
    *,
    output: Path,
    steps: int,
    learning_rate: float,
    seed: int,
    log_every: int = 50,
    save_every: int = 500,
) -> float:
    """Train from where an earlier start into `output` ended, save in bfloat16; the seconds of this start.

    Args:
        model, tokenizer: what is trained and what reads.
        documents: documents without end for a step; the same each time it is asked.
        shape: of rows.
        output: folder of the LM; it holds the state of the training as well, until the end.
        steps, learning_rate: of one cycle; a start with another number of steps goes on at its place in the new cycle.
        seed: of the sampled targets.
        log_every, save_every: steps between two lines, and between two saved states.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=WARMUP_SHARE, anneal_strategy="cos"
    )
    first = restore_state(output, model, optimizer, schedule)
    started = time.monotonic()
    for step in range(first, steps):
        torch.manual_seed(seed + step)
        ids, shares = (part.to(model.device) for part in packed(documents(step), tokenizer, shape))
        targets = torch.rand(shares[:, 1:].shape, device=shares.device) < shares[:, 1:]
        with computing_in("auto", model.device):
            hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[targets])
        loss = functional.cross_entropy(logits.float(), ids[:, 1:][targets])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        done = step + 1
        if done % log_every == 0:
            print(f"step {done}/{steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
        if done % save_every == 0 and done < steps:
            save_state(output, done, model, optimizer)
    save_lm(model, tokenizer, output)
    remove_state(output)
    return time.monotonic() - started


def save_lm(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Weights in bfloat16, configuration and tokenizer."""
    copy.deepcopy(model).bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)


def answers(llm: FrozenLLM, prompts: list[str], *, batch_size: int = 256) -> list[str]:
    """Greedy answers, each up to its full stop."""
    found = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        generations = llm.generate(batch, [None] * len(batch), max_new_tokens=24, stop=[END])
        found += [generation.text.strip() for generation in generations]
    return found


def share_answered(llm: FrozenLLM, asked: list[tuple[str, str]]) -> float:
    """Share of (prompt, answer) that the LM completes exactly, in free generation."""
    found = answers(llm, [prompt for prompt, _ in asked])
    return sum(got == answer for got, (_, answer) in zip(found, asked, strict=True)) / len(asked)
