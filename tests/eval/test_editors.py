"""Which fact each editor puts before a question."""

import numpy as np
import pytest

from recipe_ray.eval.cases import KINDS, Ask, EvalCase, cases_in_groups, kinds_of, record_cases
from recipe_ray.eval.editors import InContext, Recipe, RetrievedStatement, Unedited
from recipe_ray.examples import EditRecord, Question

NUM_CASES, KEY_WIDTH = 12, 5
CASES = [
    EvalCase(
        fact_id=f"f{number}",
        statement=f"The capital of {number} is X",
        prompt=f"The capital of {number} is",
        target="X",
        generality_prompt=f"{number} has its capital in",
        novel_prompt=f"The city that is capital of {number} is",
        locality_prompt=f"The river of {number} is the",
    )
    for number in range(NUM_CASES)
]


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((NUM_CASES, KEY_WIDTH)).astype(np.float32)
    queries = {kind: (keys + rng.standard_normal(keys.shape)).astype(np.float32) for kind in KINDS}
    return keys, rng.standard_normal(KEY_WIDTH).astype(np.float32), queries


def recipe_of(keys, sentinel, queries, *, make=Recipe, cases=CASES, **more):
    thresholds = {kind: asked @ sentinel for kind, asked in queries.items()}
    return make(cases, keys_NK=keys, queries=queries, thresholds=thresholds, **more)


def brute_force(keys, sentinel, query, rows):
    """The nearest of these rows if it is nearer than the sentinel, else -1; and the nearest either way."""
    nearest = max(rows, key=lambda row: query @ keys[row])
    return (nearest if query @ keys[nearest] > query @ sentinel else -1), nearest


@pytest.mark.parametrize("num_edits", [1, 3, 4, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_a_question_finds_the_nearest_fact_of_its_own_group_alone(kind, num_edits):
    keys, sentinel, queries = drawn()
    recipe = recipe_of(keys, sentinel, queries)
    found = recipe.retrieve(kind, num_edits)
    for case in range(NUM_CASES):
        start = case // num_edits * num_edits
        applied, nearest = brute_force(keys, sentinel, queries[kind][case], range(start, start + num_edits))
        assert (found.row_B[case], found.nearest_B[case]) == (applied, nearest)
        assert found.score_B[case] == pytest.approx(queries[kind][case] @ keys[nearest], rel=1e-5)
        assert found.sentinel_B[case] == pytest.approx(queries[kind][case] @ sentinel, rel=1e-5)
    asks = recipe.asks(kind, num_edits)
    assert asks == [Ask(case.question(kind), fact=int(row)) for case, row in zip(CASES, found.row_B, strict=True)]


def test_retrieval_metrics_are_hand_counts():
    keys, sentinel, queries = drawn()
    metrics = recipe_of(keys, sentinel, queries).retrieval_metrics(4)
    facts, decisions = {}, {}
    for kind in KINDS:
        found = [
            brute_force(keys, sentinel, queries[kind][case], range(case // 4 * 4, case // 4 * 4 + 4))
            for case in range(NUM_CASES)
        ]
        right = [applied == (-1 if kind == "locality" else case) for case, (applied, _) in enumerate(found)]
        decisions[kind] = sum(right) / NUM_CASES
        if kind != "locality":
            facts[kind] = sum(nearest == case for case, (_, nearest) in enumerate(found)) / NUM_CASES
    assert metrics.pop("right_fact") == pytest.approx(sum(facts.values()) / 3)
    assert metrics.pop("right_decision") == pytest.approx(sum(decisions.values()) / 4)
    assert metrics == pytest.approx(
        {f"right_fact_{kind}": share for kind, share in facts.items()}
        | {f"right_decision_{kind}": share for kind, share in decisions.items()}
    )
    assert 0 < min(decisions.values()) <= max(decisions.values()) < 1  # else the counts above say little


def test_a_tie_with_the_sentinel_applies_nothing():
    keys, _, queries = drawn()
    recipe = recipe_of(keys[:1], keys[0], {kind: queries[kind][:1] for kind in KINDS}, cases=CASES[:1])
    assert recipe.asks("reliability", 1) == [Ask(CASES[0].prompt)]


def test_the_unedited_llm_reads_the_question_alone_and_the_in_context_one_the_statement_first():
    for kind in KINDS:
        assert Unedited(CASES).asks(kind, 4) == [Ask(case.question(kind)) for case in CASES]
    asks = InContext(CASES, statement_end=".").asks("generality", 4)
    assert asks[3] == Ask("The capital of 3 is X. 3 has its capital in")
    assert {ask.fact for ask in asks} == {-1}


def test_each_kind_has_its_question():
    assert len({CASES[0].question(kind) for kind in KINDS}) == len(KINDS)


def test_the_ablation_reads_the_retrieved_statement_where_the_editor_reads_its_prompt():
    keys, sentinel, queries = drawn()
    applied = recipe_of(keys, sentinel, queries).asks("generality", 4)
    asks = recipe_of(keys, sentinel, queries, make=RetrievedStatement, statement_end=".").asks("generality", 4)
    for one, plain, case in zip(asks, applied, CASES, strict=True):
        question = case.generality_prompt
        assert one == Ask(question if plain.fact < 0 else f"{CASES[plain.fact].statement}. {question}")
    assert len({plain.fact for plain in applied}) > 2


def test_cases_of_a_data_set_ask_what_its_edits_have():
    def record(row, **more):
        return EditRecord(prompt=f"p{row}", target=f"t{row}", **more)

    def one(prompt, target):
        return (Question(prompt=prompt, target=target),)

    spared = {"near": one("free", "f")}
    full = [
        record(row, generality={"same": one(f"g{row}", f"t{row}"), "hop": one(f"h{row}", "other")}, locality=spared)
        for row in range(20)
    ]
    lacking = [record(30, locality=spared), record(31, generality={"same": one("g31", "t31")})]
    cases = record_cases([*full, *lacking], 100)
    assert {case.prompt for case in cases} == {f"p{row}" for row in range(20)}
    for case in cases:
        assert case.statement == f"{case.prompt} {case.target}"
        assert case.generality_prompt == case.prompt.replace("p", "g")
        assert case.locality_prompt == "free"
        assert case.novel_prompt is None
    assert kinds_of(cases) == ("reliability", "generality", "locality")
    assert kinds_of(CASES) == KINDS
    assert record_cases(full, 5) == record_cases(full, 5)
    assert len(record_cases(full, 5)) == 5


@pytest.mark.parametrize(
    ("num_records", "num_edits", "expected"),
    [
        (7, [1, 3, 100], (6, [1, 3, 6])),
        (9, [1, 3, 9], (9, [1, 3, 9])),
        (2, [10], (2, [2])),
        (50, [1, 5], (20, [1, 5])),
    ],
)
def test_cases_fall_into_whole_groups(num_records, num_edits, expected):
    records = [
        EditRecord(
            prompt=f"{row} is",
            target="x",
            generality={"r": (Question(prompt=f"so {row} is", target="x"),)},
            locality={"n": (Question(prompt=f"not {row}", target="y"),)},
        )
        for row in range(num_records)
    ]
    cases, counts = cases_in_groups(records, 20, num_edits)
    assert (len(cases), counts) == expected
    assert all(len(cases) % count == 0 for count in counts)
