"""Editors that act on what a frozen LLM reads.

Each says, for every case of a set of T simultaneous edits, what the LLM reads when a question of one kind is asked.
Shape letters: N cases, T simultaneous edits, K key width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from recipe_ray.eval.cases import Ask, EvalCase, Kind
from recipe_ray.retrieval import Retrieval, decide


class Editor(Protocol):
    """What is evaluated."""

    def asks(self, kind: Kind, num_edits: int) -> list[Ask]:
        """For all N cases, with `num_edits` edits in force at once: the case's own and its group's."""


class Unedited:
    """The LLM as it is."""

    def __init__(self, cases: Sequence[EvalCase]) -> None:
        self.cases = cases

    def asks(self, kind: Kind, num_edits: int) -> list[Ask]:
        """The question alone."""
        return [Ask(case.question(kind)) for case in self.cases]


class InContext:
    """The right statement pasted before the question: what a user does without an editor.

    A locality question has no right statement; it gets the statement of the edit it lies next to.
    """

    def __init__(self, cases: Sequence[EvalCase], *, statement_end: str) -> None:
        self.cases = cases
        self.statement_end = statement_end

    def asks(self, kind: Kind, num_edits: int) -> list[Ask]:
        """Statement and question."""
        return [Ask(f"{case.statement}{self.statement_end} {case.question(kind)}") for case in self.cases]


class Recipe:
    """The continuous prompt of the fact that is retrieved for the question, if one passes the sentinel.

    Args:
        cases: the N cases.
        keys_NK: the stored key of each case's edit.
        queries: for each kind the encoded questions [N, K].
        thresholds: for each kind what each question's best score must exceed [N]: its similarity to the sentinel.
    """

    def __init__(
        self,
        cases: Sequence[EvalCase],
        *,
        keys_NK: npt.NDArray[np.float32],
        queries: Mapping[Kind, npt.NDArray[np.float32]],
        thresholds: Mapping[Kind, npt.NDArray[np.float32]],
    ) -> None:
        self.cases = cases
        self._scores_NN = {kind: asked @ keys_NK.T for kind, asked in queries.items()}
        self._thresholds = thresholds

    def retrieve(self, kind: Kind, num_edits: int) -> Retrieval:
        """What each question finds among the `num_edits` edits of its case's group; rows number the cases."""
        scores_NN = self._scores_NN[kind]
        nearest = np.empty(len(self.cases), np.int64)
        for start in range(0, len(self.cases), num_edits):
            group = slice(start, start + num_edits)
            nearest[group] = start + scores_NN[group, group].argmax(1)
        score = np.take_along_axis(scores_NN, nearest[:, None], 1)[:, 0]
        return decide(nearest, score, self._thresholds[kind])

    def asks(self, kind: Kind, num_edits: int) -> list[Ask]:
        """The question behind the retrieved prompt."""
        rows = self.retrieve(kind, num_edits).row_B
        return [Ask(case.question(kind), fact=int(row)) for case, row in zip(self.cases, rows, strict=True)]

    def retrieval_metrics(self, num_edits: int) -> dict[str, float]:
        """Shares of questions with the right fact nearest, and with the right decision, over all and a kind at a time.

        Right is, for a question about an edit, that its own fact is applied; for a locality question, that none is.
        """
        own = np.arange(len(self.cases))
        found = {kind: self.retrieve(kind, num_edits) for kind in self._scores_NN}
        facts = {kind: one.nearest_B == own for kind, one in found.items() if kind != "locality"}
        decisions = {kind: one.row_B < 0 if kind == "locality" else one.row_B == own for kind, one in found.items()}
        return {
            "right_fact": float(np.mean(list(facts.values()))),
            "right_decision": float(np.mean(list(decisions.values()))),
            **{f"right_fact_{kind}": float(right.mean()) for kind, right in facts.items()},
            **{f"right_decision_{kind}": float(right.mean()) for kind, right in decisions.items()},
        }


class RetrievedStatement(Recipe):
    """The statement of the retrieved fact pasted before the question: the ablation without continuous prompts.

    Args:
        statement_end: text between statement and question.
        retrieval: as in `Recipe`.
    """

    def __init__(self, cases: Sequence[EvalCase], *, statement_end: str, **retrieval: Any) -> None:
        super().__init__(cases, **retrieval)
        self.statement_end = statement_end

    def asks(self, kind: Kind, num_edits: int) -> list[Ask]:
        """The question behind the retrieved statement, or alone."""
        rows = self.retrieve(kind, num_edits).row_B
        return [
            Ask(
                case.question(kind)
                if row < 0
                else f"{self.cases[row].statement}{self.statement_end} {case.question(kind)}"
            )
            for case, row in zip(self.cases, rows, strict=True)
        ]
