"""What editors have in common that change weights of the LLM itself."""

from collections.abc import Sequence

from torch import nn

from recipe_ray.eval.cases import Ask
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.layers import SavedWeights
from recipe_ray.eval.protocol import plain_reader
from recipe_ray.model.llm import FrozenLLM


def answer_ids(llm: FrozenLLM, target: str, end: str) -> list[int]:
    """Tokens of a target as it continues its prompt, then of the text that ends it, never merged with the target's."""
    ids = llm.tokenize_answer(f" {target}")
    ended = llm.tokenize_answer(f" {target}{end}")
    return ended if ended[: len(ids)] == ids else ids + llm.tokenize_answer(end)


def latest(edits: Sequence[Edit]) -> list[Edit]:
    """The last edit of every fact, in the order of their first."""
    return list({edit.fact_id: edit for edit in edits}.values())


class InPlace:
    """A method that changes weights; what it changes is in `_edit`.

    Args:
        llm: the LLM to edit; as it is now it will be after `undo`.
        modules: all whose weights edits may change.
    """

    changes_llm = True

    def __init__(self, llm: FrozenLLM, modules: Sequence[nn.Module]) -> None:
        self.llm = llm
        self.reader = plain_reader(llm)
        self._saved = SavedWeights(modules)

    def apply(self, edits: Sequence[Edit]) -> None:
        """Change the weights; an edit that cannot be made leaves them as they are.

        Raises:
            EditorError: an edit lacks what this method needs.
        """
        self._edit(latest(edits))
        self.reader = plain_reader(self.llm)

    def undo(self) -> None:
        """Put the weights back to the bit."""
        self._saved.restore()
        self.reader = plain_reader(self.llm)

    def asks(self, prompts: Sequence[str]) -> list[Ask]:
        """The prompts alone: what was edited is in the weights."""
        return [Ask(prompt) for prompt in prompts]

    def state_bytes(self) -> int:
        """Size of the weights that were changed."""
        return self._saved.changed_bytes()

    def _edit(self, edits: Sequence[Edit]) -> None:
        raise NotImplementedError
