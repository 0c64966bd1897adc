"""Run a command on a Ray cluster and exit as it does: `python jobs/submit.py --address … --id … -- python jobs/…`."""

import sys

from ray.job_submission import JobSubmissionClient

from jobs._cli import run
from recipe_ray.distributed.submission import SubmitConfig, run_to_end
from recipe_ray.errors import ServiceError

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the cluster is away, which says nothing about the command


def main(config: SubmitConfig) -> None:
    """Submit, or find again by its id, show what it prints, wait, and exit.

    Exit status: the command's; 1 where it was stopped, 75 where the cluster is away or was lost: then try again.
    """
    try:
        status = run_to_end(config, lambda: JobSubmissionClient(config.address), show=_show)
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(TRY_AGAIN)
    sys.exit(status)


def _show(text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    run(main, SubmitConfig)
