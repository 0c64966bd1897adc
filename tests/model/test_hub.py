"""What a machine offers is what is taken of it."""

import pytest
import torch

from recipe_ray.config import TESTBED
from recipe_ray.model.hub import SHORT_NAMES, absolute_model, computing_in, pick_device
from recipe_ray.model.llm import load_llm


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


def test_a_local_model_is_named_so_that_every_process_finds_it_and_an_id_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    model = tmp_path / "llm"
    model.mkdir()
    assert absolute_model("llm") == "llm"  # nothing of a model lies there
    (model / "config.json").write_text("{}")
    assert absolute_model("llm") == absolute_model("./llm") == absolute_model("~/llm") == str(model)
    assert absolute_model("./none") == str(tmp_path / "none")
    assert absolute_model("llms/q4.gguf") == absolute_model("~/llms/q4.gguf") == str(tmp_path / "llms" / "q4.gguf")
    assert absolute_model("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    for name in SHORT_NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        assert absolute_model(name) == name


def test_a_gpu_computes_attention_without_cudnn_which_plans_each_new_shape(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.backends.cuda.enable_cudnn_sdp(True)
    assert pick_device("cpu").type == "cpu"
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert pick_device("auto").type == "cuda"
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_loading_a_model_says_nothing(capfd):
    load_llm(TESTBED, "cpu")
    assert capfd.readouterr() == ("", "")
