"""Pretraining of a small bidirectional text encoder on statements and the questions that they answer.

It learns to fill in masked tokens, to tell a statement's questions from those of its neighbours, and to keep a
statement's answer readable in its pooled vector (a weak decoder, as in the pretraining of retrievers). Only the encoder
is kept; the heads of these tasks are not.

Shape letters: B statements, T tokens, H encoder width, C pooled width, A answer tokens, D LLM width, V vocabulary.
"""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase

from recipe_ray.config import Pooling
from recipe_ray.examples import EditExample
from recipe_ray.model.encoder import TextEncoder, pool
from recipe_ray.model.hub import computing_in
from recipe_ray.pretraining.state import remove_state, restore_state, save_state

WARMUP_SHARE = 0.1
MASK_SHARE = 0.15
ANSWER_TOKENS = 6
READ_WEIGHT = 2.0  # of the three the slowest to come, and what the editor's edit loss rests on
TEMPERATURE_INIT = 0.05
POOLING: tuple[Pooling, ...] = ("max", "min", "mean")


def new_encoder(
    tokenizer: PreTrainedTokenizerBase, lm_embeddings_VD: Tensor, *, hidden_size: int, num_heads: int, max_length: int
) -> TextEncoder:
    """A small BERT whose word embeddings begin with the LM's, rescaled to BERT's usual size."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=3,
        num_attention_heads=num_heads,
        intermediate_size=hidden_size * 4,
        max_position_embeddings=max_length,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    words = model.get_input_embeddings().weight
    with torch.no_grad():
        scale = words.std() / lm_embeddings_VD.std()
        words[:, : lm_embeddings_VD.shape[1]] = lm_embeddings_VD * scale
    return TextEncoder(model, tokenizer, POOLING)


class Pretraining(nn.Module):
    """The encoder with the throw-away heads of its three tasks.

    Answers are read back as the LM's own token embeddings, so that a linear map finds them in the pooled vector.
    """

    lm_words_VD: Tensor

    def __init__(self, encoder: TextEncoder, lm_embeddings_VD: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("lm_words_VD", functional.normalize(lm_embeddings_VD, dim=-1))
        self.fill = nn.Linear(encoder.hidden_width, encoder.hidden_width)
        self.read = nn.Linear(encoder.width, ANSWER_TOKENS * lm_embeddings_VD.shape[1])
        self.log_scale = nn.Parameter(-torch.tensor(TEMPERATURE_INIT).log())

    def forward(self, batch: Sequence[EditExample]) -> dict[str, Tensor]:
        """The three losses over B statements, their questions in other words, and their answers."""
        statements = [example.statement for example in batch]
        questions = [example.generality_prompt for example in batch]
        answers = [example.target for example in batch]
        tokenizer = self.encoder.tokenizer
        ids_BT, mask_BT = self.encoder.pad(self.encoder.tokenize(statements + questions))
        # Only questions are masked: a masked answer cannot be read back.
        asked = slice(len(statements), None)
        seen_BT = ids_BT.clone()
        seen_BT[asked] = mask_tokens(ids_BT[asked], mask_BT[asked], tokenizer)
        output = self.encoder.model(input_ids=seen_BT, attention_mask=mask_BT)
        words_VH = self.encoder.model.get_input_embeddings().weight
        hidden = functional.gelu(self.fill(output.last_hidden_state[seen_BT != ids_BT]))
        fill = functional.cross_entropy(hidden @ words_VH.T, ids_BT[seen_BT != ids_BT])

        statements_BC, questions_BC = pool(output.last_hidden_state, mask_BT, POOLING).chunk(2)
        logits_BB = self.log_scale.exp() * (
            functional.normalize(questions_BC, dim=-1) @ functional.normalize(statements_BC, dim=-1).T
        )
        own_B = torch.arange(len(statements))
        tell = functional.cross_entropy(logits_BB, own_B) + functional.cross_entropy(logits_BB.T, own_B)

        answer_ids = tokenizer([f" {answer}." for answer in answers], add_special_tokens=False)["input_ids"]
        slots_BA = torch.full((len(answers), ANSWER_TOKENS), -100)
        for row, ids in enumerate(answer_ids):
            slots_BA[row, : len(ids)] = torch.tensor(ids[:ANSWER_TOKENS])
        read_BAD = self.read(statements_BC).unflatten(-1, (ANSWER_TOKENS, -1))
        read = functional.cross_entropy((read_BAD @ self.lm_words_VD.T).transpose(1, 2), slots_BA)
        return {"fill": fill, "tell": tell, "read": read}


def mask_tokens(ids_BT: Tensor, mask_BT: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Put the mask token in place of a share of the tokens, never of padding or BOS."""
    hidden_BT = (torch.rand(ids_BT.shape) < MASK_SHARE) & (mask_BT == 1)
    hidden_BT[:, 0] = False
    return ids_BT.masked_fill(hidden_BT, int(tokenizer.mask_token_id))


