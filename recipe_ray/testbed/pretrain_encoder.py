r"""Pretrain the testbed's encoder, in two cycles of the learning rate.

    python -m recipe_ray.testbed.pretrain_encoder --llm LM --output FIRST
    python -m recipe_ray.testbed.pretrain_encoder --llm LM --output ENCODER --continue-from FIRST \
        --steps 1000 --learning-rate 1.2e-3

As RoBERTa is to a real LLM, so is this to the testbed's: a small bidirectional encoder that knows the language, not the
facts. Over invented subjects without end it learns to fill in masked tokens, to tell the phrasings of one fact from
those of its neighbours, and to keep a statement's answer readable in its pooled vector (a weak decoder, as in the
pretraining of retrievers). Only the encoder is kept; the heads of these tasks are not.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

from recipe_ray.config import Pooling
from recipe_ray.model.encoder import TextEncoder, load_encoder, pool
from recipe_ray.testbed.edits import EditStream
from recipe_ray.testbed.world import load_world

SEED = 20262
HIDDEN_WIDTH = 192
MAX_LENGTH = 128
EDITS_PER_STEP = 96
WARMUP_SHARE = 0.1
MASK_SHARE = 0.15
ANSWER_TOKENS = 6
READ_WEIGHT = 2.0  # of the three the slowest to come, and what the editor's edit loss rests on
TEMPERATURE_INIT = 0.05
POOLING: tuple[Pooling, ...] = ("max", "min", "mean")


def new_encoder(tokenizer: PreTrainedTokenizerBase, lm_embeddings_VD: Tensor) -> TextEncoder:
    """A small BERT whose word embeddings begin with the LM's, rescaled to BERT's usual size."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=HIDDEN_WIDTH * 4,
        max_position_embeddings=MAX_LENGTH,
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

    def forward(self, statements: list[str], questions: list[str], answers: list[str]) -> dict[str, Tensor]:
        """The three losses over B statements, their questions in other words, and their answers."""
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
def retrieval_accuracy(encoder: TextEncoder, stream: EditStream, *, num_batches: int) -> dict[str, float]:
    """Share of questions nearest to their own statement, by the cosine of pooled vectors, over unseen subjects."""
    examples = [example for number in range(num_batches) for example in stream.batch(number)]

    def vectors(texts: list[str]) -> Tensor:
        return functional.normalize(encoder(*encoder.pad(encoder.tokenize(texts))), dim=-1)

    statements_FC = vectors([example.statement for example in examples])
    found = {}
    for name in ("prompt", "generality_prompt"):
        nearest_B = (vectors([getattr(example, name) for example in examples]) @ statements_FC.T).argmax(-1)
        found[name] = (nearest_B == torch.arange(len(examples))).float().mean().item()
    return found


def pretrain(
    llm: Path, output: Path, *, continue_from: Path | None, steps: int, learning_rate: float, log_every: int
) -> dict[str, float]:
    """Train, save in bfloat16 and measure what was saved."""
    seed = SEED if continue_from is None else SEED + steps  # a second cycle reads other edits
    torch.manual_seed(seed)
    world = load_world()
    tokenizer = AutoTokenizer.from_pretrained(llm)
    lm = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    lm_embeddings = lm.get_input_embeddings().weight.detach()
    if continue_from is None:
        encoder = new_encoder(tokenizer, lm_embeddings)
    else:
        encoder = load_encoder(str(continue_from), POOLING)
    task = Pretraining(encoder, lm_embeddings)
    optimizer = torch.optim.AdamW(task.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=WARMUP_SHARE)
    training = EditStream(world, batch_size=EDITS_PER_STEP, seed=f"{seed}/training")
    tuning = EditStream(world, batch_size=EDITS_PER_STEP, seed=f"{SEED}/tuning")
    started = time.monotonic()
    for step in range(1, steps + 1):
        batch = training.batch(step)
        losses = task(
            [example.statement for example in batch],
            [example.generality_prompt for example in batch],
            [example.target for example in batch],
        )
        optimizer.zero_grad()
        (losses["fill"] + losses["tell"] + READ_WEIGHT * losses["read"]).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % log_every == 0:
            parts = " ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            found = retrieval_accuracy(task.encoder, tuning, num_batches=8)
            print(f"step {step} {parts} {found} {time.monotonic() - started:.0f} s", flush=True)
    model = task.encoder.model
    model.bfloat16().save_pretrained(output)
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.save_pretrained(output)
    model.float()
    measured = retrieval_accuracy(task.encoder, tuning, num_batches=8)
    measured["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    measured["steps"] = steps
    measured["seconds"] = round(time.monotonic() - started)
    (output / "pretraining.json").write_text(json.dumps({"seed": seed, **measured}, indent=2) + "\n")
    return measured


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llm", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--continue-from", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--log-every", type=int, default=100)
    args = parser.parse_args()
    print(pretrain(**vars(args)))


if __name__ == "__main__":
    main()
