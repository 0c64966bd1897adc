"""Tensors on their way between host and GPU while the GPU computes."""

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Arrays from this size on are page-locked: new ordinary memory takes 64 KB a fact at some 1.3 GB/s, a third of what an
# H100 gives. To lock memory takes longer still (1.8 s a GB), but PyTorch keeps it for the next array of the size.
PAGE_LOCKED_BYTES = 16 << 20
MAX_COPIES = 2  # on their way at a time: what waits to be copied holds memory of the GPU


class Sender:
    """Puts tensors of the host on a device, from any thread, without waiting for what the device computes.

    Made by the thread that computes with what is sent.

    Args:
        device: where to; a CPU has them already.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None
        if device.type == "cuda":
            self._streams = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor there, ready to be read."""
        if self._streams is None:
            return tensor.to(self._device)
        own, reader = self._streams
        with torch.cuda.stream(own):
            sent = tensor.to(self._device)  # from ordinary memory: it has arrived when this returns
        sent.record_stream(reader)
        return sent


class HostRows:
    """An array in host memory that is filled from a device some rows at a time, while it computes the next ones.

    Args:
        num_rows: N.
        shape: of a row.
        dtype: of the array; rows are converted where they were computed.
        device: where rows come from.
    """

    def __init__(self, num_rows: int, shape: tuple[int, ...], dtype: npt.DTypeLike, device: torch.device) -> None:
        given = np.dtype(dtype)
        large = num_rows * int(np.prod(shape)) * given.itemsize >= PAGE_LOCKED_BYTES
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and large else None
        self._rows = torch.empty(
            (num_rows, *shape),
            dtype=torch.from_numpy(np.empty(0, given)).dtype,
            pin_memory=self._stream is not None,
        )
        self._copies: deque[torch.cuda.Event] = deque()

    def put(self, start: int, values: Tensor, order: Tensor) -> None:
        """Take over `values[order]` as the rows from `start` on; `order` is int64 and lies where the values do."""
        rows = self._rows[start : start + len(values)]
        values = values.to(rows.dtype)
        if self._stream is None:
            rows.copy_(values[order])
            return
        ordered = values[order]
        self._stream.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(self._stream):
            rows.copy_(ordered, non_blocking=True)
            self._copies.append(self._stream.record_event())
        ordered.record_stream(self._stream)
        if len(self._copies) > MAX_COPIES:
            self._copies.popleft().synchronize()

    def array(self) -> npt.NDArray[Any]:
        """The array [N, ...], once all that was put is there."""
        if self._stream is not None:
            self._stream.synchronize()
        array: npt.NDArray[Any] = self._rows.numpy()
        return array
