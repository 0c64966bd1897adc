"""Joint training of an editor on Ray Train: data-parallel workers, checkpoints, resume by run name."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train.torch
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig, ScalingConfig, UserCallback
from ray.train.v2.api.exceptions import TrainingFailedError

from recipe_ray.config import TrainConfig
from recipe_ray.datasets.sources import EditData, absolute_sources, open_training_data
from recipe_ray.distributed.progress import line, progress
from recipe_ray.distributed.provenance import command_line, commit
from recipe_ray.distributed.telling import Tell, Told, listening
from recipe_ray.distributed.tracking import check_tracking
from recipe_ray.distributed.train_loop import EDITOR_FOLDER, WorkerArgs, train_worker
from recipe_ray.errors import ConfigError, OutputError, RecipeError
from recipe_ray.model.chat import check_chats
from recipe_ray.model.editor import read_card
from recipe_ray.model.encoder import check_encoder
from recipe_ray.model.hub import absolute_model
from recipe_ray.model.llm import llm_width
from recipe_ray.published import CARD_FILE
from recipe_ray.store import files
from recipe_ray.store.objects import object_filesystem
from recipe_ray.store.stored import Progress

KEEP_CHECKPOINTS = 2
MAX_WORKER_RESTARTS = 2
CONFIG_FILE = "train_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a training did.

    Attributes:
        editor: where the editor lies.
        fingerprint: of its weights.
        num_steps: steps of the whole training.
        num_steps_now: steps that this start took; fewer where it resumed.
        seconds: wall time of this start, start-up included.
        edits_per_s: edits trained on a second, over all workers, start-up left out.
        best_step: the step whose checkpoint scored best on tuning edits, and is the editor.
        before, after: mean losses and accuracies over tuning edits that no training step saw, after at the best step.
    """

    editor: str
    fingerprint: str
    num_steps: int
    num_steps_now: int
    seconds: float
    edits_per_s: float
    best_step: int
    before: dict[str, float]
    after: dict[str, float]


def train_editor(
    config: TrainConfig,
    *,
    run: str,
    storage: str,
    output: str,
    show: Progress = progress,
    say: Callable[[str], None] = line,
) -> TrainReport:
    """Train on the connected Ray cluster; a run of that name in that storage is continued.

    Args:
        config: what to train, and how.
        run, storage, output: name of the run, folder of all runs, folder for the editor; see `TrainArgs`.
        show: shows how many steps are done.
        say: is given the metrics, a line each time.

    Raises:
        ConfigError: the run was begun with another configuration, or the cluster lacks what was asked for.
        FactError: the training data cannot be read.
        ModelError: the LLM or the encoder cannot be loaded, the LLM is to be asked in chats and has no template for
            them, or the loss is no longer a number.
        OutputError: `storage` or `output` cannot be written, or `output` holds something else.
    """
    started = time.monotonic()
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it would show every line of a worker twice
    storage, output = files.absolute(storage), files.absolute(output)
    files.check_writable(storage)
    files.check_writable(output)
    config = _absolute(config)
    origin = _origin(config)
    llm_width(config.editor.llm)  # a wrong name fails here, before any worker starts
    check_encoder(config.editor.encoder)
    check_tracking()
    data = open_training_data(config.data)
    data.training(config.batch_size, "")  # so does too little data
    if isinstance(data, EditData):
        if data.asks_in_chats:
            check_chats(config.editor.llm)
        say(f"data: {data}")
    scaling = _scaling(config)
    storage_filesystem, storage_path = object_filesystem(storage)
    _claim_run(config, files.join(storage, run), output)
    with show("training", config.num_steps, unit="steps") as advance:

        def hear(told: Told) -> None:
            if told.line:
                say(told.line)
            advance(told.num_done)

        with listening(hear) as tell:
            folder = files.join(storage, run)
            trainer = ray.train.torch.TorchTrainer(
                train_worker,
                train_loop_config={"args": WorkerArgs(config=config, run=run, folder=folder, origin=origin, tell=tell)},
                scaling_config=scaling,
                run_config=RunConfig(
                    name=run,
                    storage_path=storage_path,
                    storage_filesystem=storage_filesystem,  # with our timeouts and retries, and for roles of one prefix
                    failure_config=FailureConfig(max_failures=MAX_WORKER_RESTARTS),
                    checkpoint_config=CheckpointConfig(
                        num_to_keep=KEEP_CHECKPOINTS, checkpoint_score_attribute="score", checkpoint_score_order="max"
                    ),
                    callbacks=[_TellsFailures(tell)],
                ),
            )
            result = _fit(trainer)
    checkpoint, best = _best(result)
    if _fingerprint_at(output) != best["fingerprint"]:
        with checkpoint.as_directory() as folder:
            files.publish(Path(folder) / EDITOR_FOLDER, output)
    assert result.metrics is not None  # as _best found
    return TrainReport(
        editor=output,
        fingerprint=best["fingerprint"],
        num_steps=config.num_steps,
        num_steps_now=result.metrics["num_steps_now"],
        seconds=time.monotonic() - started,
        edits_per_s=result.metrics["edits_per_s"],
        best_step=best["step"],
        before=best["before"],
        after=best["after"],
    )


