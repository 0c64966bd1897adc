"""Joint training of an editor on Ray Train: data-parallel workers, checkpoints, resume by run name."""

import dataclasses
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from recipe_ray.config import LossWeights, TrainConfig
from recipe_ray.datasets.sources import EditData, TrainingData, absolute_sources, open_training_data
from recipe_ray.errors import ConfigError, ModelError, OutputError, RecipeError
from recipe_ray.examples import Batches
from recipe_ray.model.editor import CARD_FILE, new_editor
from recipe_ray.model.encoder import model_type
from recipe_ray.model.llm import llm_width, load_llm
from recipe_ray.model.training import JointTraining, make_optimizer, warm_start
from recipe_ray.presets import preset
from recipe_ray.store import files

NUM_TUNING_BATCHES = 8
KEEP_CHECKPOINTS = 2
MAX_WORKER_RESTARTS = 2
CONFIG_FILE = "train_config.json"
STATE_FILE = "state.pt"
EDITOR_FOLDER = "editor"
# Not below the working directory: a submitted job runs in a copy of the project that Ray removes.
DEFAULT_STORAGE = "~/recipe-ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainArgs:
    """A training as asked for on a command line: a preset, what differs from it, and where things lie.

    Attributes:
        preset: the set-up to start from; see recipe_ray/presets.py.
        run: names the run; the same name continues it from its last checkpoint. The preset's name if not given.
        storage: folder of all runs, local or s3://; on several nodes, one that all of them reach.
        output: folder for the trained editor, local or s3://; `editor` in the run's folder if not given.
        llm: frozen LLM instead of the preset's: Hugging Face id, path or `testbed`.
        encoder: text encoder instead of the preset's: likewise.
        data: edits to train on, instead of the preset's: `testbed`, or data sets, each `FORM:PATH` with a form of
            counterfact, zsre, ripe or edits (one's own); see docs/training.md.
        num_steps: steps of the whole training, instead of the preset's; its stages keep their proportions.
        batch_size: edits a step and worker, instead of the preset's.
        num_workers: data-parallel workers, instead of the preset's.
        cpus_per_worker: CPUs that a worker reserves and computes with; all there are, shared out, if not given.
        device: auto, cpu or cuda.
        seed: of weights and data.
    """

    preset: str = "testbed"
    run: str | None = None
    storage: str = DEFAULT_STORAGE
    output: str | None = None
    llm: str | None = None
    encoder: str | None = None
    data: tuple[str, ...] | None = None
    num_steps: int | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    cpus_per_worker: float | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int | None = None

    @property
    def run_name(self) -> str:
        """Name of the run."""
        return self.run or self.preset

    @property
    def output_folder(self) -> str:
        """Where the editor goes."""
        return self.output or files.join(self.storage, self.run_name, EDITOR_FOLDER)

    def config(self) -> TrainConfig:
        """The preset with what differs.

        Raises:
            ConfigError: no such preset, or options that cannot be.
        """
        config = preset(self.preset)
        given = {name: getattr(self, name) for name in ("llm", "encoder") if getattr(self, name) is not None}
        changes = {
            name: getattr(self, name)
            for name in ("data", "batch_size", "num_workers", "cpus_per_worker", "device", "seed")
            if getattr(self, name) is not None
        }
        config = dataclasses.replace(config, editor=dataclasses.replace(config.editor, **given), **changes)
        return config if self.num_steps is None else config.stretched(self.num_steps)


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
        before, after: mean losses and accuracies over tuning edits that no training step saw.
    """

    editor: str
    fingerprint: str
    num_steps: int
    num_steps_now: int
    seconds: float
    edits_per_s: float
    before: dict[str, float]
    after: dict[str, float]


def train_editor(config: TrainConfig, *, run: str, storage: str, output: str) -> TrainReport:
    """Train on the connected Ray cluster; a run of that name in that storage is continued.

    Args:
        config: what to train, and how.
        run, storage, output: as in `TrainArgs`.

    Raises:
        ConfigError: the run was begun with another configuration, or the cluster lacks what was asked for.
        FactError: the training data cannot be read.
        ModelError: the LLM or the encoder cannot be loaded, or the loss is no longer a number.
        OutputError: `storage` or `output` cannot be written, or `output` holds something else.
    """
    started = time.monotonic()
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it would show every line of a worker twice
    storage, output = files.absolute(storage), files.absolute(output)
    files.check_writable(storage)
    files.check_writable(output)
    llm_width(config.editor.llm)  # a wrong name fails here, before any worker starts
    model_type(config.editor.encoder)
    config = dataclasses.replace(config, data=absolute_sources(config.data))
    data = open_training_data(config.data)
    data.training(config.batch_size, "")  # so does too little data
    if isinstance(data, EditData):
        print(f"data: {data}", flush=True)
    scaling = _scaling(config)
    _claim_run(config, files.join(storage, run), output)
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"config": config},
        scaling_config=scaling,
        run_config=RunConfig(
            name=run,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=MAX_WORKER_RESTARTS),
            checkpoint_config=CheckpointConfig(num_to_keep=KEEP_CHECKPOINTS),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        raise _user_fault(error) or error from error
    if isinstance(result.return_value, RecipeError):
        raise result.return_value
    assert result.checkpoint is not None and result.metrics is not None  # the worker ends with a report of both
    metrics = result.metrics
    if _fingerprint_at(output) != metrics["fingerprint"]:
        with result.checkpoint.as_directory() as folder:
            files.publish(Path(folder) / EDITOR_FOLDER, output)
    return TrainReport(
        editor=output,
        fingerprint=metrics["fingerprint"],
        num_steps=config.num_steps,
        num_steps_now=metrics["num_steps_now"],
        seconds=time.monotonic() - started,
        edits_per_s=metrics["edits_per_s"],
        before=metrics["before"],
        after=metrics["after"],
    )


def _train_worker(arguments: dict[str, Any]) -> RecipeError | None:
    """The loop of one worker; a fault that all workers know of is returned.

    Raised, it would be tried again in vain, and logged with a traceback each time.
    """
    config: TrainConfig = arguments["config"]
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    loaded = _load(config, device)
    if isinstance(loaded, RecipeError):
        return loaded
    joint, data = loaded
    editor = joint.editor
    if config.num_warm_start and ray.train.get_checkpoint() is None:
        # The same on every worker: the edits depend on the seed alone.
        warm_start(joint.editor, joint.llm, data.sample(config.num_warm_start, f"{config.seed}/warm-start"))
    # A stage without edit losses leaves the prompt encoder without gradient.
    options = {"find_unused_parameters": True}
    model = ray.train.torch.prepare_model(joint, parallel_strategy_kwargs=options)
    optimizer, schedule = make_optimizer(editor, config)
    training = data.training(config.batch_size, f"{config.seed}/{rank}")
    tuning = data.tuning(config.batch_size, f"{config.seed}/tuning")

    first, before = _restore(joint, optimizer, schedule)
    if before is None:
        before = evaluate(joint, tuning)
        if rank == 0:
            print(f"before: {describe(before)}", flush=True)
    joint.train()
    started = time.monotonic()
    recent: list[dict[str, float]] = []
    for step in range(first, config.num_steps):
        # Random numbers (dropout) depend on the step, not on the past: a resumed run draws what it would have drawn.
        torch.manual_seed(config.seed + step * num_workers + rank)
        loss, metrics = model(training.batch(step), config.weights_at(step))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(editor.parameters(), config.max_grad_norm)
        if not math.isfinite(norm):  # the same on every worker, whose gradients are averaged
            return ModelError(
                f"step {step}: the gradient is {norm.item()}, the loss of worker {rank} {loss.item()}; the checkpoint "
                "before is whole. Begin a run of another name with another --seed or a larger --batch-size"
            )
        optimizer.step()
        schedule.step()
        done = step + 1
        recent.append(metrics)
        if done % config.log_every == 0:
            if rank == 0:
                rate = (done - first) * config.batch_size * num_workers / (time.monotonic() - started)
                print(f"step {done}/{config.num_steps} {describe(_mean(recent))} {rate:.0f} edits/s", flush=True)
            recent.clear()
        if done % config.checkpoint_every == 0 and done < config.num_steps:
            _report(metrics, joint, optimizer, schedule, step=done, before=before, rank=rank)
    seconds = time.monotonic() - started
    after = evaluate(joint, tuning)
    if rank == 0:
        print(f"after: {describe(after)}", flush=True)
    num_steps_now = config.num_steps - first
    final = {
        "before": before,
        "after": after,
        "fingerprint": editor.fingerprint(),
        "num_steps_now": num_steps_now,
        "edits_per_s": num_steps_now * config.batch_size * num_workers / seconds if num_steps_now else 0.0,
    }
    _report(final, joint, optimizer, schedule, step=config.num_steps, before=before, rank=rank)
    return None


def _load(config: TrainConfig, device: torch.device) -> tuple[JointTraining, TrainingData] | RecipeError:
    """The frozen LLM with a fresh editor, and the edits.

    Or the first fault of any worker: then none may go on to wait for the rest.
    """
    fault: RecipeError | None = None
    torch.manual_seed(config.seed)
    try:
        llm = load_llm(config.editor.llm, str(device))
        editor = new_editor(config.editor, llm_embedding=llm.embedding, llm_width=llm.width)
        joint = JointTraining(editor.to(device), llm, answer_end=config.answer_end, split_queries=config.split_queries)
        data = open_training_data(config.data)
    except RecipeError as error:
        fault = error
    faults: list[RecipeError | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(faults, fault)
    return next((one for one in faults if one is not None), None) or (joint, data)


@torch.no_grad()
def evaluate(joint: JointTraining, tuning: Batches) -> dict[str, float]:
    """Mean losses and accuracies over tuning batches, all losses at weight 1."""
    joint.eval()
    return _mean([joint(tuning.batch(number), LossWeights())[1] for number in range(NUM_TUNING_BATCHES)])


def _mean(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric; steps of two stages may not have the same ones."""
    names = dict.fromkeys(name for one in metrics for name in one)
    return {name: statistics.fmean(one[name] for one in metrics if name in one) for name in names}


def describe(metrics: dict[str, float]) -> str:
    """Metrics on one line."""
    return " ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def _report(
    metrics: dict[str, Any],
    joint: JointTraining,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    *,
    step: int,
    before: dict[str, float],
    rank: int,
) -> None:
    """Report to Ray Train, a barrier for all workers; the first one brings the checkpoint."""
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        joint.editor.save(Path(folder) / EDITOR_FOLDER, extra={"num_steps": step})
        state = {
            "step": step,
            "before": before,
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
        torch.save(state, Path(folder) / STATE_FILE)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _restore(
    joint: JointTraining, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR
) -> tuple[int, dict[str, float] | None]:
    """The next step and the metrics before training, from the run's last checkpoint, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, None
    with checkpoint.as_directory() as folder:
        joint.editor.load_weights(Path(folder) / EDITOR_FOLDER)
        state = torch.load(Path(folder) / STATE_FILE, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return state["step"], state["before"]


def _claim_run(config: TrainConfig, folder: str, output: str) -> None:
    """Keep the resolved configuration with the run; refuse to continue a run that was begun with another.

    A fresh run also refuses an output that holds an editor already: better now than after the training.
    """
    resolved = json.loads(json.dumps(dataclasses.asdict(config)))
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

    cpus = config.cpus_per_worker
    if cpus is None:
        shares = {node.get("CPU", 0) // share for node in nodes for share in range(1, config.num_workers + 1)}
        cpus = next((cpus for cpus in sorted(shares, reverse=True) if cpus and room(cpus) >= config.num_workers), 1)
    if room(cpus) < config.num_workers:
        raise ConfigError(
            f"{config.num_workers} workers of {cpus:g} CPUs{' and a GPU' if use_gpu else ''} each do not fit: "
            f"the nodes of the Ray cluster hold {room(cpus)}; give fewer workers, fewer cpus_per_worker, or add nodes"
        )
    return ScalingConfig(num_workers=config.num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus})


def _user_fault(error: TrainingFailedError) -> RecipeError | None:
    """The fault of user or data behind a failed run, if that is what it was."""
    failures = getattr(error, "worker_failures", {})
    faults = [fault for fault in failures.values() if isinstance(fault, RecipeError)]
    return faults[0] if faults else None
