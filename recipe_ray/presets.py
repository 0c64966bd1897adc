"""Named training set-ups: what is trained for which LLM (presets), and by which method (methods)."""

import dataclasses
from collections.abc import Callable
from typing import Any

from recipe_ray.config import INVENTED, TESTBED, DataConfig, EditorConfig, LossConfig, LossWeights, Stage, TrainConfig
from recipe_ray.errors import ConfigError

ROBERTA = "FacebookAI/roberta-base"
MULTILINGUAL = "FacebookAI/xlm-roberta-base"
SMALL_ROBERTA = "distilbert/distilroberta-base"
SMOLLM2 = "smollm2-135m-instruct"
MINILM = "minilm-l6"
REFERENCE_MARGIN = 1.2  # of the authors' code


def testbed() -> TrainConfig:
    """The embedded default: an editor for the shipped LM, some minutes on 2 cores.

    The continuous prompt stands behind BOS: the shipped LM learned that a text's start closes what came before. The
    sentinel's weight rises late, when there is something to tell it from. The locality term is left out: with it, a
    wrongly applied prompt gave the unedited answer no more often, and each step took a third longer.
    """
    return TrainConfig(
        editor=EditorConfig(
            llm=TESTBED, encoder=TESTBED, key_width=512, similarity="cosine", prompt_position="after_bos"
        ),
        stages=_stages(1050),
        losses=LossConfig(questions="alternate"),
        batch_size=64,
        encoder_lr=3e-4,
        head_lr=1e-3,
        prompt_lr=1e-3,
        num_warm_start=6000,
        answer_end=".",
    )


def smoke() -> TrainConfig:
    """A few steps of the testbed's training: shows that everything is in place, teaches nothing."""
    return TrainConfig(
        editor=EditorConfig(llm=TESTBED, encoder=TESTBED, key_width=32, similarity="cosine"),
        stages=(Stage(num_steps=4),),
        batch_size=4,
        answer_end=".",
        log_every=1,
        checkpoint_every=2,
    )


def small() -> TrainConfig:
    """The testbed's set-up for data sets: for a small LM and encoder of your own, on a CPU."""
    return dataclasses.replace(
        testbed(),
        data=DataConfig(sources=(), hard_negatives=0.3, swapped_targets=0.5),
        stages=_stages(1500),
        precision="auto",
        num_warm_start=9000,
        checkpoint_every=500,
    )


def smollm2() -> TrainConfig:
    """A chat model of 135 million parameters whose weights a package holds: hours on 2 CPU cores, see docs/training.md.

    A prompt of eight virtual tokens, six of which begin as the statement's last tokens, reaches names that no training
    saw. It stands between question and answer, in a chat before the assistant's turn: what comes before is then read
    without gradient.
    """
    return dataclasses.replace(
        small(),
        editor=EditorConfig(
            llm=SMOLLM2,
            encoder=MINILM,
            key_width=512,
            num_virtual_tokens=8,
            similarity="cosine",
            prompt_position="last",
            chat_position="assistant_turn",
            prompt_source="statement",
            trained_encoder_layers=2,
        ),
        data=DataConfig(sources=(INVENTED,), hard_negatives=0.3, swapped_targets=0.5, wordings=True, chat_share=0.4),
        encoder_lr=1e-4,
        head_lr=5e-4,
        num_warm_start=0,
        answer_eos=True,
        checkpoint_every=200,
    )


def laptop() -> TrainConfig:
    """Half a billion parameters and a distilled encoder: one small GPU, or a patient CPU."""
    return _for_llm("Qwen/Qwen2.5-0.5B", encoder=SMALL_ROBERTA, batch_size=32, max_workers=1)


def _for_llm(
    llm: str,
    *,
    encoder: str = ROBERTA,
    batch_size: int = 64,
    max_workers: int = 8,
    **changes: Any,
) -> TrainConfig:
    """What was best on tuning data with small LMs, at the sizes of real ones; `--data` names the edits.

    Learning rates are those usual for a pretrained encoder and for fresh layers. As many workers are taken as the
    cluster has GPUs for, up to `max_workers`.
    """
    return TrainConfig(
        editor=EditorConfig(llm=llm, encoder=encoder, key_width=1024, similarity="cosine", prompt_position="after_bos"),
        stages=_stages(10_000),
        losses=LossConfig(questions="alternate", gather_negatives=True),
        data=DataConfig(sources=(), hard_negatives=0.3, swapped_targets=0.5),
        batch_size=batch_size,
        encoder_lr=3e-5,
        head_lr=3e-4,
        prompt_lr=3e-4,
        num_warm_start=8000,
        precision="auto",
        num_workers=max_workers,
        min_workers=None if max_workers == 1 else 1,
        checkpoint_every=500,
        **changes,
    )


