"""The manifest of an index beside a table: what was indexed, how, how well it finds, and which bytes it is."""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import ConfigError, TableError
from recipe_ray.store.files import absolute, join, read_text
from recipe_ray.store.indexes.ann import PartSpec
from recipe_ray.store.indexes.tuning import IndexSettings

INDEX_FOLDER = "_index"
MANIFEST_FILE = "manifest.json"
LAYOUT = 1  # of manifest and files; another one is refused
_DIGEST_BYTES = 16
_READ_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file beside the manifest: its name, its size in bytes, the BLAKE2b of its bytes in hex."""

    name: str
    size_bytes: int
    blake2b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEntry:
    """The facts of one namespace and shard.

    Attributes:
        namespace, shard: of the table.
        num_facts: F, at least 1.
        spec: kind, remedy, probes and what else the index was built by.
        recall: share of sample queries whose best fact the index finds.
        agreement: share of sample queries for which it applies the same fact, or none, as an exact search.
        reason: why this kind and these probes.
        files: by suffix: faiss, npy and arrow.
    """

    namespace: str
    shard: int
    num_facts: int
    spec: PartSpec
    recall: float
    agreement: float
    reason: str
    files: Mapping[str, FileEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexManifest:
    """A complete index.

    Attributes:
        uri: where it lies; not written down, it may be copied elsewhere.
        table, version: what was indexed.
        identity: the editor that encoded it.
        dtype: of keys and prompts, float16 or float32.
        settings: as given.
        measured_on: what recall was measured with: the prompts of facts, or their keys.
        read_at: when the table was read; facts that had expired by then are left out.
        seconds: that the build took.
        parts: sorted by namespace and shard; global rows count through them in this order.
        repeated: whether a build found it there already.
    """

    uri: str
    table: str
    version: int
    identity: EditorIdentity
    dtype: str
    settings: IndexSettings
    measured_on: Literal["prompts", "keys"]
    read_at: datetime
    seconds: float
    parts: tuple[PartEntry, ...]
    repeated: bool = False

    @property
    def num_facts(self) -> int:
        """F."""
        return sum(part.num_facts for part in self.parts)

    @property
    def size_bytes(self) -> int:
        """Of all files but the manifest."""
        return sum(file.size_bytes for part in self.parts for file in part.files.values())

    @property
    def recall(self) -> float:
        """Of the worst part."""
        return min((part.recall for part in self.parts), default=1.0)

    @property
    def agreement(self) -> float:
        """Of the worst part."""
        return min((part.agreement for part in self.parts), default=1.0)

    def to_json(self) -> str:
        """The text of the manifest; `read_manifest` reads it."""
        sentinel = np.ascontiguousarray(self.identity.sentinel_K, dtype="<f4").tobytes()
        identity = {
            field.name: getattr(self.identity, field.name)
            for field in dataclasses.fields(self.identity)
            if field.name != "sentinel_K"
        }
        content = {
            "layout": LAYOUT,
            "table": self.table,
            "version": self.version,
            "editor": identity,
            "sentinel": base64.b64encode(sentinel).decode(),
            "dtype": self.dtype,
            "settings": dataclasses.asdict(self.settings),
            "measured_on": self.measured_on,
            "read_at": self.read_at.isoformat(),
            "seconds": self.seconds,
            "num_facts": self.num_facts,
            "size_bytes": self.size_bytes,
            "recall": self.recall,
            "agreement": self.agreement,
            "parts": [dataclasses.asdict(part) for part in self.parts],
        }
        return json.dumps(content, indent=2) + "\n"


def read_manifest(uri: str) -> IndexManifest | None:
    """Read the manifest of an index; None where there is none, so no complete index either.

    Raises:
        OutputError: the place cannot be read.
        TableError: it is damaged, or of another layout.
    """
    uri = absolute(uri)
    place = join(uri, MANIFEST_FILE)
    text = read_text(place)
    if text is None:
        return None
    try:
        content = json.loads(text)
        if content["layout"] != LAYOUT:
            raise TableError(f"{place}: is of layout {content['layout']}, this program reads {LAYOUT}; build it anew")
        return _manifest(uri, content)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise TableError(f"{place}: is damaged ({str(error)[:200]}); remove {uri} and build the index anew") from error


def checksum(file: Path) -> str:
    """BLAKE2b of a file's bytes, in hex.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with file.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _manifest(uri: str, content: dict[str, Any]) -> IndexManifest:
    sentinel_K = np.frombuffer(base64.b64decode(content["sentinel"]), dtype="<f4").astype(np.float32)
    return IndexManifest(
        uri=uri,
        table=content["table"],
        version=content["version"],
        identity=EditorIdentity(**content["editor"], sentinel_K=sentinel_K),
        dtype=content["dtype"],
        settings=IndexSettings(**content["settings"]),
        measured_on=content["measured_on"],
        read_at=datetime.fromisoformat(content["read_at"]),
        seconds=content["seconds"],
        parts=tuple(_part(part) for part in content["parts"]),
    )


def _part(content: dict[str, Any]) -> PartEntry:
    files = {suffix: FileEntry(**file) for suffix, file in content["files"].items()}
    return PartEntry(**{**content, "spec": PartSpec(**content["spec"]), "files": files})
