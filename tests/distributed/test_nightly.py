"""A nightly run without a cluster: what is published, what is not, and what a second start does."""

import dataclasses

import pytest
from nightly_facts import (
    NUM_CANARIES,
    NUM_LANDS,
    UNRELATED,
    canary,
    dump,
    found_towns,
    lines_of,
    night_editor,
    swapped,
    town,
)

from recipe_ray.distributed import nightly as nightly_module
from recipe_ray.distributed import stages
from recipe_ray.distributed.nightly import CanaryDiedError, Gate, nightly
from recipe_ray.distributed.nightly_args import NightlyConfig
from recipe_ray.errors import ConfigError, FactError, TableError
from recipe_ray.eval.canary import CanaryReport
from recipe_ray.facts import Fact
from recipe_ray.store.files import write_text
from recipe_ray.store.indexes.artefacts import latest_index
from recipe_ray.store.live.index import LiveIndex
from recipe_ray.store.parquet import DataFile
from recipe_ray.store.snapshot import read_snapshot
from recipe_ray.store.table import FactTable, GroupId
from recipe_ray.store.writing import write_facts


class CrashError(Exception):
    pass


@pytest.fixture(scope="module")
def editor():
    return night_editor()


@pytest.fixture(scope="module")
def place(editor, tmp_path_factory):
    path = tmp_path_factory.mktemp("nightly")
    editor.save(path / "editor")
    (path / "canary.jsonl").write_text(canary(editor))
    return path


@pytest.fixture
def config(tmp_path, place):
    return NightlyConfig(
        source=f"{tmp_path}/dumps/{{date}}.jsonl",
        table=str(tmp_path / "table"),
        editor=str(place / "editor"),
        canary=str(place / "canary.jsonl"),
        date="2026-01-01",
        device="cpu",
        min_sampled=0.5,
    )


def write(config, date, text):
    write_text(config.source.replace("{date}", date), text)


def run(config, date="2026-01-01", **changes):
    said = []
    report = nightly(dataclasses.replace(config, date=date, **changes), say=said.append)
    return report, said


def targets(config):
    facts = read_snapshot(config.table).facts
    return dict(zip(facts["fact_id"].to_pylist(), facts["target"].to_pylist(), strict=True))


def served(config, editor):
    """What a server that follows the table would tell."""
    view = LiveIndex(config.table, fingerprint=editor.fingerprint()).view()
    return view.version, {fact["fact_id"]: fact["target"] for fact in view.facts("default", limit=1000)}


@pytest.mark.usefixtures("in_process")
def test_a_good_dump_is_published_once(config, editor):
    write(config, "2026-01-01", dump())
    report, said = run(config)
    assert (report.status, report.version, report.ingest.counts.new) == ("published", 1, NUM_LANDS)
    assert report.canary.asked == {"known": NUM_CANARIES, "sampled": NUM_LANDS, "unrelated": 1}
    towns = found_towns(editor, [f"The capital of land {number} is" for number in range(NUM_LANDS)])
    assert report.canary.right == {
        "known": NUM_CANARIES,
        "sampled": sum(found == town(number) for number, found in enumerate(towns)),
        "unrelated": 1,
    }
    assert (report.index.version, report.index.num_facts, report.index.repeated) == (1, NUM_LANDS, False)
    assert said[0] == f"ingest: {config.source.replace('{date}', '2026-01-01')}"

    # A put comes meanwhile: it needs no new index, and does not make the dump a new one.
    put = Fact(fact_id="put", statement="A put is online", prompt="A put is", target="online")
    group = GroupId(writer="a server", number=0)
    write_facts(config.table, [put], editor.encode_facts, identity=editor.identity(), group=group)
    again, _ = run(config)
    assert (again.status, again.version, again.canary) == ("repeated", 1, None)
    assert (again.index.uri, again.index.repeated) == (report.index.uri, True)
    assert FactTable.open(config.table).version == 2


@pytest.mark.usefixtures("in_process")
def test_spoiled_facts_are_not_published_and_the_next_night_goes_on(config, editor):
    write(config, "2026-01-01", dump())
    run(config)
    before = served(config, editor)
    write(config, "2026-01-02", dump(swapped, day=2))
    report, said = run(config, "2026-01-02")
    assert (report.status, report.version, report.ingest, report.index) == ("refused", 1, None, None)
    assert report.canary.right["known"] < NUM_CANARIES  # one town may be said of another land by chance
    assert f"of {NUM_CANARIES} known questions are answered" in report.canary.complaints[0]
    assert not any(text.startswith("published") for text in said)
    assert served(config, editor) == before
    assert latest_index(config.table).rpartition("/")[2].startswith("1-")

    # What was refused lies about, and the next night does not mind.
    write(config, "2026-01-03", dump(day=3) + lines_of([{"prompt": "The capital of Zubrowka is", "target": "Lutz"}]))
    assert run(config, "2026-01-03")[0].version == 2
    assert targets(config).items() >= {f"land-{number}": town(number) for number in range(NUM_LANDS)}.items()


