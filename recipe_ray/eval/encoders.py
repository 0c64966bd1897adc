"""Sentence embeddings for editors that retrieve by text, not by anything trained for editing.

Shape letters: N texts, T tokens, H encoder width.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from recipe_ray.config import TESTBED
from recipe_ray.model.encoder import load_encoder
from recipe_ray.model.hub import pick_device

TOKENS_PER_BATCH = 4096  # padding included: bounds memory, whatever the lengths


class SentenceEncoder:
    """Mean of the token outputs, scaled to unit length: inner products of two texts are cosines.

    Mean pooling after Reimers and Gurevych (2019, arXiv 1908.10084), which most sentence encoders were trained with.

    Args:
        name: a Hugging Face id or directory of a bidirectional encoder; `testbed` is the one that ships with the
            package, for machines that reach no hub. It was pretrained on masked tokens alone.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ModelError: the encoder is not there or unreadable.
        ConfigError: a device that this machine lacks.
    """

    def __init__(self, name: str = TESTBED, device: str = "auto") -> None:
        self.name = name
        self._encoder = load_encoder(name, ("mean",)).to(pick_device(device)).eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """H."""
        return self._encoder.width

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings [N, H] of unit length; of a text that is too long the end counts, where a question stands."""
        embeddings_NH = np.empty((len(texts), self.width), np.float32)
        token_ids = self._encoder.tokenize(texts)
        for rows in _batches([len(ids) for ids in token_ids]):
            pooled = self._encoder(*self._encoder.pad([token_ids[row] for row in rows]))
            embeddings_NH[rows] = functional.normalize(pooled.float(), dim=-1).cpu().numpy()
        return embeddings_NH


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of like length together: as many as the budget of tokens allows, one at least."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if rows and lengths[row] * (len(rows) + 1) > TOKENS_PER_BATCH:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows
