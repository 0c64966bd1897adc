"""S3 without directories: files as ever, and nothing beside them."""

import pickle

import boto3
from pyarrow import fs

from recipe_ray.store.objects import object_filesystem


def keys():
    return [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket="facts").get("Contents", [])]


def test_files_are_copied_read_moved_and_deleted_without_a_trace_of_directories(s3, tmp_path):
    (tmp_path / "from" / "deep").mkdir(parents=True)
    for number in range(20):  # more than pyarrow has threads for uploads
        (tmp_path / "from" / "deep" / f"{number}.bin").write_bytes(bytes(1000 * number))
    store, path = object_filesystem(f"{s3}/team/run")
    store.create_dir(path)
    fs.copy_files(str(tmp_path / "from"), path, destination_filesystem=store)
    assert keys() == sorted(f"team/run/deep/{number}.bin" for number in range(20))
    fs.copy_files(path, str(tmp_path / "to"), source_filesystem=store)
    assert (tmp_path / "to" / "deep" / "7.bin").read_bytes() == bytes(7000)
    store.move(f"{path}/deep/7.bin", f"{path}/7.bin")
    store.copy_file(f"{path}/7.bin", f"{path}/8.bin")
    found = store.get_file_info(fs.FileSelector(path))
    assert sorted(info.base_name for info in found) == ["7.bin", "8.bin", "deep"]
    store.delete_file(f"{path}/8.bin")
    with store.open_input_file(f"{path}/7.bin") as file:
        assert file.size() == 7000
    store.delete_dir(f"{path}/deep")
    assert [key for key in keys() if not key.endswith("/")] == ["team/run/7.bin"]


def test_it_reaches_other_processes_as_it_is(s3):
    store, _ = object_filesystem(s3)
    assert pickle.loads(pickle.dumps(store)) == store
    assert store != object_filesystem("/tmp")[0]


def test_a_local_path_is_the_disk(tmp_path):
    store, path = object_filesystem(str(tmp_path))
    assert isinstance(store, fs.LocalFileSystem)
    store.create_dir(f"{path}/made")
    assert (tmp_path / "made").is_dir()
