"""Finding the files of a source in its filesystem, each by a name that can be read; none is left out unsaid."""

import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from pyarrow import fs

from recipe_ray.errors import FactError

_GLOB_CHARS = frozenset("*?[")
_CANNOT_NAME = frozenset(("", ".", ".."))
_KINDS = {"File": stat.S_ISREG, "Directory": stat.S_ISDIR}


def base_of(path: str, *, is_file: bool) -> str:
    """The part of a source's path that is the same for all its files: the folder, or what stands before a glob."""
    if is_file:
        return path.rpartition("/")[0]
    above: list[str] = []
    for segment in path.split("/"):
        if _GLOB_CHARS & set(segment):
            return "/".join(above)
        above.append(segment)
    return path


def odd_part(key: str) -> str | None:
    """What no request of ours can name an S3 object with, as written in its key; None in an ordinary key.

    pyarrow refuses an empty part, and what sends requests resolves `.` and `..` on the way: another object is read.
    """
    return next((f"/{part}/" for part in key.split("/") if part in _CANNOT_NAME), None)


def find(filesystem: fs.FileSystem, path: str) -> tuple[str, list[fs.FileInfo]]:
    """The files of a source, and the path that all of them lie below.

    Raises:
        FactError: one of them cannot be read by its name, or is no file.
        OSError: the place cannot be read.
    """
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        return base_of(path, is_file=True), [info]
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    if info.type == fs.FileType.Directory:
        return path, list(_walk(path)) if is_local else _objects(filesystem, path)
    if is_local and os.path.lexists(path):
        _look_at(path)
        raise FactError(f"{path}: is neither a file nor a folder; give one of them")
    found = _matching(filesystem, path) if _GLOB_CHARS & set(path) else []
    return base_of(path, is_file=False), found


def below(filesystem: fs.FileSystem, path: str) -> list[fs.FileInfo]:
    """All files below a directory or prefix, whatever they are called; none where there is no such place."""
    try:
        found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    except UnicodeDecodeError as error:
        raise OSError("a name in it is not UTF-8; rename it") from error
    return [info for info in found if info.type == fs.FileType.File]


def _objects(filesystem: fs.FileSystem, prefix: str) -> list[fs.FileInfo]:
    found = below(filesystem, prefix)
    return [_nameable(info) for info in found if not any(map(_hidden, info.path[len(prefix) + 1 :].split("/")))]


def _nameable(info: fs.FileInfo) -> fs.FileInfo:
    if odd := odd_part(info.path.partition("/")[2]):
        raise FactError(
            f"s3://{info.path}: its key holds {odd!r}, and such an object cannot be read; rename it, or give a "
            "source without it: a folder, or a glob of names"
        )
    return info


def _hidden(name: str) -> bool:
    return name.startswith((".", "_")) and name not in _CANNOT_NAME


def _walk(folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[fs.FileInfo]:
    """Files below a local folder, through links too."""
    seen = Path(folder).stat()
    inside = above | {(seen.st_dev, seen.st_ino)}
    if len(inside) == len(above):
        raise FactError(
            f"{folder}: is a folder that it lies in, by a link; remove the link, or give a source without it"
        )
    for path in _scan(folder):
        if _hidden(path.rpartition("/")[2]):
            continue
        info = _look_at(path)
        if info.type == fs.FileType.Directory:
            yield from _walk(path, inside)
        else:
            yield info


def _scan(folder: str) -> list[str]:
    """Paths of what lies in a local folder."""
    try:
        return [str(path) for path in Path(folder).iterdir()]
    except OSError as error:
        raise FactError(
            f"{folder}: cannot be listed ({error.strerror}); check its permissions, or give a source without it"
        ) from error


def _look_at(path: str) -> fs.FileInfo:
    """What lies at a local path, links followed: a file or a directory."""
    try:
        path.encode()
        found = Path(path).stat()
    except UnicodeEncodeError as error:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise FactError(f"{shown}: its name is not UTF-8; rename it, or give a source without it") from error
    except OSError as error:
        what = "is a link to nothing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise FactError(f"{path}: {what}; mend or remove it, or give a source without it") from error
    kind = next((kind for kind, is_kind in _KINDS.items() if is_kind(found.st_mode)), None)
    if kind is None:
        raise FactError(f"{path}: is neither a file nor a folder; remove it, or give a source without it")
    return fs.FileInfo(path, type=getattr(fs.FileType, kind), size=found.st_size, mtime_ns=found.st_mtime_ns)


def _matching(filesystem: fs.FileSystem, pattern: str) -> list[fs.FileInfo]:
    """Files that a glob means: segment by segment, so that only directories it names are listed."""
    *above, last = pattern.split("/")
    folders = [""]
    for segment in above:
        if _GLOB_CHARS & set(segment):
            infos = [info for folder in folders for info in _listed(filesystem, folder, segment)]
            folders = [f"{info.path}/" for info in infos if info.type == fs.FileType.Directory]
        else:
            folders = [f"{folder}{segment}/" for folder in folders]
    infos = [info for folder in folders for info in _listed(filesystem, folder, last)]
    return [info for info in infos if info.type == fs.FileType.File]


def _listed(filesystem: fs.FileSystem, folder: str, segment: str) -> list[fs.FileInfo]:
    """What lies in a folder (its path ends in a slash) and matches one segment of a glob: a name, not an empty one."""
    place = folder.rstrip("/") or "/"
    if folder and filesystem.get_file_info(place).type == fs.FileType.File:
        return []
    if isinstance(filesystem, fs.LocalFileSystem):
        paths = _scan(place) if os.path.lexists(place) else []
        return [_look_at(path) for path in paths if fnmatchcase(path.rpartition("/")[2], segment)]
    found = filesystem.get_file_info(fs.FileSelector(place, allow_not_found=True))
    named = [(info, info.path.removeprefix(place).lstrip("/")) for info in found]
    return [_nameable(info) for info, name in named if name and fnmatchcase(name, segment)]
