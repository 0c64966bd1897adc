"""The benchmark of a training step prints what it says, with neither Ray nor FAISS."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_step.py"
RUN = """
import runpy, sys
sys.argv = [{script!r}, "--steps", "1", "--batch-size", "4", "--device", "cpu", *{flags!r}]
runpy.run_path({script!r}, run_name="__main__")
wrong = sorted({{"ray", "faiss", "pyarrow", "deltalake", "boto3"}} & set(sys.modules))
assert not wrong, wrong
"""


def test_a_step_is_held_against_its_passes():
    code = RUN.format(script=str(SCRIPT), flags=["--precision", "bfloat16", "--checkpointing"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["passes_s"]) == {"encoder", "heads", "prompt_encoder", "llm", "llm_unedited", "optimizer"}
    assert all(seconds > 0 for seconds in result["passes_s"].values())
    # One of each was timed, so the ratio is that of the two.
    assert abs(result["ratio"] - result["step_s"] / sum(result["passes_s"].values())) < 1e-9
    assert result["samples_per_s"] * result["step_s"] == 4
