"""The editors by name: what each needs beside an LLM, and how it is made."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from recipe_ray.config import TESTBED
from recipe_ray.errors import ConfigError
from recipe_ray.eval.cases import CaseQuestion, EvalCase, facts_of_prompts
from recipe_ray.eval.encoders import SentenceEncoder
from recipe_ray.eval.methods.base import Method
from recipe_ray.eval.methods.in_context import Oracle, in_context_by_editor, in_context_by_sentences
from recipe_ray.eval.methods.recipe import OraclePrompt, Recipe
from recipe_ray.eval.methods.unedited import Unedited
from recipe_ray.examples import Batches, EditRecord
from recipe_ray.model.editor import Editor, load_editor
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.store import files
from recipe_ray.store.indexes.ann import exact_nearest

Preset = Literal["testbed", "7b"]
Need = Literal["editor", "training", "tuning", "encoder"]
_NEEDED: dict[Need, str] = {
    "editor": "RECIPE's trained editor; give its directory as editor",
    "training": "edits to train on; give training_data",
    "tuning": "edits to choose its threshold by; give tuning_data",
    "encoder": "a sentence encoder; give encoder",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What editors are made from.

    Attributes:
        llm: the frozen LLM.
        cases: those that will be asked about; oracles alone may look.
        preset: of hyperparameters.
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
            depends_on: whatever makes a difference beside the LLM, preset, seed, encoder and training edits; its `repr`.
        """
        same = [self.llm.name, self.preset, self.seed, self.encoder, repr(depends_on), digest_of(self.training)]
        uri = files.join(self.state, f"{name}-{hashlib.sha256(json.dumps(same).encode()).hexdigest()[:16]}")
        if files.is_empty(uri):
            with tempfile.TemporaryDirectory() as scratch:
                make(Path(scratch))
                files.publish(Path(scratch), uri)
        return files.localize(uri)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """An editor as a name stands for it.

    Attributes:
        build: makes it.
        needs: what `build` takes from the context beside the LLM.
    """

    build: Callable[[Context], Method]
    needs: frozenset[Need] = field(default_factory=frozenset)


def digest_of(values: Sequence[object]) -> str:
    """What values are known by: equal for equal ones, whichever process asks."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(repr(value).encode() + b"\n")
    return digest.hexdigest()[:16]


def build(name: str, context: Context) -> Method:
    """Make an editor.

    Raises:
        ConfigError: no such editor, or the context lacks what it needs.
        RecipeError: as the editor says, for instance that it does not know the LLM's family.
    """
    if name not in METHODS:
        raise ConfigError(f"editor {name!r} is not known; give one of {', '.join(METHODS)}")
    for need in sorted(METHODS[name].needs):
        if not getattr(context, need):
            raise ConfigError(f"{name} needs {_NEEDED[need]}")
    return METHODS[name].build(context)


def _editor(context: Context) -> Editor:
    assert context.editor is not None  # as `build` saw
    return load_editor(context.editor, context.device)


def _sentences(context: Context) -> SentenceEncoder:
    """The sentence encoder as it is or whitened on the tuning texts, whichever finds more of their facts."""
    plain = SentenceEncoder(context.encoder or TESTBED, context.device)
    if not context.tuning:
        return plain
    statements = [case.statement for case in context.tuning]
    asked = [(row, question.prompt) for row, case in enumerate(context.tuning) for question in _answered(case)]
    rows, prompts = [row for row, _ in asked], [prompt for _, prompt in asked]
    whitened = SentenceEncoder(plain.name, context.device, whiten_on=[*statements, *prompts])

    def num_found(encode: SentenceEncoder) -> int:
        nearest_B, _ = exact_nearest(encode(statements), encode(prompts))
        return int((nearest_B == np.array(rows)).sum())

    return max((plain, whitened), key=num_found)


def _answered(case: EvalCase) -> list[CaseQuestion]:
    return [question for question in case.questions if question.sort != "locality"]


# In the order of the report.
METHODS: dict[str, Registered] = {
    "unedited": Registered(build=lambda context: Unedited(context.llm)),
    "recipe": Registered(
        build=lambda context: Recipe(context.llm, _editor(context)),
        needs=frozenset({"editor"}),
    ),
    "in_context": Registered(
        build=lambda context: in_context_by_editor(context.llm, _editor(context)),
        needs=frozenset({"editor"}),
    ),
    "in_context_sentences": Registered(
        build=lambda context: in_context_by_sentences(context.llm, _sentences(context), context.tuning),
        needs=frozenset({"encoder", "tuning"}),
    ),
    "oracle": Registered(build=lambda context: Oracle(context.llm, facts_of_prompts(context.cases))),
    "oracle_prompt": Registered(
        build=lambda context: OraclePrompt(context.llm, _editor(context), facts_of_prompts(context.cases)),
        needs=frozenset({"editor"}),
    ),
}
