"""What a nightly run is told."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.errors import ConfigError
from recipe_ray.eval.canary import CanaryLimits
from recipe_ray.facts import DEFAULT_NAMESPACE

DATE_FIELD = "{date}"
_DEFAULT = CanaryLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class NightlyConfig:
    """Which dump to publish, how it is checked, and who is to serve it.

    Attributes:
        source: as of jobs/ingest.py, with {date} where the date stands: s3://bucket/dumps/{date}/.
        table: the table of facts, local or s3://; made where there is none.
        editor: the trained editor: its directory, local (on every node) or s3://, or the name of a published one.
        canary: JSON Lines, local or s3://: {"prompt", "target"} must be answered so, on a lone {"prompt"} nothing may
            fire; "namespace" where it is another.
        date: of the dump, YYYY-MM-DD; today's, in UTC, if not given.
        llm: that must say the answers, by Hugging Face id, path or short name; if not given no LLM is asked, and a
            question is answered where a fact with its target is applied.
        servers: URLs of servers, http://host:8000, whose answers must come from what was published before this job is
            done; ?model=NAME behind a URL where it serves several. A key for them is read from RECIPE_RAY_API_KEY.
        namespace: of rows and questions that name none.
        columns: FIELD=COLUMN, where the dump names a field otherwise.
        again: take in a dump that the table's log holds already, after a rollback for instance.
        device: where facts are encoded and the LLM computes: auto takes GPUs where the cluster has some.
        sample: facts of the dump that are asked about.
        seed: of the drawing of these.
        min_known: share of the canary's questions with a target that must be answered.
        min_sampled: share of the sampled facts whose prompts must be answered.
        max_fired: share of the questions without a target on which a fact may be applied.
        max_quarantined: bad rows that exit status 0 allows; below 1 a share of the rows.
        json: file for the summary as JSON, local or s3://.
    """

    source: str
    table: str
    editor: str
    canary: str
    date: str | None = None
    llm: str | None = None
    servers: tuple[str, ...] = ()
    namespace: str = DEFAULT_NAMESPACE
    columns: tuple[str, ...] = ()
    again: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    sample: int = 200
    seed: int = 0
    min_known: float = _DEFAULT.min_known
    min_sampled: float = _DEFAULT.min_sampled
    max_fired: float = _DEFAULT.max_fired
    max_quarantined: float = 0
    json: str | None = None

    def __post_init__(self) -> None:
        if DATE_FIELD not in self.source:
            raise ConfigError(f"source is {self.source}, without {DATE_FIELD}; write it where the date stands")
        if self.date is not None:
            try:
                is_date = date.fromisoformat(self.date).isoformat() == self.date
            except ValueError:
                is_date = False
            if not is_date:
                raise ConfigError(f"date is {self.date!r}; give it as YYYY-MM-DD")
        if self.sample < 0:
            raise ConfigError(f"sample is {self.sample}; give a number of facts, or 0 for none")
        for url in self.servers:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"servers: {url} is no URL; give http://host:port or https://host")
        self.limits()
        self.ingest_config("1970-01-01")

    def day(self) -> str:
        """The date of the dump, as it stands in the source."""
        return self.date or datetime.now(UTC).date().isoformat()

    def ingest_config(self, day: str) -> IngestConfig:
        """The ingest of a day's dump."""
        return IngestConfig(
            source=self.source.replace(DATE_FIELD, day),
            table=self.table,
            editor=self.editor,
            columns=self.columns,
            namespace=self.namespace,
            again=self.again,
            max_quarantined=self.max_quarantined,
            device=self.device,
        )

    def limits(self) -> CanaryLimits:
        """What is good enough."""
        return CanaryLimits(min_known=self.min_known, min_sampled=self.min_sampled, max_fired=self.max_fired)
