"""What a server would answer from, were files that lie beside the table committed to it: made without committing."""

from collections.abc import Collection, Sequence
from datetime import datetime

from recipe_ray.store.live.index import LiveIndex
from recipe_ray.store.live.ledger import Ledger
from recipe_ray.store.live.view import View, advanced
from recipe_ray.store.parquet import DataFile
from recipe_ray.store.table import FactTable


def preview(
    table: FactTable, files: Sequence[DataFile], *, shards: Collection[int] | None = None, at: datetime
) -> View:
    """The view that a live index would make of the next version, had it these files.

    As a server does, it takes the newest index artefact for its base and searches what came since exactly; without an
    artefact the shards are read into memory. Its `version` is the table's, since the next one is not there yet.

    Args:
        table: at the version that the files would be committed to.
        files: written below the table.
        shards: partitions of these shards alone; None for all.
        at: facts that have expired by then are left out.

    Raises:
        TableError: a file is missing or damaged.
        OutputError: the place cannot be read.
        ServiceError: FAISS is not installed.
    """
    live = LiveIndex(table.uri, fingerprint=table.identity.fingerprint, version=table.version, shards=shards)
    view = live.view()
    assert view is not None
    return advanced(view, table.with_pending(files), Ledger(table.uri), shards=shards, at=at)
