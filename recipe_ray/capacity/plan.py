"""The plan itself. Formulas and what they rest on: docs/capacity.md.

K key width, P virtual tokens, D LLM width. Bytes are bytes, seconds seconds; `core_s` are seconds of one CPU core.
"""

import math

from recipe_ray.capacity import constants as c
from recipe_ray.capacity.config import CapacityConfig
from recipe_ray.capacity.engines import EnginePlan, plan_engines
from recipe_ray.capacity.parts import (
    FactBytes,
    IndexPlan,
    NightlyPlan,
    Plan,
    RetrievalPlan,
    StoragePlan,
    WarmStartPlan,
)
from recipe_ray.errors import ConfigError

_HOUR_S = 3600.0


def plan(config: CapacityConfig) -> Plan:
    """Work out what a configuration needs.

    Raises:
        ConfigError: no number of machines would do, with what is too little and what to change.
    """
    index, fact = _index(config)
    retrieval = _retrieval(config, index)
    engines = plan_engines(config, retrieval_s=retrieval.seconds)
    nightly = _nightly(config, index, fact)
    return Plan(
        fact=fact,
        storage=_storage(config, fact),
        index=index,
        retrieval=retrieval,
        engines=engines,
        nightly=nightly,
        warm_start=_warm_start(config, index, fact, engines, retrieval),
        notes=_notes(config, index, engines, nightly),
    )


def fact_bytes(config: CapacityConfig, *, kind: str) -> FactBytes:
    """What a fact takes with an index of a kind, exact or hnsw."""
    entry = int(c.BYTES_OF[config.vector_dtype])
    key, prompt = config.keys * entry, config.virtual_tokens * config.llm_shape.width * entry
    return FactBytes(
        key=key,
        prompt=prompt,
        event=key + prompt + c.EVENT_BYTES + c.TEXT_COMPRESSED * config.text_bytes,
        index=key if kind == "exact" else _num_dimensions(config) * entry + c.GRAPH_LINK_BYTES,
        row=prompt + config.text_bytes + c.ARROW_ROW_BYTES,
    )


def _num_dimensions(config: CapacityConfig) -> int:
    return config.index_dimensions or max(1, math.ceil(config.keys * c.GRAPH_DIMENSIONS_SHARE))


def _kind(config: CapacityConfig, num_facts: int) -> str:
    if config.index_kind != "auto":
        return config.index_kind
    return "exact" if num_facts < c.EXACT_BELOW else "hnsw"


def _searched_bytes(config: CapacityConfig, num_facts: int) -> float:
    """Of index and keys of one part; where a scan becomes a graph, which is smaller, the plan does not shrink."""
    needed = num_facts * fact_bytes(config, kind=_kind(config, num_facts)).searched
    if config.index_kind == "auto":
        needed = max(needed, min(num_facts, c.EXACT_BELOW) * fact_bytes(config, kind="exact").searched)
    return needed


def _index(config: CapacityConfig) -> tuple[IndexPlan, FactBytes]:
    machine = config.node_memory_gib * c.GIB * config.node_memory_share
    largest = fact_bytes(config, kind="exact" if config.index_kind == "exact" else "hnsw")
    overlay = config.delta * (largest.searched + largest.key + largest.row)  # of keys in memory a scan keeps two copies
    beside = overlay + c.LEDGER_BYTES
    room = machine - c.PROCESS_BYTES
    per_fact = config.versions_in_memory * largest.searched + beside
    built = largest.key + largest.searched + largest.row
    if room < max(per_fact, built):
        raise ConfigError(
            f"node_memory_gib is {config.node_memory_gib:g}, of which {config.node_memory_share:g} are for the index: "
            f"less than a process of {c.PROCESS_BYTES / c.GIB:g} GiB and one fact; give a larger machine"
        )
    num_shards = math.ceil(config.facts * per_fact / room)
    parts = math.ceil(config.facts / num_shards * built / room)
    part = math.ceil(config.facts / (num_shards * parts))
    kind = _kind(config, part)
    fact = fact_bytes(config, kind=kind)
    memory = c.PROCESS_BYTES + parts * (config.versions_in_memory * _searched_bytes(config, part) + part * beside)
    search_s = parts * _search_core_s(config, kind, part)
    replicas = max(
        config.replicas, math.ceil(config.requests_per_s * search_s / (config.node_cpus * config.utilisation))
    )
    return (
        IndexPlan(
            kind=kind,
            num_dimensions=config.keys if kind == "exact" else _num_dimensions(config),
            num_shards=num_shards,
            parts_per_shard=parts,
            facts_per_part=part,
            memory_per_replica=memory,
            disk_per_replica=config.versions_in_memory * parts * part * (fact.searched + fact.row),
            search_core_s=search_s,
            shard_replicas=replicas,
            cpus_per_replica=max(1, math.ceil(config.requests_per_s * search_s / (replicas * config.utilisation))),
        ),
        fact,
    )


def _search_core_s(config: CapacityConfig, kind: str, num_facts: int) -> float:
    if kind == "exact":
        return num_facts * fact_bytes(config, kind=kind).key / c.SCAN_BYTES_PER_CORE_S
    return c.GRAPH_SEARCH_CORE_S * _longer_walk(num_facts) * config.keys / c.MEASURED_KEY_WIDTH


def _longer_walk(num_facts: int) -> float:
    """How much longer the way through a graph is than among the facts that were measured."""
    return math.log(max(num_facts, 2)) / math.log(c.MEASURED_FACTS)


