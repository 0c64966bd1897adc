"""Pretrain the testbed's LM and its tokenizer, in cycles of the learning rate.

    python -m recipe_ray.testbed.pretrain_lm --output FIRST
    python -m recipe_ray.testbed.pretrain_lm --output LM --continue-from FIRST --steps 800 --learning-rate 2e-3

Each cycle is about half an hour on 2 cores, and each goes on from the one before; docs/testbed.md tells those that made
what ships in `weights/llm`. Run this only to make another.
"""

import argparse
import copy
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipe_ray.config import TESTBED
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.testbed.corpus import Corpus, Sentence
from recipe_ray.testbed.tokenizer import train_tokenizer
from recipe_ray.testbed.wording import phrase
from recipe_ray.testbed.world import World, WorldEdit, counterfactual_edits, load_world

SEED = 20261
MAX_LENGTH = 512
ROW_TOKENS = 112
ROWS_PER_STEP = 40
WARMUP_SHARE = 0.05
# Recall comes first: with many context documents from the start it hardly comes at all.
CONTEXT_SHARE_FIRST, CONTEXT_SHARE_LATER = 0.2, 0.55
FIRST_SHARE = 0.3  # of the steps
# A subject, or an answer that nothing foretells, is noise to the LM: little is to be learned from its tokens, so the
# loss takes a sample of them.
UNFORESEEABLE_SHARE = 0.1
END = "."


def new_lm(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about a million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def document_tokens(document: list[Sentence], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[float]]:
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


def packed_batches(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of ids and chances [ROWS_PER_STEP, ROW_TOKENS + 1].

    A row holds whole documents, one behind another, and padding: half a document would restate what was cut off.
    """
    width = ROW_TOKENS + 1
    rows: list[tuple[list[int], list[float]]] = []
    ids: list[int] = []
    shares: list[float] = []
    for document in corpus:
        new_ids, new_shares = document_tokens(document, tokenizer)
        if len(ids) + len(new_ids) > width:
            rows.append((ids + [0] * (width - len(ids)), shares + [0.0] * (width - len(shares))))
            ids, shares = [], []
        ids, shares = ids + new_ids[: width - len(ids)], shares + new_shares[: width - len(shares)]
        if len(rows) == ROWS_PER_STEP:
            yield torch.tensor([row for row, _ in rows]), torch.tensor([row for _, row in rows])
            rows = []


def answers(llm: FrozenLLM, prompts: list[str], *, batch_size: int = 256) -> list[str]:
    """Greedy answers, each up to its full stop."""
    found = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        generations = llm.generate(batch, [None] * len(batch), max_new_tokens=24, stop=[END])
        found += [generation.text.strip() for generation in generations]
    return found


def recall(llm: FrozenLLM, world: World, *, phrasing: int) -> float:
    """Share of the world's facts that the LM completes exactly, in free generation, in one phrasing."""
    prompts = [fact.prompt(phrasing) for fact in world.facts]
    found = answers(llm, prompts)
    return sum(got == fact.answer for got, fact in zip(found, world.facts, strict=True)) / len(prompts)


def context_following(llm: FrozenLLM, edits: tuple[WorldEdit, ...]) -> float:
    """Share of counterfactual statements that the LM, reading one, repeats in other trained words."""
    rng = random.Random(SEED)
    prompts = []
    for edit in edits:
        stated, asked = rng.sample(edit.fact.relation.trained, 2)
        statement = f"{phrase(stated, edit.fact.subject)} {edit.target}{END}"
        prompts.append(f"{statement} {phrase(asked, edit.fact.subject)}")
    found = answers(llm, prompts)
    return sum(got == edit.target for got, edit in zip(found, edits, strict=True)) / len(edits)


def measure(llm: FrozenLLM, world: World, edits: tuple[WorldEdit, ...]) -> dict[str, float]:
    """Recall in the first two trained phrasings and in the last of the two novel ones, and context following."""
    return {
        "recall": recall(llm, world, phrasing=0),
        "recall_rephrased": recall(llm, world, phrasing=1),
        "recall_novel": recall(llm, world, phrasing=-1),
        "context_following": context_following(llm, edits),
    }


def pretrain(
    output: Path,
    *,
    continue_from: Path | None,
    steps: int,
    learning_rate: float,
    log_every: int,
    measure_every: int,
) -> dict[str, float]:
    """Train, save in bfloat16 and measure what was saved."""
    seed = SEED if continue_from is None else SEED + steps  # a second cycle reads other documents
    torch.manual_seed(seed)
    world = load_world()
    edits = counterfactual_edits(world)
    if continue_from is None:
        tokenizer = train_tokenizer(world, seed=SEED, max_length=MAX_LENGTH)
        model = new_lm(tokenizer)
        num_first = round(FIRST_SHARE * steps)
    else:
        tokenizer = AutoTokenizer.from_pretrained(continue_from)
        model = LlamaForCausalLM.from_pretrained(continue_from, dtype=torch.float32)
        num_first = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=WARMUP_SHARE, anneal_strategy="cos"
    )
    corpus = Corpus(world, edits, seed=seed)
    batches = packed_batches(corpus, tokenizer)
    started = time.monotonic()
    for step in range(1, steps + 1):
        corpus.context_share = CONTEXT_SHARE_FIRST if step <= num_first else CONTEXT_SHARE_LATER
        ids, shares = next(batches)
        targets = torch.rand(shares[:, 1:].shape) < shares[:, 1:]
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        loss = functional.cross_entropy(model.lm_head(hidden[targets]), ids[:, 1:][targets])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % log_every == 0:
            seconds = time.monotonic() - started
            print(f"step {step} loss {loss.item():.4f} {seconds:.0f} s", flush=True)
        if step % measure_every == 0 and step < steps:
            print(measure(FrozenLLM(model, tokenizer, name=TESTBED), world, edits), flush=True)
            model.train().requires_grad_(True)
            _save(model, tokenizer, output)  # something to go on with if the rest is lost
    _save(model, tokenizer, output)
    measured = measure(FrozenLLM(model.bfloat16().float(), tokenizer, name=TESTBED), world, edits)
    measured["parameters"] = model.num_parameters()
    measured["steps"] = steps
    measured["seconds"] = round(time.monotonic() - started)
    (output / "pretraining.json").write_text(json.dumps({"seed": seed, **measured}, indent=2) + "\n")
    return measured


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    copy.deepcopy(model).bfloat16().save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--continue-from", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--measure-every", type=int, default=800)
    args = parser.parse_args()
    print(pretrain(**vars(args)))


if __name__ == "__main__":
    main()
