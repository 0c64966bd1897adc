"""Index a table of facts for serving: `python jobs/build_index.py --table …`; one process, without Ray."""

import json
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobs._cli import run
from recipe_ray.store.files import localize_editor, write_text
from recipe_ray.store.indexes.args import IndexBuildConfig
from recipe_ray.store.indexes.artefacts import EncodeQueries, build_index
from recipe_ray.store.indexes.manifest import IndexManifest, PartEntry
from recipe_ray.store.table import FactTable


def main(config: IndexBuildConfig) -> None:
    """Build the index beside the table, and say where it lies, how large it is and how well it finds."""
    encode_queries = None if config.editor is None else _encoder(config.editor, config.table, config.version)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("partitions", total=None)

        def on_part(done: int, total: int, entry: PartEntry | None) -> None:
            progress.update(task, completed=done, total=total)
            if entry is not None:
                progress.console.print(
                    f"namespace {entry.namespace!r} shard {entry.shard}: {entry.num_facts} facts, {entry.reason}",
                    markup=False,
                    highlight=False,
                )

        manifest = build_index(
            config.table, config.version, config.settings(), encode_queries=encode_queries, on_part=on_part
        )
    if config.json is not None:
        write_text(config.json, json.dumps(summary(manifest)) + "\n")
    print(describe(manifest))


def describe(manifest: IndexManifest) -> str:
    """Say in a few lines what was built."""
    if manifest.repeated:
        return (
            f"index {manifest.uri}\n"
            f"was built before from version {manifest.version} with these settings, and nothing was done"
        )
    counts = Counter(part.spec.kind for part in manifest.parts)
    kinds = ", ".join(f"{kind} in {num}" for kind, num in sorted(counts.items())) or "none"
    return "\n".join(
        [
            f"index {manifest.uri}",
            f"version {manifest.version}: {manifest.num_facts} facts in {len(manifest.parts)} shards ({kinds}), "
            f"recall {manifest.recall:.4f}, agreement {manifest.agreement:.4f} (the worst shard's, measured on "
            f"{manifest.measured_on})",
            f"{manifest.size_bytes / 1e6:.1f} MB, {_bytes_per_fact(manifest):.0f} bytes a fact, in "
            f"{manifest.seconds:.1f} s ({manifest.num_facts / manifest.seconds:.1f} facts/s)",
        ]
    )


def summary(manifest: IndexManifest) -> dict[str, object]:
    """What was built, as plain values."""
    return {
        "index": manifest.uri,
        "table": manifest.table,
        "version": manifest.version,
        "repeated": manifest.repeated,
        "num_facts": manifest.num_facts,
        "num_shards": len(manifest.parts),
        "kinds": dict(Counter(part.spec.kind for part in manifest.parts)),
        "recall": manifest.recall,
        "agreement": manifest.agreement,
        "measured_on": manifest.measured_on,
        "seconds": manifest.seconds,
        "facts_per_s": manifest.num_facts / manifest.seconds,
        "size_bytes": manifest.size_bytes,
        "bytes_per_fact": _bytes_per_fact(manifest),
    }


def _bytes_per_fact(manifest: IndexManifest) -> float:
    return manifest.size_bytes / max(1, manifest.num_facts)


def _encoder(editor: str, table: str, version: int | None) -> EncodeQueries:
    # Here, not above: without an editor this job needs no PyTorch.
    from recipe_ray.model.editor import load_editor

    loaded = load_editor(localize_editor(editor))
    FactTable.open(table, version).check_editor(loaded.identity())
    return loaded.encode_queries


if __name__ == "__main__":
    run(main, IndexBuildConfig)
