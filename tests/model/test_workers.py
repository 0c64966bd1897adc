"""Two workers and one, at the same global batch: the same losses and gradients."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_workers import run

LOSSES = {
    "plain": {},
    "random": {"questions": "random", "margin": 1.2},
    "queue": {"queue_size": 3},
    "alternate": {"questions": "alternate"},
    "sharded": {},
}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    script = Path(__file__).with_name("two_workers.py")
    command = [sys.executable, str(script)]
    workers = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder / "rendezvous"), str(folder / "found.pt")],
            text=True,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, complaint = worker.communicate(timeout=240)
        assert worker.returncode == 0, complaint
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("name", LOSSES)
def test_two_workers_have_the_losses_and_gradients_of_one(of_two, name):
    for one, two in zip(run(0, 1, **LOSSES[name]), of_two[name], strict=True):
        assert set(one["metrics"]) == set(two["metrics"])
        for metric, value in one["metrics"].items():
            assert two["metrics"][metric].item() == pytest.approx(value.item(), abs=1e-4), metric
        largest = max(gradient.abs().max() for gradient in one["gradients"].values())
        for parameter, gradient in one["gradients"].items():
            assert (two["gradients"][parameter] - gradient).abs().max() < 1e-4 * largest, parameter
