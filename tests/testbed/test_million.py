"""Facts by the million: distinct, the same by seed, and questions whose answer is known."""

import json
import subprocess
import sys

from reading import TRAINED, WORLD, read_in

from recipe_ray.facts import fact_from_record
from recipe_ray.testbed.million import generate_facts, generate_questions

NUM_FACTS = 5_000


def facts_of(seed=0, num_facts=NUM_FACTS):
    return list(generate_facts(num_facts, seed))


def test_every_fact_is_valid_and_asks_something_else():
    facts = facts_of()
    assert len(facts) == NUM_FACTS
    assert len({fact["id"] for fact in facts}) == len({fact["prompt"] for fact in facts}) == NUM_FACTS
    real = {fact.subject for fact in WORLD.facts}
    for number, fact in enumerate(facts):
        assert fact_from_record(fact, place=f"fact {number}").subject not in real
        assert fact["subject"] in {subject for subject, _ in read_in(fact["prompt"], TRAINED)}


def test_a_longer_run_begins_with_a_shorter_one_and_another_seed_tells_other_facts():
    assert facts_of(num_facts=700) == facts_of()[:700]
    assert facts_of(seed=1)[:100] != facts_of()[:100]


def test_half_of_the_questions_ask_a_stored_fact_in_other_words_and_half_ask_of_nobody_stored():
    questions = generate_questions(NUM_FACTS, 400, 0)
    facts = {fact["id"]: fact for fact in facts_of()}
    subjects = {fact["subject"] for fact in facts.values()}
    assert len({question.text for question in questions}) == 400
    assert sum(question.fact_id is None for question in questions) == 200
    for question in questions:
        read = read_in(question.text, TRAINED)
        if question.fact_id is None:
            assert not subjects & {subject for subject, _ in read}
        else:
            fact = facts[question.fact_id]
            assert question.text != fact["prompt"]
            assert any(subject == fact["subject"] for subject, _ in read & read_in(fact["prompt"], TRAINED))
    assert questions == generate_questions(NUM_FACTS, 400, 0)
    assert questions != generate_questions(NUM_FACTS, 400, 1)


def test_the_command_line_writes_a_dump(tmp_path):
    output = tmp_path / "facts.jsonl"
    command = [sys.executable, "-m", "recipe_ray.testbed.million", "--num-facts", "50", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in output.read_text().splitlines()] == list(generate_facts(50, 0))
