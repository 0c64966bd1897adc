"""The forms in which data sets of edits come, each read into `EditRecord`.

- `edits`, users' own: prompt, target; if wanted, subject, true_target, and generality and locality, lists of {kind,
  prompt, target, messages}; and a fact's id, namespace, source, updated_at and expires_at, which an ingest reads and
  training does not. `messages` is a chat, [{role, content}] with the user's message last: what the LLM reads, where
  `prompt` is what is looked up (that last message, if it is left out). Another field is refused, where
  those of public data sets are left alone;
- `counterfact`, CounterFact as EasyEdit has it: prompt, target_new, subject, rephrase_prompt, locality_prompt,
  locality_ground_truth; ground_truth, if wanted;
- `zsre`, zsRE as MEND has it: src, alt, subject, rephrase, loc, loc_ans; answers, if wanted;
- `ripe`, RippleEdits as RECIPE has it: prompt, target_new, subject, and six lists of {prompt, targets}.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe_ray.errors import FactError
from recipe_ray.examples import EditRecord, Question
from recipe_ray.text import has_half_pair, has_visible

RIPE_GENERALITY = ("Logical_Generalization", "Compositionality_I", "Compositionality_II", "Subject_Aliasing")
RIPE_LOCALITY = ("Relation_Specificity", "Forgetfulness")
DEFAULT_GENERALITY_KIND = "rephrase"
DEFAULT_LOCALITY_KIND = "neighbour"
FACT_FIELDS = {"edits": ("id", "namespace", "source", "updated_at", "expires_at")}
"""What a form's records may say of the fact that they state, by form, as a row of a dump says it."""
_EDIT_FIELDS = ("prompt", "target", "subject", "true_target", "generality", "locality", *FACT_FIELDS["edits"])
_QUESTION_FIELDS = ("kind", "prompt", "target", "messages")
_MESSAGE_FIELDS = ("role", "content")
_ROLES = ("system", "user", "assistant")


class EmptyTextError(FactError):
    """A record whose text is empty, as some of public data sets' are: to be left out and counted, not a wrong file."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one record, read with complaints that name the place.

    Attributes:
        place: where the record stands, for complaints.
        values: its fields.
    """

    place: str
    values: Mapping[str, Any]

    def only(self, names: Sequence[str]) -> None:
        """See that no other field is there.

        Raises:
            FactError: one is.
        """
        if unknown := next((name for name in self.values if name not in names), None):
            raise FactError(f"{self.place}: unknown field {unknown!r}; the fields are {', '.join(names)}")

    def text(self, name: str, *, default: str | None = None) -> str:
        """A text that is not empty; `default`, if given, where the field is absent or null.

        Raises:
            FactError: it is absent or no text.
            EmptyTextError: it is empty.
        """
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise FactError(
                f"{self.place}: {name!r} is missing; it has {', '.join(map(repr, self.values)) or 'no field'}"
            )
        if not isinstance(value, str):
            raise FactError(f"{self.place}: {name!r} is {json.dumps(value, default=str)}; give a text")
        _check_whole(value, f"{self.place}: {name!r}")
        if not has_visible(value) and default is None:
            raise EmptyTextError(f"{self.place}: {name!r} is empty; give a text")
        return value.strip()

    def first_text(self, name: str, *, default: list[str] | None = None) -> str:
        """The first of a list of texts, empty where the list is; `default`, if given, where the field is absent.

        Raises:
            FactError: it is anything else.
        """
        value = self.values.get(name, default)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise FactError(f"{self.place}: {name!r} is no list of texts")
        for item in value:
            _check_whole(item, f"{self.place}: {name!r}")
        return value[0].strip() if value else ""

    def items(self, name: str) -> list["Fields"]:
        """A list of objects; empty where the field is absent or null.

        Raises:
            FactError: it is anything else.
        """
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise FactError(f"{self.place}: {name!r} is no list of objects with named fields")
        return [Fields(f"{self.place}: {name!r}, item {number}", item) for number, item in enumerate(value, 1)]


def _check_whole(text: str, place: str) -> None:
    if has_half_pair(text):
        raise FactError(f"{place} holds half of a surrogate pair; give valid Unicode")


