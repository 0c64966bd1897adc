"""The editors by name: what each needs beside an LLM, and how it is made."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recipe_ray.config import TESTBED
from recipe_ray.errors import ConfigError
from recipe_ray.eval.chats import facts_of_questions
from recipe_ray.eval.encoders import SentenceEncoder
from recipe_ray.eval.methods import (
    alphaedit,
    fine_tuning,
    grace,
    lte,
    malmen,
    memit,
    mend,
    r_rome,
    rome,
    t_patcher,
    ultra_edit,
    wilke,
    wise,
)
from recipe_ray.eval.methods.base import Edit, Method
from recipe_ray.eval.methods.context import Context, Need, Preset
from recipe_ray.eval.methods.covariance import Moments, second_moments, testbed_texts
from recipe_ray.eval.methods.hypernetwork import HypernetworkArgs
from recipe_ray.eval.methods.hypernetwork_editor import HypernetworkEditor
from recipe_ray.eval.methods.in_context import (
    Oracle,
    choose_threshold,
    in_context_by_editor,
    in_context_by_sentences,
)
from recipe_ray.eval.methods.recipe import OraclePrompt, Recipe
from recipe_ray.eval.methods.unedited import Unedited
from recipe_ray.facts import DEFAULT_NAMESPACE, default_fact_id
from recipe_ray.model.editor import Editor, load_editor
from recipe_ray.settings import changed
from recipe_ray.store.indexes.ann import exact_nearest

NUM_SEEN = 100  # edits before the first, for running statistics: UltraEdit's paper makes as many a turn
NUM_TEXTS = 4000  # of training data, for second moments
_NEEDED: dict[Need, str] = {
    "editor": "RECIPE's trained editor; give its directory as editor",
    "training": "edits to train on, or texts like them; give training_data",
    "tuning": "edits to choose its threshold by; give tuning_data",
    "encoder": "a sentence encoder; give encoder",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """An editor as a name stands for it.

    Attributes:
        build: makes it from a context and hyperparameters, None where it has none.
        needs: what `build` takes from the context beside the LLM.
        presets: hyperparameters by name, where it has any.
        one_by_one: a call with many edits is the same as a call with each, one after the other.
        chats: whether its LLM can be asked in chats.
    """

    build: Callable[[Context, Any], Method]
    needs: frozenset[Need] = field(default_factory=frozenset)
    presets: Mapping[str, Any] = field(default_factory=dict)
    one_by_one: bool = False
    chats: bool = True


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
    return METHODS[name].build(context, hyperparameters(name, context.preset, context.settings))


def hyperparameters(name: str, preset: Preset, settings: Sequence[str] = ()) -> Any:
    """An editor's: a preset's with what differs; None where it has none.

    Args:
        name: of the editor.
        preset: to start from.
        settings: each `EDITOR.NAME=VALUE`; those of other editors say nothing here.

    Raises:
        ConfigError: a setting that the editor does not have, or a value that cannot be.
    """
    own = [setting.removeprefix(f"{name}.") for setting in settings if setting.startswith(f"{name}.")]
    if not METHODS[name].presets:
        if own:
            raise ConfigError(f"set names {name}.{own[0]}, but {name} has no hyperparameters; leave it out")
        return None
    return changed(METHODS[name].presets[preset], own, prefix=f"{name}.")


def _registered(
    build_: Callable[[Context, Any], Method],
    *needs: Need,
    presets: Mapping[str, Any] | None = None,
    one_by_one: bool = False,
    chats: bool = True,
) -> Registered:
    return Registered(build=build_, needs=frozenset(needs), presets=presets or {}, one_by_one=one_by_one, chats=chats)


def _editor(context: Context) -> Editor:
    assert context.editor is not None  # as `build` saw
    return load_editor(context.editor, context.device)


def _sentences(context: Context) -> SentenceEncoder:
    """The sentence encoder as it is or whitened on the tuning texts, whichever finds more of their facts."""
    plain = SentenceEncoder(context.encoder or TESTBED, context.device)
    if not context.tuning:
        return plain
    statements = [case.statement for case in context.tuning]
    asked = [
        (row, question.prompt)
        for row, case in enumerate(context.tuning)
        for question in case.questions
        if question.sort != "locality"
    ]
    rows_B, prompts = np.array([row for row, _ in asked]), [prompt for _, prompt in asked]
    whitened = SentenceEncoder(plain.name, context.device, whiten_on=[*statements, *prompts])

    def num_found(encode: SentenceEncoder) -> int:
        nearest_B, _ = exact_nearest(encode(statements), encode(prompts))
        return int((nearest_B == rows_B).sum())

    return max((plain, whitened), key=num_found)


def _moments(context: Context, layers: Sequence[int]) -> Moments:
    """Second moments over what the LLM reads: the testbed's corpus for its LM, else statements of the training data."""

    def measure(folder: Path) -> None:
        if context.llm.name == TESTBED:
            texts = testbed_texts()
        else:
            texts = [f"{record.statement}." for record in context.training[:NUM_TEXTS]]
        second_moments(context.llm, texts, layers).save(folder)

    return Moments.load(context.kept("moments", measure, depends_on=tuple(layers)))


