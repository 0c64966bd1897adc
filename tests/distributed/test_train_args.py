"""What a command line asks of a training."""

import dataclasses

import pytest

from recipe_ray.config import DataConfig, LossConfig
from recipe_ray.distributed.train_args import TrainArgs
from recipe_ray.errors import ConfigError, EditorError
from recipe_ray.model.editor import read_config
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
        device="cpu",
        seed=9,
        set=("cpus_per_worker=0.5", "losses.margin=1.2", 'editor.pooling=["mean"]', "data.random_text=null"),
    )
    config, expected = args.config(), smoke()
    assert config.num_steps == 40
    assert config == dataclasses.replace(
        expected.stretched(40),
        editor=dataclasses.replace(expected.editor, llm="an/llm", encoder="an/encoder", pooling=("mean",)),
        losses=LossConfig(margin=1.2),
        data=DataConfig(sources=("zsre:a.json", "edits:b.jsonl"), tuning_sources=("edits:c.jsonl",)),
        batch_size=6,
        num_workers=3,
        cpus_per_worker=0.5,
        device="cpu",
        seed=9,
    )


def test_flags_differ_from_the_method_and_settings_from_flags():
    config = TrainArgs(preset="small", method="paper", data=("zsre:a",), batch_size=16, set=("batch_size=24",)).config()
    assert config.editor.key_width == 4096
    assert config.batch_size == 24


def test_a_number_of_workers_is_exact_where_the_preset_takes_what_there_is():
    assert TrainArgs(preset="llama-2-7b", data=("zsre:a",)).config().min_workers == 1
    asked = TrainArgs(preset="llama-2-7b", data=("zsre:a",), num_workers=4).config()
    assert (asked.num_workers, asked.min_workers) == (4, None)


def test_a_start_brings_its_llm_encoder_and_shape_and_is_not_warm_started(editor_dir):
    config = TrainArgs(start=str(editor_dir), seed=3).config()
    expected = dataclasses.replace(
        preset("testbed"), start=str(editor_dir), editor=read_config(editor_dir), num_warm_start=0, seed=3
    )
    assert config == expected
    assert TrainArgs(start=str(editor_dir), llm="an/llm").config().editor.llm == "an/llm"
    with pytest.raises(ConfigError, match=r"num_warm_start 5, which would overwrite"):
        TrainArgs(start=str(editor_dir), set=("num_warm_start=5",)).config()
    with pytest.raises(EditorError, match="no-such: no such directory"):
        TrainArgs(start="no-such").config()


def test_the_testbeds_edits_are_not_made_harder():
    assert TrainArgs(preset="small", data=("testbed",)).config().data == DataConfig()


def test_the_run_is_named_by_its_preset_and_the_editor_lies_in_its_folder():
    assert TrainArgs(storage="s3://bucket/runs").output_folder == "s3://bucket/runs/testbed/editor"
    assert TrainArgs(run="mine", storage="/runs").output_folder == "/runs/mine/editor"
    assert TrainArgs(run="mine", output="/editor").output_folder == "/editor"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"preset": "nope"}, "preset is 'nope'; give one of .*smoke, smollm2-135m-instruct, testbed"),
        ({"method": "nope"}, "method is 'nope'; give one of default"),
        ({"preset": "gpt2-xl"}, "data is empty"),
        ({"set": ("head_lr",)}, "set is 'head_lr'; give NAME=VALUE"),
        ({"set": ("loss.margin=1",)}, r"set names 'loss\.margin', which is no setting; there are editor\.llm"),
        ({"set": ("losses=1", "losses.margin=1")}, r"set names 'losses\.margin', which is no setting"),
        ({"set": ("head_lr=high",)}, "set gives head_lr 'high': input should be a valid number"),
        ({"set": ("losses.questions=none",)}, r"set gives losses\.questions 'none'"),
        ({"set": ('losses={"questions": 1, "questions": 2}',)}, "field 'questions' stands twice in an object"),
        ({"set": ("head_lr=" + "[" * 5000,)}, r"set gives '\[+': JSON nested too deeply"),
        ({"set": ("head_lr=NaN",)}, "set gives 'NaN': NaN is no JSON; give a number"),
        ({"set": ("losses.margin=0.5",)}, r"margin is 0\.5; give a factor of 1 or more"),
        ({"num_steps": 1}, "num_steps is 1; give at least 2"),
        ({"num_workers": 0}, "num_workers is 0"),
        ({"data": ()}, "data is empty"),
    ],
)
def test_what_cannot_be_is_refused_before_a_cluster_starts(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        TrainArgs(**changes).config()
