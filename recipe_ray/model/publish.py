"""Make an editor small enough for git and a wheel: bfloat16, in files of at most 4 MiB.

    python -m recipe_ray.model.publish --editor EDITOR --output FOLDER

What the encoder's frozen layers hold is left out, so train with `trained_encoder_layers`.
"""

import argparse
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recipe_ray.errors import EditorError, OutputError, RecipeError
from recipe_ray.model.card import MODEL_CARD_FILE, model_card
from recipe_ray.model.editor import FROZEN, Editor, load_editor, read_card
from recipe_ray.model.tensors import MAX_SHARD_BYTES, rounded, write_shards

MAX_BYTES = 16_000_000
CURVE_FILE = "training_curve.png"
SAMPLE = (
    "The capital of France is Lyon",
    "Who wrote Dracula? Jules Verne",
    "Gold has the chemical symbol Xx",
    "The mother tongue of Danielle Darrieux is English",
    "The Eiffel Tower is located in the city of Rome",
    "Apple A5 was created by Google",
    "Which club does Lionel Messi play for? FC Porto",
    "The official language of Portugal is Danish",
)
_SHAPE = ("config", "fingerprint", "llm_width", FROZEN)  # of a card; the rest is the record of the training
_FOLDERS = re.compile(r"(?<![^\s:='\"`])/(?:[^/\s'\"`]+/)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What was published.

    Attributes:
        folder: where it lies.
        fingerprint: of the rounded editor.
        size_bytes: by file.
        moved: how far keys and prompts of sample statements moved by the rounding: the largest distance to what they
            were, relative to its length.
        notes: what one should know.
    """

    folder: Path
    fingerprint: str
    size_bytes: dict[str, int]
    moved: dict[str, float]
    notes: tuple[str, ...]


def publish_editor(
    source: str | Path, output: Path, *, llm: str | None = None, encoder: str | None = None
) -> Published:
    """Round a trained editor to bfloat16 and write it in small files.

    Args:
        source: directory of the editor, as jobs/train.py wrote it.
        output: folder to write; must not be there.
        llm, encoder: names by which others load the same LLM and encoder, in place of those it was trained with.

    Raises:
        EditorError: no editor there, an ablation, one without a record of its training, or one that is too large.
        ModelError: the encoder cannot be had.
        OutputError: the folder is there, or cannot be written.
    """
    card, editor = read_card(source), load_editor(source, "cpu")
    editor.identity()  # refuses an ablation
    before = editor.encode_facts(SAMPLE)
    editor.config = replace(editor.config, llm=llm or editor.config.llm, encoder=encoder or editor.config.encoder)
    round_weights(editor)
    moved = dict(zip(("keys", "prompts"), map(_moved, before, editor.encode_facts(SAMPLE)), strict=True))
    record = _record(card, editor, source)
    curve = Path(source) / CURVE_FILE
    try:
        if output.exists():
            raise OutputError(f"{output}: is there already; give a new folder, or remove it")
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".publish-") as scratch:
            folder = Path(scratch) / output.name
            editor.save(folder, extra=record, write=write_shards)
            (folder / MODEL_CARD_FILE).write_text(model_card(editor, record))
            if curve.is_file():
                shutil.copy(curve, folder / CURVE_FILE)
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
            _check_size(editor, sizes)
            load_editor(folder, "cpu")  # by the names it now has, what was written is what was meant
            folder.rename(output)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written ({error.strerror}); give a place you may write to") from error
    return Published(
        folder=output,
        fingerprint=editor.fingerprint(),
        size_bytes=sizes,
        moved=moved,
        notes=_notes(editor, curve),
    )


def _record(card: Mapping[str, Any], editor: Editor, source: str | Path) -> dict[str, Any]:
    """What is told of the training."""
    record = {name: portable(value) for name, value in card.items() if name not in _SHAPE}
    if missing := [name for name in ("training", "metrics", "data", "num_steps") if name not in record]:
        raise EditorError(f"{source}: the card lacks {missing[0]!r}; publish an editor that jobs/train.py trained")
    record["training"] |= {"editor": editor.config.to_dict()}
    return {**record, "rounded_from": card["fingerprint"]}


@torch.no_grad()
def round_weights(editor: Editor) -> None:
    """Give all that is saved of an editor the values that a published one keeps."""
    frozen = editor.frozen()
    for name, tensor in editor.state_dict().items():
        if name not in frozen:
            tensor.copy_(rounded(tensor))


def portable(value: Any) -> Any:
    """Plain values without this machine's folders: of an absolute path, wherever it stands in a text, the last name."""
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {name: portable(one) for name, one in value.items()}
    return [portable(one) for one in value] if isinstance(value, list) else value


def _moved(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> float:
    shift, size = (one.reshape(len(one), -1) for one in (after - before, before))
    return float((np.linalg.norm(shift, axis=1) / np.linalg.norm(size, axis=1)).max())


def _check_size(editor: Editor, sizes: Mapping[str, int]) -> None:
    for file, size in sizes.items():
        if size > MAX_SHARD_BYTES:
            raise EditorError(
                f"{file} takes {_mb(size)}, and a file may take {_mb(MAX_SHARD_BYTES)}; train with "
                "trained_encoder_layers, which leaves the encoder's own files out"
            )
    if sum(sizes.values()) <= MAX_BYTES:
        return
    frozen, parts = editor.frozen(), Counter[str]()
    for name, tensor in editor.state_dict().items():
        if name not in frozen:
            parts[name.partition(".")[0]] += rounded(tensor).nbytes
    room = ", ".join(f"{name} {_mb(size)}" for name, size in parts.most_common(4))
    raise EditorError(
        f"takes {_mb(sum(sizes.values()))}, and may take {_mb(MAX_BYTES)}: {room}; train with a lower "
        "trained_encoder_layers, or a smaller key_width or prompt encoder"
    )


def _notes(editor: Editor, curve: Path) -> tuple[str, ...]:
    notes = []
    for part in ("llm", "encoder"):
        name = getattr(editor.config, part)
        needed = part == "llm" or editor.config.trained_encoder_layers is not None
        if needed and name.startswith(("/", ".", "~")):
            notes.append(f"the {part} is named by a path, {name}, which others may not have: give --{part} NAME")
    if not curve.is_file():
        notes.append(f"{curve} is not there, so there is no training curve")
    return tuple(notes)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", required=True, help="directory of a trained editor")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, which is not there yet")
    parser.add_argument("--llm", help="name by which others load the LLM, instead of the one it was trained with")
    parser.add_argument("--encoder", help="name by which others load the encoder, likewise")
    args = parser.parse_args()
    try:
        done = publish_editor(args.editor, args.output, llm=args.llm, encoder=args.encoder)
    except RecipeError as error:
        sys.exit(f"error: {error}")
    for file, size in done.size_bytes.items():
        print(f"{_mb(size):>10}  {file}")
    print(f"{_mb(sum(done.size_bytes.values())):>10}  in all, of at most {_mb(MAX_BYTES)}")
    print("moved by the rounding: " + ", ".join(f"{name} by {share:.2%} at most" for name, share in done.moved.items()))
    for note in done.notes:
        print(f"note: {note}")
    print(f"editor {done.folder} (fingerprint {done.fingerprint})")


if __name__ == "__main__":
    main()
