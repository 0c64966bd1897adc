"""Multiple-choice questions from records in CommonsenseQA's form, as tasks of lm-evaluation-harness."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from recipe_ray.errors import FactError

ChoiceStyle = Literal["letters", "text"]
CHOICE_STYLES: tuple[ChoiceStyle, ...] = get_args(ChoiceStyle)

_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/{name}.jsonl
  cache_dir: {folder}/cache
test_split: test
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceQuestion:
    """A question with its choices.

    Attributes:
        question: all that an editor sees of it.
        choices: two or more texts.
        answer: which of them is right, counted from 0.
        labels: what the choices are called where they are listed: letters, as a rule.
        passage: text to read before the question; empty where there is none.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    labels: tuple[str, ...] = ()
    passage: str = ""

    def text(self, style: ChoiceStyle) -> str:
        """What the LLM reads: `letters` lists the choices as the harness's `commonsense_qa` does, `text` does not."""
        passage = f"{self.passage}\n" if self.passage else ""
        if style == "text":
            return f"{passage}{self.question}"
        listed = "\n".join(f"{label}. {choice}" for label, choice in zip(self.labels, self.choices, strict=True))
        return f"{passage}Question: {self.question}\n{listed}\nAnswer:"


def choice_question(place: str, values: Mapping[str, Any]) -> ChoiceQuestion:
    """A record {question, choices: {label: [...], text: [...]}, answerKey}, perhaps with a `passage`.

    Args:
        place: file and record, for complaints.
        values: of the record; other keys are left alone.

    Raises:
        FactError: naming the key that is missing or not of its form.
    """
    question, passage = (values.get(key, "") for key in ("question", "passage"))
    if not isinstance(question, str) or not question.strip():
        raise FactError(f"{place}: 'question' is {question!r}; give the question as text")
    if not isinstance(passage, str):
        raise FactError(f"{place}: 'passage' is {passage!r}; give text to read before the question, or leave it out")
    choices = values.get("choices")
    labels, texts = (_texts(choices.get(key) if isinstance(choices, dict) else None) for key in ("label", "text"))
    if not len(labels) == len(texts) >= 2:
        raise FactError(f"{place}: 'choices' lacks 'label' and 'text', lists of two or more texts and equally long")
    if len(set(labels)) < len(labels):
        raise FactError(f"{place}: 'choices' has a label twice ({', '.join(labels)}); give each choice one of its own")
    if values.get("answerKey") not in labels:
        raise FactError(f"{place}: 'answerKey' is {values.get('answerKey')!r}; give one of {', '.join(labels)}")
    return ChoiceQuestion(
        question=question.strip(),
        choices=texts,
        labels=labels,
        answer=labels.index(values["answerKey"]),
        passage=passage.strip(),
    )


def write_task(folder: Path, name: str, questions: Iterable[ChoiceQuestion], style: ChoiceStyle) -> None:
    """A task of the harness in a folder of tasks: its YAML and its JSON Lines. The harness caches in it too."""
    with (folder / f"{name}.jsonl").open("w") as lines:
        for one in questions:
            row = {
                "question": one.question,
                "text": one.text(style),
                "choices": one.choices if style == "text" else one.labels,
                "answer": one.answer,
            }
            lines.write(json.dumps(row) + "\n")
    (folder / f"{name}.yaml").write_text(_TASK.format(folder=folder, name=name))


def _texts(values: object) -> tuple[str, ...]:
    """A list of texts; none where it is anything else."""
    if isinstance(values, Sequence) and not isinstance(values, str):
        texts = tuple(one for one in values if isinstance(one, str) and one.strip())
        return texts if len(texts) == len(values) else ()
    return ()
