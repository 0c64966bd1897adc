r"""How fast an index finds facts, and how often it finds what an exact search finds, by number of facts.

    python benchmarks/index.py --editor EDITOR --num-facts 10000 100000
    python benchmarks/index.py --editor EDITOR --table TABLE --num-facts 10000 100000 1000000 --variants default exact

Invented facts are encoded (kept below --cache for the next run), or their keys are taken from a table into which
`python -m recipe_ray.testbed.million` was ingested. Half of the questions are about stored facts in other words, half
about subjects of which nothing is stored; as many others, held out, tell how many probes an index gets. Indexes are
searched as a server does: mapped from a file, candidates scored again exactly.

A full sort of all similarities, which the reference implementation does, is what speed is held against. Agreement is
the share of questions to which the same fact is applied, or none, as after an exact search. The last line is one JSON
object; of `default` are `agreement_at_1e6`, `p50_ratio_1e6_to_1e4` and, at the largest size, `speedup_over_full_sort`.
"""

import argparse
import dataclasses
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from recipe_ray.errors import TableError
from recipe_ray.model.editor import Editor, load_editor
from recipe_ray.retrieval import NO_FACT, decide
from recipe_ray.store.files import localize_editor
from recipe_ray.store.indexes.ann import PartIndex, exact_nearest
from recipe_ray.store.indexes.exact import inner_products
from recipe_ray.store.indexes.tuning import IndexSettings, Sample, build_tuned, choose, norm_range
from recipe_ray.store.snapshot import read_partition
from recipe_ray.store.table import FactTable
from recipe_ray.testbed.million import generate_facts, generate_questions

SEED = 0
BATCH_SIZE = 32
NUM_SORTS = 20  # of all similarities: each takes long, and about as long as the last
FACTS_PER_CHUNK = 8192

