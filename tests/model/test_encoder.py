"""A text is encoded alone as in any batch, and of a long one the end is read."""

import numpy as np
import pytest
import torch
from tiny_models import BOS, bert, byte_tokenizer, roberta

from recipe_ray.errors import ConfigError, ModelError
from recipe_ray.model.encoder import TextEncoder, check_encoder, empty_encoder, load_encoder, pool
from recipe_ray.model.hub import model_source
from recipe_ray.model.llm import llm_width

TEXTS = ["Why?", "The capital of Ruritania is Strelsau", "x", "In 1897 the book appeared"]
PARTS = ("max", "min", "mean")


@pytest.mark.parametrize("model", [bert, roberta])
def test_masked_pooling_is_that_of_each_text_alone(model):
    encoder = TextEncoder(model(), byte_tokenizer(), PARTS).eval()
    with torch.no_grad():
        pooled = encoder(*encoder.pad(encoder.tokenize(TEXTS))).numpy()
        for text, vector in zip(TEXTS, pooled, strict=True):
            ids = torch.from_numpy(encoder.tokenize([text])[0])[None].long()
            hidden = encoder.model(input_ids=ids).last_hidden_state[0].numpy()
            expected = np.concatenate([hidden.max(0), hidden.min(0), hidden.mean(0)])
            np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
    assert pooled.shape == (len(TEXTS), encoder.width)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_padding_takes_no_part_in_pooling(part, sign):
    hidden = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)) + sign * 10
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    pooled = pool(hidden, mask, [part])
    function = {"max": lambda rows: rows.amax(0), "min": lambda rows: rows.amin(0), "mean": lambda rows: rows.mean(0)}
    torch.testing.assert_close(pooled[0], function[part](hidden[0, :3]))
    hidden[0, 3:] = torch.tensor([torch.inf, -torch.inf])[:, None]
    assert torch.equal(pool(hidden, mask, [part]), pooled)


def test_parts_are_concatenated_in_the_order_they_are_named_with_the_pooler_output_as_it_is():
    hidden, pooler = torch.randn(2, 4, 3), torch.randn(2, 3)
    mask = torch.ones(2, 4, dtype=torch.long)
    pooled = pool(hidden, mask, ("mean", "pooler", "max"), pooler)
    torch.testing.assert_close(pooled, torch.cat([hidden.mean(1), pooler, hidden.amax(1)], 1))


def test_ids_are_those_of_the_tokenizer_whole_and_unpadded_whatever_its_file_says():
    tokenizer = byte_tokenizer()
    expected = [tokenizer(text)["input_ids"] for text in TEXTS]
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=40)
    assert [ids.tolist() for ids in TextEncoder(bert(), tokenizer, PARTS).tokenize(TEXTS)] == expected


def test_a_text_is_read_in_its_canonical_form_however_it_is_spelled():
    encoder = TextEncoder(bert(), byte_tokenizer(), PARTS)
    plain, *spelled = encoder.tokenize(
        ["The capital of Perú is", "The capital of Peru\u0301 is", " The\u00a0capital\tof\nPer\u00adú\u200b  is\x07"]
    )
    assert [ids.tolist() for ids in spelled] == [plain.tolist()] * 2


@pytest.mark.parametrize(("model", "num_positions"), [(bert, 64), (roberta, 64 - 3)])
def test_a_text_longer_than_the_context_keeps_bos_and_its_end(model, num_positions):
    encoder = TextEncoder(model(context=64), byte_tokenizer(), PARTS).eval()
    assert encoder.max_tokens == num_positions
    text = "a long introduction, " * 10 + "and what is the capital of Ruritania?"
    (ids,) = encoder.tokenize([text])
    everything = encoder.tokenizer(text, verbose=False)["input_ids"]
    assert len(everything) > 2 * num_positions
    assert ids.tolist() == [BOS, *everything[-(num_positions - 1) :]]
    with torch.no_grad():
        vectors = encoder(*encoder.pad(encoder.tokenize([text, "b" + text, "Why?"])))
        alone = encoder(*encoder.pad(encoder.tokenize(["Why?"])))
    assert torch.equal(vectors[0], vectors[1])
    torch.testing.assert_close(vectors[2:], alone)


