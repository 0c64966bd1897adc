"""What a build of indexes is told."""

from dataclasses import dataclass
from typing import Literal

from recipe_ray.store.indexes.tuning import IndexSettings

_DEFAULT = IndexSettings()


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexBuildConfig:
    """Which table to index and how.

    Attributes:
        table: the table of facts, local or s3://; the index is written below it.
        version: of the table; None takes the last.
        editor: directory of the table's editor, local or s3://: recall is then measured on the prompts of facts, not on
            keys.
        kind: of index; auto goes by the number of facts of a shard.
        remedy: against keys of unequal norm; auto takes what measured best for the norms.
        storage: of the vectors in the index; auto is as the table has them.
        num_lists: inverted lists of a shard; None takes 4 times the root of its facts.
        num_probes: lists that a query visits, or graph entries it keeps, to begin with; raised until --min-recall is
            met.
        num_links: of a fact in the graph of hnsw.
        num_dimensions: numbers a key that are indexed; None takes for hnsw as few as --min-recall allows, if half of a
            key's are enough, and all otherwise.
        min_recall: share of sample queries whose best fact must be found; where it is not, exact is taken.
        num_queries: in the sample of a shard.
        json: file for the summary as JSON, local or s3://.
    """

    table: str
    version: int | None = None
    editor: str | None = None
    kind: Literal["auto", "exact", "ivf", "hnsw", "sq8"] = _DEFAULT.kind
    remedy: Literal["auto", "none", "l2", "spherical"] = _DEFAULT.remedy
    storage: Literal["auto", "float16", "float32"] = _DEFAULT.storage
    num_lists: int | None = None
    num_probes: int | None = None
    num_links: int = _DEFAULT.num_links
    num_dimensions: int | None = None
    min_recall: float = _DEFAULT.min_recall
    num_queries: int = _DEFAULT.num_queries
    json: str | None = None

    def __post_init__(self) -> None:
        self.settings()

    def settings(self) -> IndexSettings:
        """How each shard is indexed."""
        return IndexSettings(
            kind=self.kind,
            remedy=self.remedy,
            storage=self.storage,
            num_lists=self.num_lists,
            num_probes=self.num_probes,
            num_links=self.num_links,
            num_dimensions=self.num_dimensions,
            min_recall=self.min_recall,
            num_queries=self.num_queries,
        )