def _rome(context: Context, args: rome.ROMEArgs) -> Method:
    return rome.ROME(context.llm, args, moments=_moments(context, [args.layer]), seed=context.seed)


def _r_rome(context: Context, args: r_rome.RROMEArgs) -> Method:
    encode = _sentences(context)
    if not any(setting.startswith("r_rome.threshold=") for setting in context.settings):
        args = dataclasses.replace(args, threshold=choose_threshold(encode, context.tuning))
    moments = _moments(context, [args.rome.layer])
    return r_rome.RROME(context.llm, args, moments=moments, encode=encode, seed=context.seed)


def _memit(context: Context, args: memit.MEMITArgs) -> Method:
    return memit.MEMIT(context.llm, args, moments=_moments(context, args.layers), seed=context.seed)


def _alphaedit(context: Context, args: alphaedit.AlphaEditArgs) -> Method:
    return alphaedit.AlphaEdit(context.llm, args, moments=_moments(context, args.layers), seed=context.seed)


def _hypernetwork(editor: type[HypernetworkEditor], context: Context, args: HypernetworkArgs) -> Method:
    assert context.batches is not None  # where there are training edits
    batches = context.batches(args.batch_size, f"{editor.name} {context.seed}")

    def train(folder: Path) -> None:
        editor.train(context.llm, args, batches, seed=context.seed).save(folder)

    return editor.load(context.llm, context.kept(editor.name.lower(), train, depends_on=args))


def _lte(context: Context, args: lte.LTEArgs) -> Method:
    encode = _sentences(context)

    def align(folder: Path) -> None:
        lte.align(context.llm, args, training=context.training, encode=encode, seed=context.seed).save(folder)

    alignment = lte.Alignment.load(context.kept("lte", align, depends_on=args))
    return lte.LTE(context.llm, args, alignment=alignment, encode=encode)


def _wilke(context: Context, args: wilke.WILKEArgs) -> Method:
    return wilke.WILKE(context.llm, args, moments=_moments(context, args.layers), seed=context.seed)


def _ultra_edit(context: Context, args: ultra_edit.UltraEditArgs) -> Method:
    seen = [
        Edit(fact_id=default_fact_id(DEFAULT_NAMESPACE, one.prompt), prompt=one.prompt, target=one.target)
        for one in context.training[:NUM_SEEN]
    ]
    return ultra_edit.UltraEdit(context.llm, args, seen=seen)


# In the order of the report.
METHODS: dict[str, Registered] = {
    "unedited": _registered(lambda context, _: Unedited(context.llm)),
    "recipe": _registered(lambda context, _: Recipe(context.llm, _editor(context)), "editor"),
    "in_context": _registered(lambda context, _: in_context_by_editor(context.llm, _editor(context)), "editor"),
    "in_context_sentences": _registered(
        lambda context, _: in_context_by_sentences(context.llm, _sentences(context), context.tuning),
        "encoder",
        "tuning",
    ),
    "oracle": _registered(lambda context, _: Oracle(context.llm, facts_of_questions(context.cases))),
    "oracle_prompt": _registered(
        lambda context, _: OraclePrompt(context.llm, _editor(context), facts_of_questions(context.cases)), "editor"
    ),
    "fine_tuning": _registered(lambda context, args: fine_tuning.FT(context.llm, args), presets=fine_tuning.PRESETS),
    "fine_tuning_limited": _registered(
        lambda context, args: fine_tuning.FT(context.llm, args), presets=fine_tuning.LIMITED_PRESETS
    ),
    "rome": _registered(_rome, "training", presets=rome.PRESETS, one_by_one=True),
    "r_rome": _registered(_r_rome, "training", "tuning", "encoder", presets=r_rome.PRESETS),
    "memit": _registered(_memit, "training", presets=memit.PRESETS),
    "grace": _registered(lambda context, args: grace.Grace(context.llm, args), presets=grace.PRESETS),
    "t_patcher": _registered(
        lambda context, args: t_patcher.TPatcher(context.llm, args, training=context.training),
        "training",
        presets=t_patcher.PRESETS,
        one_by_one=True,
    ),
    "mend": _registered(functools.partial(_hypernetwork, mend.Mend), "training", presets=mend.PRESETS),
    "malmen": _registered(functools.partial(_hypernetwork, malmen.Malmen), "training", presets=malmen.PRESETS),
    "lte": _registered(_lte, "training", "tuning", "encoder", presets=lte.PRESETS, chats=False),
    "wilke": _registered(_wilke, "training", presets=wilke.PRESETS, one_by_one=True),
    "wise": _registered(
        lambda context, args: wise.Wise(context.llm, args, training=context.training), "training", presets=wise.PRESETS
    ),
    "alphaedit": _registered(_alphaedit, "training", presets=alphaedit.PRESETS),
    "ultra_edit": _registered(_ultra_edit, "training", presets=ultra_edit.PRESETS),
}
