"""No editing: what every editor is held against."""

from collections.abc import Sequence

from recipe_ray.eval.methods.base import Edit, ReadsAsGiven
from recipe_ray.eval.protocol import plain_reader
from recipe_ray.model.llm import FrozenLLM


class Unedited(ReadsAsGiven):
    """The LLM as it is; edits are taken and change nothing."""

    changes_llm = False

    def __init__(self, llm: FrozenLLM, *, name: str = "unedited") -> None:
        self.name = name
        self.reader = plain_reader(llm)

    def apply(self, edits: Sequence[Edit]) -> None:
        """Nothing."""

    def undo(self) -> None:
        """Nothing."""

    def state_bytes(self) -> int:
        """None."""
        return 0
