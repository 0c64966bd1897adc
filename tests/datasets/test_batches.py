"""Batches: reproducible, without repetition, equal chances, and a question of each sort."""

import itertools
from collections import Counter

import numpy as np
import pytest

from recipe_ray.datasets.batches import EditBatches
from recipe_ray.errors import ConfigError
from recipe_ray.examples import EditRecord, Question

SPARED = [Question(prompt="not at all", target="n")]


def records(name, num, **more):
    return [
        EditRecord(
            prompt=f"{name}{row} is",
            target=f"t{row}",
            generality={
                "same": (Question(prompt=f"so {name}{row} is", target=f"t{row}"),),
                "hop": tuple(Question(prompt=f"{hop} of {name}{row}", target=f"h{row}") for hop in "ab"),
            },
            locality={"near": (Question(prompt=f"not {name}{row}", target="n"),)},
            **more,
        )
        for row in range(num)
    ]


def test_a_batch_depends_on_seed_and_number_alone():
    sources = [records("x", 50), records("y", 50)]
    first, again = (EditBatches(sources, spared=SPARED, batch_size=8, seed="s") for _ in range(2))
    assert first.batch(3) == again.batch(3)
    assert first.batch(3) != first.batch(4)
    assert first.batch(3) != EditBatches(sources, spared=SPARED, batch_size=8, seed="t").batch(3)


def test_no_edit_comes_twice_in_a_batch_and_a_small_source_gives_what_it_has():
    batches = EditBatches([records("x", 2), records("y", 10)], spared=SPARED, batch_size=12, seed="s")
    for number in range(20):
        assert len({example.prompt for example in batches.batch(number)}) == 12


def test_sources_kinds_and_questions_have_equal_chances():
    batches = EditBatches([records("x", 30), records("y", 300)], spared=SPARED, batch_size=10, seed="s")
    drawn = [example for number in range(300) for example in batches.batch(number)]
    sources = Counter(example.prompt[0] for example in drawn)
    kinds = Counter(example.generality_prompt[:2] for example in drawn)
    assert sources["x"] / 3000 == pytest.approx(0.5, abs=0.04)
    assert kinds["so"] / 3000 == pytest.approx(0.5, abs=0.04)
    assert kinds["a "] / 3000 == pytest.approx(0.25, abs=0.04)


def test_an_example_holds_its_records_questions_with_their_answers():
    (example,) = EditBatches([records("x", 1)], spared=SPARED, batch_size=1, seed="s").batch(0)
    assert (example.statement, example.prompt, example.target) == ("x0 is t0", "x0 is", "t0")
    assert example.generality_target == ("t0" if example.generality_prompt.startswith("so") else "h0")
    assert (example.locality_prompt, example.locality_target) == ("not x0", "n")


def test_a_record_without_questions_asks_its_own_again_and_spares_what_is_spared_elsewhere():
    bare = EditRecord(prompt="z is", target="t")
    batches = EditBatches([[bare], records("x", 3)], spared=SPARED, batch_size=4, seed="s")
    (example,) = (one for one in batches.batch(0) if one.prompt == "z is")
    assert (example.generality_prompt, example.generality_target) == ("z is", "t")
    assert example.locality_prompt == "not at all"


def test_too_little_data_is_refused():
    with pytest.raises(ConfigError, match="batch_size is 4, but the data holds 3 edits"):
        EditBatches([records("x", 3)], spared=SPARED, batch_size=4, seed="s")


def related(num):
    """Two edits of each subject, all subjects in two templates."""
    return [
        EditRecord(
            prompt=f"The {relation} of s{row} is",
            target=f"{relation}{row % 3}",
            subject=f"s{row}",
            generality={
                "same": (Question(prompt=f"s{row} has the {relation}", target=f"{relation}{row % 3}"),),
                "hop": (Question(prompt=f"further, s{row}", target="h"),),
            },
        )
        for row in range(num)
        for relation in ("sea", "king")
    ]


def test_hard_negatives_bring_edits_of_one_subject_and_of_one_template_together():
    def near_share(chance):
        batches = EditBatches([related(200)], spared=SPARED, batch_size=10, seed="s", hard_negatives=chance)
        pairs = [pair for number in range(100) for pair in itertools.pairwise(batches.batch(number))]
        same_subject = [first.prompt.split()[3] == second.prompt.split()[3] for first, second in pairs]
        same_template = [first.prompt.split()[1] == second.prompt.split()[1] for first, second in pairs]
        return np.mean(same_subject), np.mean(same_template)

    plain, hard = near_share(0.0), near_share(1.0)
    assert plain[0] < 0.03
    assert plain[1] == pytest.approx(0.5, abs=0.05)
    # Of a subject there is one other edit; the one after that is of the same template.
    assert hard[0] == pytest.approx(5 / 9, abs=0.02)
    assert hard[1] == pytest.approx(4 / 9, abs=0.02)
    batches = EditBatches([related(6)], spared=SPARED, batch_size=12, seed="s", hard_negatives=1.0)
    assert len({example.prompt for example in batches.batch(0)}) == 12


def test_a_swapped_target_is_that_of_the_template_and_questions_with_another_answer_are_gone():
    batches = EditBatches([related(90)], spared=SPARED, batch_size=30, seed="s", swapped_targets=1.0)
    drawn = [example for number in range(100) for example in batches.batch(number)]
    for example in drawn:
        assert example.statement == f"{example.prompt} {example.target}"
        assert example.generality_target == example.target
        assert example.generality_prompt.startswith("s")
        assert example.target.startswith(example.prompt.split()[1])
    counts = Counter(example.target for example in drawn if example.prompt == drawn[0].prompt)
    assert len(counts) == 3