def _fit(trainer: ray.train.torch.TorchTrainer) -> Result:
    """Train, and raise the fault of user or data that ended it, if one did."""
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise _user_fault(error) or error from error
    if isinstance(result.return_value, RecipeError):
        raise result.return_value
    return result


class _TellsFailures(UserCallback):
    """Tells the driver of workers that failed, which Ray Train starts again without a word to it."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called where Ray Train watches over the workers."""
        for rank, error in worker_exceptions.items():
            self._tell(Told(line=f"worker {rank} failed: {' '.join(str(error).split())[:200]}"))


def _absolute(config: TrainConfig) -> TrainConfig:
    """The same with local paths absolute: workers run in other folders."""
    llm, encoder = absolute_model(config.editor.llm), absolute_model(config.editor.encoder)
    editor = dataclasses.replace(config.editor, llm=llm, encoder=encoder)
    start = config.start and files.absolute_editor(config.start)
    return dataclasses.replace(config, editor=editor, start=start, data=absolute_sources(config.data))


def _origin(config: TrainConfig) -> dict[str, Any]:
    """For the editor's card: the command, the commit, and the card of the editor that the training goes on from."""
    origin: dict[str, Any] = {"command": command_line(), "commit": commit()}
    if config.start is not None:
        origin["started_from"] = read_card(files.localize_editor(config.start))
    return origin


def _best(result: Result) -> tuple[ray.train.Checkpoint, dict[str, Any]]:
    """The checkpoint that scored best, the latest of equals, with its metrics."""
    assert result.best_checkpoints  # the worker ends with a report of one
    return max(result.best_checkpoints, key=lambda one: (one[1]["score"], one[1]["step"]))


def _claim_run(config: TrainConfig, folder: str, output: str) -> None:
    """Keep the resolved configuration with the run; refuse to continue a run that was begun with another.

    A fresh run also refuses an output that holds an editor already: better now than after the training.
    """
    resolved = config.to_dict()
    path = files.join(folder, CONFIG_FILE)
    written = files.read_text(path)
    if written is None:
        if _fingerprint_at(output) is not None:
            raise OutputError(f"{output}: holds an editor of another run; give another --output, or remove it")
        if not files.is_empty(output):
            raise OutputError(f"{output}: is not empty; give another --output, or remove what is there")
        files.write_text(path, json.dumps(resolved, indent=2) + "\n")
        return
    begun = _json_object(written)
    if begun is None:
        raise ConfigError(f"{path}: is not what a training wrote there; take another run name, or remove the run")
    if different := sorted(name for name in resolved if begun.get(name) != resolved[name]):
        name = different[0]
        raise ConfigError(
            f"{folder}: this run was begun with {name} {begun.get(name)}, not {resolved[name]}; "
            "take another run name, or the same settings to continue it"
        )


def _fingerprint_at(output: str) -> str | None:
    """The fingerprint of the editor that lies there, if one does."""
    path = files.join(output, CARD_FILE)
    text = files.read_text(path)
    if text is None:
        return None
    card = _json_object(text)
    if card is None or "fingerprint" not in card:
        raise OutputError(f"{path}: is not of an editor; give another --output, or remove it")
    return str(card["fingerprint"])


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _scaling(config: TrainConfig) -> ScalingConfig:
    """Workers on GPUs where the cluster has them, else on its CPUs; each must fit on one node."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    use_gpu = config.device != "cpu" and any(node.get("GPU", 0) > 0 for node in nodes)
    if config.device.startswith("cuda") and not use_gpu:
        raise ConfigError(f"device is {config.device!r}, but the Ray cluster has no GPU; give auto or cpu")

    def room(cpus: float) -> int:
        """How many workers of so many CPUs the nodes hold."""
        return sum(int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) if use_gpu else math.inf)) for node in nodes)

    num_needed = config.min_workers or config.num_workers
    cpus = config.cpus_per_worker
    if cpus is None:
        num_wanted = max(num_needed, min(config.num_workers, room(1)))  # an elastic training shares out what there is
        shares = {node.get("CPU", 0) // share for node in nodes for share in range(1, num_wanted + 1)}
        cpus = next((cpus for cpus in sorted(shares, reverse=True) if cpus and room(cpus) >= num_wanted), 1)
    if room(cpus) < num_needed:
        raise ConfigError(
            f"{num_needed} workers of {cpus:g} CPUs{' and a GPU' if use_gpu else ''} each do not fit: "
            f"the nodes of the Ray cluster hold {room(cpus)}; give fewer workers, fewer cpus_per_worker, or add nodes"
        )
    num_workers = config.num_workers if config.min_workers is None else (config.min_workers, config.num_workers)
    return ScalingConfig(num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus})


def _user_fault(error: TrainingFailedError) -> RecipeError | None:
    """The fault of user or data behind a failed run, if that is what it was."""
    failures = getattr(error, "worker_failures", {})
    faults = [fault for fault in failures.values() if isinstance(fault, RecipeError)]
    return faults[0] if faults else None
