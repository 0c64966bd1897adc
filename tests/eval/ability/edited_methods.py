"""Editors simple enough to say beforehand what they do."""

import numpy as np

from recipe_ray.eval.cases import Ask
from recipe_ray.eval.protocol import Reader

PROMPT_PD = np.linspace(-2, 2, 3 * 32, dtype=np.float32).reshape(3, 32)


class FiresOn:
    """A continuous prompt before questions that hold a word; it keeps the questions that it saw."""

    name = "fires"
    changes_llm = False

    def __init__(self, llm, word="edited"):
        self.reader = Reader(llm, PROMPT_PD[None], "after_bos")
        self.word = word
        self.seen = []
        self.edits = []

    def apply(self, edits):
        self.edits += edits

    def undo(self):
        self.edits = []

    def asks(self, prompts):
        self.seen += prompts
        return [Ask(prompt, fact=0 if self.word in prompt else -1) for prompt in prompts]

    def state_bytes(self):
        return 0


class Pastes(FiresOn):
    """A statement before every question."""

    name = "pastes"

    def asks(self, prompts):
        return [Ask(f"So it is. {prompt}") for prompt in prompts]


class Paraphrases(FiresOn):
    """Asks something else."""

    name = "paraphrases"

    def asks(self, prompts):
        return [Ask("What?") for _ in prompts]


class Unedited(FiresOn):
    """Nothing."""

    name = "unedited"

    def asks(self, prompts):
        return [Ask(prompt) for prompt in prompts]
