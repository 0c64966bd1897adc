"""Editors on tasks: each with all its edits in force, beside the LLM without any."""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from recipe_ray.errors import ConfigError, RecipeError
from recipe_ray.eval.ability.answering import BATCH_SIZE, EditedModel
from recipe_ray.eval.ability.choices import CHOICE_STYLES, ChoiceQuestion, ChoiceStyle, write_task
from recipe_ray.eval.ability.comparison import TaskResult, compared
from recipe_ray.eval.methods.base import Edit, Method, Retrieves
from recipe_ray.eval.methods.unedited import Unedited
from recipe_ray.model.llm import FrozenLLM

ApplyMode = Literal["batch", "lifelong"]
APPLY_MODES: tuple[ApplyMode, ...] = get_args(ApplyMode)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AbilitySettings:
    """How ability is measured, the same for every editor.

    Attributes:
        tasks: names of the harness's tasks.
        local: tasks of one's own by name.
        style: what the LLM reads of a local task: `letters`, the listed choices, of which it names one by its letter,
            as the harness's own `commonsense_qa`; or `text`, the question alone, which each choice continues.
        mode: batch (all edits by one call) or lifelong (a call an edit).
        limit: at most so many prompts a task; None for all.
        num_fewshot: examples before each question, instead of the task's own number.
        batch_size: rows that the LLM reads at once.
    """

    tasks: tuple[str, ...] = ()
    local: Mapping[str, tuple[ChoiceQuestion, ...]]
    style: ChoiceStyle = "letters"
    mode: ApplyMode = "batch"
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        if not self.tasks and not self.local:
            raise ConfigError("tasks: none given; give a name of lm-evaluation-harness or NAME:PATH of local questions")
        for name, value, allowed in (("style", self.style, CHOICE_STYLES), ("mode", self.mode, APPLY_MODES)):
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}; give one of {', '.join(allowed)}")
        for name, number in (("limit", self.limit), ("batch_size", self.batch_size)):
            if number is not None and number < 1:
                raise ConfigError(f"{name} is {number}; give 1 or more")


def evaluate_ability(
    llm: FrozenLLM,
    methods: Mapping[str, Callable[[], Method]],
    edits: Sequence[Edit],
    settings: AbilitySettings,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """One row a task without edits, then one an editor and task; an editor that cannot, one with its reason.

    A row holds `editor`, `T`, `mode`, `task`, the harness's metrics with `NAME_before` of the LLM without edits, the
    counts of `compared` and seconds, or `editor` and `failed`.

    Args:
        llm: shared by all methods, left as found.
        methods: builders by name.
        edits: all in force at once.
        settings: what is asked.
        progress: told what begins.

    Raises:
        ConfigError: no lm-evaluation-harness here, or tasks that cannot be had.
    """
    harness = _harness()
    shown = {_local_name(task): task for task in settings.local}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ability-") as name:
        folder = Path(name)
        for local, task in shown.items():
            write_task(folder, local, settings.local[task], settings.style)

        def measured(method: Method) -> dict[str, TaskResult]:
            found = harness.evaluate_tasks(
                EditedModel(method, batch_size=settings.batch_size),
                [*settings.tasks, *shown],
                folder=folder,
                limit=settings.limit,
                num_fewshot=settings.num_fewshot,
            )
            return {
                shown.get(one.task, one.task): dataclasses.replace(one, task=shown.get(one.task, one.task))
                for one in found
            }

        progress(f"unedited: {', '.join([*settings.tasks, *settings.local])}")
        unedited = Unedited(llm)
        before = measured(unedited)
        rows += [_row(unedited.name, 0, None, compared(one, one, looks_up=False)) for one in before.values()]
        for editor, build in methods.items():
            progress(f"{editor}: {len(edits)} edits, then the same")
            begun = time.monotonic()
            try:
                method = build()
                looks_up = not method.changes_llm or isinstance(method, Retrieves)
                try:
                    _apply(method, edits, settings.mode)
                    applied = time.monotonic()
                    after = measured(method)
                finally:
                    method.undo()
            except RecipeError as error:
                rows.append({"editor": editor, "T": len(edits), "mode": settings.mode, "failed": str(error)})
                continue
            seconds = {"seconds_applying": applied - begun, "seconds_asking": time.monotonic() - applied}
            rows += [
                _row(editor, len(edits), settings.mode, compared(one, before[task], looks_up=looks_up)) | seconds
                for task, one in after.items()
            ]
    return rows


def _row(editor: str, num_edits: int, mode: ApplyMode | None, values: Row) -> Row:
    return {"editor": editor, "T": num_edits, "mode": mode, **values}


def _apply(method: Method, edits: Sequence[Edit], mode: ApplyMode) -> None:
    for call in [[edit] for edit in edits] if mode == "lifelong" else [edits]:
        method.apply(call)


def _harness() -> ModuleType:
    try:
        from recipe_ray.eval.ability import harness
    except ImportError as error:
        raise ConfigError(
            f"general ability is measured by lm-evaluation-harness, which is not here ({error}); "
            "pip install 'recipe-ray[eval]'"
        ) from error
    return harness


def _local_name(task: str) -> str:
    """Apart from the harness's own tasks, which may be called the same."""
    return f"local_{task}"
