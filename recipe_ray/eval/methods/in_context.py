"""A statement pasted before the question, which is what one does without an editor.

Found by RECIPE's retriever (`EditorEncoding`), by a sentence encoder (`SentenceEncoding`), or handed over (`Oracle`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from recipe_ray.eval.cases import EvalCase
from recipe_ray.eval.methods.retrieving import (
    EditorEncoding,
    Encode,
    Encoding,
    OracleMethod,
    RetrievingMethod,
    SentenceEncoding,
    Vectors,
)
from recipe_ray.model.editor import Editor
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.store.indexes.ann import exact_nearest


class InContext(RetrievingMethod):
    """The retrieved statement and a full stop before the question.

    Args:
        llm: the LLM.
        encoding: what statements are found by.
        name: in tables.
    """

    def __init__(self, llm: FrozenLLM, encoding: Encoding, *, name: str) -> None:
        super().__init__(llm, encoding, name=name, pasted=True)


def in_context_by_editor(llm: FrozenLLM, editor: Editor, *, name: str = "in_context") -> InContext:
    """The statement that RECIPE's own retriever and sentinel find."""
    return InContext(llm, EditorEncoding(editor), name=name)


def in_context_by_sentences(
    llm: FrozenLLM, encode: Encode, tuning_cases: Sequence[EvalCase], *, name: str = "in_context_sentences"
) -> InContext:
    """The statement that a sentence encoder finds, its threshold chosen on tuning cases."""
    threshold = choose_threshold(encode, tuning_cases)
    return InContext(llm, SentenceEncoding(encode, threshold=threshold), name=name)


class Oracle(OracleMethod):
    """The right statement before each question that an edit answers, none before the others.

    The upper bound of retrieval for pasted statements: the evaluation tells it which fact answers which prompt.

    Args:
        llm: the LLM.
        facts: for each prompt the ids of the facts that answer it; see `cases.facts_of_prompts`.
        name: in tables.
    """

    def __init__(self, llm: FrozenLLM, facts: Mapping[str, Sequence[str]], *, name: str = "oracle") -> None:
        super().__init__(llm, SentenceEncoding(_nothing, threshold=0.0), facts, name=name, pasted=True)


def choose_threshold(encode: Encode, cases: Sequence[EvalCase]) -> float:
    """The threshold with the most right decisions on these cases, all of their edits in force at once.

    Right decisions on questions that an edit answers (its own fact applied) and on the others (none applied) weigh the
    same, however many there are. Between the two scores that a best threshold lies between, the middle is taken.

    Args:
        encode: the sentence encoder.
        cases: of tuning data.
    """
    keys_FK = encode([case.statement for case in cases])
    asked = [(row, question) for row, case in enumerate(cases) for question in case.questions]
    nearest_B, score_B = exact_nearest(keys_FK, encode([question.prompt for _, question in asked]))
    related_B = np.array([question.sort != "locality" for _, question in asked])
    right_B = nearest_B == np.array([row for row, _ in asked])
    order = np.argsort(-score_B, kind="stable")
    # With the threshold below the first n scores: own questions won so far, less others lost so far.
    won = np.where(related_B, right_B / max(1, related_B.sum()), -1 / max(1, (~related_B).sum()))[order]
    gains = np.concatenate([[0.0], np.cumsum(won)])
    best = int(gains.argmax())
    scores = np.concatenate([[np.nextafter(score_B.max(), np.float32(np.inf))], score_B[order], [score_B.min() - 1.0]])
    return float((scores[best] + scores[best + 1]) / 2)


def _nothing(texts: Sequence[str]) -> Vectors:
    """Keys of no width: nothing is looked up."""
    return np.zeros((len(texts), 0), np.float32)
