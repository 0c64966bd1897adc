"""What editors are made from, and the folder of what was trained or measured for them."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from recipe_ray.errors import OutputError
from recipe_ray.eval.cases import EvalCase
from recipe_ray.examples import Batches, EditRecord
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.store import files

WHOLE_FILE = "whole.json"  # says for what it was made; `publish` uploads it last, so the rest is there where it is
Preset = Literal["testbed", "7b"]
Need = Literal["editor", "training", "tuning", "encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What editors are made from.

    Attributes:
        llm: the frozen LLM.
        cases: those that will be asked about; oracles alone may look.
        preset: of hyperparameters.
        settings: what differs from it, each `EDITOR.NAME=VALUE`.
        device: auto, cpu, cuda or cuda:N.
        seed: of what is drawn.
        state: folder of what was trained or measured for editors, local or s3://; what is there is not made again.
        editor: local directory of RECIPE's trained editor.
        encoder: name of the sentence encoder.
        training: edits to train on.
        batches: the same in batches, by batch size and seed.
        tuning: edits and questions to choose thresholds by.
    """

    llm: FrozenLLM
    cases: Sequence[EvalCase] = ()
    preset: Preset
    settings: Sequence[str] = ()
    device: str = "auto"
    seed: int = 0
    state: str
    editor: Path | None = None
    encoder: str | None = None
    training: Sequence[EditRecord] = ()
    batches: Callable[[int, str], Batches] | None = None
    tuning: Sequence[EvalCase] = ()

    def kept(self, name: str, make: Callable[[Path], None], *, depends_on: object) -> Path:
        """A local folder of what `make` wrote into one, now or when the same was asked for before.

        Args:
            name: of what is made.
            make: writes into a folder that is given to it.
            depends_on: what makes a difference beside LLM, preset, seed, encoder and training edits; its `repr` counts.
        """
        same = [self.llm.name, self.preset, self.seed, self.encoder, repr(depends_on), digest_of(self.training)]
        known = json.dumps(same)
        uri = files.join(self.state, f"{name}-{hashlib.sha256(known.encode()).hexdigest()[:16]}")
        if not _is_whole(uri):
            with tempfile.TemporaryDirectory() as scratch:
                make(Path(scratch))
                (Path(scratch) / WHOLE_FILE).write_text(known + "\n")
                try:
                    files.publish(Path(scratch), uri)
                except OutputError:
                    if not _is_whole(uri):  # else another worker made the same meanwhile
                        raise
        return files.localize(uri)


def _is_whole(uri: str) -> bool:
    return files.read_text(files.join(uri, WHOLE_FILE)) is not None


def digest_of(values: Sequence[object]) -> str:
    """What values are known by: equal for equal ones, whichever process asks."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(repr(value).encode() + b"\n")
    return digest.hexdigest()[:16]
