"""The benchmark of a training step prints what it says, with neither Ray nor FAISS."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# The large LLM and its encoder, of their architectures and small.
RUN = """
import sys
sys.path.insert(0, {folder!r})
sys.argv = ["train_step.py", "--steps", "1", "--batch-size", "4", "--device", "cpu", *{flags!r}]
import train_step
tiny = {{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}}
tiny["vocab_size"] = 2048  # the tokenizer's; all of Llama's costs a CPU half a minute in bfloat16
train_step.LLAMA_2_7B = type(train_step.LLAMA_2_7B)(**tiny)
train_step.ROBERTA_BASE = type(train_step.ROBERTA_BASE)(**tiny)
train_step.main()
wrong = sorted({{"ray", "faiss", "pyarrow", "deltalake", "boto3"}} & set(sys.modules))
assert not wrong, wrong
"""


@pytest.mark.parametrize(
    "flags",
    [["--llm", "testbed"], ["--llm", "llama-2-7b", "--precision", "bfloat16", "--checkpointing", "--key-width", "32"]],
)
def test_a_step_is_held_against_its_passes(flags):
    code = RUN.format(folder=str(Path(__file__).parents[2] / "benchmarks"), flags=flags)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["passes_s"]) == {"encoder", "heads", "prompt_encoder", "llm", "llm_unedited", "optimizer"}
    assert all(seconds > 0 for seconds in result["passes_s"].values())
    # One of each was timed, so the ratio is that of the two.
    assert result["ratio"] == pytest.approx(result["step_s"] / sum(result["passes_s"].values()))
    assert result["samples_per_s"] * result["step_s"] == pytest.approx(4)
    assert result["flops_per_s"] > 0
