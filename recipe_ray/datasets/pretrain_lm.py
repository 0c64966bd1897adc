r"""Pretrain a small LM that knows the true facts of data sets, and its tokenizer: a stand-in where no hub is reachable.

    python -m recipe_ray.datasets.pretrain_lm --output LM \
        --train counterfact:counterfact-train.json.gz --known counterfact:counterfact-val.json.gz

It states what `--train` holds in every wording and what `--known` holds in its prompts, always with the true answer,
and no edit. By default it also reads documents that state something and use it, about `--train` alone, so that it
follows its context; `--no-context` leaves them out. The same command goes on where it was interrupted.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from recipe_ray.datasets.cleaning import clean
from recipe_ray.datasets.corpus import RecordCorpus, wordings
from recipe_ray.datasets.sources import read_source
from recipe_ray.examples import EditRecord
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.pretraining.lm import END, LMShape, Sentence, new_lm, share_answered, train_lm
from recipe_ray.pretraining.tokenizer import train_tokenizer

SEED = 20263
SHAPE = LMShape(hidden_size=256)
VOCABULARY_SIZE = 4096
CONTEXT_SHARE_FIRST, CONTEXT_SHARE_LATER = 0.2, 0.4
FIRST_SHARE = 0.3  # of the steps: recall comes first
NUM_MEASURED = 1000


def read(sources: Sequence[str]) -> tuple[tuple[EditRecord, ...], ...]:
    """The records of data sets, cleaned, by source."""
    read_ = [read_source(source) for source in sources]
    cleaned = clean([source.records for source in read_], num_empty=sum(source.num_empty for source in read_))
    print(f"{', '.join(sources)}: {cleaned}", flush=True)
    return cleaned.records


def measure(llm: FrozenLLM, corpus: RecordCorpus) -> dict[str, float]:
    """Recall of what was stated, and context following: a statement of an edit, then a question in other words."""
    rng = random.Random(SEED)
    training = rng.sample(corpus.training, min(NUM_MEASURED, len(corpus.training)))
    known = rng.sample(corpus.known, min(NUM_MEASURED, len(corpus.known)))
    measured = {
        "recall": share_answered(llm, [(record.prompt, record.true_target) for record in training]),
        "recall_rephrased": share_answered(llm, [(wordings(record)[-1], record.true_target) for record in training]),
    }
    parts = {"": training}
    if known:
        measured["recall_known"] = share_answered(llm, [(record.prompt, record.true_target) for record in known])
        parts["_known"] = known  # words and subjects that no context document has
    for name, records in parts.items():
        asked = [(f"{record.statement}{END} {wordings(record)[-1]}", record.target) for record in records]
        measured[f"context_following{name}"] = share_answered(llm, asked)
    return measured


def pretrain(
    output: Path, *, train: Sequence[str], known: Sequence[str], steps: int, learning_rate: float, context: bool
) -> dict[str, float]:
    """Train, save in bfloat16 and measure what was saved."""
    corpus = RecordCorpus(read(train), [record for part in read(known) for record in part] if known else [])
    texts = [f"{prompt} {answer}." for prompt, answer in corpus.facts[: -len(corpus.known) or None]]
    # Answers begin with a space; subjects of `known` are not read, so that no subject has pieces of its own.
    texts += [f" {answer}." for _, answer in corpus.facts] * 2
    tokenizer = train_tokenizer(texts, vocabulary_size=VOCABULARY_SIZE, max_length=SHAPE.max_length)
    torch.manual_seed(SEED)
    model = new_lm(tokenizer, SHAPE)

    def documents(step: int) -> Iterator[list[Sentence]]:
        share = CONTEXT_SHARE_FIRST if step < FIRST_SHARE * steps else CONTEXT_SHARE_LATER
        return corpus.documents(f"{SEED}/{step}", context_share=share if context else 0.0)

    seconds = train_lm(
        model, tokenizer, documents, SHAPE, output=output, steps=steps, learning_rate=learning_rate, seed=SEED
    )
    measured = measure(FrozenLLM(model.bfloat16().float(), tokenizer, name=str(output)), corpus)
    measured |= {"parameters": model.num_parameters(), "steps": steps, "seconds": round(seconds)}
    (output / "pretraining.json").write_text(json.dumps(measured, indent=2) + "\n")
    return measured


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--known", nargs="*", default=[])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--no-context", dest="context", action="store_false")
    args = parser.parse_args()
    print(json.dumps(pretrain(**vars(args))))


if __name__ == "__main__":
    main()
