import dataclasses
import json
from typing import get_args

import pytest

from recipe_ray.config import (
    DataConfig,
    EditorConfig,
    LossConfig,
    LossWeights,
    Pooling,
    Stage,
    TrainConfig,
    editor_config_from_dict,
)
from recipe_ray.errors import ConfigError
from recipe_ray.presets import METHODS, PRESETS, preset, with_method

EDITOR = EditorConfig(llm="testbed", encoder="testbed")
TRAIN = TrainConfig(editor=EDITOR, stages=(Stage(num_steps=1),))
REAL = DataConfig(sources=("zsre:x",))


@pytest.mark.parametrize(
    ("config", "changes", "complaint"),
    [
        (EDITOR, {"key_width": 0}, "key_width is 0; give 1 or more"),
        (EDITOR, {"num_virtual_tokens": -1}, "num_virtual_tokens is -1; give 0 or more"),
        (EDITOR, {"num_sentinel_tokens": -1}, "num_sentinel_tokens is -1"),
        (EDITOR, {"trained_encoder_layers": -1}, "trained_encoder_layers is -1; give 0 or more, or null"),
        (EDITOR, {"similarity": "euclidean"}, "similarity is 'euclidean'; give one of inner_product, cosine"),
        (EDITOR, {"prompt_position": "middle"}, "prompt_position is 'middle'; give one of first, after_bos, last"),
        (EDITOR, {"chat_position": "last"}, "chat_position is 'last'; give one of as_text, user_turn, assistant_turn"),
        (EDITOR, {"prompt_source": "target"}, "prompt_source is 'target'; give one of key, statement"),
        (EDITOR, {"pooling": ()}, r"pooling is \(\); name each part once, at least one"),
        (EDITOR, {"pooling": ("max", "max")}, "name each part once"),
        (EDITOR, {"pooling": ("max", "sum")}, "pooling is 'sum'; give one of max, min, mean, pooler"),
        (LossWeights(), {"edit": -1}, "loss weight edit is -1; give 0 or more"),
        (
            LossWeights(),
            {"neighbour": 0, "sentinel": 0, "edit": 0, "locality": 0},
            "all loss weights are 0; there is nothing to train",
        ),
        (Stage(num_steps=1), {"num_steps": 0}, "a stage has 0 steps"),
        (TRAIN, {"stages": ()}, "stages is empty"),
        (DataConfig(), {"sources": ("testbed", "zsre:x")}, "data names 'testbed' beside other sources"),
        (DataConfig(), {"tuning_sources": ("zsre:x",)}, "data names 'testbed' beside other sources"),
        (DataConfig(), {"hard_negatives": 0.5}, "hard_negatives is 0.5, which is of data sets"),
        (REAL, {"hard_negatives": 1.5}, r"hard_negatives is 1\.5; give a chance from 0 to 1"),
        (REAL, {"random_text": "x.txt"}, r"random_text is 'x\.txt' and random_text_share 0\.0; give both or none"),
        (REAL, {"random_text_share": 0.5}, r"random_text is None and random_text_share 0\.5; give both or none"),
        (LossConfig(), {"margin": 0.5}, r"margin is 0\.5; give a factor of 1 or more, or None"),
        (LossConfig(), {"temperature": 0.0}, r"temperature is 0\.0; give a positive number"),
        (LossConfig(), {"questions": "none"}, "questions is 'none'; give one of both, random, alternate"),
        (LossConfig(), {"queue_size": -1}, "queue_size is -1"),
        (TRAIN, {"batch_size": 7, "num_workers": 2, "accumulate": 2}, "give a batch_size of 8 or more"),
        (
            TRAIN,
            {"num_workers": 2, "losses": LossConfig(queue_size=8)},
            "queue_size is 8 and num_workers 2, but gather_negatives is off",
        ),
        (TRAIN, {"num_workers": 2, "min_workers": 3}, r"min_workers is 3; give 1 to num_workers \(2\)"),
        (TRAIN, {"shard_llm": True}, "shard_llm is on, but num_workers is 1"),
        (TRAIN, {"precision": "float16"}, "precision is 'float16'; give one of float32, bfloat16, auto"),
        (TRAIN, {"accumulate": 0}, "accumulate is 0"),
        (
            TRAIN,
            {"editor": dataclasses.replace(EDITOR, num_virtual_tokens=0)},
            "num_virtual_tokens is 0, but there are losses of the edited LLM",
        ),
        (
            TRAIN,
            {"editor": dataclasses.replace(EDITOR, num_sentinel_tokens=0)},
            "num_sentinel_tokens is 0, but the sentinel's loss has a weight",
        ),
        (
            EDITOR,
            {"prompt_source": "statement", "num_virtual_tokens": 2},
            "num_virtual_tokens is 2, but prompt_source is",
        ),
        (DataConfig(), {"chat_share": 0.5}, "chat_share is 0.5, which is of data sets, but data is 'testbed'"),
        (DataConfig(), {"source_weights": (0.5, 0.5)}, r"source_weights is \(0.5, 0.5\), and data names 1 sources"),
        (
            TRAIN,
            {"editor": dataclasses.replace(EDITOR, prompt_source="statement"), "num_warm_start": 9},
            "prompt_source is 'statement' and num_warm_start 9, .*; set num_warm_start to 0",
        ),
        (TRAIN, {"batch_size": 0}, "batch_size is 0"),
        (TRAIN, {"batch_size": 1}, "batch_size is 1, .*contrastive losses need other edits"),
        (TRAIN, {"num_workers": 0}, "num_workers is 0"),
        (TRAIN, {"log_every": 0}, "log_every is 0"),
        (TRAIN, {"checkpoint_every": 0}, "checkpoint_every is 0"),
        (TRAIN, {"encoder_lr": 0.0}, r"encoder_lr is 0\.0; give a positive number"),
        (TRAIN, {"head_lr": -1.0}, "head_lr is"),
        (TRAIN, {"prompt_lr": float("nan")}, "prompt_lr is nan"),
        (TRAIN, {"max_grad_norm": 0.0}, "max_grad_norm is"),
        (TRAIN, {"warmup_share": 1.0}, r"warmup_share is 1\.0; give a share from 0 to below 1"),
        (TRAIN, {"cpus_per_worker": 0.0}, "cpus_per_worker is 0"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_is_refused_on_construction_by_name(config, changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        dataclasses.replace(config, **changes)


@pytest.mark.parametrize(
    ("lengths", "num_steps", "expected"),
    [
        ((600, 200), 80, [60, 20]),
        ((600, 200), 801, [601, 200]),
        ((1000, 1), 10, [9, 1]),
        ((1, 1000), 10, [1, 9]),
        ((1, 1000, 1), 3, [1, 1, 1]),
        ((7,), 3, [3]),
    ],
)
def test_a_stretched_training_has_so_many_steps_and_its_stages_proportions(lengths, num_steps, expected):
    stages = tuple(Stage(num_steps=length, weights=LossWeights(edit=length)) for length in lengths)
    stretched = dataclasses.replace(TRAIN, stages=stages).stretched(num_steps)
    assert [stage.num_steps for stage in stretched.stages] == expected
    assert [stage.weights for stage in stretched.stages] == [stage.weights for stage in stages]


def test_a_training_of_fewer_steps_than_stages_is_refused():
    with pytest.raises(ConfigError, match="num_steps is 1; give at least 2"):
        dataclasses.replace(TRAIN, stages=(Stage(num_steps=5),) * 2).stretched(1)


@pytest.mark.parametrize("part", get_args(Pooling))
def test_an_editor_config_comes_back_from_json(part):
    config = dataclasses.replace(EDITOR, pooling=(part,), similarity="cosine", prompt_position="after_bos", key_width=7)
    assert editor_config_from_dict(json.loads(json.dumps(config.to_dict())), place="card") == config


def test_a_field_that_came_later_is_written_where_it_says_something_alone():
    assert "trained_encoder_layers" not in EDITOR.to_dict()
    frozen = dataclasses.replace(EDITOR, trained_encoder_layers=0)
    assert frozen.to_dict() == {**EDITOR.to_dict(), "trained_encoder_layers": 0}
    assert editor_config_from_dict(json.loads(json.dumps(frozen.to_dict())), place="card") == frozen


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"width": 1}, "editor.json: field 'width' is missing or unknown"),
        ({"llm": 7}, "editor.json: llm is 7"),
        ({"key_width": "7"}, "editor.json: key_width is '7'"),
        ({"pooling": "max"}, "editor.json: pooling is 'max'"),
        ({"trained_encoder_layers": "2"}, "editor.json: trained_encoder_layers is '2'"),
    ],
)
def test_a_written_config_of_another_make_is_refused_by_place(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        editor_config_from_dict({**EDITOR.to_dict(), **changes}, place="editor.json")
    with pytest.raises(ConfigError, match=r"editor\.json: field 'encoder' is missing"):
        editor_config_from_dict(
            {name: value for name, value in EDITOR.to_dict().items() if name != "encoder"}, place="editor.json"
        )


def test_weights_change_at_the_border_between_two_stages():
    first, second, third = (LossWeights(edit=number) for number in (1, 2, 3))
    stages = (Stage(num_steps=2, weights=first), Stage(num_steps=1, weights=second), Stage(num_steps=3, weights=third))
    config = dataclasses.replace(TRAIN, stages=stages)
    assert config.num_steps == 6
    assert [config.weights_at(step).edit for step in range(7)] == [1, 1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_training(name):
    config = preset(name)
    assert config.num_steps >= 1
    assert config == preset(name)


def test_an_unknown_preset_or_method_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"preset is 'paper2'; give one of .*smoke, smollm2-135m-instruct, testbed"):
        preset("paper2")
    with pytest.raises(ConfigError, match=r"method is 'papre'; give one of .*paper, reference"):
        with_method(preset("smoke"), "papre")


def test_edits_to_train_on_must_be_given():
    with pytest.raises(ConfigError, match="data is empty; give 'testbed', or FORM:PATH"):
        DataConfig(sources=()).check_given()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_training_of_every_preset_with_its_llm_and_encoder(name, method):
    config = preset(name)
    by_method = with_method(config, method)
    assert (by_method.editor.llm, by_method.editor.encoder) == (config.editor.llm, config.editor.encoder)
    assert by_method.num_steps == config.num_steps


def test_the_papers_method_is_the_papers_setting():
    config = with_method(preset("llama-2-7b"), "paper")
    assert config.editor == EditorConfig(llm="meta-llama/Llama-2-7b-hf", encoder="FacebookAI/roberta-base")
    assert config.losses == LossConfig(gather_negatives=True)
    assert {stage.weights for stage in config.stages} == {LossWeights()}
    assert config.batch_size == 8
    assert {config.encoder_lr, config.head_lr, config.prompt_lr} == {1e-5}
    assert (config.num_warm_start, config.data.hard_negatives, config.data.swapped_targets) == (0, 0.0, 0.0)


def test_the_authors_code_departs_from_the_paper_in_margin_questions_and_pooling():
    paper, reference = (with_method(preset("small"), name) for name in ("paper", "reference"))
    assert reference.losses == dataclasses.replace(paper.losses, margin=1.2, questions="random")
    assert reference.editor == dataclasses.replace(paper.editor, pooling=("max", "min", "mean", "pooler"))
    assert reference == dataclasses.replace(paper, losses=reference.losses, editor=reference.editor)


@pytest.mark.parametrize(
    ("method", "num_virtual_tokens", "num_sentinel_tokens", "weights"),
    [
        ("no-prompt", 0, 10, {(1, 0.5, 0, 0), (1, 1, 0, 0)}),
        ("no-sentinel", 3, 0, {(1, 0, 1, 0)}),
        ("neither", 0, 0, {(1, 0, 0, 0)}),
    ],
)
def test_an_ablation_lacks_its_part_and_the_losses_of_it(method, num_virtual_tokens, num_sentinel_tokens, weights):
    config = with_method(preset("testbed"), method)
    assert config.editor.num_virtual_tokens == num_virtual_tokens
    assert config.editor.num_sentinel_tokens == num_sentinel_tokens
    assert {dataclasses.astuple(stage.weights) for stage in config.stages} == weights
