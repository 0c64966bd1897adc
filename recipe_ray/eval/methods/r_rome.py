"""R-ROME: ROME's edits kept apart as patches, of which a retriever applies one to a question, or none.

The framework is RASE (Han et al. 2023, "Improving Sequential Model Editing with Fact Retrieval", Findings of EMNLP): a
memory of facts with their patches, in which the fact that a query relates to is looked up. Here the editor is ROME, as
in the comparison of the RECIPE paper (arXiv 2405.03279), and a fact relates where the cosine of query and statement in
a sentence encoder passes a threshold; RASE trains a projection on top of its encoder, which this leaves out.

Shape letters: N edits, F patches, B rows, T tokens, D LLM width, I width of the MLP inside, H encoder width.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recipe_ray.eval.cases import Ask
from recipe_ray.eval.methods.base import Edit, Found, latest
from recipe_ray.eval.methods.covariance import Moments
from recipe_ray.eval.methods.layers import hooked, mlp_projection
from recipe_ray.eval.methods.rome import PRESETS as ROME_PRESETS
from recipe_ray.eval.methods.rome import ROMEArgs, cholesky, rank_one
from recipe_ray.eval.methods.values import mean_keys, sample_prefixes, value_shifts
from recipe_ray.eval.protocol import Reader
from recipe_ray.model.llm import FrozenLLM, Generation

Encode = Callable[[Sequence[str]], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RROMEArgs:
    """How patches are made, and when one is applied.

    Attributes:
        rome: as for ROME; every patch is made for the unedited LLM.
        threshold: cosine of query and statement that a fact must exceed to be applied; it belongs to the encoder, and
            `in_context.choose_threshold` finds it.
    """

    rome: ROMEArgs
    threshold: float = 0.8


PRESETS = {
    "testbed": RROMEArgs(rome=ROME_PRESETS["testbed"], threshold=0.8),
    "7b": RROMEArgs(rome=ROME_PRESETS["7b"]),
}


class Patches:
    """Rank-one patches of one projection, of which every row of a batch has its own or none.

    Patches stay, so that a row number means the same for as long as this lives.
    """

    def __init__(self) -> None:
        self._left: list[Tensor] = []
        self._right: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._left)

    def add(self, left_ND: Tensor, right_NI: Tensor) -> range:
        """Keep patches W + Λ uᵀ, float32 Λ [N, D] and u [N, I], and say their row numbers."""
        first = len(self)
        self._left += left_ND.unbind()
        self._right += right_NI.unbind()
        return range(first, len(self))

    def bytes_of(self, rows: Sequence[int]) -> int:
        """Size of some patches."""
        return sum(one.numel() * one.element_size() for row in rows for one in (self._left[row], self._right[row]))

    @contextlib.contextmanager
    def applied(self, projection: nn.Module, rows_B: Sequence[int]) -> Iterator[None]:
        """For as long as the block runs, row b of a batch reads through patch `rows_B[b]`; -1 is none."""
        patched = [place for place, row in enumerate(rows_B) if row >= 0]
        if not patched:
            yield
            return
        left_PD = torch.stack([self._left[rows_B[place]] for place in patched])
        right_PI = torch.stack([self._right[rows_B[place]] for place in patched])

        def hook(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
            # Only patched rows are touched: the others stay what they are to the bit.
            strength_PT = torch.einsum("pti,pi->pt", given[0][patched].float(), right_PI)
            output = output.clone()
            output[patched] += (strength_PT[..., None] * left_PD[:, None]).to(output.dtype)
            return output

        with hooked(projection, hook):
            yield


class PatchReader(Reader):
    """A reader for which `Ask.fact` is the number of a patch.

    Args:
        llm: the unedited LLM.
        projection: what is patched.
        patches: all patches.
    """

    def __init__(self, llm: FrozenLLM, projection: nn.Module, patches: Patches) -> None:
        super().__init__(llm, np.zeros((0, 0, llm.width), np.float32), "first")
        self._projection = projection
        self._patches = patches

    def complete(self, asks: Sequence[Ask], *, max_new_tokens: int, stop: Sequence[str] = ()) -> list[Generation]:
        """Greedy completions of one batch, each through its patch."""
        with self._patches.applied(self._projection, [ask.fact for ask in asks]):
            return super().complete(
                [dataclasses.replace(ask, fact=-1) for ask in asks], max_new_tokens=max_new_tokens, stop=stop
            )

    def answer_logits(self, asks: Sequence[Ask], answers: Sequence[tuple[int, ...]]) -> Tensor:
        """Logits that predict the answers' tokens, each row's through its patch."""
        with self._patches.applied(self._projection, [ask.fact for ask in asks]):
            return super().answer_logits([dataclasses.replace(ask, fact=-1) for ask in asks], answers)


class RROME:
    """The LLM's weights are never changed; what was asked for before `undo` can be answered after it.

    For that, patches that were taken back are kept until this object goes; `state_bytes` counts those in force.

    Args:
        llm: the LLM.
        args: how.
        moments: C at the layer of `args.rome`.
        encode: texts to vectors [N, H], of a sentence encoder.
        seed: of the contexts' prefixes.

    Raises:
        EditorError: the LLM lacks the layer, its family is not known, or `moments` are not its own.
    """

    name = "R-ROME"
    changes_llm = False

    def __init__(
        self,
        llm: FrozenLLM,
        args: RROMEArgs,
        *,
        moments: Moments,
        encode: Encode,
        seed: int = 0,
    ) -> None:
        self.llm = llm
        self.args = args
        self._encode = encode
        self._projection = mlp_projection(llm, args.rome.layer)
        self._factor_II = cholesky(moments.of(llm, args.rome.layer))
        self._prefixes = sample_prefixes(llm, args.rome.value.prefix_lengths, seed=seed)
        self._patches = Patches()
        self._in_force: dict[str, tuple[int, npt.NDArray[np.float32]]] = {}
        self.reader: Reader = PatchReader(llm, self._projection, self._patches)

    def apply(self, edits: Sequence[Edit]) -> None:
        """Make patches, all for the unedited LLM and so independent of each other.

        Raises:
            EditorError: an edit's subject is empty or does not stand in its prompt; no patch is made then.
        """
        edits = latest(edits)
        keys_NI = mean_keys(self.llm, self._projection, edits, self._prefixes)
        shifts_ND = value_shifts(self.llm, self._projection, edits, self._prefixes, self.args.rome.value)
        left_ND, right_NI = rank_one(shifts_ND, keys_NI, self._factor_II)
        rows = self._patches.add(left_ND.float(), right_NI.float())
        facts_NH = _unit(self._encode([edit.statement for edit in edits]))
        for edit, row, fact_H in zip(edits, rows, facts_NH, strict=True):
            self._in_force[edit.fact_id] = (row, fact_H)

    def undo(self) -> None:
        """Forget the edits; the weights were never changed."""
        self._in_force.clear()

    def retrieve(self, prompts: Sequence[str]) -> Found:
        """The nearest statement of each prompt, applied where its cosine exceeds the threshold."""
        threshold_B = np.full(len(prompts), self.args.threshold, np.float32)
        if not self._in_force:
            return Found(
                fact_ids_B=(None,) * len(prompts),
                applied_B=np.zeros(len(prompts), np.bool_),
                score_B=np.full(len(prompts), -np.inf, np.float32),
                threshold_B=threshold_B,
            )
        scores_BN = _unit(self._encode(prompts)) @ np.stack([fact_H for _, fact_H in self._in_force.values()]).T
        fact_ids = list(self._in_force)
        score_B = scores_BN.max(1)
        return Found(
            fact_ids_B=tuple(fact_ids[nearest] for nearest in scores_BN.argmax(1)),
            applied_B=score_B > threshold_B,
            score_B=score_B,
            threshold_B=threshold_B,
        )

    def asks(self, prompts: Sequence[str]) -> list[Ask]:
        """Each prompt with the number of its patch, if one is applied."""
        return self.chat_asks([Ask(prompt) for prompt in prompts])

    def chat_asks(self, chats: Sequence[Ask]) -> list[Ask]:
        """Likewise."""
        found = self.retrieve([ask.text for ask in chats])
        return [
            dataclasses.replace(ask, fact=self._in_force[fact_id][0]) if applied and fact_id is not None else ask
            for ask, fact_id, applied in zip(chats, found.fact_ids_B, found.applied_B, strict=True)
        ]

    def state_bytes(self) -> int:
        """The patches in force and their vectors."""
        return sum(self._patches.bytes_of([row]) + fact_H.nbytes for row, fact_H in self._in_force.values())


def _unit(vectors_NH: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norms_N1 = np.linalg.norm(vectors_NH, axis=1, keepdims=True)
    return (vectors_NH / np.maximum(norms_N1, np.finfo(np.float32).tiny)).astype(np.float32)
