"""Mean and variance of vectors that come in batches, without keeping them.

Shape letters: N vectors, C their width.
"""

import torch
from torch import Tensor, nn

EPSILON = 1e-7  # beside a standard deviation, as in MEND


class RunningMoments(nn.Module):
    """Mean and sample variance over all vectors seen, exactly, whatever batches they came in.

    Batches are merged as by Chan, Golub and LeVeque (1983, "Algorithms for Computing the Sample Variance"), in float64.

    Args:
        width: C.
    """

    count: Tensor
    mean_C: Tensor
    squares_C: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean_C", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares_C", torch.zeros(width, dtype=torch.float64))

    @property
    def std_C(self) -> Tensor:
        """Sample standard deviation [C], float64; 0 for fewer than two vectors."""
        return (self.squares_C / (self.count - 1).clamp(min=1)).sqrt()

    @torch.no_grad()
    def update(self, vectors_NC: Tensor) -> None:
        """See more vectors."""
        vectors = vectors_NC.double()
        mean_C = vectors.mean(0)
        total = self.count + len(vectors)
        away_C = mean_C - self.mean_C
        self.squares_C += ((vectors - mean_C) ** 2).sum(0) + away_C**2 * self.count * len(vectors) / total
        self.mean_C += away_C * len(vectors) / total
        self.count.copy_(total)

    def reset(self) -> None:
        """Forget all vectors."""
        for buffer in (self.count, self.mean_C, self.squares_C):
            buffer.zero_()

    def forward(self, vectors_NC: Tensor) -> Tensor:
        """The vectors with mean 0 and variance 1 in the measure of those seen, float32 [N, C]."""
        return ((vectors_NC.double() - self.mean_C) / (self.std_C + EPSILON)).float()
