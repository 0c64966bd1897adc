"""The loop of one training worker, in this process: what a checkpoint brings back, and what ends a training.

Ray Train's place is taken by a folder of checkpoints; with workers, restarts and kills: test_train.py and
test_train_faults.py.
"""

import dataclasses
import json
import re
import shutil

import pytest
import ray.train
import ray.train.torch
import torch.distributed
from ray.train import Checkpoint

from recipe_ray.config import DataConfig, Stage
from recipe_ray.distributed.train import train_editor
from recipe_ray.distributed.train_loop import EDITOR_FOLDER, HISTORY_FILE, STATE_FILE, WorkerArgs, train_worker
from recipe_ray.errors import EditorError, ModelError, OutputError
from recipe_ray.model.editor import load_editor
from recipe_ray.model.encoder import load_encoder
from recipe_ray.presets import smoke

NUM_STEPS = 6


class OneWorker:
    """All that a worker asks of Ray Train. A checkpoint that it reports is kept, by its step."""

    def __init__(self, folder, begins_at):
        self.folder = folder
        self.begins_at = begins_at
        self.checkpoints = {}
        self.metrics = None

    def get_world_rank(self):
        return 0

    def get_world_size(self):
        return 1

    def get_checkpoint(self):
        return self.begins_at and Checkpoint.from_directory(self.begins_at)

    def report(self, metrics, checkpoint):
        self.metrics = metrics
        kept = self.folder / f"checkpoint-{metrics['step']}"
        shutil.copytree(checkpoint.path, kept)
        self.checkpoints[metrics["step"]] = kept


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains, from a checkpoint where one is given; gives what the loop gave, and what it reported."""
    rendezvous = tmp_path_factory.mktemp("group") / "rendezvous"
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=0, world_size=1)

    def train(*, begins_at=None, **changes):
        config = dataclasses.replace(smoke(), stages=(Stage(num_steps=NUM_STEPS),), device="cpu", **changes)
        worker = OneWorker(tmp_path_factory.mktemp("start"), begins_at)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("get_checkpoint", "report"):
                patch.setattr(ray.train, name, getattr(worker, name))
            patch.setattr(ray.train, "get_context", lambda: worker)
            patch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
            patch.setattr(ray.train.torch, "prepare_model", lambda model, **_: model)
            return train_worker({"args": WorkerArgs(config=config, run="run", folder=str(worker.folder))}), worker

    yield train
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def undisturbed(train):
    fault, worker = train()
    assert fault is None
    return worker


def told(checkpoint):
    return json.loads((checkpoint / HISTORY_FILE).read_text())


def test_from_any_checkpoint_it_ends_at_the_weights_of_an_undisturbed_training(train, undisturbed):
    assert list(undisturbed.checkpoints) == [2, 4, 6]
    for step in (2, 4):
        fault, resumed = train(begins_at=undisturbed.checkpoints[step])
        assert fault is None
        assert resumed.metrics["num_steps_now"] == NUM_STEPS - step
        for name in ("fingerprint", "before", "after"):
            assert resumed.metrics[name] == undisturbed.metrics[name], name
        assert told(resumed.checkpoints[NUM_STEPS]) == told(undisturbed.checkpoints[NUM_STEPS])


def test_a_training_upon_a_frozen_encoder_goes_on_from_its_checkpoint(train):
    editor = dataclasses.replace(smoke().editor, trained_encoder_layers=1)
    _, undisturbed = train(editor=editor)
    fault, resumed = train(editor=editor, begins_at=undisturbed.checkpoints[4])
    assert fault is None
    for name in ("fingerprint", "after"):
        assert resumed.metrics[name] == undisturbed.metrics[name], name
    loaded = load_editor(undisturbed.checkpoints[NUM_STEPS] / EDITOR_FOLDER, "cpu")
    assert loaded.fingerprint() == undisturbed.metrics["fingerprint"]
    pretrained = load_encoder("testbed", editor.pooling).state_dict()
    trained = {name for name, one in loaded.encoder.state_dict().items() if not torch.equal(one, pretrained[name])}
    assert {name.split(".")[3] for name in trained} == {"2"}  # the topmost


def test_a_training_that_starts_from_an_editor_begins_where_that_ended(train, undisturbed):
    start = undisturbed.checkpoints[NUM_STEPS] / EDITOR_FOLDER
    fault, worker = train(start=str(start))
    assert fault is None
    assert worker.metrics["before"] == undisturbed.metrics["after"]
    assert worker.metrics["fingerprint"] != undisturbed.metrics["fingerprint"]
    # A checkpoint of its own wins, and the start is not read again.
    fault, resumed = train(start="gone", begins_at=worker.checkpoints[4])
    assert fault is None
    assert resumed.metrics["fingerprint"] == worker.metrics["fingerprint"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"key_width": 16}, "its key_width is 32, and 16 in this training; give the same shape"),
        ({"pooling": ("mean", "min", "max")}, "its pooling is"),
        ({"similarity": "inner_product"}, "its similarity is cosine"),
        ({"trained_encoder_layers": 1}, "trained more of encoder testbed than the 1 layers of this training"),
    ],
    ids=str,
)
def test_a_start_of_another_shape_is_refused(train, undisturbed, changes, complaint):
    start = undisturbed.checkpoints[NUM_STEPS] / EDITOR_FOLDER
    fault, worker = train(start=str(start), editor=dataclasses.replace(smoke().editor, **changes))
    assert isinstance(fault, EditorError)
    assert str(fault).startswith(f"start {start}: ")
    assert complaint in str(fault)
    assert not worker.checkpoints


def test_a_start_that_is_not_there_is_named(train):
    fault, _ = train(start="no-such")
    assert isinstance(fault, EditorError)
    assert "no-such: no such directory" in str(fault)


def test_a_damaged_checkpoint_is_named(train, undisturbed, tmp_path):
    damaged = shutil.copytree(undisturbed.checkpoints[2], tmp_path / "damaged")
    (damaged / STATE_FILE).write_bytes((damaged / STATE_FILE).read_bytes()[:1000])
    fault, worker = train(begins_at=damaged)
    assert isinstance(fault, OutputError)
    assert str(fault).startswith(f"{damaged}: this checkpoint is damaged (")
    assert not worker.checkpoints


@pytest.mark.parametrize(("chat_share", "sort"), [(0.5, None), (0.0, "generality"), (0.0, "locality")])
def test_chats_for_an_llm_without_template_are_refused_before_anything_is_begun(tmp_path, chat_share, sort):
    edits = [{"prompt": f"The height of peak {row} is", "target": f"{row} metres"} for row in range(200)]
    edits[0]["locality"] = [{"prompt": "The height of a door is", "target": "two metres"}]
    if sort:
        edits[7][sort] = [{"messages": [{"role": "user", "content": "How high is it?"}], "target": "7 metres"}]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, edits)))
    data = DataConfig(sources=(f"edits:{tmp_path}/edits.jsonl",), chat_share=chat_share)
    config = dataclasses.replace(smoke(), data=data)
    with pytest.raises(
        ModelError, match=r"^llm testbed: has no chat template, .*; set data\.chat_share to 0 and leave"
    ):
        train_editor(config, run="run", storage=str(tmp_path / "runs"), output=str(tmp_path / "editor"))
    assert not list(tmp_path.rglob("train_config.json"))


def test_a_loss_that_is_no_number_ends_the_training_with_its_step(train):
    fault, worker = train(prompt_lr=1e30)
    assert isinstance(fault, ModelError)
    assert re.match(r"step \d: the gradient is (nan|inf)", str(fault))
    assert "last good checkpoint: none" in str(fault)
    assert not worker.checkpoints
