"""S3 as it is, without directories, for libraries that would make them.

`pyarrow` makes a directory by asking whether the bucket is there, which takes the right to list all of it, and by
writing an empty object for every level above, which takes the right to write there. A role that may use its own
prefix and no more has neither, and nobody needs the directories.
"""

from typing import Any

from pyarrow import fs

from recipe_ray.store.files import filesystem, is_s3


def object_filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Find the filesystem of a URI and the path within it; on S3 one that makes no directories."""
    # A library that does not see S3 behind it copies files in several threads, and uploads in the background of those
    # would wait for each other for ever (apache/arrow issue 32372).
    base, path = filesystem(uri, background_writes=False)
    return (fs.PyFileSystem(_Objects(base)) if is_s3(uri) else base), path


class _Objects(fs.FileSystemHandler):
    """Hands everything on, but for directories."""

    def __init__(self, base: fs.FileSystem) -> None:
        self._base = base

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Objects) and bool(self._base.equals(other._base))

    def __hash__(self) -> int:
        return hash(_Objects)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Do nothing: an object needs no directory."""

    def get_type_name(self) -> str:
        """Name the store."""
        return str(self._base.type_name)

    def normalize_path(self, path: str) -> str:
        """See `pyarrow.fs.FileSystem`, as all that follows."""
        return str(self._base.normalize_path(path))

    def get_file_info(self, paths: str | list[str]) -> Any:
        """See there."""
        return self._base.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        """See there."""
        return self._base.get_file_info(selector)

    def delete_dir(self, path: str) -> None:
        """See there."""
        self._base.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        """See there."""
        self._base.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        """Refuse: that would be every bucket."""
        raise NotImplementedError("all buckets are not deleted")

    def delete_file(self, path: str) -> None:
        """See there."""
        self._base.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        """See there."""
        self._base.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        """See there."""
        self._base.copy_file(src, dest)

    def open_input_stream(self, path: str) -> Any:
        """See there."""
        return self._base.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        """See there."""
        return self._base.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        """See there."""
        return self._base.open_output_stream(path, metadata=metadata)

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        """See there."""
        return self._base.open_append_stream(path, metadata=metadata)
