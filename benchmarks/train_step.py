r"""What a training step costs beside the passes that it cannot avoid.

    python benchmarks/train_step.py                                          # the testbed, on a CPU
    python benchmarks/train_step.py --llm smollm2-135m-instruct              # its preset: chats, no locality term
    python benchmarks/train_step.py --llm llama-2-7b --device cuda           # 7B of random weights in bfloat16

Both are taken in turn over the same batches: a whole step of training as `jobs/train.py` takes it (batch made ahead,
losses, gradients, clipping, optimiser), and bare passes of the same shapes: encoder over all texts forward and
backward, heads, prompt encoder, LLM over its rows forward (without gradient up to the first continuous prompt) and
backward, LLM forward over the rows of locality, optimiser. Needs torch and transformers alone. The last line is one
JSON object; `ratio` is the median of the step over the sum of the passes.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable

import torch

from recipe_ray.config import TESTBED, LossConfig, LossWeights, Stage, TrainConfig
from recipe_ray.datasets.asking import Asking, invented_records
from recipe_ray.datasets.batches import EditBatches
from recipe_ray.eval.efficiency import clock, device_name, measured_on
from recipe_ray.examples import Batches
from recipe_ray.model.batch import BatchMaker, StepBatch, to_device
from recipe_ray.model.editor import Editor, new_editor
from recipe_ray.model.hub import computing_in, pick_device
from recipe_ray.model.joint import JointTraining
from recipe_ray.model.llm import FrozenLLM, load_llm_to_train
from recipe_ray.model.prefetch import prefetched
from recipe_ray.model.shapes import LLAMA_2_7B, ROBERTA_BASE, random_editor, random_llm
from recipe_ray.model.training import make_optimizer, take_step
from recipe_ray.presets import SMOLLM2, paper, smollm2, testbed
from recipe_ray.testbed.edits import EditStream
from recipe_ray.testbed.world import load_world

LLMS = (TESTBED, SMOLLM2, "llama-2-7b")
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # bfloat16, dense
WARM_UP = 3


class Bare:
    """The passes that a step cannot avoid, one method each, on inputs of their own."""

    def __init__(self, joint: JointTraining, optimizer: torch.optim.Optimizer, batch: StepBatch) -> None:
        self.joint = joint
        self.optimizer = optimizer
        self.batch = batch
        editor, llm, device = joint.editor, joint.llm, joint.llm.device
        num_edits = len(batch.statement_ids_B)
        sizes = (num_edits, *(len(asked.own_N) for asked in batch.asked), num_edits)
        self.pooled = [torch.randn(size, editor.encoder.width, device=device) for size in sizes]
        self.keys = torch.randn(num_edits, editor.config.key_width, device=device)
        shape = (num_edits, editor.config.num_virtual_tokens, llm.width)
        self.prompts = torch.randn(shape, device=device) * llm.embedding.weight.float().std()

    def passes(self) -> dict[str, Callable[[], None]]:
        """By name."""
        return {
            "encoder": self.encoder,
            "heads": self.heads,
            "prompt_encoder": self.prompt_encoder,
            "llm": self.llm,
            "llm_unedited": self.llm_unedited,
            "optimizer": self.optimise,
        }

    def _precision(self) -> torch.autocast:
        return computing_in(self.joint.precision, self.joint.llm.device)

    def encoder(self) -> None:
        """All texts, forward and backward."""
        with self._precision():
            outputs = [self.joint.editor.encoder(group.ids_BT, group.mask_BT) for group in self.batch.encoder_groups]
            loss = torch.cat(outputs).float().sum()
        loss.backward()

    def heads(self) -> None:
        """All keys and queries, forward and backward, to the pooled vectors too."""
        inputs = [one.requires_grad_() for one in self.pooled]
        with self._precision():
            outputs = [self.joint.editor.key_head(inputs[0]), *map(self.joint.editor.query_head, inputs[1:])]
            loss = torch.cat(outputs).float().sum()
        loss.backward()

    def prompt_encoder(self) -> None:
        """B keys, forward and backward."""
        keys = self.keys.requires_grad_()
        with self._precision():
            loss = self.joint.editor.prompts(keys, self.batch.statement_tokens).float().sum()
        loss.backward()

    def llm(self) -> None:
        """Rows with a continuous prompt, forward, and backward to the prompts."""
        for group in self.batch.llm_groups:
            prompts = self.prompts[group.own_R].requires_grad_()
            with self._precision():
                loss = self.joint.llm.token_logits(group.rows, prompts, group.mask_RA).float().sum()
            loss.backward()

    @torch.no_grad()
    def llm_unedited(self) -> None:
        """The rows of locality, forward."""
        for group in self.batch.llm_groups:
            if (rows := group.unprefixed) is not None:
                with self._precision():
                    self.joint.llm.token_logits(rows, None, group.mask_RA[-len(rows.ids_BT) :])

    def optimise(self) -> None:
        """All trained weights."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def build(name: str, config: TrainConfig, device: torch.device) -> tuple[Editor, FrozenLLM]:
    """Editor and LLM: pretrained ones as a training has them, or those of a configuration with random weights."""
    if name in (TESTBED, SMOLLM2):
        llm = load_llm_to_train(name, config.precision, device)
        return new_editor(config.editor, llm).to(device), llm
    editor = random_editor(ROBERTA_BASE, device, config=config.editor, llm_width=LLAMA_2_7B.hidden_size)
    return editor, random_llm(LLAMA_2_7B, device)


