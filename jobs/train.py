"""Train an editor for a frozen LLM: `python jobs/train.py`, or through `ray job submit`."""

import ray

from jobs._cli import run
from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.train import train_editor
from recipe_ray.distributed.train_args import TrainArgs
from recipe_ray.distributed.train_loop import describe


def main(args: TrainArgs) -> None:
    """Jointly train retriever, prompt encoder and Knowledge Sentinel; without flags, the testbed's editor."""
    config = args.config()  # a wrong option is found before a cluster starts
    connect(training=True)
    try:
        report = train_editor(config, run=args.run_name, storage=args.storage, output=args.output_folder)
    finally:
        ray.shutdown()
    print(f"before: {describe(report.before)}")
    print(f"after:  {describe(report.after)}")
    print(
        f"editor {report.editor} (fingerprint {report.fingerprint}): {report.num_steps} steps, "
        f"{report.num_steps_now} of them now, {report.seconds:.0f} s, {report.edits_per_s:.0f} edits/s"
    )


if __name__ == "__main__":
    run(main, TrainArgs)