@pytest.mark.parametrize("model", [bert, roberta])
def test_embedding_vectors_pass_through_the_encoder_as_its_own_embeddings_do(model):
    encoder = TextEncoder(model(), byte_tokenizer(), PARTS).eval()
    ids, mask = encoder.pad(encoder.tokenize([TEXTS[1]]))
    embedded = encoder.embed(encoder.model.get_input_embeddings()(ids))
    torch.testing.assert_close(embedded, encoder(ids, mask))


def test_a_pooler_is_pooled_where_there_is_one_and_refused_where_there_is_none(tmp_path):
    encoder = TextEncoder(bert(pooler=True), byte_tokenizer(), ("mean", "pooler")).eval()
    ids, mask = encoder.pad(encoder.tokenize(TEXTS))
    expected = encoder.model(input_ids=ids, attention_mask=mask).pooler_output
    assert torch.equal(encoder(ids, mask)[:, 16:], expected)
    with pytest.raises(ConfigError, match="pooling names 'pooler', but BertModel has none"):
        TextEncoder(bert(), byte_tokenizer(), ("pooler",))


def test_a_pooler_that_nothing_reads_is_not_built(tmp_path):
    bert(pooler=True).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path), PARTS).model.pooler is None
    assert load_encoder(str(tmp_path), ("pooler",)).model.pooler is not None
    assert empty_encoder(str(tmp_path), PARTS).model.pooler is None


def test_an_encoder_saved_in_half_precision_is_trained_and_restored_in_float32(tmp_path):
    bert().bfloat16().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path), PARTS).model.dtype == torch.float32
    assert empty_encoder(str(tmp_path), PARTS).model.dtype == torch.float32


@pytest.mark.parametrize("model", [bert, roberta])
@pytest.mark.parametrize("num_layers", [0, 1, 2])
def test_of_a_frozen_encoder_the_top_layers_and_the_pooler_get_the_gradient_that_they_had(model, num_layers):
    whole, frozen = (TextEncoder(model(pooler=True), byte_tokenizer(), ("mean", "pooler")) for _ in range(2))
    frozen.freeze_below(num_layers)
    for encoder in (whole, frozen):
        encoder(*encoder.pad(encoder.tokenize(TEXTS))).square().sum().backward()
    trained = [f"model.encoder.layer.{2 - place}." for place in range(1, num_layers + 1)] + ["model.pooler."]
    expected = dict(whole.named_parameters())
    for name, parameter in frozen.named_parameters():
        if any(name.startswith(part) for part in trained):
            assert torch.equal(parameter.grad, expected[name].grad), name
        else:
            assert parameter.grad is None, name


def test_more_layers_than_the_encoder_has_are_refused():
    encoder = TextEncoder(bert(), byte_tokenizer(), PARTS)
    with pytest.raises(ConfigError, match="trained_encoder_layers is 3, but BertModel has 2 layers; give at most 2"):
        encoder.freeze_below(3)


def test_a_missing_encoder_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"encoder .*no-such: no config\.json there"):
        load_encoder(str(tmp_path / "no-such"), PARTS)


def test_a_causal_lm_is_no_encoder_and_an_encoder_is_no_causal_lm():
    llama, bert_ = model_source("testbed", "llm"), model_source("testbed", "encoder")
    check_encoder("testbed")
    check_encoder(bert_)
    with pytest.raises(ModelError, match=r"encoder .*: is a causal LM \(llama\), .*give a bidirectional encoder"):
        check_encoder(llama)
    assert llm_width("testbed") == llm_width(llama)
    with pytest.raises(ModelError, match=r"llm .*: is a bidirectional encoder \(bert\); give a causal LM"):
        llm_width(bert_)
