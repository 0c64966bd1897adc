"""What each worker of a training does: steps, metrics, checkpoints; resumable at each of these."""

import dataclasses
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import Checkpoint
from torch import Tensor

from recipe_ray.config import LossWeights, TrainConfig
from recipe_ray.datasets.sources import TrainingData, open_training_data
from recipe_ray.distributed.telling import Tell, to_nobody
from recipe_ray.distributed.tracking import CURVE_FILE, Tracker, draw_curve
from recipe_ray.errors import ModelError, OutputError, RecipeError
from recipe_ray.examples import Batches
from recipe_ray.model.batch import BatchMaker, Share, StepBatch, to_device
from recipe_ray.model.card import MODEL_CARD_FILE, model_card
from recipe_ray.model.editor import new_editor
from recipe_ray.model.joint import JointTraining
from recipe_ray.model.llm import load_llm_to_train
from recipe_ray.model.prefetch import prefetched
from recipe_ray.model.training import fit_threshold, make_optimizer, start_from, take_step, warm_start
from recipe_ray.store.files import localize_editor

NUM_TUNING_BATCHES = 8
NUM_NAMES = 3  # of a step's edits in a complaint
STATE_FILE = "state.pt"
HISTORY_FILE = "history.json"
EDITOR_FOLDER = "editor"

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerArgs:
    """What a worker is told.

    Attributes:
        config: what to train, and how.
        run: name of the run.
        folder: the run's, local or s3://.
        origin: how the training was asked for, and what it goes on from, for the editor's card.
        tell: the driver, of lines and of steps.
    """

    config: TrainConfig
    run: str
    folder: str
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tell: Tell = to_nobody


def train_worker(arguments: dict[str, Any]) -> RecipeError | None:
    """The loop of one worker; a fault that all workers know of is returned.

    Raised, it would be tried again in vain, and logged with a traceback each time.
    """
    args: WorkerArgs = arguments["args"]
    loaded = _load(args.config, ray.train.torch.get_device())
    if isinstance(loaded, RecipeError):
        return loaded
    try:
        loop = _Loop(args, *loaded)
        fault = loop.restore()
        return fault or loop.run()
    except OSError as error:  # of the storage, which may have recovered when the worker is started again
        raise OutputError(
            f"{args.folder}: cannot be written or read ({' '.join(str(error).split())[:200]}); free space or mend it, "
            "then the same command continues from the last checkpoint"
        ) from error


