"""An evaluation as asked for on a command line."""

from dataclasses import dataclass
from typing import Literal

from recipe_ray.config import TESTBED
from recipe_ray.distributed.train_args import DEFAULT_STORAGE
from recipe_ray.errors import ConfigError
from recipe_ray.eval.methods.context import Preset
from recipe_ray.eval.methods.registry import METHODS, hyperparameters
from recipe_ray.eval.results import MODES, Mode
from recipe_ray.store import files

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateArgs:
    """Whom to compare, on what, and where the report goes.

    Attributes:
        output: the run's folder, local or s3://: finished cells, trained editors and the report. Started again with the
            same folder, the job goes on. What `jobs/ability.py` wrote into its `ability/` the report shows too.
        llm: frozen LLM: Hugging Face id, path (a .gguf file too) or short name (testbed, smollm2-135m-instruct).
        editor: RECIPE's trained editor: its directory, local or s3://, or the name of a published one; without one its
            rows are left out.
        ablations: further trained editors as rows of their own, each NAME=DIRECTORY.
        data: edits to report on: `testbed`, or data sets, each `FORM:PATH` with a form of counterfact, zsre, ripe or
            edits (one's own).
        tuning_data: edits to choose thresholds by, likewise; the testbed's own where it is all that is reported on.
        training_data: edits to train editors on that must be trained, likewise.
        editors: whom to compare; by default all there are.
        chat: of those compared, whom to ask in chats too where the LLM has a chat template.
        num_edits: edits in force at once, each a number or `all`.
        modes: single (one edit), batch (all by one call), lifelong (one after another).
        samples: cases asked at each number of edits up to it; above it, all edits are asked about.
        preset: the editors' hyperparameters: testbed (small LMs) or 7b (their papers'); by the LLM's size if not given.
        set: other hyperparameters than the preset's, each EDITOR.NAME=VALUE: rome.layer=2, memit.value.num_steps=40.
        encoder: sentence encoder of editors that retrieve by text: Hugging Face id, path or short name; by default the
            pretrained encoder that RECIPE's editor was made from.
        device: auto, cpu or cuda.
        seed: of what is drawn: cases, examples, bootstraps, trainings.
    """

    output: str = f"{DEFAULT_STORAGE}/evaluation"
    llm: str = TESTBED
    editor: str | None = None
    ablations: tuple[str, ...] = ()
    data: tuple[str, ...] = (TESTBED,)
    tuning_data: tuple[str, ...] = ()
    training_data: tuple[str, ...] = ()
    editors: tuple[str, ...] = ()
    chat: tuple[str, ...] = ("unedited", "recipe", "in_context", "oracle", "oracle_prompt")
    num_edits: tuple[str, ...] = ("1", "10", "100", "1000")
    modes: tuple[Mode, ...] = MODES
    samples: int = 200
    preset: Preset | None = None
    set: tuple[str, ...] = ()
    encoder: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("data", "num_edits", "modes"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; give at least one")
        for text in self.num_edits:
            if text != ALL and not (text.isdecimal() and int(text) > 0):
                raise ConfigError(f"num_edits names {text!r}; give numbers above 0, or {ALL!r}")
        if self.samples < 1:
            raise ConfigError(f"samples is {self.samples}; give a number above 0")
        if unknown := [name for name in self.editors if name not in METHODS]:
            raise ConfigError(f"editors names {unknown[0]!r}; give some of {', '.join(METHODS)}")
        if needing := [name for name in self.editors if "editor" in METHODS[name].needs and self.editor is None]:
            raise ConfigError(f"editors names {needing[0]!r}, which needs RECIPE's trained editor; give editor too")
        for name in ("tuning_data", "training_data"):
            if shared := [one for one in getattr(self, name) if one in self.data and one != TESTBED]:
                raise ConfigError(f"data and {name} both name {shared[0]!r}; give other edits to report on")
        self._check_set()
        named = self.ablation_folders()
        if unknown := [name for name in self.chat if name not in METHODS and name not in named]:
            raise ConfigError(f"chat names {unknown[0]!r}; give some of the editors that are compared")
        if mute := [name for name in self.chat if name in METHODS and not METHODS[name].chats]:
            raise ConfigError(f"chat names {mute[0]!r}, which reads no chats; leave it out of chat")
        if taken := [name for name in named if name in METHODS]:
            raise ConfigError(f"ablations names {taken[0]!r}, which is an editor's name; give another")

    def _check_set(self) -> None:
        for setting in self.set:
            name = setting.partition(".")[0]
            if name not in self.compared():
                raise ConfigError(f"set names {setting!r}; give EDITOR.NAME=VALUE of an editor that is compared")
            hyperparameters(name, self.preset or "7b", [setting])

    def ablation_folders(self) -> dict[str, str]:
        """Directories of the ablations by name.

        Raises:
            ConfigError: one that is no NAME=DIRECTORY, or a name that comes twice.
        """
        folders: dict[str, str] = {}
        for given in self.ablations:
            name, equals, folder = given.partition("=")
            if not (name and equals and folder):
                raise ConfigError(f"ablations names {given!r}; give NAME=DIRECTORY")
            if name in folders:
                raise ConfigError(f"ablations names {name!r} twice; give each a name of its own")
            folders[name] = files.absolute_editor(folder)
        return folders

    def tuning_sources(self) -> tuple[str, ...]:
        """Edits to choose thresholds by; the testbed's tuning edits are others than those it reports on."""
        return self.tuning_data or self._own()

    def training_sources(self) -> tuple[str, ...]:
        """Edits to train on; the testbed's are of invented subjects."""
        return self.training_data or self._own()

    def _own(self) -> tuple[str, ...]:
        return (TESTBED,) if set(self.data) == {TESTBED} else ()

    def compared(self) -> tuple[str, ...]:
        """Names of the editors compared, in the order of the report; ablations come behind them."""
        if self.editors:
            return tuple(dict.fromkeys(self.editors))
        return tuple(
            name for name, method in METHODS.items() if self.editor is not None or "editor" not in method.needs
        )

    def counts(self, num_cases: int) -> list[int]:
        """Numbers of edits at once, ascending; one above the number of cases stands for all of them."""
        return sorted({num_cases if text == ALL else min(int(text), num_cases) for text in self.num_edits})

    def modes_at(self, num_edits: int) -> list[Mode]:
        """How so many edits are made: a single one in one way only."""
        return [mode for mode in MODES if mode in self.modes and (mode == "single") == (num_edits == 1)]
