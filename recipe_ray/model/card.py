"""The model card that lies beside an editor's weights."""

from collections.abc import Mapping
from typing import Any

from recipe_ray.config import TrainConfig
from recipe_ray.model.editor import Editor

MODEL_CARD_FILE = "README.md"


def model_card(editor: Editor, config: TrainConfig, card: Mapping[str, Any], before: Mapping[str, float]) -> str:
    """Markdown that says what the editor is for, what it was trained on, and how well it does on tuning edits.

    Args:
        editor: the trained editor.
        config: how it was trained.
        card: what the editor's card holds beside its shape: num_steps, metrics, data.
        before: the metrics before the first step.
    """
    shape = config.editor
    num_trained = sum(parameter.numel() for parameter in editor.parameters())
    after: Mapping[str, float] = card["metrics"]
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
| encoder | `{shape.encoder}` |
| trained parameters | {num_trained:,} |
| key width | {shape.key_width}, {shape.similarity} |
| steps | {card["num_steps"]} of {config.num_steps}, {config.batch_size} edits each, seed {config.seed} |

## Trained on

{sources}

{data.get("summary", "")}

## On tuning edits

Losses are in nats: a token (reliability, generality, locality), a query (neighbour, sentinel). `right_fact` and
`right_none` are shares of right decisions within a batch; `score` is what checkpoints were chosen by.

| | before | after |
|---|---|---|
{metrics}

The configuration in full: `editor.json`. The course of the training: `training_curve.png`.
"""