class _Loop:
    """One worker's training, from its last checkpoint or from the start."""

    def __init__(self, args: WorkerArgs, joint: JointTraining, data: TrainingData) -> None:
        self.args = args
        self.config = config = args.config
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.num_workers = context.get_world_size()
        self.joint = joint
        self.data = data
        self.device = joint.llm.device
        self.share = Share(rank=self.rank, num_workers=self.num_workers, num_turns=config.accumulate)
        self.maker = BatchMaker(
            encoder=joint.editor.encoder,
            llm=joint.llm,
            losses=config.losses,
            num_virtual_tokens=config.editor.num_virtual_tokens,
            position=config.editor.prompt_position,
            chat_position=config.editor.chat_position,
            answer_end=config.answer_end,
            answer_eos=config.answer_eos,
            reader=joint.editor.reader if config.editor.prompt_source == "statement" else None,
        )
        if config.num_warm_start and ray.train.get_checkpoint() is None:
            # The same on every worker: the edits depend on the seed alone.
            warm_start(joint.editor, joint.llm, data.sample(config.num_warm_start, f"{config.seed}/warm-start"))
        self.model = ray.train.torch.prepare_model(
            joint,
            parallel_strategy_kwargs={
                "find_unused_parameters": True  # a stage without edit losses trains no prompt encoder
            },
        )
        self.optimizer, self.schedule = make_optimizer(joint.editor, config)
        self.tuning = self._tuning_batches(data.tuning(config.batch_size, f"{config.seed}/tuning"))
        self.history: list[dict[str, float]] = []
        self.before: Metrics | None = None
        self.last_checkpoint: int | None = None
        self.first = 0

    def run(self) -> RecipeError | None:
        """All steps that are left, and a last report."""
        config = self.config
        if self.before is None:
            self.before = self._evaluate()
            self._note(0, self.before, "tuning/")
        with Tracker(
            self.args.run,
            self.args.folder,
            config,
            tell=self.args.tell,
            first=self.first,
            num_steps=config.num_steps,
            enabled=self.rank == 0,
        ) as tracker:
            tracker.line(f"before: {describe(self.before)}")
            return self._steps(tracker)

    def _steps(self, tracker: Tracker) -> RecipeError | None:
        config = self.config
        training = self.data.training(config.batch_size, f"{config.seed}/training")
        numbers = range(self.first, config.num_steps)
        started = time.monotonic()
        recent: list[dict[str, Tensor]] = []
        self.joint.train()
        for step, turns in zip(numbers, prefetched(lambda number: self._make(training, number), numbers), strict=True):
            # Random numbers (dropout) depend on the step, not on the past: a resumed run draws the same.
            torch.manual_seed(config.seed + step * self.num_workers + self.rank)
            parts, norm = take_step(
                self.model,
                [to_device(turn, self.device) for turn in turns],
                config.weights_at(step),
                optimizer=self.optimizer,
                schedule=self.schedule,
                max_grad_norm=config.max_grad_norm,
            )
            recent.append(parts)
            if not math.isfinite(norm):  # the same on every worker, whose gradients are averaged
                return self._not_finite(step, norm, self._reduced(recent[-1:]), turns[0].names)
            done = step + 1
            if done % config.log_every == 0 or done == config.num_steps:
                metrics = self._reduced(recent)
                recent.clear()
                rate = (done - self.first) * config.batch_size / (time.monotonic() - started)
                self._note(done, metrics, "training/")
                tracker.step(done, {**metrics, "edits_per_s": rate}, lr=float(self.schedule.get_last_lr()[0]))
            if done % config.checkpoint_every == 0 and done < config.num_steps:
                tracker.tuning(done, self._checkpoint(done, {}))
        seconds = time.monotonic() - started
        num_steps_now = config.num_steps - self.first
        report = {
            "num_steps_now": num_steps_now,
            "edits_per_s": num_steps_now * config.batch_size / seconds if num_steps_now else 0.0,
        }
        after = self._checkpoint(config.num_steps, report)
        tracker.tuning(config.num_steps, after)
        tracker.line(f"after: {describe(after)}")
        return None

    def _make(self, training: Batches, number: int) -> list[StepBatch]:
        weights = self.config.weights_at(number)
        return self.maker.make(
            training.batch(number),
            seed=self.config.seed + number,
            share=self.share,
            edit=weights.edit > 0,
            locality=weights.locality > 0,
        )

    def _tuning_batches(self, tuning: Batches) -> list[StepBatch]:
        # Terms without a weight are measured too, where there are any: they say what an ablation costs.
        asked = self.config.editor.num_virtual_tokens > 0
        share = dataclasses.replace(self.share, num_turns=1)
        return [
            self.maker.make(tuning.batch(number), seed=number, share=share, edit=asked, locality=asked)[0]
            for number in range(NUM_TUNING_BATCHES)
        ]

    @torch.no_grad()
    def _evaluate(self) -> Metrics:
        """Mean losses and accuracies over tuning batches, all losses at weight 1, and the score to choose by."""
        self.joint.eval()
        metrics = self._reduced([self.joint(to_device(batch, self.device), LossWeights())[1] for batch in self.tuning])
        self.joint.train()
        return {**metrics, "score": score(metrics)}

    def _reduced(self, parts: Sequence[Mapping[str, Tensor]]) -> Metrics:
        """Means over steps, each the sum over workers; steps of two stages may not have the same metrics."""
        names = list(dict.fromkeys(name for one in parts for name in one))
        if not names:
            return {}
        sums = torch.stack([torch.stack([one[name].float() for one in parts if name in one]).mean() for name in names])
        torch.distributed.all_reduce(sums)
        return dict(zip(names, sums.tolist(), strict=True))

    def _note(self, step: int, metrics: Metrics, prefix: str) -> None:
        self.history.append({"step": step, **{prefix + name: value for name, value in metrics.items()}})

    def _not_finite(self, step: int, norm: float, losses: Metrics, names: tuple[str, ...]) -> ModelError:
        where = f"that of step {self.last_checkpoint}" if self.last_checkpoint else "none"
        shown = ", ".join(names[:NUM_NAMES]) + (f" and {len(names) - NUM_NAMES} more" if len(names) > NUM_NAMES else "")
        return ModelError(
            f"step {step}: the gradient is {norm} ({describe(losses)}), over the edits {shown}; last good checkpoint: "
            f"{where}, in {self.args.folder}. Begin a run of another name with another --seed or a larger --batch-size"
        )

    def _checkpoint(self, step: int, report: dict[str, Any]) -> Metrics:
        """Measure, and report to Ray Train, a barrier for all workers; the first one brings the checkpoint."""
        joint, config = self.joint, self.config
        if not config.editor.num_sentinel_tokens:
            examples = self.data.tuning(config.batch_size, f"{config.seed}/tuning")
            fit_threshold(joint.editor, [one for number in range(NUM_TUNING_BATCHES) for one in examples.batch(number)])
        tuning = self._evaluate()
        self._note(step, tuning, "tuning/")
        metrics = {
            "step": step,
            "score": tuning["score"],
            "fingerprint": joint.editor.fingerprint(),
            "before": self.before,
            "after": tuning,
            **report,
        }
        if self.rank != 0:
            ray.train.report(metrics)
            return tuning
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            card = {
                "num_steps": step,
                "before": self.before,
                "metrics": tuning,
                "training": config.to_dict(),
                "data": self.data.manifest(),
                **self.args.origin,
            }
            joint.editor.save(folder / EDITOR_FOLDER, extra=card)
            (folder / EDITOR_FOLDER / MODEL_CARD_FILE).write_text(model_card(joint.editor, card))
            draw_curve(self.history, folder / EDITOR_FOLDER / CURVE_FILE)
            (folder / HISTORY_FILE).write_text(json.dumps(self.history))
            state = {
                "step": step,
                "before": self.before,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "queue": {"keys": joint.queue_QK, "ids": joint.queue_ids_Q},
            }
            torch.save(state, folder / STATE_FILE)
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
        self.last_checkpoint = step
        return tuning

    def restore(self) -> RecipeError | None:
        """Go on behind the run's last checkpoint, if there is one; or the fault of any worker that could not."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        fault: RecipeError | None = None
        try:
            with checkpoint.as_directory() as name:
                self._take_over(Path(name))
        except (RecipeError, RuntimeError, ValueError, KeyError, FileNotFoundError, UnpicklingError) as error:
            fault = OutputError(
                f"{checkpoint.path}: this checkpoint is damaged ({' '.join(str(error).split())[:200]}); restore it, or "
                "begin a run of another name"
            )
        return _first_fault(fault)

    def _take_over(self, folder: Path) -> None:
        self.joint.editor.load_weights(folder / EDITOR_FOLDER)
        state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        self.history = json.loads((folder / HISTORY_FILE).read_text())
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.joint.queue_QK = state["queue"]["keys"].to(self.device)
        self.joint.queue_ids_Q = state["queue"]["ids"].to(self.device)
        self.before = state["before"]
        self.last_checkpoint = state["step"]
        self.first = int(state["step"])


def score(metrics: Mapping[str, float]) -> float:
    """What checkpoints are chosen by: geometric mean chance of an answer token times share of right decisions."""
    answers = [metrics[name] for name in ("reliability", "generality") if name in metrics]
    decisions = [metrics[name] for name in ("right_fact", "right_none") if name in metrics]
    return math.exp(-math.fsum(answers) / max(1, len(answers))) * math.fsum(decisions) / len(decisions)


def describe(metrics: Mapping[str, float]) -> str:
    """Metrics on one line."""
    return " ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def _load(config: TrainConfig, device: Any) -> tuple[JointTraining, TrainingData] | RecipeError:
    """The frozen LLM with a fresh editor or the one to start from, and the edits.

    Or the first fault of any worker: then none may go on to wait for the rest.
    """
    fault: RecipeError | None = None
    torch.manual_seed(config.seed)
    context = ray.train.get_context()
    try:
        llm = load_llm_to_train(config.editor.llm, config.precision, torch.device(device))
        if config.answer_eos:
            _ = llm.end_token_id  # an LLM without one is refused here, not at the first batch
        if config.llm_checkpointing:
            llm.save_memory()
        if config.shard_llm:
            llm.shard()
        editor = new_editor(config.editor, llm)
        if config.start is not None and ray.train.get_checkpoint() is None:
            start_from(editor, localize_editor(config.start))
        joint = JointTraining(
            editor.to(device),
            llm,
            config.losses,
            precision=config.precision,
            rank=context.get_world_rank(),
            num_workers=context.get_world_size(),
        )
        data = open_training_data(config.data)
    except RecipeError as error:
        fault = error
    return _first_fault(fault) or (joint, data)


def _first_fault(own: RecipeError | None) -> RecipeError | None:
    """The first fault of any worker: then none may go on to wait for the rest."""
    faults: list[RecipeError | None] = [None] * ray.train.get_context().get_world_size()
    torch.distributed.all_gather_object(faults, own)
    return next((one for one in faults if one is not None), None)
