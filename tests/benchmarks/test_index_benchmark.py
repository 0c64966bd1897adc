"""The benchmark of indexes measures every variant, flags the default, and keeps what it encoded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "index.py"


def run(*flags):
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_variant_is_held_against_an_exact_search(editor_dir, tmp_path):
    flags = ["--editor", editor_dir, "--cache", tmp_path, "--num-questions", "40", "--device", "cpu"]
    result = run(*flags, "--num-facts", "150", "400")
    assert set(result["sizes"]) == {"150", "400"}
    assert result["agreement_at_1e6"] is result["p50_ratio_1e6_to_1e4"] is None
    largest = result["sizes"]["400"]
    variants = largest["variants"]
    assert {name.partition("-")[0] for name in variants} == {"exact", "ivf", "hnsw", "sq8"}
    assert [name for name, variant in variants.items() if variant["default"]] == ["exact"]
    assert variants["exact"]["recall"] == variants["exact"]["agreement"] == 1
    for variant in variants.values():
        assert variant["agreement"] > 0.8
        assert 0 < variant["single_ms"]["p50"] <= variant["single_ms"]["p99"]
    expected = largest["full_sort_ms"]["p50"] / variants["exact"]["single_ms"]["p50"]
    assert result["speedup_over_full_sort"] == pytest.approx(expected)
    assert result["encoded_facts_per_s"] > 0

    again = run(*flags, "--num-facts", "300", "--variants", "default", "hnsw-l2", "--max-graph-facts", "200")
    assert again["encoded_facts_per_s"] is None
    assert set(again["sizes"]["300"]["variants"]) == {"exact"}