VARIANTS = {
    "exact": IndexSettings(kind="exact"),
    "exact-float32": IndexSettings(kind="exact", storage="float32"),
    "ivf-none": IndexSettings(kind="ivf", remedy="none"),
    "ivf-l2": IndexSettings(kind="ivf", remedy="l2"),
    "ivf-spherical": IndexSettings(kind="ivf", remedy="spherical"),
    "hnsw-none": IndexSettings(kind="hnsw", remedy="none"),
    "hnsw-l2": IndexSettings(kind="hnsw", remedy="l2"),
    "sq8": IndexSettings(kind="sq8", remedy="none"),
}
DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Questions with what an exact search answers.

    Attributes:
        queries_BK: float32.
        thresholds_B: similarity to the sentinel.
        truth: nearest row and score.
        stored_B: the row of the fact that answers, NO_FACT where none does.
    """

    queries_BK: npt.NDArray[np.float32]
    thresholds_B: npt.NDArray[np.float32]
    truth: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
    stored_B: npt.NDArray[np.int64]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--editor", required=True, help="directory of a trained editor")
    parser.add_argument("--table", help="a table that holds the invented facts, encoded by the editor")
    parser.add_argument("--num-facts", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--num-questions", type=int, default=1000)
    parser.add_argument("--variants", nargs="+", choices=[DEFAULT, *VARIANTS], default=list(VARIANTS))
    parser.add_argument("--max-graph-facts", type=int, help="leave out hnsw above this many facts")
    parser.add_argument("--cache", type=Path, default=Path("runs/index-benchmark"), help="for encoded keys")
    parser.add_argument("--device", default="auto", help="where the editor encodes")
    parser.add_argument("--output", type=Path, help="file for the JSON as well")
    args = parser.parse_args()
    editor = load_editor(localize_editor(args.editor), args.device)
    args.cache.mkdir(parents=True, exist_ok=True)
    largest = max(args.num_facts)
    if args.table is None:
        keys_FK, encoded = encoded_keys(editor, largest, args.cache)
    else:
        keys_FK, encoded = table_keys(editor, args.table, largest, args.cache), None
    sizes: dict[str, Any] = {}
    for num_facts in sorted(args.num_facts):
        sizes[str(num_facts)] = measure_size(editor, keys_FK[:num_facts], args)
    defaults = {
        num: next((one for one in found["variants"].values() if one["default"]), None) for num, found in sizes.items()
    }
    small, million, last = (defaults.get(str(num)) for num in (10_000, 1_000_000, largest))
    result = {
        "agreement_at_1e6": million and million["agreement"],
        "p50_ratio_1e6_to_1e4": million and small and million["single_ms"]["p50"] / small["single_ms"]["p50"],
        "speedup_over_full_sort": last and sizes[str(largest)]["full_sort_ms"]["p50"] / last["single_ms"]["p50"],
        "largest": largest,
        "sizes": sizes,
        "encoded_facts_per_s": encoded,
        "key_width": editor.config.key_width,
        "similarity": editor.config.similarity,
        "fingerprint": editor.fingerprint(),
        "batch_size": BATCH_SIZE,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": {"torch": torch.get_num_threads(), "faiss": faiss.omp_get_max_threads()},
        "num_gpus": faiss.get_num_gpus(),
        "device": f"CPU ({platform.machine()})",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "faiss": faiss.__version__},
    }
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def measure_size(editor: Editor, keys_FK: npt.NDArray[Any], args: argparse.Namespace) -> dict[str, Any]:
    """Every variant over these keys."""
    console = Console(highlight=False)
    num_facts = len(keys_FK)
    asked, sample = ask(editor, keys_FK, args.num_questions)
    applied_B = applied(asked.truth, asked)
    stored_B = asked.stored_B != NO_FACT
    least, largest = norm_range(keys_FK)
    found: dict[str, Any] = {
        "num_questions": len(stored_B),
        "key_norms": [least, largest],
        # Of the exact search: what no index can better.
        "right_fact_nearest": float((asked.truth[0] == asked.stored_B)[stored_B].mean()),
        "right_decision": float((applied_B == asked.stored_B).mean()),
        "full_sort_ms": full_sort_ms(keys_FK, asked.queries_BK),
        "variants": {},
    }
    console.print(f"{num_facts} facts: a full sort takes {found['full_sort_ms']['p50']:.2f} ms a query")
    default = choose(keys_FK, IndexSettings())[0]
    chosen = {name for name in VARIANTS if name in args.variants}
    matches = [name for name, settings in VARIANTS.items() if choose(keys_FK, settings)[0] == default]
    if DEFAULT in args.variants:
        chosen.add(matches[0])
    for name in VARIANTS:
        graph = VARIANTS[name].kind == "hnsw"
        if name not in chosen or (graph and args.max_graph_facts is not None and num_facts > args.max_graph_facts):
            continue
        variant = measure(keys_FK, VARIANTS[name], editor, asked, sample, args.cache)
        variant["default"] = name == matches[0]
        found["variants"][name] = variant
        console.print(described(num_facts, name, variant), soft_wrap=True, markup=False)
    return found


def described(num_facts: int, name: str, variant: dict[str, Any]) -> str:
    """One line about a variant."""
    single, batched = variant["single_ms"], variant["batched_ms"]
    return (
        f"{num_facts} facts, {name}{' (default)' if variant['default'] else ''}: built in {variant['build_s']:.1f} s, "
        f"{variant['bytes_per_fact']:.0f} bytes a fact, recall {variant['recall']:.4f}, "
        f"agreement {variant['agreement']:.4f}, p50 {single['p50']:.2f} ms, p99 {single['p99']:.2f} ms, "
        f"in batches {batched['p50']:.2f} ms a query ({variant['reason']})"
    )


def measure(
    keys_FK: npt.NDArray[Any], settings: IndexSettings, editor: Editor, asked: Asked, sample: Sample, cache: Path
) -> dict[str, Any]:
    """Build one variant, map it, and ask."""
    started = time.perf_counter()
    tuned = build_tuned(keys_FK, settings, editor.identity().sentinel_K, sample)
    build_s = time.perf_counter() - started
    spec, reason = tuned.part.spec, tuned.reason
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        file = Path(folder) / "index.faiss"
        faiss.write_index(tuned.part.index, str(file))
        size_bytes = file.stat().st_size
        del tuned
        started = time.perf_counter()
        part = PartIndex(faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC), keys_FK, spec)
        open_s = time.perf_counter() - started
        single_ms, found = timed(part, asked.queries_BK, 1)
        batched_ms, _ = timed(part, asked.queries_BK, BATCH_SIZE)
        by_probes = {}
        for num_probes in {spec.num_probes // 4, spec.num_probes // 2, 2 * spec.num_probes} - {0}:
            other_ms, other = timed(part, asked.queries_BK, 1, num_probes=num_probes)
            by_probes[str(num_probes)] = {**quality(other, asked), "single_ms": other_ms}
    return {
        **quality(found, asked),
        "build_s": build_s,
        "open_s": open_s,
        "bytes_per_fact": size_bytes / len(keys_FK) + keys_FK[0].nbytes,
        "single_ms": single_ms,
        "batched_ms": batched_ms,
        "spec": dataclasses.asdict(spec),
        "reason": reason,
        "other_probes": by_probes,
    }


def timed(
    part: PartIndex, queries_BK: npt.NDArray[np.float32], batch_size: int, *, num_probes: int | None = None
) -> tuple[dict[str, float], tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Milliseconds a query, in batches of a size, and what was found."""
    batches = [queries_BK[start : start + batch_size] for start in range(0, len(queries_BK), batch_size)]
    part.search(batches[0], num_probes=num_probes)
    nearest, scores, ms = [], [], []
    for batch_BK in batches:
        started = time.perf_counter()
        found = part.search(batch_BK, num_probes=num_probes)
        ms.append(1e3 * (time.perf_counter() - started) / len(batch_BK))
        nearest.append(found[0])
        scores.append(found[1])
    return quantiles(ms), (np.concatenate(nearest), np.concatenate(scores))


