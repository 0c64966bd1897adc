"""Training data by name: split by subject, and real files as they are."""

import gzip
import json
from pathlib import Path

import pytest

from recipe_ray.config import DataConfig
from recipe_ray.datasets.sources import InventedData, absolute_sources, open_training_data, read_edit_data
from recipe_ray.errors import ConfigError, FactError

REAL = Path(__file__).parents[3] / "shared" / "data"


def read(sources, **options):
    return read_edit_data(DataConfig(sources=tuple(sources), **options))


def write(path, num, *, subjects=None):
    path.write_text(
        "\n".join(
            json.dumps(
                {
                    "prompt": f"{path.stem} {row} is",
                    "target": str(row),
                    "subject": f"s{row % (subjects or num)}",
                    "locality": [{"prompt": f"{path.stem} not {row}", "target": "n"}],
                }
            )
            for row in range(num)
        )
    )
    return f"edits:{path}"


def subjects(parts):
    return {record.subject for part in parts for record in part}


def test_a_twentieth_of_the_subjects_is_set_aside_whatever_else_is_read(tmp_path):
    first, second = write(tmp_path / "a.jsonl", 2000, subjects=1000), write(tmp_path / "b.jsonl", 1000)
    both, one = read([first, second]), read([second])
    assert not subjects(both.training_edits) & subjects(both.tuning_edits)
    assert one.tuning_edits[0] == both.tuning_edits[1]
    assert len(subjects(both.tuning_edits)) / 1000 == pytest.approx(0.05, abs=0.025)
    assert sum(map(len, both.training_edits + both.tuning_edits)) == 3000
    trained = {one.prompt for number in range(50) for one in both.training(32, "s").batch(number)}
    assert not trained & {one.prompt for number in range(50) for one in both.tuning(32, "s").batch(number)}


def test_a_sample_is_no_more_than_there_is_and_tuning_batches_shrink(tmp_path):
    data = read([write(tmp_path / "a.jsonl", 200)])
    num_tuning = len(data.tuning_edits[0])
    assert len(data.sample(6000, "s")) == 200 - num_tuning
    assert len(data.tuning(500, "s").batch(0)) == num_tuning
    with pytest.raises(ConfigError, match="batch_size is 500, but the data holds"):
        data.training(500, "s")


@pytest.mark.parametrize("source", ["zsre", "zsre:", ":x", "wiki:x.json", "/a/b.json", "s3://b/x.json"])
def test_a_source_without_a_form_is_refused_with_the_forms_there_are(source):
    with pytest.raises(
        ConfigError, match="give 'testbed', 'invented', or FORM:PATH with one of the forms edits, counterfact"
    ):
        open_training_data(DataConfig(sources=(source,)))


def test_a_record_with_an_empty_text_is_left_out_and_counted_and_one_without_it_is_a_wrong_file(tmp_path):
    source = write(tmp_path / "a.jsonl", 200)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('\n{"prompt": "x", "target": ""}\n')
    cleaned = read([source]).cleaned
    assert (cleaned.num_read, cleaned.num_empty, len(cleaned.records[0])) == (201, 1, 200)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"prompt": "x"}\n')
    with pytest.raises(FactError, match="record 202: 'target' is missing"):
        read([source])


def test_edits_without_a_locality_question_borrow_one_and_data_without_any_is_refused(tmp_path):
    edits = [{"prompt": f"{row} is", "target": "t"} for row in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, edits)))
    with pytest.raises(FactError, match=r"a\.jsonl: no locality question \(200 edits read"):
        read([f"edits:{tmp_path / 'a.jsonl'}"])
    edits[0]["locality"] = [{"prompt": "free", "target": "t"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, edits)))
    data = read([f"edits:{tmp_path / 'a.jsonl'}"])
    for batches in (data.training(8, "s"), data.tuning(8, "s")):
        assert {example.locality_prompt for example in batches.batch(0)} == {"free"}


def test_sources_are_made_absolute_for_workers_that_run_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = DataConfig(
        sources=("zsre:a/b.json", "edits:/c.jsonl"),
        tuning_sources=("ripe:s3://bucket/d",),
        random_text="t.txt",
        random_text_share=0.1,
    )
    made = absolute_sources(given)
    assert made.sources == (f"zsre:{tmp_path}/a/b.json", "edits:/c.jsonl")
    assert made.tuning_sources == ("ripe:s3://bucket/d",)
    assert made.random_text == f"{tmp_path}/t.txt"
    assert absolute_sources(DataConfig()) == DataConfig()
    with pytest.raises(ConfigError, match="give 'testbed', 'invented', or FORM:PATH"):
        absolute_sources(DataConfig(sources=("edits",)))


