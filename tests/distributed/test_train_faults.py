"""What a training survives, and what it says where it cannot: kills, broken storage, a full disk."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import threading
import time

import psutil
import pytest
from faulty_s3 import FaultyS3
from s3_environment import s3_environment
from training import CHECKPOINT_EVERY, NUM_STEPS, at_random, fail, fingerprint, finish, kill, start, wait_for_checkpoint

from recipe_ray.config import Stage
from recipe_ray.distributed.train import train_editor
from recipe_ray.presets import smoke

pytestmark = [pytest.mark.ray, pytest.mark.faults]
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Fingerprint of the editor that an undisturbed training ends with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(start(folder))
    return fingerprint(folder)


def steps_taken(output):
    return int(re.search(r"steps, (\d+) of them now", output).group(1))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of which the whole machine was lost behind a checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    process = start(folder)
    wait_for_checkpoint(folder, process)
    kill(process)
    return folder


def test_a_lost_machine_and_a_checkpoint_half_written_leave_the_same_weights_to_the_bit(killed, tmp_path, undisturbed):
    shutil.copytree(killed / "run", tmp_path / "run")
    written = next((tmp_path / "run").glob("checkpoint_*"))
    half = written.with_name("checkpoint_2099-01-01_00-00-00.000000")
    shutil.copytree(written / "editor", half / "editor")
    (half / "state.pt").write_bytes((written / "state.pt").read_bytes()[:1000])
    output = finish(start(tmp_path))
    assert 0 < steps_taken(output) < NUM_STEPS
    assert fingerprint(tmp_path) == undisturbed


def test_a_damaged_checkpoint_is_named(killed, tmp_path):
    shutil.copytree(killed / "run", tmp_path / "run")
    for state in (tmp_path / "run").glob("checkpoint_*/state.pt"):
        state.write_bytes(state.read_bytes()[:1000])
    complaint = fail(start(tmp_path))
    assert re.match(rf"error: {tmp_path}/run/checkpoint_\S+: this checkpoint is damaged \(", complaint)


def test_storage_that_fails_every_third_request_for_a_while_changes_nothing(tmp_path, undisturbed):
    import boto3

    with FaultyS3().running() as s3:
        environment = s3_environment(s3.endpoint)
        client = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1", **KEYS)
        client.create_bucket(Bucket="runs")
        s3.failing.set()
        process = start("s3://runs/training", environment=environment)
        deadline = time.monotonic() + 150
        while s3.num_failed < 30 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        s3.failing.clear()
        finish(process)
        assert s3.num_failed >= 30
        card = client.get_object(Bucket="runs", Key="training/run/editor/editor.json")["Body"].read().decode()
    assert f'"fingerprint": "{undisturbed}"' in card


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB: room for what a run begins with, not for two checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_one_line_that_says_how_to_go_on(small_disk):
    complaint = fail(start(small_disk))
    assert re.match(
        rf"error: {small_disk}/run: cannot be written or read \(.*No space left.*\); free space or mend it, "
        "then the same command continues from the last checkpoint",
        complaint,
    )


KINDS = ("machine", "driver", "worker", "any")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(12))
def test_kills_at_random_moments_leave_the_same_weights_to_the_bit(tmp_path, undisturbed, seed):
    """By turns the whole machine, the driver alone, a worker, or any process of the training, early and late."""
    process = start(tmp_path)
    if num_checkpoints := seed // len(KINDS):
        wait_for_checkpoint(tmp_path, process, at_least=num_checkpoints)
        time.sleep(at_random(seed, longest_s=2))
    else:
        time.sleep(at_random(seed, longest_s=25))
    assert process.poll() is None, "it ended before it was killed"
    kill_one(process, KINDS[seed % len(KINDS)], seed)
    output, _ = process.communicate(timeout=300)
    if process.returncode != 0:
        finish(start(tmp_path))
    assert fingerprint(tmp_path) == undisturbed, output[-2000:]


def kill_one(process, kind, seed):
    if kind == "machine":
        os.killpg(process.pid, signal.SIGKILL)
        return
    driver = psutil.Process(process.pid)
    found = driver.children(recursive=True)
    if kind == "worker":
        found = [one for one in found if "RayTrainWorker" in " ".join(one.cmdline())]
    victim = driver if kind == "driver" or not found else found[seed * 7919 % len(found)]
    victim.kill()


def own_train_workers():
    """Train workers of this test's cluster, not of another one on the machine: descendants of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and "RayTrainWorker" in title:
            found.append(process)
    return found


def kill_train_workers_after_first_checkpoint(folder, killed):
    """After the controller has taken note of it: it polls every two seconds, and until then starts from nothing."""
    noted = folder / "checkpoint_manager_snapshot.json"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (noted.exists() and "checkpoint_dir_name" in noted.read_text()):
        time.sleep(0.01)
    for process in own_train_workers():
        process.kill()
        killed.append(process.pid)


def test_a_killed_worker_resumes_and_ends_at_the_weights_of_an_undisturbed_run(ray_cluster, tmp_path):
    config = dataclasses.replace(
        smoke(),
        cpus_per_worker=0.5,
        device="cpu",
        stages=(Stage(num_steps=NUM_STEPS),),
        checkpoint_every=CHECKPOINT_EVERY,
    )

    def train(run):
        return train_editor(config, run=run, storage=str(tmp_path), output=str(tmp_path / run / "editor"))

    whole = train("whole")
    killed = []
    killer = threading.Thread(target=kill_train_workers_after_first_checkpoint, args=(tmp_path / "killed", killed))
    killer.start()
    disturbed = train("killed")
    killer.join()
    assert killed
    assert 0 < disturbed.num_steps_now < NUM_STEPS
    assert disturbed.fingerprint == whole.fingerprint
