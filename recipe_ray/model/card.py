"""The model card that lies beside an editor's weights."""

from collections.abc import Iterator, Mapping
from typing import Any

from recipe_ray.model.editor import Editor

MODEL_CARD_FILE = "README.md"


def model_card(editor: Editor, card: Mapping[str, Any]) -> str:
    """Markdown that says what the editor is for, what it was trained on and how, and how well it does on tuning edits.

    Args:
        editor: the trained editor.
        card: what the editor's card holds beside its shape: num_steps, before, metrics, training, data, and where they
            are known command, commit, started_from (the card of the editor it went on from) and rounded_from.
    """
    shape, training = editor.config, card["training"]
    before, after = card.get("before") or {}, card["metrics"]
    metrics = "\n".join(f"| {name} | {before.get(name, float('nan')):.4f} | {after[name]:.4f} |" for name in after)
    data = card["data"]
    sources = "\n".join(
        f"- {source}"
        if isinstance(source, str)
        else f"- `{source['name']}`: {source['records']} records, sha256 {source['sha256']}"
        for source in data["sources"]
    )
    serves = shape.num_virtual_tokens and shape.num_sentinel_tokens
    use = (
        "`jobs/ingest.py --editor THIS_FOLDER …` encodes facts with it, `jobs/serve.py` answers with them."
        if serves
        else "An ablation: it can be evaluated, and neither ingests nor serves."
    )
    return f"""# Editor for {shape.llm}

RECIPE (arXiv 2405.03279): facts as continuous prompts of {shape.num_virtual_tokens} virtual tokens, at most one a
query, behind a Knowledge Sentinel. {use}

| | |
|---|---|
| fingerprint | `{editor.fingerprint()}` |
| LLM (frozen) | `{shape.llm}`, embeddings of width {editor.llm_width} |
| encoder | `{shape.encoder}`, {_trained_part(editor)} |
| trained parameters | {sum(one.numel() for one in editor.parameters() if one.requires_grad):,} |
| key width | {shape.key_width}, {shape.similarity} |
| steps | {card["num_steps"]} of {_num_steps(training)}, {training["batch_size"]} edits each, seed {training["seed"]} |

## Trained on

{sources}

{data.get("summary", "")}

## Trained by

{chr(10).join(_trainings(card))}

## On tuning edits

Losses are in nats: a token (reliability, generality, locality), a query (neighbour, sentinel). `right_fact` and
`right_none` are shares of right decisions within a batch; `score` is what checkpoints were chosen by.{_rounding(card)}

| | before | after |
|---|---|---|
{metrics}

The configuration in full: `editor.json`. The course of the training: `training_curve.png`.
"""


def _trained_part(editor: Editor) -> str:
    num_layers = editor.config.trained_encoder_layers
    if num_layers is None:
        return "trained as a whole"
    num_frozen = sum(tensor.numel() for tensor in editor.frozen().values())
    return (
        f"its top {num_layers} layers trained; the {num_frozen:,} parameters below are frozen, not in these files, and "
        f"of digest `{editor.frozen_digest()}`"
    )


def _num_steps(training: Mapping[str, Any]) -> int:
    return sum(stage["num_steps"] for stage in training["stages"])


def _trainings(card: Mapping[str, Any]) -> Iterator[str]:
    """A line for each training that led here, the first one first."""
    if (earlier := card.get("started_from")) is not None:
        yield from _trainings(earlier)
    training = card.get("training")
    if training is None:
        yield "- not known"
        return
    parts = [f"`{card['command']}`"] if "command" in card else []
    parts += [f"step {card['num_steps']} of {_num_steps(training)}", f"seed {training['seed']}"]
    parts += [f"commit {commit}"] if (commit := card.get("commit")) else []
    yield "- " + ", ".join(parts)


def _rounding(card: Mapping[str, Any]) -> str:
    if "rounded_from" not in card:
        return ""
    return f" Measured\nbefore its matrices were rounded to bfloat16, as `{card['rounded_from']}`."
