"""A trained editor under evaluation: what it retrieves, and what the LLM reads for it."""

from collections.abc import Sequence

from recipe_ray.eval.cases import EvalCase, kinds_of
from recipe_ray.eval.editors import Recipe, RetrievedStatement
from recipe_ray.eval.protocol import STOP, Metrics, Reader, evaluate
from recipe_ray.model.editor import Editor
from recipe_ray.model.llm import FrozenLLM


def trained_editor(model: Editor, llm: FrozenLLM, cases: Sequence[EvalCase]) -> tuple[Recipe, Reader]:
    """What a trained editor makes of the cases' edits and questions, and the LLM that reads it."""
    keys, prompts = model.encode_facts([case.statement for case in cases])
    queries = {kind: model.encode_queries([case.question(kind) for case in cases]) for kind in kinds_of(cases)}
    thresholds = {kind: model.thresholds(asked) for kind, asked in queries.items()}
    reader = Reader(llm, prompts, model.config.prompt_position)
    if model.config.num_virtual_tokens:
        return Recipe(cases, keys_NK=keys, queries=queries, thresholds=thresholds), reader
    ablation = RetrievedStatement(cases, keys_NK=keys, queries=queries, thresholds=thresholds, statement_end=STOP)
    return ablation, reader


def evaluate_trained(
    model: Editor, llm: FrozenLLM, cases: Sequence[EvalCase], counts: Sequence[int]
) -> tuple[dict[str, Metrics], dict[str, dict[str, float]]]:
    """By number of simultaneous edits, each a divisor of the cases: metrics of answers, and those of retrieval."""
    editor, reader = trained_editor(model, llm, cases)
    answers = {str(num): evaluate(reader, editor, cases, num_edits=num) for num in counts}
    return answers, {str(num): editor.retrieval_metrics(num) for num in counts}
