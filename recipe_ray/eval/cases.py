"""What is asked of an edited model."""

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["reliability", "generality", "generality_novel", "locality"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalCase:
    """One edit and the questions around it.

    Attributes:
        fact_id: the edit's id in the table of facts.
        statement, prompt, target: the edit.
        generality_prompt: the question in other words, a phrasing that training uses.
        novel_prompt: the question in words that no training uses.
        locality_prompt: a question that neither this nor any other edit answers.
    """

    fact_id: str
    statement: str
    prompt: str
    target: str
    generality_prompt: str
    novel_prompt: str
    locality_prompt: str

    def question(self, kind: Kind) -> str:
        """The prompt of one kind; the query is never more than this."""
        return {
            "reliability": self.prompt,
            "generality": self.generality_prompt,
            "generality_novel": self.novel_prompt,
            "locality": self.locality_prompt,
        }[kind]


@dataclass(frozen=True, slots=True)
class Ask:
    """What the LLM reads for one question: a text, behind the continuous prompt of fact `fact`, or of none (-1)."""

    text: str
    fact: int = -1
