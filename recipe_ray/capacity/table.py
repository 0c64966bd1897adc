"""The plan for people, and for programs."""

from dataclasses import asdict, dataclass
from typing import Any

from recipe_ray.capacity import constants as c
from recipe_ray.capacity.config import CapacityConfig
from recipe_ray.capacity.parts import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table: what, how much, and of what that is made."""

    part: str
    what: str
    value: str
    made_of: str = ""


def rows(config: CapacityConfig, plan: Plan) -> list[Row]:
    """The plan, line by line."""
    fact, storage, index, engines = plan.fact, plan.storage, plan.index, plan.engines
    retrieval, nightly, warm = plan.retrieval, plan.nightly, plan.warm_start
    shape = f"K {config.keys}, P {config.virtual_tokens}, D {config.llm_shape.width}, {config.vector_dtype}"
    cached = f"{engines.memory_per_gpu / c.GB:.1f} GB a GPU"
    return [
        _row("fact", "in the table", size(fact.event), shape),
        _row("fact", "searched: index and key", size(fact.searched), f"{index.kind}, {index.num_dimensions} numbers"),
        _row("fact", "in the index's facts", size(fact.row), "prompt and texts, mapped from disk"),
        _row("S3", "table", size(storage.table), "Parquet: keys, prompts, texts"),
        _row("S3", "history", size(storage.history), f"{config.history_days} days and a compaction's old files"),
        _row("S3", "indexes", size(storage.indexes), f"{c.NUM_INDEXES_KEPT} are kept"),
        _row("S3", "editor", size(storage.editor)),
        _row("S3", "total", size(storage.total)),
        _row("index", "index shards", f"{index.num_shards}", "num_index_shards; with 1 shard 0 will do"),
        _row("index", "shards of the table", f"{index.table_shards}", f"of {index.facts_per_part:,} facts at most"),
        _row("index", "replicas a shard", f"{index.shard_replicas}"),
        _row("index", "cores a replica", f"{index.cpus_per_replica}"),
        _row("index", "memory a replica", size(index.memory_per_replica), f"{config.versions_in_memory} versions"),
        _row("index", "disk a replica", size(index.disk_per_replica)),
        _row("index", "memory, all replicas", size(index.total_memory)),
        _row("index", "search of a query", seconds(index.search_core_s), "of one core, in one index shard"),
        _row("retrieval", "query encoders", f"{retrieval.num_retrievers}", "a core each"),
        _row("retrieval", "encoding of a query", seconds(retrieval.encode_core_s), "of one core"),
        _row("retrieval", "ingresses", f"{retrieval.num_ingresses}", "a core each"),
        _row("retrieval", "time of a retrieval", seconds(retrieval.seconds), "that waits for nothing else"),
        _row("LLM", "GPUs an engine", f"{engines.gpus_per_engine}", f"{config.gpu}, {cached}"),
        _row("LLM", "batch", f"{engines.batch_size}", "prompts in step"),
        _row("LLM", "requests a second, an engine", f"{engines.requests_per_s:.1f}", "fully busy"),
        _row(
            "LLM",
            "time of an answer",
            seconds(engines.answer_s),
            f"{config.answer_tokens} tokens, wanted {config.latency_s:g} s",
        ),
        _row("LLM", "engines", f"{engines.num_engines}", f"at {config.utilisation:.0%} of what they can"),
        _row("LLM", "GPUs", f"{engines.total_gpus}"),
        _row("night", "first ingest", f"{nightly.full_ingest:.2f} h", _ingesters(config)),
        _row("night", f"ingest of {config.delta:.1%}", f"{nightly.delta_ingest:.2f} h"),
        _row("night", "index", f"{nightly.index:.2f} h", f"one process, {config.node_cpus} cores"),
        _row("night", "every night", f"{nightly.every_night:.2f} h"),
        _row("warm start", "over the network", size(warm.total), "all replicas at once"),
        _row("warm start", "slowest replica", seconds(warm.seconds), f"{config.network_gbit_s:g} Gbit/s a machine"),
        _row("total", "CPU cores that answer", f"{plan.total_cpus}", "index, retrieval, engines"),
        _row("total", "memory that retrieves", size(plan.total_memory), "index, query encoders, ingresses"),
        _row("total", "GPUs", f"{engines.total_gpus}"),
    ]


def as_json(config: CapacityConfig, plan: Plan) -> dict[str, Any]:
    """Everything as plain values, in bytes, seconds, hours and counts, with the sums."""
    values = asdict(plan)
    values["fact"]["searched"] = plan.fact.searched
    values["storage"]["total"] = plan.storage.total
    for name in ("table_shards", "num_replicas", "total_memory", "total_cpus"):
        values["index"][name] = getattr(plan.index, name)
    for name in ("total_cpus", "total_memory"):
        values["retrieval"][name] = getattr(plan.retrieval, name)
    values["engines"]["total_gpus"] = plan.engines.total_gpus
    for name in ("first_night", "every_night"):
        values["nightly"][name] = getattr(plan.nightly, name)
    values["warm_start"]["total"] = plan.warm_start.total
    totals = {"cpus": plan.total_cpus, "memory": plan.total_memory, "gpus": plan.engines.total_gpus}
    return {"config": asdict(config), **values, "totals": totals}


def size(num_bytes: float) -> str:
    """Bytes as people read them, in powers of 1,000."""
    for unit, factor in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def seconds(value: float) -> str:
    """Seconds or milliseconds."""
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def _ingesters(config: CapacityConfig) -> str:
    gpus = f", {config.ingest_gpus} GPUs {config.gpu}" if config.ingest_gpus else ""
    return f"{config.ingest_cpus} cores{gpus}"


def _row(part: str, what: str, value: str, made_of: str = "") -> Row:
    return Row(part=part, what=what, value=value, made_of=made_of)
