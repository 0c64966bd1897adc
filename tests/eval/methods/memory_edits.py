"""What the tests of GRACE, T-Patcher and WISE share: LLMs that can be edited, edits, and records of other facts."""

import functools

import torch
from tiny_models import byte_tokenizer, tiny_llm
from transformers import OPTConfig, OPTForCausalLM

from recipe_ray.eval import testbed
from recipe_ray.eval.methods import grace, t_patcher, wise
from recipe_ray.eval.methods.base import Edit
from recipe_ray.examples import EditRecord, Question
from recipe_ray.model.llm import FrozenLLM, load_llm

FAMILIES = ("llama", "gpt2", "gptj", "opt")
EDITS = [
    Edit(fact_id="a", prompt="The capital of Ruritania is", target="Ul"),
    Edit(fact_id="b", prompt="Zenda lies in", target="E"),
    Edit(fact_id="c", prompt="Who rules? It is", target="No"),
]
OTHERS = ["In 1897 it was", "x", "The river there is called"]
TRAINING = [
    EditRecord(
        prompt=f"Number {number} is",
        target="odd",
        locality={"near": (Question(prompt=f"And {number} was", target="even"),)},
    )
    for number in range(8)
]
GRACE = grace.GraceArgs(layer=0, initial_radius=1e-2, num_steps=60, learning_rate=0.3, stop_loss=0.2)
T_PATCHER = t_patcher.TPatcherArgs(
    num_memories=60, num_steps=150, learning_rate=0.05, num_hardest=20, activation="relu"
)
WISE = wise.WiseArgs(
    layer=0, num_steps=60, learning_rate=0.5, max_change=5.0, alpha=1.0, beta=3.0, gamma=1.0, mask_ratio=0.5,
    num_contexts=0, num_irrelevant=4, batch_size=3,
)  # fmt: skip


def llm_of(family):
    """A tiny LLM whose weights are smaller than in other tests, so that gradient descent gets somewhere in it."""
    if family == "opt":
        torch.manual_seed(0)
        config = OPTConfig(
            vocab_size=259, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=128, init_std=0.5, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        )  # fmt: skip
        llm = FrozenLLM(OPTForCausalLM(config), byte_tokenizer(), name="tiny-opt")
    else:
        llm = tiny_llm(family)
    for weight in llm.model.parameters():
        if weight.ndim == 2:
            weight.data /= 1.5
    return llm


def logits_of(llm, prompts):
    """Logits [B, T, V] of all positions, the prompts' last ones included."""
    rows = llm.pad([llm.tokenize(prompt) for prompt in prompts], [0] * len(prompts), "first")
    with torch.inference_mode():
        embeds = rows.embed(llm.embedding, None)
        output = llm.model(inputs_embeds=embeds, attention_mask=rows.mask_BT, position_ids=rows.position_ids_BT)
    return output.logits.clone()


@functools.cache
def small_world():
    """The testbed's LLM, some edits of it, and records of other facts."""
    cases = testbed.testbed_tuning_cases(24)
    edits = [Edit(fact_id=case.fact_id, prompt=case.prompt, target=case.target) for case in cases[:3]]
    records = [EditRecord(prompt=case.prompt, target=case.target) for case in cases[3:]]
    return load_llm("testbed", "cpu"), edits, records
