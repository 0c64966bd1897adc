"""What a command line asks of a training."""

import dataclasses

import pytest

from recipe_ray.config import DataConfig
from recipe_ray.distributed.train import TrainArgs
from recipe_ray.errors import ConfigError
from recipe_ray.presets import preset, smoke


def test_without_a_flag_it_is_the_preset():
    assert TrainArgs().config() == preset("testbed")
    assert TrainArgs(preset="smoke").config() == smoke()


def test_each_flag_replaces_its_part_of_the_preset():
    args = TrainArgs(
        preset="smoke",
        llm="an/llm",
        encoder="an/encoder",
        data=("zsre:a.json", "edits:b.jsonl"),
        tuning_data=("edits:c.jsonl",),
        num_steps=40,
        batch_size=6,
        num_workers=3,
        min_workers=2,
        cpus_per_worker=0.5,
        device="cpu",
        seed=9,
    )
    config, expected = args.config(), smoke()
    assert config.num_steps == 40
    assert config == dataclasses.replace(
        expected.stretched(40),
        editor=dataclasses.replace(expected.editor, llm="an/llm", encoder="an/encoder"),
        data=DataConfig(sources=("zsre:a.json", "edits:b.jsonl"), tuning_sources=("edits:c.jsonl",)),
        batch_size=6,
        num_workers=3,
        min_workers=2,
        cpus_per_worker=0.5,
        device="cpu",
        seed=9,
    )


def test_the_run_is_named_by_its_preset_and_the_editor_lies_in_its_folder():
    assert TrainArgs(storage="s3://bucket/runs").output_folder == "s3://bucket/runs/testbed/editor"
    assert TrainArgs(run="mine", storage="/runs").output_folder == "/runs/mine/editor"
    assert TrainArgs(run="mine", output="/editor").output_folder == "/editor"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"preset": "nope"}, "preset is 'nope'; give one of smoke, testbed"),
        ({"num_steps": 1}, "num_steps is 1; give at least 2"),
        ({"num_workers": 0}, "num_workers is 0"),
        ({"data": ()}, "data is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_a_cluster_starts(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        TrainArgs(**changes).config()
