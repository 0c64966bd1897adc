"""A command on a Ray cluster, waited for: what a scheduler needs that sees an exit status and nothing else."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import tyro

from recipe_ray.errors import ConfigError, ServiceError

STOPPED = 1  # Ray tells of no exit status for a command that was stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitConfig:
    """What to run, and where.

    Attributes:
        address: the Ray cluster's job server, http://HOST:8265.
        id: names the submission. Where the cluster knows one of this id, it is waited for and nothing is submitted.
        command: the command, behind `--`; it starts where the image puts it, on the head.
        deadline_s: seconds from the command's start after which it is stopped; None waits for ever.
        poll_s: seconds between two looks at it.
        patience_s: seconds for which the job server may be away.
    """

    address: str
    id: str
    command: Annotated[tuple[str, ...], tyro.conf.Positional]
    deadline_s: float | None = None
    poll_s: float = 5
    patience_s: float = 120

    def __post_init__(self) -> None:
        if not self.command:
            raise ConfigError("there is no command; give it behind --, such as -- python jobs/ingest.py --source …")
        for name in ("deadline_s", "poll_s", "patience_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; give a number of seconds above 0")


class Client(Protocol):
    """What is used of `ray.job_submission.JobSubmissionClient`."""

    def list_jobs(self) -> list[Any]:
        """All submissions that the cluster knows."""

    def submit_job(self, *, entrypoint: str, submission_id: str) -> str:
        """Start a command."""

    def get_job_logs(self, job_id: str) -> str:
        """All that a command has printed."""

    def stop_job(self, job_id: str) -> bool:
        """End a command."""


def run_to_end(
    config: SubmitConfig,
    connect: Callable[[], Client],
    *,
    show: Callable[[str], None],
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Submit the command, unless that was done before, show what it prints, and wait for its end.

    Returns:
        The command's exit status; 1 where it was stopped or never started.

    Raises:
        ServiceError: the job server was away for longer than `patience_s`, or has forgotten the submission (its
            cluster was lost). Submitting it again is in order.
    """
    client: Client | None = None
    submitted, num_shown, away_since, stopping = False, 0, None, False
    while True:
        try:
            client = client or connect()
            job = _find(client, config.id)
            if job is None:
                if submitted:
                    raise ServiceError(f"{config.address} does not know {config.id} any more; submit it again")
                client.submit_job(entrypoint=shlex.join(config.command), submission_id=config.id)
                submitted, away_since = True, None
                continue
            submitted = True
            text = client.get_job_logs(config.id)
            show(text[num_shown:])
            num_shown = len(text)
            late = config.deadline_s is not None and _seconds(job) > config.deadline_s
            if late and not stopping and not job.status.is_terminal():
                show(f"{config.id} has run for more than {config.deadline_s:g} s and is stopped\n")
                stopping = client.stop_job(config.id)
            away_since = None
        except (OSError, RuntimeError) as error:  # of requests and of Ray: no answer, or one that is not a 200
            away_since = now() if away_since is None else away_since
            if now() - away_since >= config.patience_s:
                raise ServiceError(
                    f"{config.address} has not answered for {config.patience_s:g} s ({error}); see whether the head "
                    "runs"
                ) from error
            sleep(config.poll_s)
            continue
        if job.status.is_terminal():
            return _exit_status(job)
        sleep(config.poll_s)


def _find(client: Client, submission_id: str) -> Any:
    return next((job for job in client.list_jobs() if job.submission_id == submission_id), None)


def _exit_status(job: Any) -> int:
    if job.status == "SUCCEEDED":
        return 0
    # A stopped command may have ended with 0, having had no time to say otherwise.
    return (job.driver_exit_code or STOPPED) if job.status == "FAILED" else STOPPED


def _seconds(job: Any) -> float:
    return time.time() - job.start_time / 1000 if job.start_time else 0.0