def _stages(num_steps: int) -> tuple[Stage, ...]:
    """The sentinel's terms at half weight until there is something to tell it from; no locality term."""
    late = num_steps * 2 // 7
    return (
        Stage(num_steps=num_steps - late, weights=LossWeights(sentinel=0.5, locality=0)),
        Stage(num_steps=late, weights=LossWeights(locality=0)),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "testbed": testbed,
    "smoke": smoke,
    "small": small,
    SMOLLM2: smollm2,
    "laptop": laptop,
    "gpt2-xl": lambda: _for_llm("openai-community/gpt2-xl"),
    "gpt-j-6b": lambda: _for_llm("EleutherAI/gpt-j-6b", llm_checkpointing=True),
    "llama-2-7b": lambda: _for_llm("meta-llama/Llama-2-7b-hf", llm_checkpointing=True),
    "llama-3.1-8b": lambda: _for_llm("meta-llama/Llama-3.1-8B", llm_checkpointing=True),
    "mistral-7b": lambda: _for_llm("mistralai/Mistral-7B-v0.3", llm_checkpointing=True),
    "qwen2.5-7b": lambda: _for_llm("Qwen/Qwen2.5-7B", llm_checkpointing=True),
    "qwen2.5-7b-multilingual": lambda: _for_llm("Qwen/Qwen2.5-7B", encoder=MULTILINGUAL, llm_checkpointing=True),
    "gemma-7b": lambda: _for_llm("google/gemma-7b", llm_checkpointing=True),
}


def preset(name: str) -> TrainConfig:
    """A set-up by name.

    Raises:
        ConfigError: no such preset, with those there are.
    """
    return _named(name, PRESETS, "preset")()


def paper(config: TrainConfig) -> TrainConfig:
    """The method by the paper's formulas: its losses, widths, batch and rates; no warm start, no data made harder."""
    return dataclasses.replace(
        config,
        editor=dataclasses.replace(
            config.editor,
            key_width=4096,
            num_virtual_tokens=3,
            num_sentinel_tokens=10,
            pooling=("max", "min", "mean"),
            similarity="inner_product",
            prompt_position="first",
            prompt_source="key",
            trained_encoder_layers=None,
        ),
        stages=(Stage(num_steps=config.num_steps),),
        losses=LossConfig(gather_negatives=config.losses.gather_negatives),
        data=dataclasses.replace(
            config.data, hard_negatives=0.0, swapped_targets=0.0, random_text=None, random_text_share=0.0
        ),
        batch_size=8,
        num_workers=min(config.num_workers, 4),  # each needs two edits at least
        min_workers=config.min_workers and min(config.min_workers, 4),
        encoder_lr=1e-5,
        head_lr=1e-5,
        prompt_lr=1e-5,
        num_warm_start=0,
    )


def reference(config: TrainConfig) -> TrainConfig:
    """The paper's method as the authors' code has it.

    Won tokens and queries are dropped, of each edit's two questions a random one counts in each contrastive term, and
    the encoder's pooler output is pooled too.
    """
    base = paper(config)
    return dataclasses.replace(
        base,
        editor=dataclasses.replace(base.editor, pooling=(*base.editor.pooling, "pooler")),
        losses=dataclasses.replace(base.losses, margin=REFERENCE_MARGIN, questions="random"),
    )


def no_prompt(config: TrainConfig) -> TrainConfig:
    """Ablation: the statement's own words before the question, no continuous prompt."""
    return dataclasses.replace(
        config,
        editor=dataclasses.replace(config.editor, num_virtual_tokens=0),
        stages=tuple(
            dataclasses.replace(stage, weights=dataclasses.replace(stage.weights, edit=0.0, locality=0.0))
            for stage in config.stages
        ),
        num_warm_start=0,
    )


def no_sentinel(config: TrainConfig) -> TrainConfig:
    """Ablation: a plain contrastive loss, and one threshold for all queries."""
    return dataclasses.replace(
        config,
        editor=dataclasses.replace(config.editor, num_sentinel_tokens=0),
        stages=tuple(
            dataclasses.replace(stage, weights=dataclasses.replace(stage.weights, sentinel=0.0))
            for stage in config.stages
        ),
    )


METHODS: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "default": lambda config: config,
    "paper": paper,
    "reference": reference,
    "no-prompt": no_prompt,
    "no-sentinel": no_sentinel,
    "neither": lambda config: no_sentinel(no_prompt(config)),
}


def with_method(config: TrainConfig, name: str) -> TrainConfig:
    """A set-up trained by a named method.

    Raises:
        ConfigError: no such method, with those there are.
    """
    return _named(name, METHODS, "method")(config)


def _named(name: str, known: dict[str, Callable[..., TrainConfig]], what: str) -> Callable[..., TrainConfig]:
    if name not in known:
        raise ConfigError(f"{what} is {name!r}; give one of {', '.join(sorted(known))}")
    return known[name]
