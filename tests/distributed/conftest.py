"""The stages of jobs without a cluster."""

import pyarrow as pa
import pytest

from recipe_ray.distributed import encoders as encoders_module
from recipe_ray.distributed import stages, workers


@pytest.fixture
def in_process(monkeypatch):
    """Ray's place taken by the same stages one after another, to test what the driver makes of them."""

    def results(items, function, **settings):
        for item in items:
            yield function(item, **settings)

    def written_units(items, staging, table, encoders):
        encoder = stages.Encoder(editor=encoders.editor, device=encoders.device, dtype=table.dtype)
        layout = {"table_uri": table.uri, "num_shards": table.num_shards, "ingested_at": staging.ingested_at}
        for item in items:
            for rows in stages.read_units(pa.Table.from_pylist([item]), staging=staging):
                for encoded in encoder(rows):
                    for written in stages.write_unit(encoded, **layout):
                        yield from written.to_pylist()

    def on_worker(function, *, num_cpus=1, num_gpus=0, **arguments):
        return function(**arguments)

    monkeypatch.setattr(workers, "on_worker", on_worker)
    monkeypatch.setattr(encoders_module.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(encoders_module.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(stages, "results", results)
    monkeypatch.setattr(stages, "written_units", written_units)