def full_sort_ms(keys_FK: npt.NDArray[Any], queries_BK: npt.NDArray[np.float32]) -> dict[str, float]:
    """Milliseconds of all similarities of one query and their sort, in float32."""
    keys = torch.empty(keys_FK.shape)
    for start in range(0, len(keys_FK), FACTS_PER_CHUNK):
        block_FK = np.asarray(keys_FK[start : start + FACTS_PER_CHUNK], dtype=np.float32)
        keys[start : start + len(block_FK)] = torch.from_numpy(block_FK)
    ms = []
    with torch.inference_mode():
        for number, query_K in enumerate(torch.from_numpy(queries_BK[: NUM_SORTS + 2])):
            started = time.perf_counter()
            torch.sort(keys @ query_K, descending=True)
            if number >= 2:  # the first ones warm up
                ms.append(1e3 * (time.perf_counter() - started))
    return quantiles(ms)


def ask(editor: Editor, keys_FK: npt.NDArray[Any], num_questions: int) -> tuple[Asked, Sample]:
    """Questions to measure by, and as many others to choose the probes by."""
    questions = generate_questions(len(keys_FK), 2 * num_questions, SEED)
    queries_BK = editor.encode_queries([question.text for question in questions])
    stored = [NO_FACT if one.fact_id is None else int(one.fact_id.rpartition("-")[2]) for one in questions]
    stored_B = np.array(stored, np.int64)
    measured, held_out = slice(0, num_questions), slice(num_questions, None)
    sentinel_K = editor.identity().sentinel_K
    asked = Asked(
        queries_BK=queries_BK[measured],
        thresholds_B=inner_products(queries_BK[measured], sentinel_K),
        truth=exact_nearest(keys_FK, queries_BK[measured]),
        stored_B=stored_B[measured],
    )
    nothing = np.full(len(queries_BK[held_out]), NO_FACT, np.int64)
    return asked, Sample(queries_QK=queries_BK[held_out], left_out_Q=nothing)


def applied(found: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]], asked: Asked) -> npt.NDArray[np.int64]:
    """The fact that is applied, or none."""
    return decide(*found, asked.thresholds_B).row_B


def quality(found: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]], asked: Asked) -> dict[str, float]:
    """Against an exact search: share of nearest facts found, and of equal decisions."""
    return {
        "recall": float((found[1] >= asked.truth[1]).mean()),
        "agreement": float((applied(found, asked) == applied(asked.truth, asked)).mean()),
    }


def encoded_keys(editor: Editor, num_facts: int, cache: Path) -> tuple[npt.NDArray[Any], float | None]:
    """Keys of the first invented facts, float16, mapped; and facts encoded a second, if they were not there already."""
    stem = f"keys-{editor.fingerprint()}"
    for file in cache.glob(f"{stem}-*.npy"):
        if int(file.stem.rpartition("-")[2]) >= num_facts:
            return np.load(file, mmap_mode="r"), None
    started = time.perf_counter()
    facts = generate_facts(num_facts, SEED)

    def fill(keys_FK: npt.NDArray[Any]) -> None:
        statements: list[str] = []
        for number, fact in enumerate(facts, start=1):
            statements.append(f"{fact['prompt']} {fact['target']}")
            if len(statements) == FACTS_PER_CHUNK or number == num_facts:
                keys_FK[number - len(statements) : number] = editor.encode_facts(statements)[0]
                statements.clear()

    keys_FK = kept(cache / f"{stem}-{num_facts}.npy", (num_facts, editor.config.key_width), fill)
    return keys_FK, num_facts / (time.perf_counter() - started)


def table_keys(editor: Editor, uri: str, num_facts: int, cache: Path) -> npt.NDArray[Any]:
    """Keys of the first invented facts from a table, mapped, in the order of their numbers."""
    table = FactTable.open(uri)
    table.check_editor(editor.identity())

    def fill(keys_FK: npt.NDArray[Any]) -> None:
        missing = np.ones(num_facts, np.bool_)
        for partition in table.partitions():
            snapshot = read_partition(table, partition)
            ids = snapshot.facts.column("fact_id").to_pylist()
            numbers = np.array([int(one.rpartition("-")[2]) if one.startswith("invented-") else -1 for one in ids])
            rows = np.flatnonzero((numbers >= 0) & (numbers < num_facts))
            keys_FK[numbers[rows]] = snapshot.keys_FK[rows]
            missing[numbers[rows]] = False
        if missing.any():
            raise TableError(
                f"{uri}: lacks {int(missing.sum())} of the first {num_facts} invented facts; ingest what "
                "`python -m recipe_ray.testbed.million` writes"
            )

    name = f"table-{table.identity.fingerprint}-{table.version}-{num_facts}.npy"
    return kept(cache / name, (num_facts, editor.config.key_width), fill)


def kept(file: Path, shape: tuple[int, int], fill: Callable[[npt.NDArray[Any]], None]) -> npt.NDArray[Any]:
    """A float16 array in a file, filled once, mapped."""
    if not file.exists():
        scratch = file.with_suffix(".partial")
        keys_FK = np.lib.format.open_memmap(scratch, "w+", np.float16, shape)
        fill(keys_FK)
        keys_FK.flush()
        scratch.replace(file)
    mapped: npt.NDArray[Any] = np.load(file, mmap_mode="r")
    return mapped


def quantiles(ms: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"p50": statistics.median(ms), "p99": float(np.quantile(ms, 0.99))}


if __name__ == "__main__":
    main()
