import threading
from pathlib import Path

import boto3
import pytest

from recipe_ray.errors import ConfigError, EditorError, FactError, OutputError
from recipe_ray.store import files
from recipe_ray.store.files import (
    absolute,
    check_writable,
    is_empty,
    list_files,
    localize,
    publish,
    read_text,
    write_text,
)


def tree(root, **texts):
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def names(found, root):
    return [file.uri.removeprefix(f"{root}/") for file in found]


def fail(*_):
    raise OSError("the store went away")


def test_a_directory_is_every_file_below_but_hidden_ones(tmp_path):
    tree(tmp_path, b_dot_jsonl="1", sub__a_dot_jsonl="22", _dot_hidden="3", _delta_log__x_dot_json="4")
    found = list_files(str(tmp_path))
    assert names(found, tmp_path) == ["b.jsonl", "sub/a.jsonl"]
    assert [file.size_bytes for file in found] == [1, 2]
    assert found[0].modified_at.timestamp() == pytest.approx((tmp_path / "b.jsonl").stat().st_mtime)


def test_a_glob_matches_within_a_segment(tmp_path):
    tree(tmp_path, a_dot_jsonl="", ab_dot_jsonl="", sub__a_dot_jsonl="")
    assert names(list_files(f"{tmp_path}/a*.jsonl"), tmp_path) == ["a.jsonl", "ab.jsonl"]
    assert names(list_files(f"{tmp_path}/*/?.jsonl"), tmp_path) == ["sub/a.jsonl"]


def test_a_name_with_glob_characters_is_first_of_all_a_name(tmp_path):
    (tmp_path / "d[1].jsonl").write_text("")
    assert names(list_files(f"{tmp_path}/d[1].jsonl"), tmp_path) == ["d[1].jsonl"]


@pytest.mark.parametrize("missing", ["nothing.jsonl", "*.jsonl", "empty"])
def test_nothing_there_is_said(tmp_path, missing):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FactError, match="no such file, directory or glob match"):
        list_files(str(tmp_path / missing))


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ConfigError, match=r"gs://bucket/x: unknown scheme"):
        absolute("gs://bucket/x")


def test_a_place_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_writable(str(tmp_path / "file" / "table"))


def test_checking_leaves_nothing_behind(tmp_path):
    check_writable(str(tmp_path / "deep" / "er"))
    assert list(tmp_path.iterdir()) == []


def test_publish_copies_and_refuses_a_place_in_use(tmp_path):
    source = tree(tmp_path / "source", editor_dot_json="{}", sub__w="w")
    target = tmp_path / "deep" / "target"
    assert publish(source, str(target)) == str(target)
    assert (target / "sub" / "w").read_text() == "w"
    with pytest.raises(OutputError, match="is not empty"):
        publish(source, str(target))
    assert sorted(path.name for path in target.parent.iterdir()) == ["target"]


def test_a_local_directory_is_used_as_it_is(tmp_path):
    assert localize(tmp_path) == tmp_path
    with pytest.raises(EditorError, match="no such directory"):
        localize(tmp_path / "nothing")


def test_small_texts_come_back_and_missing_ones_are_none(tmp_path):
    assert read_text(str(tmp_path / "a" / "b")) is None
    write_text(str(tmp_path / "a" / "b"), "ü\n")
    assert read_text(str(tmp_path / "a" / "b")) == "ü\n"


def test_a_small_text_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    write_text(str(tmp_path / "a"), "long" * 100)
    write_text(str(tmp_path / "a"), "short")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "short"}


def test_a_place_is_empty_without_files(tmp_path):
    assert is_empty(str(tmp_path / "none"))
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    assert is_empty(str(tmp_path / "folder"))
    (tmp_path / "folder" / "sub" / "file").write_text("")
    assert not is_empty(str(tmp_path / "folder"))
    assert not is_empty(str(tmp_path / "folder" / "sub" / "file"))


