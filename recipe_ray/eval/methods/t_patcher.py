"""T-Patcher: a neuron in the last feed-forward network for every token that the LLM gets wrong.

Huang, Shen, Zhang, Zhou, Rong, Xiong 2023, "Transformer-Patcher: One Mistake worth One Neuron", arXiv 2301.09785:
section 3.2 (the patch, its edit, activation and memory losses) and appendix A (several neurons for one edit).
Shape letters: B edits, A answer tokens, N neurons of one edit, M memories, D LLM width, V vocabulary.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recipe_ray.errors import ConfigError, EditorError
from recipe_ray.eval.methods.base import Edit, ReadsAsGiven, latest
from recipe_ray.eval.methods.layers import decoder_layers, mlp_projection
from recipe_ray.eval.methods.passes import EditRows
from recipe_ray.eval.protocol import plain_reader
from recipe_ray.examples import EditRecord
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.prefix import PaddedRows

# Of a decoder layer, what reads the MLP's input; and, beside the layers, the norm before the head.
_ENTRIES = ("mlp.gate_proj", "mlp.fc_in", "mlp.c_fc", "fc1")
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")
_READ_TOGETHER = 64  # texts of memories in one pass
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": nn.functional.gelu, "relu": nn.functional.relu}


@dataclass(frozen=True, slots=True, kw_only=True)
class TPatcherArgs:
    """Hyperparameters of T-Patcher.

    Attributes:
        num_memories: queries of the training texts that no patch may answer to (paper: 40,000).
        num_steps: of Adam on an edit's neurons, at most (authors' code: 2,000).
        learning_rate: of Adam (authors' code: 0.01).
        amplification: a neuron's value is this times a learnt vector, so values move faster than keys (authors' code:
            10).
        activation_weight: a, of the activation loss (paper: 1).
        memory_weight: m, of the memory losses (paper: 10 for question answering, 5 for classification).
        memory_margin: what memories' activations stay below (paper: β = -3).
        memory_distance: by how much they stay below the edit's own (paper: 3).
        num_hardest: k: a memory loss averages over so many of the most active memories (authors' code: 1,000).
        activation: of the patches. The paper's LLMs have GELU, which is nearly 0 at `memory_margin`; SiLU is not, so a
            patch does not take over the activation of the LLM it sits in. With relu a patch that does not fire leaves
            the answer as it is to the bit.
        stop_loss: an edit is learnt when every answer token is the most likely one, -log f(answer | prompt) is below
            this, in nats a token, and no memory's activation is above 0.
    """

    num_memories: int
    num_steps: int
    learning_rate: float
    amplification: float = 10.0
    activation_weight: float = 1.0
    memory_weight: float = 10.0
    memory_margin: float = -3.0
    memory_distance: float = 3.0
    num_hardest: int = 1000
    activation: Literal["gelu", "relu"] = "gelu"
    stop_loss: float = 0.05

    def __post_init__(self) -> None:
        if min(self.num_memories, self.num_steps, self.learning_rate, self.num_hardest) <= 0:
            raise ConfigError("T-Patcher: num_memories, num_steps, learning_rate and num_hardest must be above 0")


PRESETS = {
    "testbed": TPatcherArgs(num_memories=2000, num_steps=100, learning_rate=0.02, num_hardest=200, activation="relu"),
    # The paper's LLMs are BERT-base and BART-base; these are its values for question answering.
    "7b": TPatcherArgs(num_memories=40_000, num_steps=2000, learning_rate=0.01),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """The neurons of one edit: FFN(q) + act(q · k + b) v, summed over neurons (section 3.2).

    Attributes:
        keys_ND: float32, k.
        biases_N: float32, b.
        values_ND: float32, v.
        queries_AD: float32, what the FFN reads where it predicts the answer's tokens: memories of later edits.
    """

    keys_ND: Tensor
    biases_N: Tensor
    values_ND: Tensor
    queries_AD: Tensor


class TPatcher(ReadsAsGiven):
    """Neurons in the last layer's feed-forward network, trained one edit after the other.

    An edit gets one neuron for each answer token that the LLM, with all earlier patches, does not find most likely;
    an edit that it already answers gets none. The neurons of an edit are trained together. Nothing behind the last
    feed-forward network mixes tokens, so training needs no pass of the LLM beyond one: final norm and head suffice.
    A second edit of one fact takes the first one's neurons and memories out.

    Args:
        llm: left as it is but for hooks while edits are in force.
        args: hyperparameters.
        training: statements and locality questions whose queries are the memories; none of them may be an edit's.

    Raises:
        EditorError: no training texts, or a family whose feed-forward network or final norm is not known.
    """

    name = "T-Patcher"
    changes_llm = True

    def __init__(self, llm: FrozenLLM, args: TPatcherArgs, *, training: Sequence[EditRecord]) -> None:
        self.llm = llm
        self.args = args
        self._projection = mlp_projection(llm, -1)
        self._entry = _part(llm, decoder_layers(llm)[-1], _ENTRIES, "MLP's input")
        self._final_norm = _part(llm, _owner_of_layers(llm), _FINAL_NORMS, "norm before the head")
        self._activate = _ACTIVATIONS[args.activation]
        self.reader = plain_reader(llm)
        self._handles: list[Any] = []
        self.memories_MD = self._read_memories(training)
        self.undo()

    def apply(self, edits: Sequence[Edit]) -> None:
        """Add neurons, one edit after the other."""
        if not self._handles:
            self._handles = [
                self._entry.register_forward_pre_hook(self._keep_query),
                self._projection.register_forward_hook(self._add_patches),
            ]
        for edit in latest(edits):
            self.patches.pop(edit.fact_id, None)
            self._collect()
            self.patches[edit.fact_id] = self._train(edit)
        self._collect()
        self.reader.clear()

    def undo(self) -> None:
        """Take all neurons and hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.patches: dict[str, Patch] = {}
        self._collect()
        self.reader.clear()

    def state_bytes(self) -> int:
        """The neurons; memories, which training alone reads, do not count."""
        return self._keys_ND.nbytes + self._biases_N.nbytes + self._values_ND.nbytes

    def _collect(self) -> None:
        """All edits' neurons side by side, as a pass applies them."""
        none = torch.zeros(0, self.llm.width, device=self.llm.device)
        self._keys_ND = torch.cat([none, *(patch.keys_ND for patch in self.patches.values())])
        self._biases_N = torch.cat([none[:, 0], *(patch.biases_N for patch in self.patches.values())])
        self._values_ND = torch.cat([none, *(patch.values_ND for patch in self.patches.values())])

    def _keep_query(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._query = args[0]

    def _add_patches(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        active = self._activate(self._query.float() @ self._keys_ND.T + self._biases_N)
        return output + (active @ self._values_ND).to(output.dtype)

    def _read_memories(self, training: Sequence[EditRecord]) -> Tensor:
        """Queries [M, D] of the unedited LLM at tokens of the training texts, drawn at random."""
        texts = [f"{record.prompt} {record.true_target or record.target}" for record in training]
        for record in training:
            texts += [f"{one.prompt} {one.target}" for kind in record.locality.values() for one in kind]
        if not texts:
            raise EditorError("T-Patcher: no training records, of which its memories are; give records of other facts")
        queries: list[Tensor] = []
        random.Random(0).shuffle(texts)
        for start in range(0, len(texts), _READ_TOGETHER):
            if sum(map(len, queries)) >= self.args.num_memories:
                break
            token_ids = [self.llm.tokenize(text) for text in texts[start : start + _READ_TOGETHER]]
            rows = self.llm.pad(token_ids, [0] * len(token_ids), "first")
            query_BTD, _ = self._read(rows)
            queries.append(query_BTD[rows.mask_BT.bool()])
        memories_MD = torch.cat(queries)
        drawn = torch.randperm(len(memories_MD), generator=torch.Generator().manual_seed(0))[: self.args.num_memories]
        return memories_MD[drawn.to(memories_MD.device)]

    @torch.no_grad()
    def _read(self, rows: PaddedRows) -> tuple[Tensor, Tensor]:
        """What, at these rows, the FFN reads and what the final norm reads, both [B, T, D] in float32."""
        seen: dict[str, Tensor] = {}
        handles = [
            self._entry.register_forward_pre_hook(lambda module, args: seen.update(query=args[0])),
            self._final_norm.register_forward_pre_hook(lambda module, args: seen.update(final=args[0])),
        ]
        try:
            self.llm.answer_logits(rows, None, num_answer_tokens=0)
        finally:
            for handle in handles:
                handle.remove()
        final_BTD = seen["final"].float()
        return seen["query"].reshape(final_BTD.shape).float(), final_BTD

    def _train(self, edit: Edit) -> Patch:
        """The neurons of one edit, with all others in force."""
        rows = EditRows.of(self.llm, [edit])
        labels_A = rows.labels_BA[0]
        query_BTD, final_BTD = self._read(rows.rows)
        # What stands before a token predicts it.
        places = slice(-len(labels_A) - 1, -1)
        queries_AD, finals_AD = query_BTD[0, places], final_BTD[0, places]
        wrong_N = (self._logits(finals_AD).argmax(-1) != labels_A).nonzero()[:, 0]
        memories_MD = torch.cat([self.memories_MD, *(patch.queries_AD for patch in self.patches.values())])
        own_ND = queries_AD[wrong_N]
        # At the edit's own query a neuron starts with activation 1 (appendix B).
        keys_ND = (own_ND / own_ND.square().sum(1, keepdim=True)).requires_grad_(True)
        biases_N = torch.zeros(len(wrong_N), device=keys_ND.device, requires_grad=True)
        directions_ND = torch.zeros_like(own_ND, requires_grad=True)
        optimizer = torch.optim.Adam([keys_ND, biases_N, directions_ND], self.args.learning_rate)
        for _ in range(self.args.num_steps if len(wrong_N) else 0):
            before_AN = queries_AD @ keys_ND.T + biases_N
            added_AD = self._activate(before_AN) @ (self.args.amplification * directions_ND)
            logits_AV = self._logits(finals_AD + added_AD)
            edit_loss = nn.functional.cross_entropy(logits_AV, labels_A)
            of_memories_MN = memories_MD @ keys_ND.T + biases_N
            right = bool((logits_AV.argmax(-1) == labels_A).all())
            if right and edit_loss.item() < self.args.stop_loss and of_memories_MN.max().item() <= 0:
                break
            loss = edit_loss + self._patch_losses(before_AN[wrong_N].diagonal(), of_memories_MN)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return Patch(
            keys_ND=keys_ND.detach(),
            biases_N=biases_N.detach(),
            values_ND=self.args.amplification * directions_ND.detach(),
            queries_AD=queries_AD,
        )

    def _patch_losses(self, own_N: Tensor, of_memories_MN: Tensor) -> Tensor:
        """What a patch must not do beside its edit, a l_a + m (l_m1 + l_m2) of section 3.2.

        l_a = exp(-own); l_m1 and l_m2 are means of exp over the k most active memories: of their activation above β,
        and of what they lack to lie the distance below the edit's own.
        """
        args = self.args
        hardest_KN = of_memories_MN.topk(min(args.num_hardest, len(of_memories_MN)), dim=0).values
        activation_loss = torch.exp(-own_N).mean()
        memory_loss = torch.exp(hardest_KN - args.memory_margin).mean()
        distance_loss = torch.exp(hardest_KN - own_N + args.memory_distance).mean()
        return args.activation_weight * activation_loss + args.memory_weight * (memory_loss + distance_loss)

    def _logits(self, final_AD: Tensor) -> Tensor:
        """What the LLM makes of what its final norm reads: logits [A, V], float32."""
        head = self.llm.model.get_output_embeddings()
        logits: Tensor = head(self._final_norm(final_AD.to(head.weight.dtype)))
        return logits.float()


def _owner_of_layers(llm: FrozenLLM) -> nn.Module:
    layers = decoder_layers(llm)
    return next(one for one in llm.model.modules() if any(child is layers for child in one.children()))


def _part(llm: FrozenLLM, owner: nn.Module, paths: Sequence[str], what: str) -> nn.Module:
    for path in paths:
        names = path.split(".")
        found: Any = owner
        for name in names:
            found = getattr(found, name, None)
        if isinstance(found, nn.Module):
            return found
    raise EditorError(
        f"LLM {llm.name} ({llm.model.config.model_type}) keeps its {what} in none of {', '.join(paths)}; "
        "T-Patcher knows Llama, Qwen, Mistral, GPT-J, GPT-2 and OPT"
    )
