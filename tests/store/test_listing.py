"""What names a file may have: it is read right, or refused in one line that says which and what to do."""

import os
import re
import subprocess
import sys

import boto3
import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from recipe_ray.errors import ConfigError, EditorError, FactError
from recipe_ray.store.dumps.streams import open_dump
from recipe_ray.store.files import (
    absolute,
    is_empty,
    list_below,
    list_files,
    localize,
    read_text,
    write_text,
)

ODD_NAMES = [
    "a b",
    "a%20b",
    "%",
    "a+b",
    "a#b",
    "a?b",
    "[a]",
    "*",
    "back\\slash",
    "c:d",
    "s3:",
    "ünï",
    "日本",
    "😀",
    "=",
    "~",
    " ",
]
ODD_KEYS = ["d/sub//deep", "d//x", "/x", "d/./x", "d/../x", "./x", "../x", "d/.", "d/..", "s3://x"]


def content(uri):
    with open_dump(uri) as stream:
        return stream.read()


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3://", "names no bucket"),
        ("s3:///", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://my bucket/x", "'my bucket' is no bucket's name"),
        ("s3://bücket/x", "is no bucket's name"),
        ("s3://bucket//", "//"),
        ("s3://bucket//x", "//"),
        ("s3://bucket/a//x", "//"),
        ("s3://bucket/a/./x", "'/./'"),
        ("s3://bucket/a/..", "'/../'"),
        ("S3://bucket/x", "unknown scheme"),
        ("s3a://bucket/x", "unknown scheme"),
        ("s3:/bucket/x", "unknown scheme"),
        ("file://machine/x", "'machine'"),
        ("file://", "no path"),
        ("", "an empty path"),
        ("~no-such-user/x", "nobody has that home"),
        ("nul\0l", "no name in UTF-8"),
        ("\udcff.jsonl", r"\udcff.jsonl"),
        ("s3://bucket/\udcff", r"\udcff"),
    ],
)
def test_what_names_no_place_is_refused_at_every_door(uri, reason):
    for door in (absolute, list_files, read_text, is_empty, list_below, localize, lambda uri: write_text(uri, "")):
        with pytest.raises(ConfigError) as caught:
            door(uri)
        message = str(caught.value)
        assert reason in message
        assert "; give " in message or "; rename " in message
        assert message.isprintable()


@pytest.mark.parametrize("scheme", ["file://", "file://localhost", "file:", ""])
def test_a_local_path_may_be_written_as_a_uri_of_which_nothing_is_decoded(tmp_path, scheme):
    (tmp_path / "a%20b.jsonl").write_text("x")
    (file,) = list_files(f"{scheme}{tmp_path}/a%20b.jsonl")
    assert file.uri == f"{tmp_path}/a%20b.jsonl"
    assert content(f"{scheme}{tmp_path}/a%20b.jsonl") == b"x"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_local_name_is_what_it_is(tmp_path, name):
    path = tmp_path / name / f"{name}.jsonl"
    path.parent.mkdir()
    path.write_text(name)
    for source in (tmp_path, path.parent, path, f"{tmp_path}/?*/*.jsonl"):
        (file,) = list_files(str(source))
        assert content(file.uri).decode() == name


def test_links_are_followed_to_files_and_folders(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jsonl").write_text("x")
    (tmp_path / "dump").mkdir()
    for name in ("one", "two"):  # two links to one folder are no loop
        (tmp_path / "dump" / name).symlink_to("../elsewhere")
    (tmp_path / "dump" / "three.jsonl").symlink_to("one/x.jsonl")
    assert [file.below for file in list_files(f"{tmp_path}/dump")] == ["one/x.jsonl", "three.jsonl", "two/x.jsonl"]


def make_broken(folder):
    (folder / "bad.jsonl").symlink_to("nowhere")


def make_own(folder):
    (folder / "bad.jsonl").symlink_to("bad.jsonl")


def make_loop(folder):
    (folder / "bad").symlink_to("..")


def make_pipe(folder):
    os.mkfifo(folder / "bad.jsonl")


def make_latin(folder):
    (folder / os.fsdecode(b"bad\xff.jsonl")).write_text("")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_broken, "bad.jsonl: is a link to nothing"),
        (make_own, "bad.jsonl: cannot be read (Too many levels of symbolic links)"),
        (make_loop, "bad"),
        (make_pipe, "bad.jsonl: is neither a file nor a folder"),
        (make_latin, r"bad\udcff.jsonl: its name is not UTF-8"),
    ],
)
def test_what_is_no_file_is_named_and_not_passed_over(tmp_path, make, reason):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "good.jsonl").write_text("x")
    make(tmp_path / "sub")
    for source in (tmp_path, f"{tmp_path}/sub", *([f"{tmp_path}/*/*.jsonl"] if make is not make_loop else [])):
        with pytest.raises(FactError) as caught:
            list_files(str(source))
        assert f"{tmp_path}/sub/{reason}" in str(caught.value)
        assert "give a source without it" in str(caught.value)
    (file,) = list_files(f"{tmp_path}/sub/good*.jsonl")  # such as this one
    assert file.below == "good.jsonl"


