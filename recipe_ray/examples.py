"""What the editor learns from: edits with the prompts that must change and the prompts that must not."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EditExample:
    """One counterfactual edit of a training batch.

    Attributes:
        statement: the edit as the encoder reads it.
        prompt: reliability: the statement's own prompt.
        target: what the edited LLM must say after `prompt` and `generality_prompt`.
        generality_prompt: the same question in other words.
        locality_prompt: a question that the edit, and every other edit of its batch, leaves alone.
        locality_target: a continuation over whose positions the unedited LLM's distribution is kept.
    """

    statement: str
    prompt: str
    target: str
    generality_prompt: str
    locality_prompt: str
    locality_target: str
