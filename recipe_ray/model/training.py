"""Training the editor: its start, the optimiser and its schedule.

Shape letters: F facts, K key width, P virtual tokens, D LLM width.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recipe_ray.config import LossWeights, TrainConfig
from recipe_ray.errors import EditorError
from recipe_ray.examples import EditExample
from recipe_ray.model.batch import StepBatch
from recipe_ray.model.editor import Editor, load_editor
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.prompt_encoder import PromptEncoder

RIDGE = 0.02  # beside features of unit size
# Of an editor's configuration, what its weights mean; state dicts of one shape may differ in it.
MEANING = ("key_width", "num_virtual_tokens", "num_sentinel_tokens", "pooling", "similarity")


def start_from(editor: Editor, place: str | Path) -> None:
    """Begin with the weights of another editor, of the same shape.

    Raises:
        EditorError: it cannot be read, has another shape, or trained a part of the encoder that is frozen here.
        ModelError: as `load_editor`.
    """
    start = load_editor(place, "cpu")
    for name, there, here in (
        ("llm_width", start.llm_width, editor.llm_width),
        *((name, getattr(start.config, name), getattr(editor.config, name)) for name in MEANING),
    ):
        if there != here:
            raise EditorError(f"start {place}: its {name} is {there}, and {here} in this training; give the same shape")
    pretrained = editor.frozen_digest()
    try:
        editor.load_state_dict(start.state_dict())
    except RuntimeError as error:
        raise EditorError(
            f"start {place}: has other weights ({' '.join(str(error).split())[:200]}); give the same shape and encoder"
        ) from error
    if editor.frozen_digest() != pretrained:
        raise EditorError(
            f"start {place}: trained more of encoder {start.config.encoder} than the "
            f"{editor.config.trained_encoder_layers} layers of this training, or began with other weights; give "
            f"trained_encoder_layers {start.config.trained_encoder_layers} and encoder {start.config.encoder}"
        )


@torch.no_grad()
def warm_start(editor: Editor, llm: FrozenLLM, examples: Sequence[EditExample]) -> None:
    """Fit the prompt encoder's last layer, by ridge regression, to the embeddings of the answers' own tokens.

    Not of the paper. Through a frozen LLM the edit loss alone stands still for hundreds of steps, until the prompts
    carry something of the answer; this start takes seconds. Answer token a is dealt to virtual token a mod P, which
    aims at the mean of its tokens, each of half the weight of the one before, so that their order shows; a virtual
    token that is dealt none aims at the mean over all answers.
    """
    encoder = editor.prompt_encoder
    assert isinstance(encoder, PromptEncoder)  # TrainConfig refuses a warm start of any other
    num_virtual_tokens = encoder.shape[0]
    keys, _ = editor.encode_facts([example.statement for example in examples])
    features_FK = encoder.features(editor.prompt_inputs(torch.from_numpy(keys).to(editor.device)))
    answers = [llm.tokenize_answer(f" {example.target}") for example in examples]
    tokens = torch.tensor(sorted({token for ids in answers for token in ids}), device=llm.device)
    embedding = dict(zip(tokens.tolist(), llm.embedding(tokens).float().to(editor.device), strict=True))
    mean_D = torch.stack([embedding[token] for ids in answers for token in ids]).mean(0)
    wanted_FPD = mean_D.repeat(len(examples), num_virtual_tokens, 1)
    for row, ids in enumerate(answers):
        for slot in range(min(num_virtual_tokens, len(ids))):
            dealt = torch.stack([embedding[token] for token in ids[slot::num_virtual_tokens]])
            weights = 0.5 ** torch.arange(len(dealt), device=dealt.device)
            wanted_FPD[row, slot] = weights @ dealt / weights.sum()
    ones_F1 = torch.ones(len(examples), 1, device=editor.device)
    inputs = torch.cat([features_FK, ones_F1], 1).double()
    ridge = RIDGE * len(examples) * torch.eye(inputs.shape[1], device=editor.device, dtype=torch.double)
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ wanted_FPD.flatten(1).double())
    solution = (solution / encoder.scale).to(encoder.project.weight.dtype)
    encoder.project.weight.copy_(solution[:-1].T)
    encoder.project.bias.copy_(solution[-1])


def make_optimizer(editor: Editor, config: TrainConfig) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """Adam with a rate of its own for encoder, retrieval heads and prompt encoder; linear rise, cosine fall."""
    encoder = [parameter for parameter in editor.encoder.parameters() if parameter.requires_grad]
    prompt_encoder = list(editor.prompt_encoder.parameters()) if editor.prompt_encoder else []
    taken = {id(parameter) for parameter in encoder + prompt_encoder}
    heads = [one for one in editor.parameters() if one.requires_grad and id(one) not in taken]
    optimizer = torch.optim.AdamW(
        [
            {"params": encoder, "lr": config.encoder_lr},
            {"params": heads, "lr": config.head_lr},
            {"params": prompt_encoder, "lr": config.prompt_lr},
        ],
        weight_decay=0.0,
        fused=True,  # one pass over the weights: on a CPU an eighth of the time at K 4096
    )
    warmup = max(1, round(config.warmup_share * config.num_steps))

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.num_steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def take_step(
    model: nn.Module,
    turns: Sequence[StepBatch],
    weights: LossWeights,
    *,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    max_grad_norm: float,
) -> tuple[dict[str, Tensor], float]:
    """Go one step: gradients of all turns, synchronised in the last one, clipped, and taken.

    Args:
        model: a `JointTraining`, or its DistributedDataParallel.
        turns: this worker's share of the step, on its device.
        weights: of the losses.
        optimizer, schedule: of the editor's parameters.
        max_grad_norm: gradients are scaled down to this norm.

    Returns:
        The metrics' share of this worker, and the norm of the gradient before clipping; where that is no finite number
        the weights are left as they were.
    """
    optimizer.zero_grad()
    metrics: dict[str, Tensor] = {}
    for turn, batch in enumerate(turns, 1):
        waits = turn < len(turns) and isinstance(model, DistributedDataParallel)
        with cast(DistributedDataParallel, model).no_sync() if waits else contextlib.nullcontext():
            loss, parts = model(batch, weights)
            loss.backward()
        metrics = {name: metrics.get(name, 0) + value for name, value in parts.items()}
    trained = [one for group in optimizer.param_groups for one in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(trained, max_grad_norm).item()
    if math.isfinite(norm):
        optimizer.step()
        schedule.step()
    return metrics, norm


def fit_threshold(editor: Editor, examples: Sequence[EditExample]) -> None:
    """Set the threshold of an editor without a sentinel to where most of these questions are decided right.

    All edits are in force at once. Of a question about an edit the right decision is its own fact, of a locality
    question none.
    """
    examples = list({one.statement: one for one in examples}.values())
    keys, _ = editor.encode_facts([one.statement for one in examples])
    right, scores = [], []
    for questions in ([one.prompt for one in examples], [one.generality_prompt for one in examples]):
        similarity = editor.encode_queries(questions) @ keys.T
        scores.append(similarity.max(1))
        right.append(similarity.argmax(1) == np.arange(len(examples)))
    scores.append((editor.encode_queries([one.locality_prompt for one in examples]) @ keys.T).max(1))
    right.append(np.full(len(examples), fill_value=False))
    score, is_right = np.concatenate(scores), np.concatenate(right)
    is_locality = np.arange(len(score)) >= 2 * len(examples)
    # From the highest score down, each further one is applied: a right fact wins one, a spared question loses one.
    order = np.argsort(-score, kind="stable")
    gained = np.cumsum(is_right[order].astype(int) - is_locality[order].astype(int))
    best = int(gained.argmax())
    following = score[order[best + 1]] if best + 1 < len(order) else score[order[best]] - 1.0
    editor.threshold.fill_(float(score[order[best]] + following) / 2)