def read_edits(fields: Fields) -> EditRecord:
    """Users' own form; a question without a target has the edit's, if it is one of generality."""
    fields.only(_EDIT_FIELDS)
    target = fields.text("target")
    generality: dict[str, tuple[Question, ...]] = {}
    locality: dict[str, tuple[Question, ...]] = {}
    for item in fields.items("generality"):
        item.only(_QUESTION_FIELDS)
        kind = item.text("kind", default=DEFAULT_GENERALITY_KIND)
        question = _question(item, item.text("target", default=target))
        generality[kind] = (*generality.get(kind, ()), question)
    for item in fields.items("locality"):
        item.only(_QUESTION_FIELDS)
        kind = item.text("kind", default=DEFAULT_LOCALITY_KIND)
        question = _question(item, item.text("target"))
        locality[kind] = (*locality.get(kind, ()), question)
    return EditRecord(
        prompt=fields.text("prompt"),
        target=target,
        subject=fields.text("subject", default=""),
        true_target=fields.text("true_target", default=""),
        generality=generality,
        locality=locality,
    )


def _question(item: Fields, target: str) -> Question:
    messages = _messages(item)
    if messages and item.values.get("prompt") is None:
        return Question(prompt=messages[-1][1], target=target, messages=messages)
    return Question(prompt=item.text("prompt"), target=target, messages=messages)


def _messages(item: Fields) -> tuple[tuple[str, str], ...]:
    messages = []
    for message in item.items("messages"):
        message.only(_MESSAGE_FIELDS)
        role = message.text("role")
        if role not in _ROLES:
            raise FactError(f"{message.place}: 'role' is {role!r}; give one of {', '.join(_ROLES)}")
        messages.append((role, message.text("content")))
    if messages and messages[-1][0] != "user":
        raise FactError(f"{item.place}: 'messages' end with one of {messages[-1][0]}; end with what the user asks")
    return tuple(messages)


def read_counterfact(fields: Fields) -> EditRecord:
    """CounterFact in EasyEdit's form, one rephrasing and one neighbouring question an edit."""
    return _with_one_of_each(
        fields,
        own=("prompt", "target_new"),
        rephrased="rephrase_prompt",
        spared=("locality_prompt", "locality_ground_truth"),
        true_target=fields.text("ground_truth", default=""),
    )


def read_zsre(fields: Fields) -> EditRecord:
    """The form of zsRE in MEND: `alt` is the counterfactual answer, `loc` an unrelated question."""
    return _with_one_of_each(
        fields,
        own=("src", "alt"),
        rephrased="rephrase",
        spared=("loc", "loc_ans"),
        true_target=fields.first_text("answers", default=[]),
    )


def read_ripe(fields: Fields) -> EditRecord:
    """RippleEdits in RECIPE's form; of several right answers to a question the first, none where the list is empty."""
    return EditRecord(
        prompt=fields.text("prompt"),
        target=fields.text("target_new"),
        subject=fields.text("subject", default=""),
        generality=_ripe_questions(fields, RIPE_GENERALITY),
        locality=_ripe_questions(fields, RIPE_LOCALITY),
    )


FORMS: dict[str, Callable[[Fields], EditRecord]] = {
    "edits": read_edits,
    "counterfact": read_counterfact,
    "zsre": read_zsre,
    "ripe": read_ripe,
}


def _with_one_of_each(
    fields: Fields, *, own: tuple[str, str], rephrased: str, spared: tuple[str, str], true_target: str
) -> EditRecord:
    prompt, target = (fields.text(name) for name in own)
    unedited = Question(prompt=fields.text(spared[0]), target=fields.text(spared[1]))
    return EditRecord(
        prompt=prompt,
        target=target,
        subject=fields.text("subject", default=""),
        true_target=true_target,
        generality={DEFAULT_GENERALITY_KIND: (Question(prompt=fields.text(rephrased), target=target),)},
        locality={DEFAULT_LOCALITY_KIND: (unedited,)},
    )


def _ripe_questions(fields: Fields, kinds: tuple[str, ...]) -> dict[str, tuple[Question, ...]]:
    questions = {}
    for kind in kinds:
        found = tuple(
            Question(prompt=item.text("prompt"), target=target)
            for item in fields.items(kind)
            if (target := item.first_text("targets"))
        )
        if found:
            questions[kind] = found
    return questions
