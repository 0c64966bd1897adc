"""General ability after edits, as asked for on a command line: the editors and data of an evaluation, one by one.

It needs no cluster; it stands here because it reads what an evaluation reads.
"""

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from recipe_ray.config import TESTBED
from recipe_ray.datasets.reading import read_records
from recipe_ray.distributed.evaluate import ABILITY_FOLDER
from recipe_ray.distributed.evaluate_args import EvaluateArgs
from recipe_ray.distributed.evaluate_plan import planned
from recipe_ray.distributed.train_args import DEFAULT_STORAGE
from recipe_ray.errors import ConfigError
from recipe_ray.eval.ability.answering import BATCH_SIZE
from recipe_ray.eval.ability.choices import ChoiceStyle, choice_question
from recipe_ray.eval.ability.run import AbilitySettings, ApplyMode, Row, evaluate_ability
from recipe_ray.eval.ability.world import world_questions
from recipe_ray.eval.evaluation import edit_of
from recipe_ray.eval.methods.registry import build
from recipe_ray.model.llm import load_llm
from recipe_ray.store import files


@dataclass(frozen=True, slots=True, kw_only=True)
class AbilityArgs:
    """What to ask of whom after how many edits.

    Attributes:
        tasks: names of lm-evaluation-harness (commonsense_qa, anli, mmlu, squadv2 …; where a hub is reachable),
            NAME:PATH of multiple-choice questions in CommonsenseQA's form, local or s3://, or `testbed`: questions
            about facts of its world that its edits leave alone.
        output: folder of an evaluation, local or s3://, in whose `ability/` the rows are kept for its report.
        llm: frozen LLM: Hugging Face id, path or short name.
        editor: RECIPE's trained editor, for the methods that need it: a directory, or the name of a published one.
        data: edits to make: `testbed` or `FORM:PATH`.
        tuning_data, training_data: as in jobs/evaluate.py.
        methods: editors to ask.
        num_edits: edits in force.
        mode: batch (all by one call) or lifelong (one after another).
        choices: what the LLM reads of local questions: `letters` lists the choices and asks for a letter, as the
            harness does; `text` gives the question alone and asks how likely each choice is behind it (for small LMs).
        limit: at most so many prompts a task.
        num_fewshot: examples before each question, instead of the task's own number.
        batch_size: rows that the LLM reads at once.
        preset, set: the editors' hyperparameters, as in jobs/evaluate.py.
        device: auto, cpu or cuda.
        seed: of what is drawn.
    """

    tasks: tuple[str, ...]
    output: str = f"{DEFAULT_STORAGE}/evaluation"
    llm: str = TESTBED
    editor: str | None = None
    data: str = TESTBED
    tuning_data: tuple[str, ...] = ()
    training_data: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("recipe",)
    num_edits: int = 1000
    mode: ApplyMode = "batch"
    choices: ChoiceStyle = "letters"
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = BATCH_SIZE
    preset: Literal["testbed", "7b"] | None = None
    set: tuple[str, ...] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def evaluation(self) -> EvaluateArgs:
        """The evaluation of the same editors with the same edits in force.

        Raises:
            ConfigError: options that cannot be.
        """
        return EvaluateArgs(
            output=self.output,
            llm=self.llm,
            editor=self.editor,
            data=(self.data,),
            tuning_data=self.tuning_data,
            training_data=self.training_data,
            editors=self.methods,
            num_edits=(str(self.num_edits),),
            preset=self.preset,
            set=self.set,
            device=self.device,
            seed=self.seed,
        )

    def settings(self) -> AbilitySettings:
        """The tasks, local ones read.

        Raises:
            ConfigError: none, or one twice.
            FactError: local questions that cannot be read.
        """
        local = {}
        for task in self.tasks:
            name, colon, path = task.partition(":")
            if task == TESTBED:
                local[task] = tuple(world_questions())
            if not colon:
                continue
            if not re.fullmatch(r"\w+", name) or not path:
                raise ConfigError(f"tasks names {task!r}; give NAME:PATH, the name of letters, digits and _")
            if name in local:
                raise ConfigError(f"tasks names {name!r} twice; give each a name of its own")
            local[name] = tuple(choice_question(place, values) for place, values in read_records(path))
        return AbilitySettings(
            tasks=tuple(task for task in self.tasks if ":" not in task and task != TESTBED),
            local=local,
            style=self.choices,
            mode=self.mode,
            limit=self.limit,
            num_fewshot=self.num_fewshot,
            batch_size=self.batch_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AbilityReport:
    """What was measured.

    Attributes:
        rows: as `evaluate_ability` gives them, each with llm, data, device, command, commit.
        uri: where they lie.
        seconds: wall time.
    """

    rows: tuple[Row, ...]
    uri: str
    seconds: float


def measure_ability(args: AbilityArgs, *, progress: Callable[[str], None]) -> AbilityReport:
    """Measure, and keep the rows where the evaluation's report finds them.

    Args:
        args: what to measure.
        progress: told what begins.

    Raises:
        RecipeError: as `evaluate_ability`, and as `planned` of an evaluation.
    """
    started = time.monotonic()
    settings = args.settings()
    plan = planned(args.evaluation())
    ((data, of_data),) = plan.data.items()
    if of_data.reason is not None:
        raise ConfigError(of_data.reason)
    if not 1 <= args.num_edits <= len(of_data.cases):
        raise ConfigError(f"num_edits is {args.num_edits}; {data} has {len(of_data.cases)} edits, give 1 to those")
    cases = of_data.cases[: args.num_edits]
    setup = plan.setup
    llm = load_llm(args.llm, args.device)
    context = setup.context(llm, cases, editor=setup.editor)
    rows = evaluate_ability(
        llm,
        {name: partial(build, name, context) for name in args.methods},
        [edit_of(case) for case in cases],
        settings,
        progress=progress,
    )
    made_by = {"data": data, "llm": args.llm, "device": str(llm.device), **setup.made_by}
    made = tuple({**row, **made_by} for row in rows)
    uri = files.join(setup.folder, ABILITY_FOLDER, _file_name(args))
    files.write_text(uri, json.dumps(made) + "\n")
    return AbilityReport(rows=made, uri=uri, seconds=time.monotonic() - started)


def _file_name(args: AbilityArgs) -> str:
    """The same for the same question, which then takes the place of its earlier answer."""
    asked = json.dumps(dataclasses.asdict(args), sort_keys=True)
    data = re.sub(r"\W+", "-", args.data.rpartition("/")[2])
    return f"{data}-{args.num_edits}-{args.mode}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}.json"