@torch.inference_mode()
def retrieval_accuracy(encoder: TextEncoder, examples: Sequence[EditExample]) -> dict[str, float]:
    """Share of questions nearest to their own statement, by the cosine of pooled vectors."""

    def vectors(texts: list[str]) -> Tensor:
        parts = [texts[start : start + 128] for start in range(0, len(texts), 128)]
        pooled = torch.cat([encoder(*encoder.pad(encoder.tokenize(part))) for part in parts])
        return functional.normalize(pooled, dim=-1)

    statements_FC = vectors([example.statement for example in examples])
    found = {}
    for name in ("prompt", "generality_prompt"):
        nearest_B = (vectors([getattr(example, name) for example in examples]) @ statements_FC.T).argmax(-1).cpu()
        found[name] = (nearest_B == torch.arange(len(examples))).float().mean().item()
    return found


def train_encoder(
    encoder: TextEncoder,
    lm_embeddings_VD: Tensor,
    batch: Callable[[int], Sequence[EditExample]],
    tuning: Sequence[EditExample],
    *,
    output: Path,
    steps: int,
    learning_rate: float,
    seed: int,
    log_every: int = 100,
    save_every: int = 500,
) -> dict[str, float]:
    """Train from where an earlier start into `output` ended, save in bfloat16, and measure what was saved.

    Args:
        encoder: what is trained.
        lm_embeddings_VD: the LM's token embeddings, in which answers are read back.
        batch: the edits of a step; the same each time it is asked.
        tuning: edits to measure on.
        output: folder of the encoder; it holds the state of the training as well, until the end.
        steps, learning_rate: of one cycle; a start with another number of steps goes on at its place in the new cycle.
        seed: of the masks.
        log_every, save_every: steps between two lines, and between two saved states.
    """
    task = Pretraining(encoder, lm_embeddings_VD)
    optimizer = torch.optim.AdamW(task.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=WARMUP_SHARE)
    first = restore_state(output, task, optimizer, schedule)
    started = time.monotonic()
    for step in range(first, steps):
        torch.manual_seed(seed + step)
        with computing_in("auto", encoder.model.device):
            losses = task(batch(step))
        optimizer.zero_grad()
        (losses["fill"] + losses["tell"] + READ_WEIGHT * losses["read"]).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        done = step + 1
        if done % log_every == 0:
            parts = " ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            found = retrieval_accuracy(encoder, tuning)
            print(f"step {done}/{steps} {parts} {found} {time.monotonic() - started:.0f} s", flush=True)
        if done % save_every == 0 and done < steps:
            save_state(output, done, task, optimizer)
    saved = copy.deepcopy(encoder.model).bfloat16()
    saved.save_pretrained(output)
    encoder.tokenizer.model_max_length = encoder.max_tokens
    encoder.tokenizer.save_pretrained(output)
    encoder.model.load_state_dict(saved.state_dict())
    remove_state(output)
    return {
        **retrieval_accuracy(encoder, tuning),
        "parameters": sum(parameter.numel() for parameter in saved.parameters()),
        "steps": steps,
        "seconds": round(time.monotonic() - started),
    }