def test_edits_named_to_tune_on_are_all_there_is_to_tune_on_less_subjects_that_are_trained_on(tmp_path):
    train, tune = write(tmp_path / "a.jsonl", 100), write(tmp_path / "b.jsonl", 150)
    data = read([train], tuning_sources=(tune,))
    assert len(data.training_edits[0]) == 100
    assert {record.subject for record in data.tuning_edits[0]} == {f"s{row}" for row in range(100, 150)}
    assert data.num_shared == 100
    assert "100 to train on, 50 to tune on (less 100 whose subject is trained on)" in str(data)
    with pytest.raises(FactError, match=r"a\.jsonl: 0 edits left to tune on"):
        read([train], tuning_sources=(train.replace("a.jsonl", "a.jsonl"),))


def test_a_manifest_tells_what_was_read_and_not_how_it_was_compressed(tmp_path):
    source = write(tmp_path / "a.jsonl", 100)
    zipped = tmp_path / "z.jsonl.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (plain,), (packed,) = (read([one]).manifest()["sources"] for one in (source, f"edits:{zipped}"))
    assert plain["name"] == source
    assert plain["records"] == 100
    assert plain["sha256"] == packed["sha256"]
    (other,) = read([write(tmp_path / "b.jsonl", 100)]).manifest()["sources"]
    assert other["sha256"] != plain["sha256"]
    json.dumps(plain)


def test_random_text_takes_the_place_of_so_many_locality_questions(tmp_path):
    (tmp_path / "t.txt").write_text("too short\nOnce upon a time there was a king\n")
    source = write(tmp_path / "a.jsonl", 200)
    data = read([source], random_text=str(tmp_path / "t.txt"), random_text_share=0.5)
    asked = [one for number in range(20) for one in data.training(32, "s").batch(number)]
    texts = [one for one in asked if one.locality_prompt == "Once upon a time"]
    assert {one.locality_target for one in texts} == {"there was a king"}
    assert len(texts) / len(asked) == pytest.approx(0.5, abs=0.08)
    (tmp_path / "t.txt").write_text("too short\n")
    with pytest.raises(FactError, match=r"t\.txt: holds no line of more than 4 words"):
        read([source], random_text=str(tmp_path / "t.txt"), random_text_share=0.5)
    with pytest.raises(FactError, match=r"none\.txt: cannot be read"):
        read([source], random_text=str(tmp_path / "none.txt"), random_text_share=0.5)


def test_an_edit_is_named_by_its_file_and_record(tmp_path):
    data = read([write(tmp_path / "a.jsonl", 200)])
    names = {one.prompt: one.name for one in data.training(100, "s").batch(0)}
    assert all(name == f"{tmp_path}/a.jsonl: record {int(prompt.split()[1]) + 1}" for prompt, name in names.items())


def test_data_that_leaves_nothing_to_tune_on_is_refused(tmp_path):
    with pytest.raises(FactError, match=r"a\.jsonl: . edits left to tune on \(3 edits read, 3 kept"):
        read([write(tmp_path / "a.jsonl", 3)])


def test_the_testbed_is_opened_by_its_name():
    data = open_training_data(DataConfig())
    assert isinstance(data, InventedData)
    assert data.sample(3, "s") == data.training(3, "s").batch(0)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets do not lie beside the project")
@pytest.mark.parametrize(
    ("form", "path", "num_read"),
    [
        ("counterfact", "counterfact/counterfact-train.json.gz", 10_000),
        ("counterfact", "counterfact/counterfact-val.json.gz", 1_919),
        ("zsre", "zsre/zsre_mend_train-1k.json.gz", 1_000),
    ],
)
def test_real_files_are_read_unchanged(form, path, num_read):
    data = read([f"{form}:{REAL / path}"])
    assert data.cleaned.num_read == num_read
    assert sum(map(len, data.cleaned.records)) > 0.98 * num_read
    assert all(record.generality and record.statement for part in data.cleaned.records for record in part)
