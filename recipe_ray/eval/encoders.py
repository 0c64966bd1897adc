"""Sentence embeddings for editors that retrieve by text, not by anything trained for editing.

Shape letters: N texts, T tokens, H encoder width.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from recipe_ray.config import TESTBED
from recipe_ray.model.encoder import load_encoder
from recipe_ray.model.hub import pick_device

TOKENS_PER_BATCH = 4096  # padding included: bounds memory, whatever the lengths
# Of the mean variance, added to every direction's: those that texts hardly differ in must not drown the others.
RIDGE = 0.01


class SentenceEncoder:
    """Mean of the token outputs, scaled to unit length: inner products of two texts are cosines.

    Mean pooling after Reimers and Gurevych (2019, arXiv 1908.10084), which most sentence encoders were trained with.

    Args:
        name: of a bidirectional encoder: Hugging Face id, path or short name; `testbed` is the one that ships with the
            package, for machines that reach no hub.
        device: auto, cpu, cuda or cuda:N.
        whiten_on: texts, some hundreds at least, over which embeddings are made to have mean 0 and the same variance in
            every direction before they are scaled (Su et al. 2021, arXiv 2103.15316, equations 3 to 7). An encoder
            pretrained on masked tokens alone needs it, as all its texts lie close together: of 800 facts the testbed's
            finds the right one for 16% of their own questions without and for 88% with it, and for 6% and 57% of the
            questions in other words. One trained on pairs of sentences does without: None.

    Raises:
        ModelError: the encoder is not there or unreadable.
        ConfigError: a device that this machine lacks.
    """

    def __init__(self, name: str = TESTBED, device: str = "auto", *, whiten_on: Sequence[str] | None = None) -> None:
        self.name = name
        self._encoder = load_encoder(name, ("mean",)).to(pick_device(device)).eval().requires_grad_(False)
        self._mean_H = np.zeros(self.width)
        self._whitening_HH = np.eye(self.width)
        if whiten_on:
            self._mean_H, self._whitening_HH = _whitening(self._pooled(whiten_on).astype(np.float64))

    @property
    def width(self) -> int:
        """H."""
        return self._encoder.width

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeddings [N, H] of unit length; of a text that is too long the end counts, where a question stands."""
        embeddings_NH = (self._pooled(texts) - self._mean_H) @ self._whitening_HH
        norms_N1 = np.linalg.norm(embeddings_NH, axis=1, keepdims=True)
        return (embeddings_NH / np.maximum(norms_N1, 1e-12)).astype(np.float32)

    @torch.inference_mode()
    def _pooled(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        pooled_NH = np.empty((len(texts), self.width), np.float32)
        token_ids = self._encoder.tokenize(texts)
        for rows in _batches([len(ids) for ids in token_ids]):
            pooled = self._encoder(*self._encoder.pad([token_ids[row] for row in rows]))
            pooled_NH[rows] = pooled.float().cpu().numpy()
        return pooled_NH


def _whitening(
    embeddings_NH: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The mean [H], and W [H, H] that makes (x - mean) W have unit covariance but for `RIDGE`."""
    mean_H = embeddings_NH.mean(0)
    covariance_HH = np.cov(embeddings_NH - mean_H, rowvar=False, bias=True)
    variances_H, directions_HH = np.linalg.eigh(covariance_HH)
    return mean_H, directions_HH / np.sqrt(variances_H.clip(0) + RIDGE * variances_H.mean())


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
