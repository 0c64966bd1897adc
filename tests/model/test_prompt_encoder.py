"""Continuous prompts made of a statement's own tokens beside its key."""

import numpy as np
import pytest
import torch
from edit_examples import BATCH
from tiny_models import LLM_WIDTH, bert, byte_tokenizer, tiny_editor, tiny_llm

from recipe_ray.config import EditorConfig, LossConfig, LossWeights
from recipe_ray.errors import ModelError
from recipe_ray.model import editor as editor_module
from recipe_ray.model.batch import BatchMaker
from recipe_ray.model.editor import load_editor, new_editor
from recipe_ray.model.joint import JointTraining
from recipe_ray.model.prompt_encoder import (
    NUM_STATEMENT_TOKENS,
    StatementPromptEncoder,
    StatementReader,
)

STATEMENTS = [
    "Gold is Xx",
    "The capital of Ruritania is Strelsau",
    "x",
    "The book that appeared in 1897 under the title of Dracula was, as everybody knows, written by Jules Verne",
]
KEY_WIDTH, NUM_VIRTUAL = 24, 5
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def reader_of(llm):
    return StatementReader(llm.tokenizer, llm.embedding)


def statement_editor(reads, **changes):
    """With weights far from their start, where nothing but copies is said."""
    editor = tiny_editor(prompt_source="statement", num_virtual_tokens=NUM_VIRTUAL, **changes)
    encoder = editor.prompt_encoder
    encoder.scale.fill_(reads.embedding(torch.arange(259)).std())
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    editor.read_with(reader_of(reads))
    return editor


