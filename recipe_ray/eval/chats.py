"""What is asked of an edited model in chats, in words that no training uses.

`reliability` is a plain question of the edit's relation, as the only message. `generality` asks in other words, in a
conversation: with a system prompt, earlier turns, a greeting, haste or a typo. `locality` asks a data set's locality
question in a conversation. An edit of unknown relation is asked in the data set's own words. All is drawn by the edit's
prompt, so that every run asks alike.
"""

import random
from collections.abc import Iterable, Mapping, Sequence

from recipe_ray.datasets.wordings import relations
from recipe_ray.datasets.wordings.dressing import dressed
from recipe_ray.eval.cases import CaseQuestion, EvalCase, Sort, facts_of_prompts
from recipe_ray.testbed import world


def chat_questions(case: EvalCase) -> tuple[CaseQuestion, ...]:
    """The chats of an edit: one of each sort, and of locality one for each kind of question that the case has."""
    rng = random.Random(f"chat {case.prompt}")
    spared = [question for question in case.others if question.sort == "locality"]
    locality = [
        CaseQuestion(sort="locality", kind=question.kind, prompt=chat.query, messages=chat.messages)
        for question in spared
        for chat in (dressed(question.prompt, rng, "reporting"),)
    ]
    return (*_asked(case, rng), *locality)


def facts_of_questions(cases: Iterable[EvalCase], *, neighbours: bool = False) -> Mapping[str, tuple[str, ...]]:
    """`facts_of_prompts` of all questions, chats included."""
    cases = list(cases)
    return {
        **facts_of_prompts(cases, neighbours=neighbours, questions_of=chat_questions),
        **facts_of_prompts(cases, neighbours=neighbours),
    }


def _asked(case: EvalCase, rng: random.Random) -> list[CaseQuestion]:
    # What follows from an edit by a hop has another target; in other words, the edit's own.
    following = [question for question in case.others if question.sort == "generality"]
    reworded = next((one for one in following if one.target == case.target), following[0] if following else None)
    if case.prompt.endswith("?"):
        asked = [_plain(case, case.prompt)]
    elif ways := _wordings(case):
        own, other = ways
        words = rng.choice(own)
        reworded = CaseQuestion(
            sort="generality",
            kind="wording",
            prompt=rng.choice([one for one in (*own, *other) if one != words]),
            target=case.target,
        )
        asked = [_plain(case, words)]
    else:
        asked = [_dressed(case, "reliability", case.prompt, case.target, rng)]
    if reworded is not None:
        asked.append(_dressed(case, "generality", reworded.prompt, reworded.target, rng))
    return asked


def _wordings(case: EvalCase) -> tuple[Sequence[str], Sequence[str]] | None:
    """Questions about the edit, and other ways to ask; None where the relation is not known."""
    if not case.subject:
        return None
    if relation := relations.load_relations().get(case.relation):
        asked, placeholder = (relation.reporting.questions, relation.reporting.requests), relations.SUBJECT
    elif ways := world.load_questions().get(case.relation):
        asked, placeholder = (ways.questions, ways.requests), world.SUBJECT
    else:
        return None
    own, other = ([text.replace(placeholder, case.subject) for text in texts] for texts in asked)
    return own, other


def _plain(case: EvalCase, words: str) -> CaseQuestion:
    return _question(case, "reliability", words, (("user", words),), case.target)


def _dressed(case: EvalCase, sort: Sort, words: str, target: str, rng: random.Random) -> CaseQuestion:
    chat = dressed(words, rng, "reporting", subject=case.subject)
    return _question(case, sort, chat.query, chat.messages, target)


def _question(
    case: EvalCase, sort: Sort, query: str, messages: tuple[tuple[str, str], ...], target: str
) -> CaseQuestion:
    return CaseQuestion(
        sort=sort,
        kind=sort,
        prompt=query,
        target=target,
        messages=messages,
        rivals=(case.true_target,) if case.true_target and target == case.target else (),
        subject=case.subject,
    )