def _head_parameters(config: CapacityConfig) -> tuple[float, float]:
    """Of one head, and of the prompt encoder: weights that a text passes once."""
    keys = config.keys
    head = c.POOLED_PARTS * config.encoder_shape.width * keys + keys**2
    return head, keys**2 + keys * config.virtual_tokens * config.llm_shape.width


def _retrieval(config: CapacityConfig, index: IndexPlan) -> RetrievalPlan:
    head, _ = _head_parameters(config)
    flops = 2 * (config.encoder_shape.layer_parameters * config.query_tokens + head)
    encode_s = c.QUERY_CORE_S + flops / c.CORE_FLOPS
    seconds = encode_s + index.search_core_s + 2 * c.MESSAGE_S
    if seconds >= config.latency_s:
        raise ConfigError(
            f"latency_s is {config.latency_s:g}, but the retrieval alone takes {seconds:.3g}; give latency_s above "
            "that, a smaller key_width, or (where a scan takes it) index_kind hnsw"
        )

    def cores(core_s: float) -> int:
        return max(config.replicas, math.ceil(config.requests_per_s * core_s / config.utilisation))

    return RetrievalPlan(
        encode_core_s=encode_s,
        seconds=seconds,
        num_retrievers=cores(encode_s),
        num_ingresses=cores(c.INGRESS_CORE_S),
        memory_per_retriever=c.PROCESS_BYTES + _editor_bytes(config),
        memory_per_ingress=c.PROCESS_BYTES,
    )


def _editor_bytes(config: CapacityConfig) -> float:
    head, prompts = _head_parameters(config)
    return 4 * (config.encoder_shape.num_parameters + 2 * head + prompts)


def _storage(config: CapacityConfig, fact: FactBytes) -> StoragePlan:
    nights = config.facts * config.delta * config.history_days * fact.event
    replaced = config.facts * fact.event if config.history_days else 0.0
    return StoragePlan(
        table=config.facts * fact.event,
        history=nights + replaced,
        indexes=c.NUM_INDEXES_KEPT * config.facts * (fact.searched + fact.row),
        editor=_editor_bytes(config),
    )


def _nightly(config: CapacityConfig, index: IndexPlan, fact: FactBytes) -> NightlyPlan:
    head, prompts = _head_parameters(config)
    flops = 2 * (config.encoder_shape.layer_parameters * config.statement_tokens + head + prompts)
    if config.ingest_gpus:  # encoding and everything else run beside each other
        encode_s = flops / (config.ingest_gpus * config.gpu_card.tflops * 1e12 * c.GPU_ENCODE_FLOPS_SHARE)
        fact_s = max(encode_s, c.INGEST_CORE_S / config.ingest_cpus)
    else:
        fact_s = (flops / c.CORE_FLOPS + c.INGEST_CORE_S) / config.ingest_cpus
    built_s = 0.0
    if index.kind == "hnsw":
        per_fact_s = c.GRAPH_BUILD_CORE_S * _longer_walk(index.facts_per_part) * config.keys / c.MEASURED_KEY_WIDTH
        built_s = config.facts * per_fact_s / config.node_cpus
    moved_s = config.facts * (fact.event + fact.searched + fact.row) / _network_bytes_per_s(config)
    return NightlyPlan(
        full_ingest=(c.INGEST_START_S + config.facts * fact_s) / _HOUR_S,
        delta_ingest=(c.INGEST_START_S + config.facts * config.delta * fact_s) / _HOUR_S,
        index=(built_s + moved_s) / _HOUR_S,
    )


def _network_bytes_per_s(config: CapacityConfig) -> float:
    """What a machine fetches."""
    return config.network_gbit_s * 1e9 / 8 * c.NETWORK_SHARE


def _warm_start(
    config: CapacityConfig, index: IndexPlan, fact: FactBytes, engines: EnginePlan, retrieval: RetrievalPlan
) -> WarmStartPlan:
    shard = index.parts_per_shard * index.facts_per_part * (fact.searched + fact.row)
    editor = _editor_bytes(config)
    return WarmStartPlan(
        engines=engines.num_engines * config.llm_bytes,
        shards=index.num_replicas * shard,
        retrievers=retrieval.num_retrievers * editor,
        seconds=max(config.llm_bytes, shard, editor) / _network_bytes_per_s(config),
    )


def _notes(config: CapacityConfig, index: IndexPlan, engines: EnginePlan, nightly: NightlyPlan) -> tuple[str, ...]:
    notes = [
        "measured constants are of 2 CPU cores with the testbed's models, and of one H100; other GPUs and networks are "
        "data sheets and assumed shares of them: measure your own before you buy"
    ]
    if config.facts > c.MEASURED_FACTS:
        notes.append(f"more than {c.MEASURED_FACTS:,} facts were never run: all beyond is extrapolated")
    if nightly.every_night > config.night_hours:
        notes.append(
            f"a night takes {nightly.every_night:.1f} h, more than the {config.night_hours:g} there are: indexes are "
            "built whole, by one process; build weekly (overlays grow meanwhile), or give more node_cpus"
        )
    if nightly.first_night > config.night_hours:
        notes.append(f"the first night takes {nightly.first_night:.1f} h: give more ingest_cpus, or ingest_gpus")
    if engines.gpus_per_engine > 1:
        notes.append(f"{engines.gpus_per_engine} GPUs an engine: engine vllm with tensor_parallel alone does that")
    if index.kind == "hnsw" and config.keys > c.MEASURED_KEY_WIDTH and config.index_dimensions is None:
        notes.append(
            f"the share of a key that a graph holds was measured at K {c.MEASURED_KEY_WIDTH}; at K {config.keys} it "
            "may take whole keys (index_dimensions), or a scan where keys are of unequal norm"
        )
    return tuple(notes)
