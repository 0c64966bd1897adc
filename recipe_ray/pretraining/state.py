"""The state of a pretraining that was interrupted."""

from pathlib import Path

import torch
from torch import nn

STATE_FILE = "state.pt"


def save_state(folder: Path, step: int, task: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Keep what a later start needs to go on behind `step`; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "task": task.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / f"{STATE_FILE}.part")
    (folder / f"{STATE_FILE}.part").replace(folder / STATE_FILE)


def restore_state(
    folder: Path, task: nn.Module, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> int:
    """The steps done so far; 0 where there is no state.

    The schedule is put at its own place of that step, not restored: it may be laid for another number of steps now.
    """
    if not (folder / STATE_FILE).exists():
        return 0
    state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    task.load_state_dict(state["task"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.last_epoch = int(state["step"])
    return schedule.last_epoch


def remove_state(folder: Path) -> None:
    """Called when the pretraining is done."""
    (folder / STATE_FILE).unlink(missing_ok=True)
