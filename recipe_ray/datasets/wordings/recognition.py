"""Which relation a data set's prompt asks for."""

import functools
import re
from collections.abc import Mapping

from recipe_ray.datasets.wordings.inventions import fixed_targets
from recipe_ray.datasets.wordings.relations import HELD_OUT, KIN_OF_HELD_OUT, SUBJECT, load_relations, read_data


def relation_of(prompt: str, subject: str, target: str | None = None) -> str | None:
    """The id of the relation that a record's prompt asks for, or None where it is unknown.

    A template that several relations share ("Ann plays") is told by the kind of the target. What could be of a relation
    held out is taken for it.

    Args:
        prompt: a cloze or a question, with the subject in it.
        subject: the record's subject.
        target: the record's target, true or new.
    """
    template = _template(prompt, subject)
    if candidates := _templates().get(template):
        return _told_by_target(candidates, target)
    return next((relation_id for pattern, relation_id in _patterns() if pattern.search(template)), None)


def may_be_held_out(text: str) -> bool:
    """Whether a text could ask for a relation held out, whatever its subject: for prompts that name no subject."""
    held_out = HELD_OUT + KIN_OF_HELD_OUT
    return any(pattern.search(text.casefold()) for pattern, relation_id in _patterns() if relation_id in held_out)


def _told_by_target(candidates: tuple[str, ...], target: str | None) -> str:
    if len(candidates) == 1:
        return candidates[0]
    if target is None:
        return next((candidate for candidate in candidates if candidate in HELD_OUT), candidates[-1])
    fits = (candidate for candidate in candidates if target.casefold() in _targets_of(candidate))
    return next(fits, candidates[-1])


@functools.cache
def _targets_of(relation_id: str) -> frozenset[str]:
    kind = load_relations()[relation_id].target_kind
    return frozenset(name.casefold() for name in fixed_targets(kind))


def _template(prompt: str, subject: str) -> str:
    without = prompt.casefold().replace(subject.casefold(), SUBJECT.casefold())
    return re.sub(r"\s+", " ", without).strip().rstrip("?. ")


@functools.cache
def _templates() -> Mapping[str, tuple[str, ...]]:
    """Templates to the relations that use them, the likeliest last. A data set's own come before ours."""
    templates: dict[str, tuple[str, ...]] = {}
    for relation in load_relations().values():
        for text in relation.training.all + relation.reporting.all:
            template = _template(text, SUBJECT)
            templates[template] = (*templates.get(template, ()), relation.id)
    for relation_ids, texts in read_data("templates.json").items():
        templates |= {_template(text, SUBJECT): tuple(relation_ids.split()) for text in texts}
    return templates


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[str], str | None], ...]:
    return tuple((re.compile(pattern), relation_id) for pattern, relation_id in read_data("patterns.json"))
