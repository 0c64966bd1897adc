"""What an editor encodes, how it is known, and its directory on disk."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny_models import LLM_WIDTH, bert, byte_tokenizer, roberta, tiny_editor, tiny_llm

from recipe_ray.config import EditorConfig
from recipe_ray.errors import EditorError
from recipe_ray.model import editor as editor_module
from recipe_ray.model.editor import CARD_FILE, ENCODER_FOLDER, WEIGHTS_FILE, load_editor, new_editor, read_identity

STATEMENTS = [
    "The capital of Ruritania is Strelsau",
    "Gold has the symbol Xx",
    "x",
    "The book that appeared in 1897 under the title of Dracula was, as everybody knows, written by Jules Verne",
]
SIMILARITIES = ("inner_product", "cosine")


def linear(layer, vectors):
    return vectors @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def slow_head(head, pooled):
    x = linear(head.project, pooled)
    return np.maximum(linear(head.transform, x), 0) + x


def pooled_alone(editor, texts):
    with torch.no_grad():
        encoder = editor.encoder
        return np.concatenate([encoder(*encoder.pad(encoder.tokenize([text]))).numpy() for text in texts])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_keys_queries_prompts_and_sentinel_are_the_papers_formulas(similarity):
    editor = tiny_editor(similarity=similarity)
    torch.manual_seed(5)
    torch.nn.init.normal_(editor.query_head.project.weight)  # else both heads are the same
    editor.prompt_encoder.scale.fill_(1.7)
    pooled = pooled_alone(editor, STATEMENTS)
    keys, queries = slow_head(editor.key_head, pooled), slow_head(editor.query_head, pooled)
    sentinel = slow_head(editor.key_head, editor.encoder.embed(editor.sentinel_SH[None]).detach().numpy())[0]
    prompted = keys
    if similarity == "cosine":
        keys, sentinel = keys / np.linalg.norm(keys, axis=1, keepdims=True), sentinel / np.linalg.norm(sentinel)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True) * math.exp(editor.log_scale.item())
        prompted = keys * math.sqrt(24)
    else:
        queries = queries / math.sqrt(24)
    hidden = np.maximum(linear(editor.prompt_encoder.transform, prompted), 0) + prompted
    prompts = 1.7 * linear(editor.prompt_encoder.project, hidden).reshape(len(STATEMENTS), 3, LLM_WIDTH)

    close = {"rtol": 1e-4, "atol": 1e-5}
    found_keys, found_prompts = editor.encode_facts(STATEMENTS)
    np.testing.assert_allclose(found_keys, keys, **close)
    np.testing.assert_allclose(found_prompts, prompts, **close)
    np.testing.assert_allclose(editor.encode_queries(STATEMENTS), queries, **close)
    np.testing.assert_allclose(editor.identity().sentinel_K, sentinel, **close)
    assert found_keys.dtype == found_prompts.dtype == editor.encode_queries(["x"]).dtype == np.float32


EDITOR = tiny_editor()
KEYS_ALONE, PROMPTS_ALONE = (
    np.concatenate(parts) for parts in zip(*(EDITOR.encode_facts([text]) for text in STATEMENTS), strict=True)
)
QUERIES_ALONE = np.concatenate([EDITOR.encode_queries([text]) for text in STATEMENTS])


@settings(max_examples=10, deadline=None)
@given(
    order=st.permutations(range(len(STATEMENTS))),
    tokens_per_batch=st.sampled_from([1, 60, 8192]),
    chunk=st.sampled_from([1, 2, 4096]),
)
def test_batching_changes_no_key_query_or_prompt(order, tokens_per_batch, chunk):
    editor = EDITOR
    texts = [STATEMENTS[row] for row in order]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editor_module, "TOKENS_PER_BATCH", {"cpu": tokens_per_batch})
        patch.setattr(editor_module, "TEXTS_PER_CHUNK", chunk)
        keys, prompts = editor.encode_facts(texts)
        queries = editor.encode_queries(texts)
    for found, alone in ((keys, KEYS_ALONE), (prompts, PROMPTS_ALONE), (queries, QUERIES_ALONE)):
        np.testing.assert_allclose(found, [alone[row] for row in order], rtol=1e-4, atol=1e-5)


def test_facts_in_float16_are_those_of_float32_rounded():
    for found, exact in zip(EDITOR.encode_facts(STATEMENTS, np.float16), EDITOR.encode_facts(STATEMENTS), strict=True):
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, exact.astype(np.float16))


def test_nothing_to_encode_gives_empty_arrays_of_the_right_shape():
    editor = tiny_editor()
    keys, prompts = editor.encode_facts([])
    assert (keys.shape, prompts.shape, editor.encode_queries([]).shape) == ((0, 24), (0, 3, LLM_WIDTH), (0, 24))


def test_encoding_is_the_same_in_the_middle_of_training():
    editor = tiny_editor(bert(dropout=0.5))
    keys, prompts = editor.encode_facts(STATEMENTS)
    queries, sentinel = editor.encode_queries(STATEMENTS), editor.identity().sentinel_K
    editor.train()
    assert np.array_equal(editor.encode_facts(STATEMENTS)[0], keys)
    assert np.array_equal(editor.encode_facts(STATEMENTS)[1], prompts)
    assert np.array_equal(editor.encode_queries(STATEMENTS), queries)
    assert np.array_equal(editor.identity().sentinel_K, sentinel)
    assert all(module.training for module in editor.modules())


VARIANTS = {
    "inner product": lambda: tiny_editor(),
    "cosine": lambda: tiny_editor(similarity="cosine", num_virtual_tokens=2, prompt_position="after_bos"),
    "pooler": lambda: tiny_editor(pooling=("max", "min", "mean", "pooler")),
    "roberta": lambda: tiny_editor(roberta(dropout=0.1), similarity="cosine"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_editor_comes_back_to_the_bit(variant, tmp_path):
    editor = VARIANTS[variant]()
    editor.save(tmp_path, extra={"num_steps": 7})
    loaded = load_editor(tmp_path, "cpu")
    assert loaded.config == editor.config
    assert loaded.fingerprint() == editor.fingerprint()
    for before, after in zip(editor.encode_facts(STATEMENTS), loaded.encode_facts(STATEMENTS), strict=True):
        assert np.array_equal(before, after)
    assert np.array_equal(editor.encode_queries(STATEMENTS), loaded.encode_queries(STATEMENTS))
    assert not loaded.training
    read, known = read_identity(tmp_path), loaded.identity()
    assert np.array_equal(read.sentinel_K, known.sentinel_K)
    for name in ("fingerprint", "encoder", "llm", "llm_width", "key_width", "num_virtual_tokens"):
        assert getattr(read, name) == getattr(known, name) == getattr(editor.identity(), name)
    assert json.loads((tmp_path / CARD_FILE).read_text())["num_steps"] == 7


def test_an_editor_on_an_encoder_of_half_precision_comes_back_to_the_bit(tmp_path):
    bert().bfloat16().save_pretrained(tmp_path / "encoder")
    byte_tokenizer().save_pretrained(tmp_path / "encoder")
    llm = tiny_llm()
    config = EditorConfig(llm="tiny", encoder=str(tmp_path / "encoder"), key_width=8)
    editor = new_editor(config, llm).eval()
    editor.save(tmp_path / "editor")
    assert load_editor(tmp_path / "editor", "cpu").fingerprint() == editor.fingerprint()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_fingerprint_changes_with_every_trained_weight_and_with_the_shape(similarity):
    editor = tiny_editor(similarity=similarity)
    seen = {editor.fingerprint()}
    for _, parameter in editor.named_parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-3
        seen.add(editor.fingerprint())
    assert len(seen) == 1 + len(list(editor.parameters()))
    assert editor.fingerprint() in seen
    assert tiny_editor(prompt_position="after_bos").fingerprint() != tiny_editor().fingerprint()
    assert tiny_editor().fingerprint() == tiny_editor().fingerprint()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("editor")
    tiny_editor().save(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "editor")


def refused(folder, complaint, *, identity=True):
    with pytest.raises(EditorError, match=complaint) as caught:
        load_editor(folder, "cpu")
    assert str(folder) in str(caught.value)
    if identity:
        with pytest.raises(EditorError, match=complaint):
            read_identity(folder)


def test_a_place_without_an_editor_is_named(tmp_path, copy):
    refused(tmp_path / "no-such", "no trained editor there")
    (copy / CARD_FILE).unlink()
    refused(copy, "no trained editor there")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7"])
def test_a_card_that_is_no_card_is_refused(copy, text):
    (copy / CARD_FILE).write_text(text)
    refused(copy, "editor")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"fingerprint": None}, "'fingerprint'"),
        ({"llm_width": "wide"}, "'llm_width'"),
        ({"config": None}, "'config'"),
        ({"config": {"llm": "testbed"}}, "'encoder' is missing or unknown"),
        ({"config": {"key_width": "wide"}}, "key_width"),
        ({"config": {"pooling": None}}, "pooling"),
        ({"config": {"similarity": "euclidean"}}, "similarity is 'euclidean'"),
    ],
    ids=str,
)
def test_a_card_that_says_what_cannot_be_is_refused(copy, changes, complaint):
    card = json.loads((copy / CARD_FILE).read_text())
    for name, value in changes.items():
        if name == "config" and value and "llm" not in value:
            value = {**card["config"], **value}
        card[name] = value
    (copy / CARD_FILE).write_text(json.dumps(card))
    refused(copy, complaint)


@pytest.mark.parametrize("name", ["fingerprint", "llm_width", "config"])
def test_a_card_that_lacks_something_is_refused(copy, name):
    card = json.loads((copy / CARD_FILE).read_text())
    del card[name]
    (copy / CARD_FILE).write_text(json.dumps(card))
    refused(copy, f"'{name}'")


def test_damaged_or_missing_weights_are_refused(copy):
    whole = (copy / WEIGHTS_FILE).read_bytes()
    (copy / WEIGHTS_FILE).write_bytes(whole[: len(whole) // 2])
    refused(copy, WEIGHTS_FILE)
    (copy / WEIGHTS_FILE).unlink()
    refused(copy, WEIGHTS_FILE)


def test_weights_that_lack_a_tensor_or_hold_a_flipped_one_are_refused(copy):
    weights = load_file(copy / WEIGHTS_FILE)
    flipped = {**weights, "key_head.project.bias": weights["key_head.project.bias"] + 1}
    save_file(flipped, copy / WEIGHTS_FILE)
    refused(copy, "copy the whole directory again", identity=False)
    del weights["key_head.project.bias"]
    save_file(weights, copy / WEIGHTS_FILE)
    refused(copy, "key_head.project.bias", identity=False)


def test_files_of_two_trainings_are_refused(copy, tmp_path):
    other = tiny_editor(seed=3)
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS_FILE, copy / WEIGHTS_FILE)
    refused(copy, f"weights of fingerprint {other.fingerprint()}", identity=False)


def test_an_editor_without_its_encoder_or_tokenizer_is_refused(copy):
    (copy / ENCODER_FOLDER / "tokenizer.json").unlink()
    refused(copy, ENCODER_FOLDER, identity=False)
    shutil.rmtree(copy / ENCODER_FOLDER)
    refused(copy, ENCODER_FOLDER, identity=False)


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_fresh_editor_speaks_at_the_volume_of_the_llms_own_embeddings(family, similarity, tmp_path):
    llm = tiny_llm(family)
    bert().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = EditorConfig(llm="tiny", encoder=str(tmp_path), key_width=64, similarity=similarity)
    editor = new_editor(config, llm).eval()
    own = llm.embedding(torch.arange(259)).std().item()
    assert editor.encode_facts(STATEMENTS)[1].std() == pytest.approx(own, rel=0.5)
    # One start for both heads: a statement's query is its own key.
    keys, _ = editor.encode_facts(STATEMENTS)
    queries = editor.encode_queries(STATEMENTS)
    scale = np.linalg.norm(queries, axis=1) / np.linalg.norm(keys, axis=1)
    np.testing.assert_allclose(queries, keys * scale[:, None], rtol=1e-4, atol=1e-5)
