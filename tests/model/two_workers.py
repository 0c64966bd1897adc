"""Steps shared by workers of a process group, each a process: `two_workers.py RANK NUM_WORKERS RENDEZVOUS OUTPUT`."""

import sys
from pathlib import Path

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))

from edit_examples import BATCH, example
from tiny_models import bert, tiny_editor, tiny_llm

from recipe_ray.config import LossConfig, LossWeights
from recipe_ray.model.batch import BatchMaker, Share
from recipe_ray.model.joint import JointTraining

EXAMPLES = [*BATCH, example("Lilliput", "Mildendo", "Blefuscu", "Blefuscu City"), example("Oz", "Emerald", "Ix", "I")]


def run(rank, num_workers, *, shard=False, **losses):
    """Metrics over the whole batch, and the gradient of every trained parameter."""
    editor, llm = tiny_editor(bert(seed=4), similarity="cosine"), tiny_llm()
    if shard:
        llm.shard()
    joint = JointTraining(
        editor, llm, LossConfig(gather_negatives=True, **losses), rank=rank, num_workers=num_workers
    ).train()
    model = DistributedDataParallel(joint) if num_workers > 1 else joint
    maker = BatchMaker(
        encoder=editor.encoder,
        llm=llm,
        losses=joint.losses,
        num_virtual_tokens=3,
        position="first",
        answer_end=".",
    )
    steps = []
    for seed in range(2):  # the second one has a queue
        (batch,) = maker.make(
            EXAMPLES[seed:], seed=seed, share=Share(rank=rank, num_workers=num_workers), edit=True, locality=True
        )
        editor.zero_grad()
        loss, metrics = model(batch, LossWeights())
        loss.backward()
        metrics = {name: value.float() for name, value in metrics.items()}
        if num_workers > 1:
            for value in metrics.values():
                torch.distributed.all_reduce(value)
        gradients = {name: one.grad.clone() for name, one in editor.named_parameters()}
        steps.append({"metrics": metrics, "gradients": gradients})
    return steps


if __name__ == "__main__":
    rank, num_workers, rendezvous, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=num_workers)
    found = {
        "plain": run(rank, num_workers),
        "random": run(rank, num_workers, questions="random", margin=1.2),
        "queue": run(rank, num_workers, queue_size=3),
        "alternate": run(rank, num_workers, questions="alternate"),
        "sharded": run(rank, num_workers, shard=True),
    }
    if rank == 0:
        torch.save(found, output)
    torch.distributed.destroy_process_group()
