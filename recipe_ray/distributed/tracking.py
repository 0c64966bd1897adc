"""Where a training's metrics go: driver, TensorBoard, MLflow, a figure."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX import SummaryWriter

from recipe_ray.config import TrainConfig
from recipe_ray.distributed.telling import Tell, Told
from recipe_ray.errors import ConfigError
from recipe_ray.store import files

CURVE_FILE = "training_curve.png"
TENSORBOARD_FOLDER = "tensorboard"
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
MLFLOW_TAG = "recipe_ray.run"
_SHOWN = ("neighbour", "sentinel", "reliability", "generality", "locality", "right_fact", "right_none", "edits_per_s")


class Tracker:
    """Metrics of one run, as it goes; one worker's is enabled, the others' do nothing.

    Args:
        run: name of the run.
        folder: the run's, local or s3://; TensorBoard's events lie in it.
        config: logged as MLflow's parameters.
        tell: the driver, of lines and of steps.
        first, num_steps: where this start begins, and all steps.
        enabled: whether anything is written.
    """

    def __init__(
        self, run: str, folder: str, config: TrainConfig, *, tell: Tell, first: int, num_steps: int, enabled: bool
    ) -> None:
        self._enabled = enabled
        if not enabled:
            return
        self._num_steps = num_steps
        self._done = first
        self._tell = tell
        if first:
            tell(Told(line=f"going on behind step {first}", num_done=first))
        # Events behind the checkpoint that is continued from are those of steps to be taken again.
        self._board = SummaryWriter(files.join(folder, TENSORBOARD_FOLDER), purge_step=first or None)
        self._mlflow = _start_mlflow(run, config)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._enabled:
            return
        self._board.close()
        if self._mlflow is not None:
            self._mlflow.end_run("FINISHED" if error is None else "FAILED")

    def line(self, text: str) -> None:
        """A line for the console."""
        if self._enabled:
            self._tell(Told(line=text))

    def step(self, step: int, metrics: Mapping[str, float], *, lr: float) -> None:
        """Means since the last call."""
        if not self._enabled:
            return
        shown = " ".join(f"{name} {metrics[name]:.3f}" for name in _SHOWN if name in metrics)
        self._tell(Told(line=f"step {step}/{self._num_steps} {shown}", num_done=step - self._done))
        self._done = step
        self._write(step, {**metrics, "learning_rate": lr}, "training")

    def tuning(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics over tuning edits."""
        if self._enabled:
            self._write(step, metrics, "tuning")

    def _write(self, step: int, metrics: Mapping[str, float], part: str) -> None:
        for name, value in metrics.items():
            self._board.add_scalar(f"{part}/{name}", value, step)
        self._board.flush()
        if self._mlflow is not None:
            self._mlflow.log_metrics({f"{part}/{name}": value for name, value in metrics.items()}, step=step)


def check_tracking() -> None:
    """Refuse a tracking URI that nothing can write to.

    Raises:
        ConfigError: MLFLOW_TRACKING_URI is set, and MLflow is not installed.
    """
    if os.environ.get(MLFLOW_VARIABLE):
        try:
            import mlflow  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"{MLFLOW_VARIABLE} is set, but MLflow is not installed; pip install 'recipe-ray[mlflow]', or unset it"
            ) from error


def _start_mlflow(run: str, config: TrainConfig) -> Any:
    """MLflow with an active run, where a tracking URI is set; a run of that name is continued."""
    if not os.environ.get(MLFLOW_VARIABLE):
        return None
    import mlflow

    mlflow.set_experiment("recipe-ray")
    found = mlflow.search_runs(filter_string=f"tags.`{MLFLOW_TAG}` = '{run}'", output_format="list", max_results=1)
    mlflow.start_run(run_id=found[0].info.run_id if found else None, run_name=run, tags={MLFLOW_TAG: run})
    if not found:
        mlflow.log_params(dict(_flat("", dataclasses.asdict(config))))
    return mlflow


def _flat(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in values.items():
        flat += _flat(f"{prefix}{name}.", value) if isinstance(value, Mapping) else [(prefix + name, str(value)[:500])]
    return flat


def draw_curve(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Losses and accuracies against steps, a line a metric; training thin, tuning with marks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, shares = figure.subplots(1, 2)
    names = dict.fromkeys(name for one in history for name in one if name != "step")
    for name in names:
        part, _, metric = name.partition("/")
        points = [(one["step"], one[name]) for one in history if name in one]
        axes = shares if metric in ("right_fact", "right_none", "score") else losses
        style = {"marker": "o", "markersize": 3} if part == "tuning" else {"linewidth": 0.8, "alpha": 0.7}
        axes.plot([step for step, _ in points], [value for _, value in points], label=name, **style)
    for axes, title in ((losses, "losses"), (shares, "shares")):
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend(fontsize="x-small")
    losses.set_ylim(bottom=0)
    shares.set_ylim(0, 1)
    figure.savefig(path, dpi=110)
