"""Trainings started as users start them, in processes of their own that can be killed."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUM_STEPS = 20
CHECKPOINT_EVERY = 4


def start(folder, *, run="run", environment=None, **settings):
    """A small training below a folder, local or s3://, in a process group of its own."""
    settings = {"checkpoint_every": CHECKPOINT_EVERY, "cpus_per_worker": 0.5, **settings}
    command = [sys.executable, "jobs/train.py", "--preset", "smoke", "--device", "cpu"]
    command += ["--num-steps", str(NUM_STEPS), "--storage", str(folder), "--run", run]
    command += ["--set", *(f"{name}={json.dumps(value)}" for name, value in settings.items())]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, *, timeout_s=200):
    """What a training printed, once it ended well."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output[-3000:]
    return output


def fail(process):
    """The last line of a training that ended with a complaint."""
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output[-3000:]
    return output.strip().splitlines()[-1]


def kill(process):
    """The driver and all that it started, at once: what the loss of a machine is."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


def wait_for_checkpoint(folder, process, *, run="run", at_least=1):
    """Until Ray Train has taken note of one, or of so many; the training may end before."""
    noted = Path(folder) / run / "checkpoint_manager_snapshot.json"
    deadline = time.monotonic() + 200
    seen = set()
    while process.poll() is None:
        if noted.exists():
            seen |= set(re.findall(r"checkpoint_[-\d._]{20,}", noted.read_text()))
        if len(seen) >= at_least:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert at_least > 1, process.communicate()[0][-3000:]


def fingerprint(folder, *, run="run"):
    return json.loads((Path(folder) / run / "editor" / "editor.json").read_text())["fingerprint"]


def at_random(seed, *, longest_s):
    """Seconds until a fault."""
    return random.Random(seed).uniform(0, longest_s)
