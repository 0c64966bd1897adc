"""Set up the S3 bucket and print the policies of its roles: `python jobs/bucket.py setup|policy --bucket …`.

Exit status: 0 done, 1 failed (one line on standard error), 64 a wrong command line.
"""

import json
from typing import Annotated, Any

import tyro

from jobs._cli import run
from recipe_ray.store.bucket.places import BucketSetup, PolicyChoice
from recipe_ray.store.bucket.policies import role_policy
from recipe_ray.store.bucket.setup import SetupReport, set_up


def main(config: BucketSetup | PolicyChoice) -> None:
    """Set up the S3 bucket, or print the policy of a role. `setup --help` and `policy --help` tell the flags."""
    if isinstance(config, PolicyChoice):
        print(json.dumps(role_policy(config), indent=2))
    else:
        print(describe(set_up(config)))


def describe(report: SetupReport) -> str:
    """Say line by line what was changed, and what a person should look at."""
    lines = [
        f"{change.setting}: {'would be ' if report.dry_run else ''}changed: {change.now}" for change in report.changes
    ]
    lines += [f"attention: {text}" for text in report.attention]
    done = "nothing to change" if not report.changes else "nothing was changed" if report.dry_run else "done"
    return "\n".join([*lines, f"s3://{report.bucket}: {done}"])


def command_type() -> Any:
    """What tyro parses into: one of the two, as a subcommand."""
    setup, policy = tyro.conf.subcommand("setup"), tyro.conf.subcommand("policy")
    marker: Any = tyro.conf.OmitSubcommandPrefixes
    return marker[Annotated[BucketSetup, setup] | Annotated[PolicyChoice, policy]]


if __name__ == "__main__":
    run(main, command_type())
