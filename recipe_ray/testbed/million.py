r"""Facts by the million about subjects that do not exist, and questions about them: what large tables are tried with.

    python -m recipe_ray.testbed.million --num-facts 1000000 --output FILE.jsonl

Fact number n depends on the seed and on n alone: a longer run begins with a shorter one's facts.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recipe_ray.testbed.edits import INVENTED_ANSWER_SHARE
from recipe_ray.testbed.inventions import Inventor
from recipe_ray.testbed.wording import phrase
from recipe_ray.testbed.world import Relation, load_world

_ANSWERS_PER_RELATION = 256  # invented once and drawn from: inventing each would take most of the time


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the id of the fact that answers it; None where no fact does."""

    text: str
    fact_id: str | None


@dataclass(frozen=True, slots=True)
class _Invented:
    number: int
    subject: str
    relation: Relation
    phrasing: int  # among the relation's trained ones
    target: str

    @property
    def fact_id(self) -> str:
        return f"invented-{self.number}"

    def prompt(self, phrasing: int) -> str:
        return phrase(self.relation.trained[phrasing], self.subject)


def generate_facts(num_facts: int, seed: int) -> Iterator[dict[str, str]]:
    """Yield records of a dump: `id`, `prompt`, `target`, `subject`; no subject is asked the same thing twice."""
    for fact in itertools.islice(_invent(seed), num_facts):
        yield {
            "id": fact.fact_id,
            "prompt": fact.prompt(fact.phrasing),
            "target": fact.target,
            "subject": fact.subject,
        }


def generate_questions(num_facts: int, num_questions: int, seed: int) -> list[Question]:
    """Questions to the first `num_facts` facts of a seed, in random order.

    Half are about stored facts, spread over all of them, in another trained phrasing than the fact's own; half are
    about subjects of which nothing is stored.
    """
    num_stored = min(num_questions // 2, num_facts)
    rng = random.Random(f"{seed}/questions/{num_facts}/{num_questions}")
    asked = set(rng.sample(range(num_facts), num_stored))
    facts = _invent(seed)
    questions = []
    last = ""
    for fact in itertools.islice(facts, num_facts):
        last = fact.subject
        if fact.number in asked:
            questions.append(Question(_reworded(fact, rng), fact.fact_id))
    strangers = itertools.dropwhile(lambda fact: fact.subject == last, facts)
    questions += [
        Question(_reworded(fact, rng), None) for fact in itertools.islice(strangers, num_questions - num_stored)
    ]
    rng.shuffle(questions)
    return questions


def _reworded(fact: _Invented, rng: random.Random) -> str:
    others = [phrasing for phrasing in range(len(fact.relation.trained)) if phrasing != fact.phrasing]
    return fact.prompt(rng.choice(others))


def _invent(seed: int) -> Iterator[_Invented]:
    """Without end: a subject, then each relation of its kind."""
    inventor = Inventor(load_world())
    rng = random.Random(f"{seed}/facts")
    answers = {
        relation.name: [inventor.answer(relation, rng, invented_share=1.0) for _ in range(_ANSWERS_PER_RELATION)]
        for relations in inventor.relations_of_kind.values()
        for relation in relations
    }
    names: set[str] = set()
    number = 0
    while True:
        subject = inventor.subject(rng)
        name = subject.name
        # A chain over a few hundred names repeats itself soon; names of several such words do not.
        while name in names or name in inventor.real_subjects:
            name = f"{name} {inventor.subject(rng).name}"
        names.add(name)
        for relation in subject.relations:
            given = answers[relation.name] if rng.random() < INVENTED_ANSWER_SHARE else None
            yield _Invented(
                number,
                name,
                relation,
                rng.randrange(len(relation.trained)),
                rng.choice(given or inventor.real_answers[relation.name]),
            )
            number += 1


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-facts", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="file of JSON Lines")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with args.output.open("w", encoding="utf-8") as lines:
        lines.writelines(encode(record) + "\n" for record in generate_facts(args.num_facts, args.seed))
    seconds = time.monotonic() - started
    print(f"{args.num_facts} facts in {args.output}, {seconds:.1f} s ({args.num_facts / seconds:.0f} facts/s)")


if __name__ == "__main__":
    main()
