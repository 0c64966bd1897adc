"""What a machine offers is what is taken of it."""

import pytest
import torch

from recipe_ray.model.hub import computing_in


@pytest.mark.parametrize(
    ("precision", "capability", "half"),
    [
        ("auto", "AVX512", True),
        ("auto", "AVX2", False),  # emulated, and 40 times as slow
        ("auto", "DEFAULT", False),
        ("bfloat16", "AVX2", True),  # as asked for
        ("float32", "AVX512", False),
    ],
)
def test_a_cpu_computes_in_bfloat16_by_itself_only_where_it_has_instructions_for_it(
    monkeypatch, precision, capability, half
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with computing_in(precision, torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if half else torch.float32)