def test_what_is_given_itself_is_looked_at_as_well(tmp_path):
    make_broken(tmp_path)
    with pytest.raises(FactError, match=r"bad\.jsonl: is a link to nothing"):
        list_files(f"{tmp_path}/bad.jsonl")
    with pytest.raises(FactError, match="is neither a file nor a folder"):
        list_files("/dev/null")
    with pytest.raises(FactError, match="cannot be listed"):
        list_files(f"{tmp_path}/{'x' * 300}")


def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    locked = tmp_path / "sub" / "locked"
    locked.mkdir(parents=True)
    (locked / "x.jsonl").write_text("")
    locked.chmod(0)
    tmp_path.chmod(0o755)
    ask = """
import os, sys
from pyarrow import fs
from recipe_ray.store.listing import find
os.chdir(sys.argv[1])
if not os.geteuid():
    os.seteuid(65534)
find(fs.LocalFileSystem(), "sub")
"""
    done = subprocess.run([sys.executable, "-c", ask, str(tmp_path)], capture_output=True, text=True, check=False)
    locked.chmod(0o755)
    assert "FactError: sub/locked: cannot be listed (Permission denied)" in done.stderr


class TestS3:
    @pytest.mark.parametrize("name", [*ODD_NAMES, "x" * 900, "tab\t", "\x01"])
    def test_a_key_is_what_it_is(self, s3, name):
        boto3.client("s3").put_object(Bucket="facts", Key=f"d/{name}/{name[:80]}.jsonl", Body=name.encode())
        for source in (s3, f"{s3}/d/", f"{s3}/d/?*/*.jsonl"):
            (file,) = list_files(source)
            assert content(file.uri).decode() == name

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_an_object_that_cannot_be_read_is_named_and_does_not_block_a_narrower_source(self, s3, key):
        client = boto3.client("s3")
        client.put_object(Bucket="facts", Key=key, Body=b"odd")
        client.put_object(Bucket="facts", Key="good.jsonl", Body=b"good")
        with pytest.raises(FactError) as caught:
            list_files(s3)
        assert f"{s3}/{key}: " in str(caught.value)
        assert "rename it, or give a source without it" in str(caught.value)
        (file,) = list_files(f"{s3}/*.jsonl")
        assert content(file.uri) == b"good"

    def test_a_marker_of_a_folder_is_no_file_and_an_object_of_its_name_is_none_twice(self, s3):
        client = boto3.client("s3")
        client.put_object(Bucket="facts", Key="d/")
        client.put_object(Bucket="facts", Key="d/x.jsonl", Body=b"x")
        assert [file.below for file in list_files(f"{s3}/d")] == ["x.jsonl"]
        client.put_object(Bucket="facts", Key="d/x.jsonl/", Body=b"not x")
        with pytest.raises(FactError, match=r"d/x\.jsonl: is there twice"):
            list_files(f"{s3}/d")

    def test_a_glob_takes_no_empty_part_of_a_key_for_a_name(self, s3):
        client = boto3.client("s3")
        for key in ("d/x.jsonl", "d/sub/y.jsonl", "d/sub//z.jsonl"):
            client.put_object(Bucket="facts", Key=key)
        assert [file.below for file in list_files(f"{s3}/d/*/*.jsonl")] == ["sub/y.jsonl"]
        with pytest.raises(FactError, match="no such file"):
            list_files(f"{s3}/d/*/*/*.jsonl")

    def test_an_editor_with_such_an_object_is_refused(self, s3, tmp_path, monkeypatch):
        monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path))
        write_text(f"{s3}/editor/editor.json", "{}")
        boto3.client("s3").put_object(Bucket="facts", Key="editor/sub//x", Body=b"odd")
        with pytest.raises(EditorError, match="s3://facts/editor/sub//x"):
            localize(f"{s3}/editor")
        assert localize(f"{s3}/editor", only=["editor.json"]).is_dir()

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(key=st.text(st.sampled_from("a/.%2= +#?*[]_\\é\u0301😀&"), min_size=1, max_size=12))
    @example(key="a//b")
    @example(key="a/%2F/b")
    def test_any_object_is_read_right_or_refused_by_its_name(self, s3, key):
        client = boto3.client("s3")
        try:
            client.put_object(Bucket="facts", Key=f"d/{key}.jsonl", Body=key.encode())
        except ClientError:  # the test's server knows no such key
            assume(False)
        parts = f"{key}.jsonl".split("/")
        try:
            if any(part.startswith((".", "_")) or not part for part in parts):
                with pytest.raises(FactError, match=rf"{re.escape(key)}\.jsonl: its key holds|no such file"):
                    list_files(f"{s3}/d")
            else:
                (file,) = list_files(f"{s3}/d")
                assert file.uri == f"{s3}/d/{key}.jsonl"
                assert content(file.uri).decode() == key
        finally:
            client.delete_object(Bucket="facts", Key=f"d/{key}.jsonl")
