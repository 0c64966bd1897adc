"""What an ingest is told."""

from dataclasses import dataclass
from typing import Literal

from recipe_ray.errors import ConfigError
from recipe_ray.facts import DEFAULT_NAMESPACE
from recipe_ray.store.dumps.rows import DumpOptions
from recipe_ray.store.schema import VectorDtype
from recipe_ray.store.table import DEFAULT_NUM_SHARDS


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestConfig:
    """What to ingest, where to, and with which resources.

    Attributes:
        source: JSON Lines, CSV or Parquet, plain or compressed: a file, a directory or a glob, local or s3://.
        table: the table of facts, local or s3://; made where there is none.
        editor: the trained editor: its directory, local (on every node) or s3://, or the name of a published one.
        form: auto (by the files' names), jsonl, csv, parquet, or a data set's: counterfact, zsre, ripe, edits.
        columns: FIELD=COLUMN, where the dump names a field otherwise.
        namespace: of rows that name none.
        again: ingest a dump that the table's log holds already, after a rollback for instance.
        max_quarantined: bad rows that exit status 0 allows; below 1 a share of the rows.
        report: file for the summary as JSON, local or s3://.
        device: where encoders compute: auto takes GPUs where the cluster has some.
        num_encoders: encoder processes; None takes what the cluster has room for.
        cpus_per_encoder: CPUs of an encoder; None takes about 1.
        gpus_per_encoder: GPUs of an encoder, fractions allowed; None takes 1 where GPUs are used.
        num_shards: shards of a namespace, for a new table; 4 serves a million facts, a small table is best off with 1.
        dtype: of stored vectors, for a new table.
    """

    source: str
    table: str
    editor: str
    form: str = "auto"
    columns: tuple[str, ...] = ()
    namespace: str = DEFAULT_NAMESPACE
    again: bool = False
    max_quarantined: float = 0
    report: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_encoders: int | None = None
    cpus_per_encoder: float | None = None
    gpus_per_encoder: float | None = None
    num_shards: int = DEFAULT_NUM_SHARDS
    dtype: VectorDtype = "float16"

    def __post_init__(self) -> None:
        for name in ("num_encoders", "num_shards", "cpus_per_encoder", "gpus_per_encoder"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; give a number above 0")
        if self.max_quarantined < 0:
            raise ConfigError(f"max_quarantined is {self.max_quarantined}; give a number of rows, or a share below 1")
        if self.device == "cpu" and self.gpus_per_encoder is not None:
            raise ConfigError(f"device is cpu and gpus_per_encoder is {self.gpus_per_encoder}; give one of them only")
        self.options()

    def options(self) -> DumpOptions:
        """How the dump is read."""
        return DumpOptions(form=self.form, columns=self.columns, namespace=self.namespace)