def test_a_glob_lists_only_the_folders_it_names(tmp_path):
    tree(tmp_path, a__x_dot_jsonl="", a__deep__y_dot_jsonl="", b__x_dot_jsonl="", b__z_dot_txt="", top_dot_jsonl="")
    (tmp_path / "not named").mkdir()
    for folder in ("not named", "a/deep"):
        (tmp_path / folder / "x.jsonl").symlink_to("nowhere")  # refused wherever it is seen
    assert names(list_files(f"{tmp_path}/?/*.jsonl"), str(tmp_path)) == ["a/x.jsonl", "b/x.jsonl"]
    with pytest.raises(FactError, match=r"not named/x\.jsonl: is a link to nothing"):
        list_files(f"{tmp_path}/*/*.jsonl")


class TestS3:
    def test_files_are_listed_and_read(self, s3):
        write_text(f"{s3}/dump/a.jsonl", "one\ntwo\n")
        write_text(f"{s3}/dump/sub/b.jsonl", "three\n")
        assert names(list_files(f"{s3}/dump"), s3) == ["dump/a.jsonl", "dump/sub/b.jsonl"]
        assert names(list_files(f"{s3}/dump/*.jsonl"), s3) == ["dump/a.jsonl"]
        assert read_text(f"{s3}/dump/a.jsonl") == "one\ntwo\n"
        with pytest.raises(FactError, match="no such file"):
            list_files(f"{s3}/nothing")

    def test_a_directory_goes_there_and_back(self, s3, tmp_path, monkeypatch):
        monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
        source = tree(tmp_path / "source", editor_dot_json="{}", sub__weights="w" * 1000)
        assert publish(source, f"{s3}/editor/") == f"{s3}/editor"
        local = localize(f"{s3}/editor")
        assert sorted(str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()) == [
            "editor.json",
            "sub/weights",
        ]
        assert (local / "sub" / "weights").read_text() == "w" * 1000
        with pytest.raises(OutputError, match="is not empty"):
            publish(source, f"{s3}/editor")

    def test_a_published_directory_that_broke_off_has_no_description_and_is_completed_by_the_next(
        self, s3, tmp_path, monkeypatch
    ):
        source = tree(tmp_path / "source", editor_dot_json="{}", encoder__config_dot_json="{}", zweights="w")
        whole = {"editor.json", "encoder/config.json", "zweights"}
        upload = files._upload
        for num_uploads in (1, 2):
            target = f"{s3}/editor-{num_uploads}"
            calls = iter([upload] * num_uploads)
            monkeypatch.setattr(files, "_upload", lambda *where, calls=calls: next(calls, fail)(*where))
            with pytest.raises(OutputError, match="cannot be written"):
                publish(source, target)
            monkeypatch.setattr(files, "_upload", upload)
            there = {file.uri.removeprefix(f"{target}/") for file in list_files(target)}
            assert len(there) == num_uploads
            assert "editor.json" not in there
            publish(source, target)
            assert {file.uri.removeprefix(f"{target}/") for file in list_files(target)} == whole

    def test_changed_content_of_the_same_size_is_fetched_anew(self, s3, tmp_path, monkeypatch):
        monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
        write_text(f"{s3}/editor/weights", "old")
        old = localize(f"{s3}/editor")
        assert localize(f"{s3}/editor") == old
        write_text(f"{s3}/editor/weights", "new")
        assert (localize(f"{s3}/editor") / "weights").read_text() == "new"
        assert (old / "weights").read_text() == "old"

    def test_racing_downloads_all_get_it_whole(self, s3, tmp_path, monkeypatch):
        monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
        write_text(f"{s3}/editor/weights", "w" * 100_000)
        found: list[Path] = []
        threads = [threading.Thread(target=lambda: found.append(localize(f"{s3}/editor"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert len(set(found)) == 1
        assert (found[0] / "weights").stat().st_size == 100_000
        assert list((tmp_path / "cache").glob(".download-*")) == []

    def test_trouble_is_said_with_its_uri(self, s3):
        with pytest.raises(EditorError, match="s3://facts/nothing: nothing is there"):
            localize(f"{s3}/nothing")
        with pytest.raises(OutputError, match="s3://no-such-bucket/x: cannot be written"):
            check_writable("s3://no-such-bucket/x")

    def test_checking_leaves_nothing_behind(self, s3):
        check_writable(f"{s3}/table")
        assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket="facts")