def made(encoder, reader, statements, keys_FK, *, more_padding=0):
    ids_FN, mask_FN = reader.pad(reader.tokenize(statements))
    if more_padding:
        ids_FN = torch.nn.functional.pad(ids_FN, (more_padding, 0), value=77)
        mask_FN = torch.nn.functional.pad(mask_FN, (more_padding, 0))
    with torch.no_grad():
        return encoder(keys_FK, reader.embed(ids_FN), mask_FN)


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_padding_changes_no_prompt_and_a_batch_is_its_rows(family):
    llm = tiny_llm(family)
    encoder, reader = statement_editor(llm).prompt_encoder, reader_of(llm)
    torch.manual_seed(0)
    statements, keys_FK = ["Gold is Xx", "It is in Strelsau", "x"], torch.randn(3, KEY_WIDTH)
    together = made(encoder, reader, statements, keys_FK)
    assert together.shape == (3, NUM_VIRTUAL, LLM_WIDTH)
    for row, statement in enumerate(statements):
        alone = made(encoder, reader, [statement], keys_FK[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)
        shifted = made(encoder, reader, [statement], keys_FK[row : row + 1], more_padding=2)
        torch.testing.assert_close(shifted, alone, **CLOSE)
    other_key = made(encoder, reader, statements, keys_FK.roll(1, 0))
    assert ((together - other_key).abs().amax((1, 2)) > 1e-3).all(), "a prompt is made of the key too"


def test_before_training_the_virtual_tokens_in_the_middle_copy_the_statements_last_tokens():
    torch.manual_seed(0)
    llm = tiny_llm()
    encoder = StatementPromptEncoder(KEY_WIDTH, NUM_VIRTUAL, LLM_WIDTH)
    encoder.scale.fill_(0.5)
    prompts = made(encoder, reader_of(llm), STATEMENTS[1:2], torch.zeros(1, KEY_WIDTH))[0]
    copied = llm.embedding(torch.tensor(llm.tokenize_answer(STATEMENTS[1])[-3:]))
    similarity = torch.cosine_similarity(prompts[1:-1], copied)
    assert (similarity > 0.9).all()


def test_a_long_statement_keeps_its_end():
    reader = reader_of(tiny_llm())
    (ids,) = reader.tokenize([STATEMENTS[3]])
    assert reader.tokenizer.decode(ids) == STATEMENTS[3][-NUM_STATEMENT_TOKENS:]
    same_end = "Quite another beginning, " + STATEMENTS[3][-NUM_STATEMENT_TOKENS:]
    assert reader.tokenize([same_end]) == [ids]
    assert len(reader.tokenize(STATEMENTS[:1])[0]) == len(STATEMENTS[0])


def test_statements_are_read_in_their_canonical_form():
    reader = reader_of(tiny_llm())
    assert reader.tokenize(["  Gold\u200b is\n Xx "]) == reader.tokenize(["Gold is Xx"])
    assert reader.tokenize([]) == []


@pytest.mark.parametrize("similarity", ["inner_product", "cosine"])
def test_facts_are_encoded_as_training_makes_their_prompts(similarity, monkeypatch):
    llm = tiny_llm()
    editor = statement_editor(llm, similarity=similarity)
    joint = JointTraining(editor, llm, LossConfig())
    seen = []
    token_logits = llm.token_logits

    def noted(rows, prompts_RPD, mask_RA):
        if prompts_RPD is not None:
            seen.append(prompts_RPD.detach())
        return token_logits(rows, prompts_RPD, mask_RA)

    monkeypatch.setattr(llm, "token_logits", noted)
    maker = BatchMaker(
        encoder=editor.encoder,
        llm=llm,
        losses=joint.losses,
        num_virtual_tokens=NUM_VIRTUAL,
        position="first",
        answer_end=".",
        reader=editor.reader,
    )
    (batch,) = maker.make(BATCH, edit=True, locality=True)
    loss, _ = joint(batch, LossWeights())
    _, expected = editor.encode_facts([one.statement for one in BATCH])
    for group, prompts_RPD in zip(batch.llm_groups, seen, strict=True):
        np.testing.assert_allclose(prompts_RPD, expected[group.own_R], **CLOSE)
    loss.backward()
    untouched = [name for name, one in editor.prompt_encoder.named_parameters() if one.grad is None]
    assert untouched == []
    assert all(one.grad is None for one in llm.model.parameters())


def test_batching_changes_no_encoded_fact(monkeypatch):
    editor = statement_editor(tiny_llm())
    expected = [np.concatenate(part) for part in zip(*(editor.encode_facts([one]) for one in STATEMENTS), strict=True)]
    for per_batch, per_chunk in ((1, 4096), (3, 4096), (256, 2)):
        monkeypatch.setattr(editor_module, "STATEMENTS_PER_BATCH", per_batch)
        monkeypatch.setattr(editor_module, "TEXTS_PER_CHUNK", per_chunk)
        for found, alone in zip(editor.encode_facts(STATEMENTS), expected, strict=True):
            np.testing.assert_allclose(found, alone, **CLOSE)
        prompts = editor.prompts_of(torch.from_numpy(expected[0]), STATEMENTS)
        np.testing.assert_allclose(prompts, expected[1], **CLOSE)
    keys, prompts = editor.encode_facts([])
    assert (keys.shape, prompts.shape) == ((0, KEY_WIDTH), (0, NUM_VIRTUAL, LLM_WIDTH))


def test_a_saved_editor_of_statements_comes_back_to_the_bit_and_brings_no_embeddings(tmp_path):
    llm = tiny_llm("gemma")
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    editor = statement_editor(llm, llm=str(tmp_path / "llm"))
    editor.save(tmp_path / "editor")
    loaded = load_editor(tmp_path / "editor", "cpu")
    assert loaded.fingerprint() == editor.fingerprint()
    assert not [name for name in loaded.state_dict() if "embedding" in name and not name.startswith("encoder.")]
    for before, after in zip(editor.encode_facts(STATEMENTS), loaded.encode_facts(STATEMENTS), strict=True):
        assert np.array_equal(before, after)
    assert np.array_equal(editor.encode_queries(STATEMENTS), loaded.encode_queries(STATEMENTS))


def test_without_its_llm_an_editor_of_statements_encodes_questions_alone(tmp_path):
    editor = statement_editor(tiny_llm(), llm=str(tmp_path / "gone"))
    editor.save(tmp_path / "editor")
    loaded = load_editor(tmp_path / "editor", "cpu")
    assert loaded.encode_queries(["Why?"]).shape == (1, KEY_WIDTH)
    with pytest.raises(ModelError, match=r"gone: no config\.json there.*reads statements with the embeddings"):
        loaded.encode_facts(STATEMENTS)


def test_a_new_editor_of_statements_reads_with_the_llm_that_it_is_made_for(tmp_path):
    llm = tiny_llm("gemma")
    bert().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    config = EditorConfig(
        llm="nowhere", encoder=str(tmp_path), key_width=16, prompt_source="statement", num_virtual_tokens=NUM_VIRTUAL
    )
    editor = new_editor(config, llm).eval()
    _, prompts = editor.encode_facts(STATEMENTS)
    own = llm.embedding(torch.arange(259)).std().item()
    assert editor.prompt_encoder.scale.item() == pytest.approx(own, rel=0.1)
    assert prompts[:, 1:-1].std() == pytest.approx(own, rel=0.5)
