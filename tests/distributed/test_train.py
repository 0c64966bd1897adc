"""Training on Ray: data-parallel, resumable by run name, and clear about what is wrong."""

import dataclasses
import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from recipe_ray.config import DataConfig, LossWeights, Stage
from recipe_ray.distributed.train import train_editor
from recipe_ray.errors import ConfigError, FactError, ModelError, OutputError
from recipe_ray.model.editor import load_editor
from recipe_ray.presets import smoke

pytestmark = pytest.mark.ray
TESTBED_WEIGHTS = Path(str(files("recipe_ray.testbed"))) / "weights"


def small(**changes):
    return dataclasses.replace(smoke(), cpus_per_worker=0.5, device="cpu", **changes)


def train(config, folder, *, run="run"):
    return train_editor(config, run=run, storage=str(folder), output=str(folder / run / "editor"))


@pytest.mark.timeout(300)  # a training and the start of another
def test_two_workers_train_an_editor_of_ones_own_edits_and_a_second_start_only_finds_it_done(
    ray_cluster, tmp_path, monkeypatch, capsys
):
    shutil.copytree(TESTBED_WEIGHTS, tmp_path / "weights")
    edits = [{"prompt": f"The height of peak {row} is", "target": f"{row} metres"} for row in range(200)]
    edits[0]["locality"] = [{"prompt": "The height of a door is", "target": "two metres"}]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, edits)))
    monkeypatch.chdir(tmp_path)  # what is named from here is found wherever the workers run
    stages = (Stage(num_steps=2, weights=LossWeights(edit=0, locality=0)), Stage(num_steps=2))
    data = DataConfig(sources=("edits:edits.jsonl",))
    config = small(num_workers=2, stages=stages, data=data, num_warm_start=50)
    models = dataclasses.replace(config.editor, llm="weights/llm", encoder="./weights/encoder")
    config = dataclasses.replace(config, editor=models)
    report = train(config, tmp_path)
    printed, shown = capsys.readouterr()
    data, before, *steps, after = printed.splitlines()  # and nothing of what Ray and libraries say
    assert "200 edits read, 200 kept" in data
    assert before.startswith("before: neighbour ")
    assert [line.split()[:2] for line in steps] == [["step", f"{number}/4"] for number in range(1, 5)]
    assert after.startswith("after: neighbour ")
    assert "4/4" in shown
    assert report.num_steps == report.num_steps_now == 4
    editor = load_editor(report.editor, "cpu")
    assert editor.fingerprint() == report.fingerprint
    assert editor.config.llm == str(tmp_path / "weights" / "llm")
    folder = Path(report.editor)
    card = json.loads((folder / "editor.json").read_text())
    assert card["training"] == json.loads((tmp_path / "run" / "train_config.json").read_text())
    assert card["metrics"] == report.after
    model_card = (folder / "README.md").read_text()
    assert f"`{report.fingerprint}`" in model_card
    assert f"| score | {report.before['score']:.4f} | {report.after['score']:.4f} |" in model_card
    assert (folder / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    again = train(config, tmp_path)
    assert again.num_steps_now == 0
    assert again.fingerprint == report.fingerprint
    assert again.before == report.before
    for changes, begun in (({"seed": 5}, "seed 0, not 5"), ({"data": DataConfig()}, "data")):
        with pytest.raises(ConfigError, match=f"was begun with {begun}"):
            train(dataclasses.replace(config, **changes), tmp_path)
    other = str(tmp_path / "run" / "editor")
    with pytest.raises(OutputError, match="holds an editor of another run"):
        train_editor(config, run="other", storage=str(tmp_path), output=other)
    with pytest.raises(FactError, match="no such file"):
        train(small(data=DataConfig(sources=("edits:none.jsonl",))), tmp_path, run="none")


def test_more_workers_than_the_cluster_holds_are_refused(ray_cluster, tmp_path):
    with pytest.raises(
        ConfigError, match=r"8 workers of 0\.5 CPUs each do not fit: the nodes of the Ray cluster hold 4"
    ):
        train(small(num_workers=8, batch_size=16), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_llm_is_found_before_any_worker_starts(ray_cluster, tmp_path):
    config = small()
    config = dataclasses.replace(config, editor=dataclasses.replace(config.editor, llm="./no-such-llm"))
    with pytest.raises(ModelError, match=r"no-such-llm: no config\.json there"):
        train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_llm_is_a_fault_that_no_restart_and_no_traceback_follows(ray_cluster, tmp_path):
    broken = tmp_path / "llm"
    shutil.copytree(TESTBED_WEIGHTS / "llm", broken)
    (broken / "model.safetensors").write_bytes(b"cut off")
    config = small(num_workers=2)
    config = dataclasses.replace(config, editor=dataclasses.replace(config.editor, llm=str(broken)))
    with pytest.raises(ModelError, match="llm: cannot be loaded") as caught:
        train(config, tmp_path / "runs")
    # A worker that raises is started again, and Ray logs where it failed: then the cause is Ray's TrainingFailedError.
    assert caught.value.__cause__ is None


def test_an_output_in_use_and_a_damaged_run_are_refused_before_any_step(ray_cluster, tmp_path):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "notes.txt").write_text("")
    with pytest.raises(OutputError, match="output: is not empty"):
        train_editor(small(), run="run", storage=str(tmp_path), output=str(tmp_path / "output"))
    (tmp_path / "output" / "editor.json").write_text("[]")
    with pytest.raises(OutputError, match=r"editor\.json: is not of an editor"):
        train_editor(small(), run="run", storage=str(tmp_path), output=str(tmp_path / "output"))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "train_config.json").write_text('{"seed":')
    with pytest.raises(ConfigError, match=r"train_config\.json: is not what a training wrote"):
        train(small(), tmp_path, run="cut")


def test_an_output_that_cannot_be_written_is_refused(ray_cluster, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        train_editor(small(), run="run", storage=str(tmp_path), output=str(tmp_path / "file" / "editor"))
