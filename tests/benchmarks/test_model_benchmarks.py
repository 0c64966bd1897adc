"""What measures a GPU prints what it says, with nothing but torch and transformers, here on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# The large LLM and its encoder, of their architectures and small.
RUN = """
import sys
sys.path.insert(0, {folder!r})
sys.argv = ["{name}.py", "--device", "cpu", *{flags!r}]
import recipe_ray.model.shapes as shapes
tiny = {{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}}
tiny["vocab_size"] = 2048  # the tokenizer's; all of Llama's costs a CPU half a minute in bfloat16
shapes.LLAMA_2_7B = type(shapes.LLAMA_2_7B)(**tiny)
shapes.ROBERTA_BASE = type(shapes.ROBERTA_BASE)(**tiny)
import {name}
{name}.main()
# No boto3 either, but transformers loads accelerate where it is installed, which loads what it finds.
wrong = sorted({{"ray", "faiss", "pyarrow", "deltalake"}} & set(sys.modules))
assert not wrong, wrong
"""


def run(name, *flags):
    code = RUN.format(folder=str(Path(__file__).parents[2] / "benchmarks"), name=name, flags=flags)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "flags",
    [["--llm", "testbed"], ["--llm", "llama-2-7b", "--precision", "bfloat16", "--checkpointing", "--key-width", "32"]],
)
def test_a_step_is_held_against_its_passes(flags):
    result = run("train_step", "--steps", "1", "--batch-size", "4", *flags)
    assert set(result["passes_s"]) == {"encoder", "heads", "prompt_encoder", "llm", "llm_unedited", "optimizer"}
    assert all(seconds > 0 for seconds in result["passes_s"].values())
    # One of each was timed, so the ratio is that of the two.
    assert result["ratio"] == pytest.approx(result["step_s"] / sum(result["passes_s"].values()))
    assert result["samples_per_s"] * result["step_s"] == pytest.approx(4)
    assert result["flops_per_s"] > 0


def test_encoding_is_held_against_bare_passes():
    result = run("encode", "--config", "roberta-base", "--num-facts", "40", "--rounds", "1", "--facts-per-call", "16")
    assert result["ratio"] == pytest.approx(result["facts_per_s"] / result["bare_facts_per_s"])
    assert (result["num_facts"], result["facts_per_call"], result["key_width"]) == (40, 16, 4096)
    assert 5 < result["tokens_per_fact"] < 40


def test_a_file_of_few_facts_is_encoded_with_as_many_a_round_as_it_has(tmp_path):
    facts = tmp_path / "facts.jsonl"
    facts.write_text(
        "".join(json.dumps({"prompt": f"The capital of land {n} is", "target": "X"}) + "\n" for n in range(9))
    )
    result = run("encode", "--config", "roberta-base", "--facts", str(facts), "--num-facts", "40", "--rounds", "1")
    assert (result["num_facts"], result["facts_per_call"]) == (4, 4)


def test_every_editor_is_timed_takes_its_edits_and_gives_them_back():
    names = ["recipe", "fine_tuning", "rome", "grace"]
    result = run("edit_cost", "--num-single", "2", "--num-batch", "2", "--num-texts", "20", "--editors", *names)
    editors = result["editors"]
    assert list(editors) == names
    for name, one in editors.items():
        assert one["undone"], name
        assert min(one["single_s"], one["batch_s_per_edit"], one["state_bytes_per_edit"]) > 0, name
        if name != "recipe":  # whose editor is random here
            assert one["forced"] > one["forced_before"], name
    others = [one["single_s"] for name, one in editors.items() if name != "recipe"]
    assert result["ratio"] == pytest.approx(min(others) / editors["recipe"]["single_s"])
