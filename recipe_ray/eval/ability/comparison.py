"""What edits did to the answers of a task: on how many prompts an editor fired, and how many answers it changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Prompt:
    """All that an LLM answered to one prompt of a task.

    Attributes:
        scores: log-likelihoods, of the choices in their order where there are choices.
        said: texts; of a log-likelihood, whether it is that of the greedy answer.
        fired: whether an edit fired.
        truncated: whether the prompt lost its beginning.
    """

    scores: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    fired: bool = False
    truncated: bool = False

    def add(self, *, fired: bool, score: float | None, said: str, truncated: bool) -> None:
        """Note one answer."""
        if score is not None:
            self.scores.append(score)
        self.said.append(said)
        self.fired |= fired
        self.truncated |= truncated

    @property
    def output(self) -> tuple[Any, ...]:
        """Everything, to the bit."""
        return (*self.scores, *self.said)

    @property
    def answer(self) -> tuple[Any, ...]:
        """What it comes to: the likeliest choice where there are choices, and what was said where there are none."""
        if len(self.scores) < 2:
            return tuple(self.said)
        return (max(range(len(self.scores)), key=self.scores.__getitem__),)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """One edited LLM on one task.

    Attributes:
        task: its name.
        metrics: the harness's, by name.
        prompts: in the order of the task's documents.
    """

    task: str
    metrics: Mapping[str, float]
    prompts: tuple[Prompt, ...]


def compared(edited: TaskResult, unedited: TaskResult, *, looks_up: bool) -> dict[str, Any]:
    """Metrics before and after the edits, and how many prompts they touched.

    Counts are of prompts: `fired`, an edit was looked up and found; `changed`, any log-likelihood or text differs in
    any bit; `answers_changed`, the likeliest choice or the text does; `unfired_changed`, of `changed` those where no
    edit fired: of an editor that leaves the LLM alone it must be 0.

    Args:
        edited, unedited: of the same task.
        looks_up: whether the method looks an edit up for each question; of one that does not (it edits weights), what
            is about firing is missing.
    """
    pairs = list(zip(edited.prompts, unedited.prompts, strict=True))
    changed = [one.output != other.output for one, other in pairs]
    fired = [one.fired for one, _ in pairs]
    counts: dict[str, Any] = {
        "n": len(pairs),
        "changed": sum(changed),
        "answers_changed": sum(one.answer != other.answer for one, other in pairs),
        "fired": sum(fired) if looks_up else None,
        "fired_share": sum(fired) / max(1, len(pairs)) if looks_up else None,
        "unfired_changed": sum(one for one, was in zip(changed, fired, strict=True) if not was) if looks_up else None,
        "truncated": sum(one.truncated for one, _ in pairs),
    }
    before = {f"{name}_before": value for name, value in unedited.metrics.items() if not name.endswith("_stderr")}
    metrics = {name: value for one in edited.metrics for name, value in _both(one, edited.metrics, before)}
    return {"task": edited.task, **metrics, **counts}


def _both(name: str, after: Mapping[str, float], before: Mapping[str, float]) -> list[tuple[str, float]]:
    own = [(name, after[name])]
    return [(f"{name}_before", before[f"{name}_before"]), *own] if f"{name}_before" in before else own
