"""What editors have in common that change weights of the LLM itself."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from recipe_ray.eval.methods.base import Edit, ReadsAsGiven, latest
from recipe_ray.eval.methods.layers import SavedWeights
from recipe_ray.eval.protocol import plain_reader
from recipe_ray.model.llm import FrozenLLM


class InPlace(ReadsAsGiven, ABC):
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

    def state_bytes(self) -> int:
        """Size of the weights that were changed."""
        return self._saved.changed_bytes()

    @abstractmethod
    def _edit(self, edits: Sequence[Edit]) -> None:
        """Make edits of as many facts; none are made where one cannot be."""
