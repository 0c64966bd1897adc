"""Editors that ship with the package, each a folder by its name; docs/training.md says how one is made."""

from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files("recipe_ray.published")))
CARD_FILE = "editor.json"  # by which an editor's directory is known


def published_editor(name: str | Path) -> Path | None:
    """The folder of the published editor of this name, if there is one.

    As with models, a local directory comes before a name.
    """
    text = str(name)
    folder = FOLDER / text
    if "/" in text or not (folder / CARD_FILE).is_file() or (Path(text) / CARD_FILE).is_file():
        return None
    return folder


def published_names() -> list[str]:
    """The names of all published editors."""
    return sorted(card.parent.name for card in FOLDER.glob(f"*/{CARD_FILE}"))
