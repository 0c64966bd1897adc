"""RECIPE (Chen et al., EMNLP 2024, arXiv 2405.03279), and the right continuous prompt handed over."""

from collections.abc import Mapping, Sequence

from recipe_ray.eval.methods.retrieving import EditorEncoding, EncodeFacts, OracleMethod, RetrievingMethod
from recipe_ray.model.editor import Editor
from recipe_ray.model.llm import FrozenLLM


class Recipe(RetrievingMethod):
    """The continuous prompt of the retrieved fact before the question, where the sentinel lets it (section 4).

    The ablations of training (section 5.4) are the same method with an editor that lacks a part: without virtual tokens
    the statement's words are read, without a sentinel one threshold decides.

    Args:
        llm: the LLM that the editor was trained for.
        editor: a trained editor.
        name: in tables.
        encode_facts: instead of the editor's own: such as one that gives the vectors that a table holds.

    Raises:
        EditorError: the editor's prompts are of another width than the LLM's embeddings.
    """

    def __init__(
        self, llm: FrozenLLM, editor: Editor, *, name: str = "recipe", encode_facts: EncodeFacts | None = None
    ) -> None:
        llm.check_prompt_width(editor.llm_width)
        super().__init__(
            llm,
            EditorEncoding(editor, encode_facts=encode_facts),
            name=name,
            position=editor.config.prompt_position,
            chat_position=editor.config.chat_position,
            pasted=not editor.config.num_virtual_tokens,
        )


class OraclePrompt(OracleMethod):
    """The right fact's continuous prompt before each question, none before the others: RECIPE with perfect retrieval.

    Args:
        llm, editor: as in `Recipe`.
        facts: for each prompt the ids of the facts that answer it; see `cases.facts_of_prompts`.
        name: in tables.
        beside: RECIPE with the same editor, where its answers may be had for both.

    Raises:
        EditorError: as `Recipe`.
    """

    def __init__(
        self,
        llm: FrozenLLM,
        editor: Editor,
        facts: Mapping[str, Sequence[str]],
        *,
        name: str = "oracle_prompt",
        beside: Recipe | None = None,
    ) -> None:
        llm.check_prompt_width(editor.llm_width)
        super().__init__(
            llm,
            EditorEncoding(editor),
            facts,
            name=name,
            position=editor.config.prompt_position,
            chat_position=editor.config.chat_position,
            pasted=not editor.config.num_virtual_tokens,
            beside=beside,
        )
