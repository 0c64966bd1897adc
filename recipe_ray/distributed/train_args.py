"""A training as asked for on a command line."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from recipe_ray.config import TESTBED, DataConfig, TrainConfig
from recipe_ray.distributed.train_loop import EDITOR_FOLDER
from recipe_ray.model.editor import read_config
from recipe_ray.presets import preset, with_method
from recipe_ray.settings import changed
from recipe_ray.store import files

# Not below the working directory: a submitted job runs in a copy of the project that Ray removes.
DEFAULT_STORAGE = "~/recipe-ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainArgs:
    """A preset, a method, what differs from them, and where things lie.

    Attributes:
        preset: the set-up to start from, as a rule named after its LLM; see recipe_ray/presets.py.
        method: default, paper, reference (the authors' code), or an ablation: no-prompt, no-sentinel, neither.
        run: names the run; the same name continues it from its last checkpoint. The preset's name if not given.
        storage: folder of all runs, local or s3://; on several nodes, one that all of them reach.
        output: folder for the trained editor, local or s3://; `editor` in the run's folder if not given.
        start: a trained editor to go on from, in place of a fresh one: its directory, local or s3://, or the name of a
            published one. Its LLM, encoder and shape take the place of the preset's, and nothing is warm-started.
        llm: frozen LLM instead of the preset's: Hugging Face id, path (a .gguf file too) or short name
            (testbed, smollm2-135m-instruct).
        encoder: text encoder instead of the preset's: likewise (testbed, minilm-l6).
        data: edits to train on, instead of the preset's: `testbed`, `invented`, or data sets, each `FORM:PATH` with a
            form of counterfact, zsre, ripe or edits (one's own); see docs/training.md.
        tuning_data: edits to choose by, each `FORM:PATH`; a twentieth of the subjects of `data` if not given.
        num_steps: steps of the whole training, instead of the preset's; its stages keep their proportions.
        batch_size: edits a step, over all workers, instead of the preset's.
        num_workers: data-parallel workers, instead of the preset's: exactly so many.
        device: auto, cpu or cuda.
        seed: of weights and data.
        set: any other setting of recipe_ray/config.py, each `NAME=VALUE`: losses.queue_size=4096, head_lr=1e-4.
    """

    preset: str = "testbed"
    method: str = "default"
    run: str | None = None
    storage: str = DEFAULT_STORAGE
    output: str | None = None
    start: str | None = None
    llm: str | None = None
    encoder: str | None = None
    data: tuple[str, ...] | None = None
    tuning_data: tuple[str, ...] | None = None
    num_steps: int | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int | None = None
    set: tuple[str, ...] = ()

    @property
    def run_name(self) -> str:
        """Name of the run."""
        return self.run or self.preset

    @property
    def output_folder(self) -> str:
        """Where the editor goes."""
        return self.output or files.join(self.storage, self.run_name, EDITOR_FOLDER)

    def config(self) -> TrainConfig:
        """The preset by the method, with what differs.

        Raises:
            EditorError: there is no editor to start from.
            ConfigError: no such preset or method, options that cannot be, or a preset that needs data and has none.
        """
        config = preset(self.preset)
        if self.start is not None:
            editor = read_config(files.localize_editor(self.start))
            config = dataclasses.replace(config, editor=editor, start=self.start, num_warm_start=0)
        config = dataclasses.replace(
            config,
            editor=dataclasses.replace(config.editor, **self._given("llm", "encoder")),
            data=self._data(config.data),
        )
        config = with_method(config, self.method)
        changes = self._given("batch_size", "num_workers", "device", "seed")
        if self.num_workers is not None:
            changes["min_workers"] = None
        config = dataclasses.replace(config, **changes)
        if self.num_steps is not None:
            config = config.stretched(self.num_steps)
        config = changed(config, self.set)
        config.data.check_given()
        return config

    def _data(self, data: DataConfig) -> DataConfig:
        if self.data == (TESTBED,):  # hard as it is: what a preset does to data sets is not for it
            data = DataConfig()
        given: dict[str, Any] = {"sources": self.data, "tuning_sources": self.tuning_data}
        return dataclasses.replace(data, **{name: value for name, value in given.items() if value is not None})

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
