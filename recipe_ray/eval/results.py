"""What one cell of the evaluation is told and gives: one editor, one data set, one number of edits, one mode."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from recipe_ray.errors import ConfigError
from recipe_ray.eval.cases import SORTS, Sort
from recipe_ray.eval.statistics import NUM_RESAMPLES, Score

Mode = Literal["single", "batch", "lifelong"]
MODES: tuple[Mode, ...] = get_args(Mode)
ENDED = "ended"  # beside the sorts of chats: the share of answers that ended by themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSettings:
    """What is measured.

    Attributes:
        data: name of the data set, for the rows.
        num_edits: T, edits in force at once.
        mode: `single` is T = 1; `batch` applies T edits in one call; `lifelong` in T calls of one.
        seed: of the intervals and of the examples.
        num_resamples: of the intervals.
        num_failures: examples kept of each sort of questions.
        chat: whether edits are asked about in chats too, where the editor takes them.
        num_speed_prompts: questions whose time to first token and tokens a second are taken; 0 for none.
    """

    data: str
    num_edits: int
    mode: Mode
    seed: int = 0
    num_resamples: int = NUM_RESAMPLES
    num_failures: int = 3
    num_speed_prompts: int = 8
    chat: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode is {self.mode!r}; give one of {', '.join(MODES)}")
        if self.num_edits < 1:
            raise ConfigError(f"num_edits is {self.num_edits}; give 1 or more")
        if self.mode == "single" and self.num_edits != 1:
            raise ConfigError(f"mode is single and num_edits is {self.num_edits}; give 1, or batch or lifelong")


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What editing costs on this machine; None where it was not taken.

    Attributes:
        seconds_per_edit: median over calls of `apply`, divided by the edits of a call; None where they
            were made before.
        ttft_s, tokens_per_s: of one question alone with T edits in force, retrieval included: median seconds to the
            first token, median tokens a second after it.
        unedited_ttft_s, unedited_tokens_per_s: the same of the unedited LLM in the same run, on the same questions.
        state_bytes: what T edits keep beyond the unedited LLM.
        peak_memory_bytes: highest use so far: of the GPU in this cell, or without one of the process since its start.
    """

    seconds_per_edit: float | None
    ttft_s: float | None
    tokens_per_s: float | None
    unedited_ttft_s: float | None
    unedited_tokens_per_s: float | None
    state_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A question that was answered otherwise than wanted, in free generation or in a chat.

    Attributes:
        sort, kind: of the question; the kind of all chats is `chat`.
        edit: the statement of its case's edit.
        question: the prompt, of a chat its last message.
        wanted: the target, or for locality what the unedited LLM says.
        got: what was said.
    """

    sort: Sort
    kind: str
    edit: str
    question: str
    wanted: str
    got: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """What one cell measured.

    Scores have the names of the sorts of questions (`reliability`, `generality`, `generality_novel`, `locality`) and,
    where a sort has several kinds, `SORT/KIND`; what no case asks is not there.

    Attributes:
        editor: name of the method.
        llm: name of the LLM.
        settings: what was measured.
        num_cases: edits asked about, in groups of T.
        free: exact match of greedy answers up to the full stop.
        teacher_forced: share of right answer tokens.
        retrieval: of a method that looks edits up: `right_fact` (nearest, applied or not) and `right_decision` over all
            questions and by sort; `false_fire`, the share of locality questions on which an edit is applied; `missed`
            and `wrong_fact`, the shares of the others on which none or another is. Empty without retrieval.
        related_margins, unrelated_margins: score minus threshold of every question that an edit answers, and of every
            locality question.
        efficiency: what it cost.
        failures: examples drawn by seed.
        chat: shares of chats whose answer's first sentence asserts the target, for locality of those answered as the
            unedited LLM does; as `ended` the share of answers about edits that ended by themselves. Empty where none
            were asked.
        chat_retrieval: as `retrieval`, of the chats.
    """

    editor: str
    llm: str
    settings: CellSettings
    num_cases: int
    free: Mapping[str, Score]
    teacher_forced: Mapping[str, Score]
    retrieval: Mapping[str, Score]
    related_margins: tuple[float, ...]
    unrelated_margins: tuple[float, ...]
    efficiency: Efficiency
    failures: tuple[Failure, ...]
    chat: Mapping[str, Score] = field(default_factory=dict)
    chat_retrieval: Mapping[str, Score] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a measure (`free`, `teacher_forced`, and `chat` if asked); what was not measured is None.

        Beside what names the cell: each score under its name with `_ci_low`, `_ci_high` and `_n`, those of retrieval
        under `retrieval_NAME`, and the efficiency's fields.
        """
        measures = self._measures()
        names = dict.fromkeys((*SORTS, *(name for scores in measures.values() for name in scores)))
        lookups = {measure: self.chat_retrieval if measure == "chat" else self.retrieval for measure in measures}
        found = dict.fromkeys(name for scores in lookups.values() for name in scores)
        rows = []
        for measure, scores in measures.items():
            row: dict[str, Any] = {
                "editor": self.editor,
                "data": self.settings.data,
                "llm": self.llm,
                "T": self.settings.num_edits,
                "mode": self.settings.mode,
                "measure": measure,
                "n": self.num_cases,
                "seed": self.settings.seed,
            }
            for name in names:
                row |= _flat(name, scores.get(name))
            for name in found:
                row |= _flat(f"retrieval_{name}", lookups[measure].get(name))
            row |= dataclasses.asdict(self.efficiency)
            row["state_bytes_per_fact"] = self.efficiency.state_bytes / self.settings.num_edits
            rows.append(row)
        return rows

    def values(self) -> dict[str, dict[str, float]]:
        """The scores by sort, without their intervals: `free`, `teacher_forced` and, where it was asked, `chat`."""
        return {
            measure: {name: score.value for name, score in scores.items() if name in (*SORTS, ENDED)}
            for measure, scores in self._measures().items()
        }

    def _measures(self) -> dict[str, Mapping[str, Score]]:
        measured = {"free": self.free, "teacher_forced": self.teacher_forced}
        return {**measured, "chat": self.chat} if self.chat else measured

    def to_dict(self) -> dict[str, Any]:
        """All of it as values that JSON holds."""
        return dataclasses.asdict(self)


def cell_result_from_dict(values: Mapping[str, Any]) -> CellResult:
    """What `CellResult.to_dict` gave, read back from JSON too."""
    scores = {
        measure: {name: Score(**score) for name, score in values.get(measure, {}).items()}
        for measure in ("free", "teacher_forced", "retrieval", "chat", "chat_retrieval")
    }
    made = {
        "settings": CellSettings(**values["settings"]),
        "related_margins": tuple(values["related_margins"]),
        "unrelated_margins": tuple(values["unrelated_margins"]),
        "efficiency": Efficiency(**values["efficiency"]),
        "failures": tuple(Failure(**failure) for failure in values["failures"]),
    }
    return CellResult(**{**values, **scores, **made})


def _flat(name: str, score: Score | None) -> dict[str, Any]:
    return {
        name: score and score.value,
        f"{name}_ci_low": score and score.low,
        f"{name}_ci_high": score and score.high,
        f"{name}_n": score and score.n,
    }