@pytest.mark.usefixtures("in_process")
def test_a_refused_dump_is_published_without_encoding_once_the_limits_allow_it(config, monkeypatch):
    write(config, "2026-01-01", dump(swapped))
    assert run(config)[0].status == "refused"
    assert len(read_snapshot(config.table).facts) == 0
    monkeypatch.setattr(stages.Encoder, "__call__", lambda *_: pytest.fail("encoded again"))
    report, _ = run(config, min_known=0.0, min_sampled=0.0)
    assert (report.status, report.version) == ("published", 1)


@pytest.mark.usefixtures("in_process")
def test_a_fact_that_fires_on_an_unrelated_question_is_not_published(config, tmp_path):
    questions = tmp_path / "canary.jsonl"
    questions.write_text(lines_of([{"prompt": "The capital of land 0 is"}, {"prompt": "y", "target": "z"}]))
    write(config, "2026-01-01", dump())
    report, _ = run(config, canary=str(questions), min_known=0.0)
    assert report.canary.complaints == (
        "a fact is applied to 1 of 1 unrelated questions, at most to 0 of them it may be",
    )
    assert report.status == "refused"


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("step", ["ask_canary", "_published_with", "_index"])
def test_a_run_that_breaks_off_is_continued(config, monkeypatch, step):
    def crash(*_, **__):
        raise CrashError

    write(config, "2026-01-01", dump())
    with monkeypatch.context() as patch:
        patch.setattr(nightly_module, step, crash)
        with pytest.raises(CrashError):
            run(config)
    version = FactTable.open(config.table).version
    assert version == (0 if step == "ask_canary" else 1)
    report, _ = run(config)
    assert report.status == ("published" if version == 0 else "repeated")
    assert (report.version, report.index.version, report.index.num_facts) == (1, 1, NUM_LANDS)
    assert targets(config) == {f"land-{number}": town(number) for number in range(NUM_LANDS)}
    assert FactTable.open(config.table).version == 1


@pytest.mark.usefixtures("in_process")
def test_another_editor_and_a_missing_dump_leave_all_as_it_was(config, editor, tmp_path):
    from tiny_models import tiny_editor

    write(config, "2026-01-01", dump())
    run(config)
    before = served(config, editor)
    tiny_editor(seed=9, similarity="cosine").save(tmp_path / "spoiled")
    write(config, "2026-01-02", dump(day=2))
    with pytest.raises(TableError, match="was encoded by the editor with fingerprint"):
        run(config, "2026-01-02", editor=str(tmp_path / "spoiled"))
    with pytest.raises(FactError, match=r"2026-01-03\.jsonl: no such file"):
        run(config, "2026-01-03")
    assert served(config, editor) == before


@pytest.mark.usefixtures("in_process")
def test_the_llm_is_asked_behind_the_prompts_that_are_applied(config, editor, tmp_path):
    from tiny_models import tiny_llm

    llm = tiny_llm()
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    write(config, "2026-01-01", dump())
    report, _ = run(config, llm=str(tmp_path / "llm"), sample=0)
    assert report.status == "refused"  # this LLM says nothing in particular
    prompts = [failure.question.prompt for failure in report.canary.failures]
    found = [failure.told.target for failure in report.canary.failures]
    statements = [f"{prompt} {target}" for prompt, target in zip(prompts, found, strict=True)]
    _, prefixes = editor.encode_facts(statements)
    by_hand = llm.generate(prompts, list(prefixes), max_new_tokens=4)
    assert [failure.told.answer[:2] for failure in report.canary.failures] == [one.text[:2] for one in by_hand]
    assert UNRELATED not in prompts


def test_the_gate_asks_once_for_the_same_files_and_again_for_others():
    class Table:
        version = 3

    def file(path):
        return DataFile(path=path, size_bytes=1, num_rows=2, partition={"namespace": "default", "shard": "0"})

    reports = [
        CanaryReport(asked={"known": 1}, right={"known": 1}, complaints=(), failures=()),
        CanaryReport(asked={"known": 1}, right={"known": 0}, complaints=("0 of 1",), failures=()),
    ]
    asked = []

    def ask(table, files):
        asked.append([one.path for one in files])
        return reports[len(asked) - 1]

    gate = Gate(ask, lambda text: None)
    gate(Table, [file("a"), file("b")])
    gate(Table, [file("b"), file("a")])
    assert asked == [["a", "b"]]
    for _ in range(2):  # having passed once is no pass for others, nor is having died
        with pytest.raises(CanaryDiedError, match="0 of 1"):
            gate(Table, [file("a"), file("c")])
        reports.append(reports[-1])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"source": "dumps/today"}, r"source is dumps/today, without \{date\}"),
        ({"date": "24.11.2026"}, "date is '24.11.2026'; give it as YYYY-MM-DD"),
        ({"date": "20261124"}, "date is '20261124'; give it as YYYY-MM-DD"),
        ({"servers": ("localhost:8000",)}, "servers: localhost:8000 is no URL"),
        ({"sample": -1}, "sample is -1"),
        ({"max_fired": 2}, "max_fired is 2"),
        ({"max_quarantined": -1}, "max_quarantined is -1"),
    ],
    ids=["source", "German date", "date without dashes", "server", "sample", "share", "quarantine"],
)
def test_options_that_cannot_be_are_refused(change, complaint):
    given = {"source": "d/{date}", "table": "t", "editor": "e", "canary": "c", **change}
    with pytest.raises(ConfigError, match=complaint):
        NightlyConfig(**given)
