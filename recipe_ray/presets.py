"""Named training set-ups."""

from collections.abc import Callable

from recipe_ray.config import TESTBED, EditorConfig, LossConfig, LossWeights, Stage, TrainConfig
from recipe_ray.errors import ConfigError

ROBERTA = "FacebookAI/roberta-base"
MULTILINGUAL = "FacebookAI/xlm-roberta-base"
REFERENCE_MARGIN = 1.2


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
        stages=(
            Stage(num_steps=750, weights=LossWeights(sentinel=0.5, locality=0)),
            Stage(num_steps=300, weights=LossWeights(locality=0)),
        ),
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


PRESETS: dict[str, Callable[[], TrainConfig]] = {"testbed": testbed, "smoke": smoke}


def preset(name: str) -> TrainConfig:
    """A set-up by name.

    Raises:
        ConfigError: no such preset, with those there are.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset is {name!r}; give one of {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