def count_flops(joint: JointTraining, batch: StepBatch) -> float:
    """Multiplications and additions of a step's matrix products, attention's left out.

    Two for each weight and token forward; backward as many again for the inputs, and for the weights that are trained.
    Nothing goes back through what is frozen below the first trained weight.
    """
    editor, llm = joint.editor, joint.llm
    layers = list(editor.encoder.model.encoder.parameters())
    encoder = sum((6 if one.requires_grad else 2) * one.numel() for one in layers)
    dense = sum(parameter.numel() for parameter in editor.parameters()) - sum(
        parameter.numel() for parameter in editor.encoder.parameters()
    )
    model = llm.model
    body = sum(parameter.numel() for parameter in model.model.parameters()) - llm.embedding.weight.numel()
    head = model.lm_head.weight.numel()
    flops = 0.0
    for group in batch.encoder_groups:
        flops += encoder * group.ids_BT.numel()
    flops += (
        6 * dense * len(batch.statement_ids_B) * 4 / 2
    )  # B through key head and prompt encoder, 3B through one head
    for llm_group in batch.llm_groups:
        rows, num_answer_tokens = llm_group.rows.ids_BT, int(llm_group.mask_RA.sum())
        before = llm.columns_before_prompts(llm_group.rows, llm_group.mask_RA.shape[1] + 1) * len(rows)
        flops += 4 * (body * (rows.numel() - before) + head * num_answer_tokens) + 2 * body * before
        if llm_group.unprefixed is not None:
            num_answer_tokens = int(llm_group.mask_RA[-len(llm_group.unprefixed.ids_BT) :].sum())
            flops += 2 * (body * llm_group.unprefixed.ids_BT.numel() + head * num_answer_tokens)
    return flops


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", choices=LLMS, default=TESTBED)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--method", choices=("default", "paper"), default="default")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--key-width", type=int)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing through the LLM")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    device = pick_device(args.device)
    config = _config(args, device)
    torch.manual_seed(0)
    editor, llm = build(args.llm, config, device)
    weights = config.weights_at(0)
    if args.checkpointing:
        llm.save_memory()
    joint = JointTraining(editor, llm, config.losses, precision=config.precision).train()
    optimizer, schedule = make_optimizer(editor, config)
    maker = BatchMaker(
        encoder=editor.encoder,
        llm=llm,
        losses=config.losses,
        num_virtual_tokens=config.editor.num_virtual_tokens,
        position=config.editor.prompt_position,
        chat_position=config.editor.chat_position,
        answer_end=".",
        answer_eos=config.answer_eos,
        reader=editor.reader if config.editor.prompt_source == "statement" else None,
    )
    edits = _edits(config)

    def make(number: int) -> list[StepBatch]:
        return maker.make(edits.batch(number), seed=number, edit=True, locality=weights.locality > 0)

    steps: list[float] = []
    passes: dict[str, list[float]] = {}
    flops: list[float] = []
    numbers = range(WARM_UP + args.steps)
    making = prefetched(make, numbers)
    for number in numbers:
        begun = clock(device)
        batches = [to_device(one, device) for one in next(making)]
        take_step(joint, batches, weights, optimizer=optimizer, schedule=schedule, max_grad_norm=config.max_grad_norm)
        took = clock(device) - begun
        if number == WARM_UP and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        peak_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        optimizer.zero_grad()
        bare = Bare(joint, optimizer, batches[0])
        times = {}
        for name, one in bare.passes().items():
            begun = clock(device)
            one()
            times[name] = clock(device) - begun
        if number >= WARM_UP:
            steps.append(took)
            flops.append(count_flops(joint, batches[0]))
            for name, seconds in times.items():
                passes.setdefault(name, []).append(seconds)
    sums = [sum(parts) for parts in zip(*passes.values(), strict=True)]
    step_s = statistics.median(steps)
    peak = next((value for key, value in PEAK_FLOPS.items() if key in device_name(device)), None)
    result = {
        "ratio": statistics.median(step / total for step, total in zip(steps, sums, strict=True)),
        "step_s": step_s,
        "passes_s": {name: statistics.median(one) for name, one in passes.items()},
        "samples_per_s": config.batch_size / step_s,
        "flops_per_s": statistics.median(flops) / step_s,
        "share_of_peak": None if peak is None else statistics.median(flops) / step_s / peak,
        "peak_memory_bytes": peak_bytes,
        "llm": args.llm,
        "method": args.method,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "key_width": config.editor.key_width,
        "checkpointing": args.checkpointing,
        "steps": args.steps,
        **measured_on(device),
    }
    print(json.dumps(result))


def _edits(config: TrainConfig) -> Batches:
    """The preset's data without the package's readers of files."""
    data = config.data
    if data.sources == (TESTBED,):
        return EditStream(load_world(), batch_size=config.batch_size, seed="train_step")
    records = invented_records(2000, "train_step")
    return EditBatches(
        [records],
        spared=[question for record in records for kind in record.locality.values() for question in kind],
        batch_size=config.batch_size,
        seed="train_step",
        hard_negatives=data.hard_negatives,
        swapped_targets=data.swapped_targets,
        asking=Asking(chat_share=data.chat_share, wordings=data.wordings),
    )


def _config(args: argparse.Namespace, device: torch.device) -> TrainConfig:
    """SmolLM2's preset, or the testbed's training with every term, so that a step has all passes."""
    if args.llm == SMOLLM2:
        return dataclasses.replace(smollm2(), batch_size=args.batch_size, precision=args.precision or "auto")
    config = testbed() if args.method == "default" else paper(testbed())
    key_width = args.key_width or (config.editor.key_width if args.llm == TESTBED else 4096)
    return dataclasses.replace(
        config,
        editor=dataclasses.replace(config.editor, key_width=key_width),
        stages=(Stage(num_steps=1, weights=LossWeights()),),
        losses=LossConfig(),
        batch_size=args.batch_size,
        precision=args.precision or ("bfloat16" if device.type == "cuda" else "float32"),
    )


if __name__ == "__main__":
    main()
