"""Training on Ray: data-parallel, resumable by run name, and clear about what is wrong."""

import dataclasses
import json
import shutil
import threading
import time
from importlib.resources import files
from pathlib import Path

import psutil
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


def test_two_workers_train_an_editor_that_loads_and_a_second_start_only_finds_it_done(ray_cluster, tmp_path):
    stages = (Stage(num_steps=2, weights=LossWeights(edit=0, locality=0)), Stage(num_steps=2))
    config = small(num_workers=2, stages=stages)
    report = train(config, tmp_path)
    assert report.num_steps == report.num_steps_now == 4
    assert load_editor(report.editor, "cpu").fingerprint() == report.fingerprint
    folder = Path(report.editor)
    card = json.loads((folder / "editor.json").read_text())
    assert card["training"] == json.loads((tmp_path / "run" / "train_config.json").read_text())
    assert card["metrics"] == report.after
    assert card["data"] == {"sources": ["testbed"]}
    model_card = (folder / "README.md").read_text()
    assert f"`{report.fingerprint}`" in model_card
    assert f"| score | {report.before['score']:.4f} | {report.after['score']:.4f} |" in model_card
    assert (folder / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    again = train(config, tmp_path)
    assert again.num_steps_now == 0
    assert again.fingerprint == report.fingerprint
    assert again.before == report.before
    with pytest.raises(ConfigError, match="was begun with seed 0, not 5"):
        train(dataclasses.replace(config, seed=5), tmp_path)
    other = str(tmp_path / "run" / "editor")
    with pytest.raises(OutputError, match="holds an editor of another run"):
        train_editor(config, run="other", storage=str(tmp_path), output=other)


def test_users_own_edits_and_models_are_found_wherever_the_workers_run(ray_cluster, tmp_path, monkeypatch, capsys):
    shutil.copytree(TESTBED_WEIGHTS, tmp_path / "weights")
    edits = [{"prompt": f"The height of peak {row} is", "target": f"{row} metres"} for row in range(200)]
    edits[0]["locality"] = [{"prompt": "The height of a door is", "target": "two metres"}]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, edits)))
    monkeypatch.chdir(tmp_path)
    config = small(stages=(Stage(num_steps=2),), data=DataConfig(sources=("edits:edits.jsonl",)), num_warm_start=50)
    models = dataclasses.replace(config.editor, llm="weights/llm", encoder="./weights/encoder")
    report = train(dataclasses.replace(config, editor=models), tmp_path)
    assert report.num_steps_now == 2
    editor = load_editor(report.editor, "cpu")
    assert editor.fingerprint() == report.fingerprint
    assert editor.config.llm == str(tmp_path / "weights" / "llm")
    assert "200 edits read, 200 kept" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="was begun with data"):
        train(small(stages=(Stage(num_steps=2),), num_warm_start=50), tmp_path)
    with pytest.raises(FactError, match="no such file"):
        train(small(data=DataConfig(sources=("edits:none.jsonl",))), tmp_path, run="none")


def own_train_workers():
    """Train workers of this test's cluster, not of another one on the machine: descendants of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and "RayTrainWorker" in title:
            found.append(process)
    return found


def kill_train_workers_after_first_checkpoint(folder, killed):
    """After the controller has taken note of it: it polls every two seconds, and until then starts from nothing."""
    noted = folder / "checkpoint_manager_snapshot.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (noted.exists() and "checkpoint_dir_name" in noted.read_text()):
        time.sleep(0.01)
    for process in own_train_workers():
        process.kill()
        killed.append(process.pid)


def test_a_killed_worker_resumes_and_ends_at_the_weights_of_an_undisturbed_run(ray_cluster, tmp_path):
    config = small(stages=(Stage(num_steps=20),), checkpoint_every=4)
    undisturbed = train(config, tmp_path, run="undisturbed")
    killed = []
    killer = threading.Thread(target=kill_train_workers_after_first_checkpoint, args=(tmp_path / "killed", killed))
    killer.start()
    disturbed = train(config, tmp_path, run="killed")
    killer.join()
    assert killed
    assert 0 < disturbed.num_steps_now < 20
    assert disturbed.fingerprint == undisturbed.fingerprint


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


def test_a_loss_that_is_no_number_ends_the_training_with_its_step(ray_cluster, tmp_path):
    config = small(stages=(Stage(num_steps=4),), prompt_lr=1e30)
    with pytest.raises(ModelError, match=r"step \d: the gradient is (nan|inf)") as caught:
        train(config, tmp_path)
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
