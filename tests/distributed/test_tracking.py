"""Where a training's metrics go: the driver, TensorBoard's events, MLflow where it is asked for, a figure."""

import struct
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event

from recipe_ray.distributed.telling import Told
from recipe_ray.distributed.tracking import Tracker, check_tracking, draw_curve
from recipe_ray.errors import ConfigError
from recipe_ray.presets import smoke


def track(folder, *, first=0, last=4, enabled=True):
    """What the driver is told."""
    told = []
    with Tracker("mine", str(folder), smoke(), tell=told.append, first=first, num_steps=4, enabled=enabled) as tracker:
        for step in range(first + 1, last + 1):
            tracker.step(step, {"neighbour": 1 / step, "edits_per_s": 7.0}, lr=0.1)
        tracker.tuning(last, {"score": 0.5})
        tracker.line("done")
    return told


def scalars(folder):
    """(name, step) to value, of the records of all event files: length, its checksum, an event, its checksum."""
    found = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
            data = data[16 + length :]
    return found


@pytest.fixture
def no_mlflow(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_metrics_are_tensorboards_events_and_lines(tmp_path, no_mlflow, capsys):
    told = track(tmp_path)
    found = scalars(tmp_path)
    assert found["training/neighbour", 4] == 0.25
    assert found["training/learning_rate", 1] == pytest.approx(0.1)
    assert found["tuning/score", 4] == 0.5
    assert told[1] == Told(line="step 2/4 neighbour 0.500 edits_per_s 7.000", num_done=1)
    assert told[-1] == Told(line="done")
    assert "".join(capsys.readouterr()) == ""  # it would come behind the name of an actor


def test_a_resumed_training_tells_where_it_goes_on(tmp_path, no_mlflow):
    told = track(tmp_path, first=3)
    assert told[0] == Told(line="going on behind step 3", num_done=3)
    assert sum(one.num_done for one in told) == 4


def test_other_workers_write_and_tell_nothing(tmp_path, no_mlflow):
    assert track(tmp_path, enabled=False) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # MLflow's own, of its store of files
def test_mlflow_has_one_run_that_a_resumed_training_continues(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_tracking()
    track(tmp_path, last=2)
    track(tmp_path, first=2)
    (run,) = mlflow.search_runs(experiment_names=["recipe-ray"], output_format="list")
    assert run.info.run_name == "mine"
    assert run.info.status == "FINISHED"
    assert run.data.params["editor.key_width"] == "32"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "training/neighbour")
    assert [(one.step, one.value) for one in history] == [(step, 1 / step) for step in range(1, 5)]


def test_a_tracking_uri_without_mlflow_is_refused(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is set, but MLflow is not installed"):
        check_tracking()


def test_a_curve_is_drawn_of_what_there_is(tmp_path):
    history = [{"step": 0, "tuning/score": 0.1}, {"step": 1, "training/neighbour": 2.0, "training/right_fact": 0.5}]
    for name, points in (("some", history), ("none", [])):
        draw_curve(points, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "some.png").stat().st_size > (tmp_path / "none.png").stat().st_size
