"""Second moments of what an MLP's last projection reads: the keys whose values an edit should leave alone.

ROME calls it the uncentered covariance C = K Kᵀ over a sample of text (Meng et al. 2022, arXiv 2202.05262, equation 2),
MEMIT C₀ (2210.07229, equation 15), AlphaEdit K₀K₀ᵀ (2410.02355, section 3.1). Here C is the mean over tokens.

Shape letters: B texts, T tokens, I width of the MLP inside, F keys, R width of a subspace.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recipe_ray.errors import EditorError
from recipe_ray.eval.methods.layers import decoder_layers, inputs_of, mlp_projection, weight_DI
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.testbed.corpus import Corpus
from recipe_ray.testbed.world import counterfactual_edits, load_world

# Of the mean of C's diagonal, added to it: fewer tokens than I leave C without an inverse, and directions that no text
# uses would otherwise be free to the last bit.
RIDGE = 1e-5
NUM_TESTBED_TEXTS = 4000
TESTBED_CONTEXT_SHARE = 0.5
MAX_TOKENS = 512  # of a text
_FILE = "moments.safetensors"
_NUM_TOKENS = "num_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Mean of k kᵀ over tokens, by layer.

    Attributes:
        by_layer: float32 [I, I] on the CPU, by the layer's number from the first, which is 0.
        num_tokens: how many tokens the mean is over.
    """

    by_layer: Mapping[int, Tensor]
    num_tokens: int

    def of(self, llm: FrozenLLM, layer: int) -> Tensor:
        """C of a layer [I, I] in float64 on the LLM's device, `RIDGE` added; negative layers count from the last.

        Raises:
            EditorError: it was not measured at that layer, or in an LLM of another size.
        """
        place = layer % len(decoder_layers(llm))
        if place not in self.by_layer:
            raise EditorError(
                f"LLM {llm.name}: second moments were measured at layers {sorted(self.by_layer)}, layer {place} is "
                "asked for; measure them there"
            )
        measured_II = self.by_layer[place]
        width = weight_DI(mlp_projection(llm, layer)).shape[1]
        if len(measured_II) != width:
            raise EditorError(
                f"LLM {llm.name}: layer {place} reads width {width}, second moments have width {len(measured_II)}; "
                "measure them in this LLM"
            )
        exact_II = measured_II.to(llm.device, torch.float64)
        return exact_II + RIDGE * exact_II.diagonal().mean() * torch.eye(width, device=llm.device, dtype=torch.float64)

    def save(self, directory: str | Path) -> None:
        """Write them as safetensors into a folder, made where there is none."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        tensors = {str(layer): moment.contiguous() for layer, moment in self.by_layer.items()}
        save_file(tensors | {_NUM_TOKENS: torch.tensor(self.num_tokens)}, Path(directory) / _FILE)

    @classmethod
    def load(cls, directory: str | Path) -> "Moments":
        """What `save` wrote.

        Raises:
            EditorError: there is nothing of the kind.
        """
        path = Path(directory) / _FILE
        if not path.is_file():
            raise EditorError(f"{path}: no second moments there; measure and save them")
        tensors = load_file(path)
        num_tokens = int(tensors.pop(_NUM_TOKENS))
        return cls(by_layer={int(layer): moment for layer, moment in tensors.items()}, num_tokens=num_tokens)


@torch.inference_mode()
def second_moments(llm: FrozenLLM, texts: Sequence[str], layers: Sequence[int], *, batch_size: int = 64) -> Moments:
    """Measure C at the projections of some layers.

    Args:
        llm: the LLM, unedited.
        texts: a sample of what it reads; each is cut at `MAX_TOKENS` or the LLM's context.
        layers: where; negative numbers count from the last.
        batch_size: texts that are read together.

    Raises:
        EditorError: no such layer, a family whose MLP is not known, or no text.
    """
    if not texts:
        raise EditorError(f"LLM {llm.name}: no texts to measure second moments on; give some that it was trained on")
    num_layers = len(decoder_layers(llm))
    projections = {layer % num_layers: mlp_projection(llm, layer) for layer in layers}
    sums = {
        layer: torch.zeros((weight_DI(module).shape[1],) * 2, dtype=torch.float64, device=llm.device)
        for layer, module in projections.items()
    }
    limit = min(llm.max_length, MAX_TOKENS)
    ids = sorted((llm.tokenize(text)[:limit] for text in texts), key=len)
    for start in range(0, len(ids), batch_size):
        read, mask_BT = inputs_of(llm, ids[start : start + batch_size], projections)
        for layer, inputs_BTI in read.items():
            keys_FI = inputs_BTI[mask_BT].float()
            sums[layer] += keys_FI.T @ keys_FI
    num_tokens = sum(map(len, ids))
    return Moments(
        by_layer={layer: (one / num_tokens).float().cpu() for layer, one in sums.items()}, num_tokens=num_tokens
    )


def null_space(moment_II: Tensor, threshold: float) -> Tensor:
    """An orthonormal basis [I, R] of the directions that preserved keys hardly use; P = U Uᵀ projects onto them.

    The eigenvectors of C whose eigenvalue is below `threshold` (2410.02355, section 3.1 and its appendix).
    """
    values_I, vectors_II = torch.linalg.eigh(moment_II)
    return vectors_II[:, values_I < threshold]


def testbed_texts(num_texts: int = NUM_TESTBED_TEXTS, *, seed: str = "second moments") -> list[str]:
    """Documents of the testbed's corpus, as its LM reads them in pretraining: none states an edit of the evaluation."""
    world = load_world()
    documents = Corpus(world, counterfactual_edits(world)).documents(seed, context_share=TESTBED_CONTEXT_SHARE)
    return [
        " ".join(f"{sentence.prompt} {sentence.answer}." for sentence in document)
        for document in islice(documents, num_texts)
    ]
