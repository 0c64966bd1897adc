"""No editing: what every editor is held against."""

from collections.abc import Sequence

from recipe_ray.eval.cases import Ask
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.protocol import plain_reader
from recipe_ray.model.llm import FrozenLLM


class Unedited:
    """The LLM as it is; edits are taken and change nothing."""

    changes_llm = False

    def __init__(self, llm: FrozenLLM, *, name: str = "unedited") -> None:
        self.name = name
        self.reader = plain_reader(llm)

    def apply(self, edits: Sequence[Edit]) -> None:
        """Nothing."""

    def undo(self) -> None:
        """Nothing."""

    def asks(self, prompts: Sequence[str]) -> list[Ask]:
        """The prompts alone."""
        return [Ask(prompt) for prompt in prompts]

    def chat_asks(self, chats: Sequence[Ask]) -> list[Ask]:
        """The chats as they are."""
        return list(chats)

    def state_bytes(self) -> int:
        """None."""
        return 0
