"""An editor on a frozen encoder, and its published form: small files that give what the rounded editor gives."""

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import bert, byte_tokenizer, roberta, tiny_editor

from recipe_ray import published
from recipe_ray.config import EditorConfig, Stage, TrainConfig
from recipe_ray.errors import EditorError, ModelError, OutputError
from recipe_ray.model import publish as publish_module
from recipe_ray.model.card import model_card
from recipe_ray.model.editor import CARD_FILE, ENCODER_FOLDER, load_editor, read_card, read_fingerprint, read_identity
from recipe_ray.model.publish import SAMPLE, main, portable, publish_editor, round_weights
from recipe_ray.model.tensors import INDEX_FILE, MAX_SHARD_BYTES, WEIGHTS_FILE, read_tensors, write_shards
from recipe_ray.store.files import absolute_editor, localize_editor

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of pretrained encoders; `other` differs from `bert` in the layers."""
    folder = tmp_path_factory.mktemp("encoders")
    for name, model in (("bert", bert()), ("roberta", roberta()), ("other", bert(seed=7))):
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    return folder


def make(bases, *, base="bert", num_layers=1, **changes):
    """An editor that was trained upon a base: random, and away from its base where it is trained."""
    model = {"bert": bert, "roberta": roberta}[base]()
    editor = tiny_editor(model, encoder=str(bases / base), trained_encoder_layers=num_layers, **changes)
    with torch.no_grad():
        for parameter in editor.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return editor


def record(editor, **more):
    training = TrainConfig(editor=editor.config, stages=(Stage(num_steps=8),), seed=11)
    return {
        "num_steps": 8,
        "before": {"score": 0.1},
        "metrics": {"score": 0.9},
        "training": training.to_dict(),
        "data": {"sources": [{"name": "edits:/home/me/data/edits.jsonl", "records": 3, "sha256": "ab"}]},
        "command": "python jobs/train.py --data edits:/home/me/data/edits.jsonl",
        **more,
    }


def save(editor, folder):
    editor.save(folder, extra=record(editor))
    (folder / "training_curve.png").write_bytes(b"\x89PNG")
    return folder


def same(one, other):
    for first, second in zip(one.encode_facts(SAMPLE), other.encode_facts(SAMPLE), strict=True):
        assert np.array_equal(first, second)
    assert np.array_equal(one.encode_queries(SAMPLE), other.encode_queries(SAMPLE))
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("base", ["bert", "roberta"])
@pytest.mark.parametrize("num_layers", [0, 1, 2])
def test_an_editor_on_a_frozen_encoder_comes_back_to_the_bit_and_holds_nothing_of_what_is_frozen(
    bases, tmp_path, base, num_layers
):
    editor = make(bases, base=base, num_layers=num_layers)
    editor.save(tmp_path)
    loaded = load_editor(tmp_path, "cpu")
    same(loaded, editor)
    assert read_identity(tmp_path).fingerprint == editor.fingerprint()
    assert not (tmp_path / ENCODER_FOLDER).exists()
    saved = set(load_file(tmp_path / WEIGHTS_FILE))
    trained = {name for name, one in loaded.named_parameters() if one.requires_grad}
    assert trained <= saved
    assert {name for name, one in loaded.named_parameters() if not one.requires_grad}.isdisjoint(saved)
    assert sum(name.startswith("encoder.") for name in trained) == 16 * num_layers


@pytest.mark.parametrize("num_layers", [0, 1])
def test_another_base_is_refused(bases, tmp_path, num_layers):
    editor = make(bases, num_layers=num_layers)
    editor.save(tmp_path / "editor")
    card = json.loads((tmp_path / "editor" / CARD_FILE).read_text())
    card["config"]["encoder"] = str(bases / "other")
    (tmp_path / "editor" / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(
        EditorError, match=f"encoder {bases / 'other'} whose frozen layers have the digest {card['frozen_encoder']}"
    ):
        load_editor(tmp_path / "editor", "cpu")
    card["config"]["encoder"] = str(bases / "none")
    (tmp_path / "editor" / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"encoder .*none: no config\.json there"):
        load_editor(tmp_path / "editor", "cpu")
    del card["frozen_encoder"]
    (tmp_path / "editor" / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(EditorError, match="'frozen_encoder' is missing"):
        load_editor(tmp_path / "editor", "cpu")


@pytest.mark.parametrize("num_layers", [None, 1])
@pytest.mark.parametrize("similarity", ["inner_product", "cosine"])
def test_a_published_editor_gives_what_the_rounded_one_gives_to_the_bit(bases, tmp_path, num_layers, similarity):
    changes = {"num_layers": num_layers, "similarity": similarity, "prompt_position": "after_bos"}
    trained = save(make(bases, **changes), tmp_path / "trained")
    done = publish_editor(trained, tmp_path / "published")
    expected = load_editor(trained, "cpu")
    round_weights(expected)
    found = load_editor(tmp_path / "published", "cpu")
    same(found, expected)
    assert (
        found.fingerprint() == done.fingerprint == read_fingerprint(tmp_path / "published") != read_fingerprint(trained)
    )
    assert found.key_head.project.weight.dtype == torch.float32
    assert np.array_equal(read_identity(tmp_path / "published").sentinel_K, found.sentinel_array())
    assert 0 < done.moved["keys"] < 0.02
    assert 0 < done.moved["prompts"] < 0.05
    assert (tmp_path / "published" / "training_curve.png").read_bytes() == b"\x89PNG"
    assert sorted(done.size_bytes) == sorted(
        str(file.relative_to(tmp_path / "published")) for file in (tmp_path / "published").rglob("*") if file.is_file()
    )


@pytest.fixture(scope="module")
def large(bases, tmp_path_factory):
    """A published editor of several files; one matrix is larger than a file may be."""
    folder = tmp_path_factory.mktemp("large")
    editor = make(bases, key_width=1500)
    save(editor, folder / "trained")
    publish_editor(folder / "trained", folder / "published")
    return folder / "published"


def test_no_file_is_larger_than_it_may_be_and_a_matrix_that_is_goes_in_parts(bases, large):
    expected = make(bases, key_width=1500)
    round_weights(expected)
    same(load_editor(large, "cpu"), expected)
    assert np.array_equal(read_identity(large).sentinel_K, expected.sentinel_array())
    files = [file for file in large.rglob("*") if file.is_file()]
    assert MAX_SHARD_BYTES < 2 * 1500 * 1500
    assert max(file.stat().st_size for file in files) <= MAX_SHARD_BYTES
    assert {file.stat().st_mode & 0o777 for file in files} == {0o644}, "whoever installs a wheel is not who runs it"
    assert len([file for file in files if file.suffix == ".safetensors"]) > 3
    matrices = {
        name: one for file in large.glob("*.safetensors") for name, one in load_file(file).items() if one.ndim > 1
    }
    assert {one.dtype for one in matrices.values()} == {torch.bfloat16}
    assert any("#1" in name for name in matrices)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 7}', '{"weight_map": {"sentinel_key": "none"}}'])
def test_a_damaged_index_and_a_missing_shard_are_refused(large, tmp_path, text):
    copy = shutil.copytree(large, tmp_path / "copy")
    (copy / INDEX_FILE).write_text(text)
    for read in (read_identity, lambda folder: load_editor(folder, "cpu")):
        with pytest.raises(EditorError, match="cannot be read"):
            read(copy)
    shutil.copy(large / INDEX_FILE, copy)
    next(file for file in sorted(copy.glob("*.safetensors")) if "sentinel_key" not in load_file(file)).unlink()
    read_identity(copy)
    with pytest.raises(EditorError, match="cannot be read"):
        load_editor(copy, "cpu")


def test_parts_come_together_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr("recipe_ray.model.tensors.MAX_SHARD_BYTES", 2**16 + 64)
    tensors = {
        "a.weight": torch.arange(60.0).reshape(30, 2).bfloat16().float(),
        "b": torch.randn(16),
        "c": torch.tensor(0.3),
    }
    write_shards(tensors, tmp_path)
    assert len({file.name for file in tmp_path.glob("*.safetensors")}) > 2
    found = read_tensors(tmp_path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name].float(), tensor), name


def test_one_that_takes_too_much_room_is_refused_with_what_takes_it(bases, tmp_path, monkeypatch):
    trained = save(make(bases, key_width=400), tmp_path / "trained")
    monkeypatch.setattr(publish_module, "MAX_BYTES", 500_000)
    with pytest.raises(
        EditorError, match=r"takes 1\.\d\d MB, and may take 0\.50 MB: prompt_encoder 0\.40 MB, key_head 0\.36 MB"
    ):
        publish_editor(trained, tmp_path / "published")
    monkeypatch.setattr(publish_module, "MAX_SHARD_BYTES", 1_000)
    with pytest.raises(EditorError, match=r"README\.md takes 0\.00 MB, and a file may take"):
        publish_editor(trained, tmp_path / "published")
    assert list(tmp_path.iterdir()) == [trained]


def test_what_cannot_be_published_is_refused_and_leaves_nothing(bases, tmp_path):
    trained = save(make(bases), tmp_path / "trained")
    with pytest.raises(OutputError, match="is there already"):
        publish_editor(trained, trained)
    make(bases).save(tmp_path / "untold")
    with pytest.raises(EditorError, match="the card lacks 'training'"):
        publish_editor(tmp_path / "untold", tmp_path / "published")
    make(bases, num_sentinel_tokens=0).save(tmp_path / "ablation")
    with pytest.raises(EditorError, match="an ablation"):
        publish_editor(tmp_path / "ablation", tmp_path / "published")
    with pytest.raises(EditorError, match="whose frozen layers have the digest"):
        publish_editor(trained, tmp_path / "published", encoder=str(bases / "other"))
    with pytest.raises(OutputError, match="cannot be written"):
        publish_editor(trained, trained / CARD_FILE / "published")
    assert not (tmp_path / "published").exists()
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def test_the_command_says_where_it_lies_how_large_it_is_and_how_far_it_moved(bases, tmp_path, monkeypatch, capsys):
    trained = save(make(bases), tmp_path / "trained")
    (trained / "training_curve.png").unlink()
    arguments = ["publish", "--editor", str(trained), "--output", str(tmp_path / "published"), "--llm", "some-llm"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    said = capsys.readouterr().out
    fingerprint = read_fingerprint(tmp_path / "published")
    assert said.strip().endswith(f"editor {tmp_path / 'published'} (fingerprint {fingerprint})")
    assert "in all, of at most 16.00 MB" in said
    assert re.search(r"moved by the rounding: keys by 0\.\d\d% at most, prompts by \d\.\d\d% at most", said)
    assert "note: the encoder is named by a path" in said
    assert "note: the llm" not in said
    assert "there is no training curve" in said
    assert read_identity(tmp_path / "published").llm == "some-llm"
    with pytest.raises(SystemExit, match=r"^error: .*is there already"):
        main()


def test_the_record_of_the_training_names_no_folder_of_the_machine(bases, tmp_path):
    trained = save(make(bases), tmp_path / "trained")
    publish_editor(trained, tmp_path / "published")
    card = read_card(tmp_path / "published")
    assert card["command"] == "python jobs/train.py --data edits:edits.jsonl"
    assert card["rounded_from"] == read_fingerprint(trained)
    assert card["training"]["editor"] == card["config"]
    text = (tmp_path / "published" / "README.md").read_text()
    assert "/home" not in text + json.dumps(card)
    for said in ("its top 1 layers trained", card["frozen_encoder"], card["command"], "seed 11", card["rounded_from"]):
        assert said in text, said


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/a/b/c.json", "c.json"),
        ("zsre:/a/b/*.json", "zsre:*.json"),
        ("--set x='[\"edits:/a/b\"]' --data edits:../c/d", "--set x='[\"edits:b\"]' --data edits:../c/d"),
        ("edits:s3://bucket/a/b", "edits:s3://bucket/a/b"),
        ("either/or, 3 / 4", "either/or, 3 / 4"),
        ({"a": ["/b/c", 7, None]}, {"a": ["c", 7, None]}),
    ],
)
def test_of_an_absolute_path_the_last_name_is_left(value, expected):
    assert portable(value) == expected


def test_the_model_card_tells_of_every_training_that_led_to_the_editor(bases):
    editor = make(bases)
    first = {**record(editor), "command": "python jobs/train.py --seed 1"}
    text = model_card(editor, record(editor, started_from=first))
    trained_by = text.partition("## Trained by")[2]
    assert trained_by.index("--seed 1") < trained_by.index("edits.jsonl")


def test_a_published_editor_is_known_by_its_name_everywhere_an_editor_is_named(bases, tmp_path, monkeypatch):
    trained = save(make(bases), tmp_path / "trained")
    monkeypatch.setattr(published, "FOLDER", tmp_path / "package")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EditorError, match=r"some-llm: no trained editor there .*ships with the package \(none does\)"):
        load_editor("some-llm", "cpu")
    publish_editor(trained, tmp_path / "package" / "some-llm")
    folder = tmp_path / "package" / "some-llm"
    same(load_editor("some-llm", "cpu"), load_editor(folder, "cpu"))
    assert read_identity("some-llm").fingerprint == read_fingerprint("some-llm") == read_fingerprint(folder)
    assert localize_editor("some-llm") == folder
    assert absolute_editor("some-llm") == "some-llm"
    assert absolute_editor("./some-llm") == absolute_editor("package/../some-llm") == str(tmp_path / "some-llm")
    with pytest.raises(EditorError, match=r"ships with the package \(some-llm\)"):
        load_editor("other", "cpu")
    # As with models, a folder comes before a name.
    shutil.copytree(trained, tmp_path / "some-llm")
    assert read_fingerprint("some-llm") == read_fingerprint(trained)
    assert absolute_editor("some-llm") == str(tmp_path / "some-llm")


@pytest.mark.parametrize("num_layers", [None, 1])
def test_all_that_is_published_goes_into_the_wheel(bases, tmp_path, num_layers):
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    publish_editor(save(make(bases, num_layers=num_layers), tmp_path / "trained"), tmp_path / "package" / "some-llm")
    package = tmp_path / "package"
    packed = {file for pattern in patterns["recipe_ray.published"] for file in package.glob(pattern)}
    assert packed == {file for file in package.rglob("*") if file.is_file()}


def test_an_editor_that_an_earlier_version_wrote_keeps_its_fingerprint():
    former = ROOT / "tests" / "distributed" / "former" / "editor"
    assert load_editor(former, "cpu").fingerprint() == read_card(former)["fingerprint"]
    assert EditorConfig(llm="a", encoder="b").to_dict().keys() == read_card(former)["config"].keys()
