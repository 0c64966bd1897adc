"""Rows on their way between host and device, on a CPU; a GPU's way is taken by benchmarks/encode.py."""

import numpy as np
import pytest
import torch

from recipe_ray.model.transfer import HostRows, Sender

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_put_in_any_order_are_the_array_in_theirs(dtype):
    wanted = torch.randn(7, 2, 3)
    rows = HostRows(7, (2, 3), dtype, CPU)
    for start, end in ((4, 7), (0, 4)):
        order = torch.randperm(end - start)
        shuffled = torch.empty(end - start, 2, 3)
        shuffled[order] = wanted[start:end]
        rows.put(start, shuffled, order)
    assert rows.array().dtype == dtype
    np.testing.assert_array_equal(rows.array(), wanted.numpy().astype(dtype))


def test_what_is_too_large_for_float16_is_infinite():
    rows = HostRows(1, (2,), np.float16, CPU)
    rows.put(0, torch.tensor([[1e6, 1.0]]), torch.tensor([0]))
    assert rows.array().tolist() == [[np.inf, 1.0]]


def test_what_is_sent_to_a_cpu_is_there_already():
    tensor = torch.arange(3)
    assert Sender(CPU)(tensor) is tensor
