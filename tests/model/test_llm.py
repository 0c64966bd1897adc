"""A frozen LLM answers a row in a batch, with or without a continuous prompt, as it answers that row alone."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONTEXT, EOS, FAMILIES, LLM_WIDTH, VOCABULARY, byte_tokenizer, tiny_llm
from transformers import GenerationConfig

from recipe_ray.errors import ConfigError, EditorError, ModelError
from recipe_ray.model import llm as llm_module
from recipe_ray.model.embedding import load_embedding
from recipe_ray.model.llm import COLUMNS_MULTIPLE, FrozenLLM, load_llm
from recipe_ray.model.prefix import pad_rows

PROMPTS = ["The capital of Ruritania is", "Why?", "In 1897", "x"]
NUM_NEW = 6
POSITIONS = ("first", "after_bos", "last")


def prefixes(llm, num_virtual_tokens=3, seed=7):
    """Every second row has a continuous prompt, of the size of the LLM's own embeddings."""
    scale = llm.embedding(torch.arange(VOCABULARY)).std().item()
    rng = np.random.default_rng(seed)
    drawn = [scale * rng.standard_normal((num_virtual_tokens, LLM_WIDTH)).astype(np.float32) for _ in PROMPTS]
    return [prefix if row % 2 == 0 else None for row, prefix in enumerate(drawn)]


def row_embeddings(llm, ids, prefix, position):
    """One row, written out: [1, T, D] without padding."""
    embeds_TD = llm.embedding(torch.tensor(ids))
    if prefix is None:
        return embeds_TD[None]
    lead = {"first": 0, "after_bos": int(ids[0] == llm.tokenizer.bos_token_id), "last": len(ids)}[position]
    return torch.cat([embeds_TD[:lead], torch.from_numpy(prefix), embeds_TD[lead:]])[None]


@torch.no_grad()
def slow_greedy(llm, prompt, prefix, position, num_new=NUM_NEW):
    """The whole row through the model for every token: no cache, no padding, no mask."""
    embeds = row_embeddings(llm, llm.tokenize(prompt), prefix, position)
    new = []
    while len(new) < num_new and EOS not in new:
        new.append(int(llm.model(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax()))
        embeds = torch.cat([embeds, llm.embedding(torch.tensor([new[-1:]]))], dim=1)
    return new


@pytest.mark.parametrize(
    ("family", "position", "bos"),
    [
        *((family, position, True) for family in FAMILIES for position in POSITIONS),
        ("qwen2", "after_bos", False),  # as Qwen2 really is: then the prompt stands first
    ],
)
def test_a_mixed_batch_generates_what_a_slow_loop_over_single_rows_does(family, position, bos):
    llm = tiny_llm(family, bos=bos)
    given = prefixes(llm)
    together = llm.generate(PROMPTS, given, max_new_tokens=NUM_NEW, position=position)
    expected = [slow_greedy(llm, prompt, prefix, position) for prompt, prefix in zip(PROMPTS, given, strict=True)]
    assert [row.token_ids for row in together] == expected
    for prompt, prefix, row in zip(PROMPTS, given, together, strict=True):
        assert llm.generate([prompt], [prefix], max_new_tokens=NUM_NEW, position=position) == [row]
    assert [row.num_prompt_tokens for row in together] == [len(prompt) + bos for prompt in PROMPTS]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_changes_its_row_and_its_place_matters(family):
    llm = tiny_llm(family)
    given = prefixes(llm)
    texts = {
        place: [row.token_ids for row in llm.generate(PROMPTS, rows, max_new_tokens=NUM_NEW, position=position)]
        for place, rows, position in (
            ("none", [None] * len(PROMPTS), "first"),
            ("first", given, "first"),
            ("after_bos", given, "after_bos"),
        )
    }
    for prefixed in (False, True):
        rows = [row for row, prefix in enumerate(given) if (prefix is not None) == prefixed]
        distinct = {str([tokens[row] for row in rows]) for tokens in texts.values()}
        assert len(distinct) == (3 if prefixed else 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_without_prompt_is_the_plain_models_own_generation(family):
    llm = tiny_llm(family)
    rows = llm.generate(PROMPTS, prefixes(llm), max_new_tokens=NUM_NEW)
    for prompt, prefix, row in zip(PROMPTS, prefixes(llm), rows, strict=True):
        if prefix is None:
            ids = torch.tensor([llm.tokenize(prompt)])
            plain = llm.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=GenerationConfig(
                    do_sample=False, max_new_tokens=NUM_NEW, eos_token_id=EOS, pad_token_id=EOS
                ),
            )
            assert row.token_ids == plain[0, ids.shape[1] :].tolist()


def answer_rows(llm, prompts, answers, given, position):
    rows = [llm.tokenize(prompt) + llm.tokenize_answer(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    padded = llm.pad(rows, [0 if prefix is None else len(prefix) for prefix in given], position)
    stacked = torch.from_numpy(np.stack([prefix for prefix in given if prefix is not None]))
    return rows, padded, stacked


@pytest.mark.parametrize("position", ["first", "after_bos"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answer_logits_of_a_padded_batch_are_those_of_single_rows_whatever_the_padding_holds(family, position):
    llm = tiny_llm(family)
    given = prefixes(llm)
    answers = [" Paris", " yes, of course it is", " Kyoto", " a"]
    rows, padded, stacked = answer_rows(llm, PROMPTS, answers, given, position)
    width = max(map(len, answers))
    logits_BAV = llm.answer_logits(padded, stacked, num_answer_tokens=width)
    assert logits_BAV.shape == (len(PROMPTS), width, VOCABULARY)
    garbage = torch.randint(3, VOCABULARY, padded.ids_BT.shape)
    dirty = dataclasses.replace(padded, ids_BT=torch.where(padded.mask_BT == 1, padded.ids_BT, garbage))
    dirty_BAV = llm.answer_logits(dirty, stacked, num_answer_tokens=width)
    for row, (ids, answer, prefix) in enumerate(zip(rows, answers, given, strict=True)):
        alone = llm.model(inputs_embeds=row_embeddings(llm, ids, prefix, position), use_cache=False).logits[0]
        expected = alone[-len(answer) - 1 : -1]
        torch.testing.assert_close(logits_BAV[row, -len(answer) :], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(dirty_BAV[row, -len(answer) :], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_answer_beside_a_short_row_leaves_no_number_undefined(family):
    llm = tiny_llm(family)
    prefix = torch.full((1, 3, LLM_WIDTH), 0.1, requires_grad=True)
    rows = llm.pad([[*llm.tokenize("x"), 9], llm.tokenize("y") + [9] * 30], [3, 0], "first")
    logits = llm.answer_logits(rows, prefix, num_answer_tokens=30)
    assert logits.isfinite().all()
    logits[:, -1].sum().backward()
    assert prefix.grad.isfinite().all()
    assert prefix.grad.any()


STARTS = {"first": (0, 0, 0), "after BOS": (1, 1, 1), "in the middle": (9, 3, 12)}


def token_rows(llm, starts, prompts_RPD=None):
    """Rows of several lengths, the last two of one prompt, with answers of several lengths."""
    questions = ["The capital of Ruritania is", "Why?", "He said that in 1897 it was"]
    answers = [llm.tokenize_answer(text) for text in (" Strelsau.", " No", " so")]
    ids = [llm.tokenize(question) + answer for question, answer in zip(questions, answers, strict=True)]
    num_virtual = 0 if prompts_RPD is None else prompts_RPD.shape[1]
    rows = pad_rows(ids, num_virtual_tokens=[num_virtual] * 3, starts=starts, device=torch.device("cpu"))
    width = max(map(len, answers))
    mask_RA = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in answers])
    return rows, mask_RA


@pytest.mark.parametrize("plainly", [True, False])
@pytest.mark.parametrize("place", STARTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_chosen_tokens_are_those_among_all_and_so_are_the_prompts_gradients(family, place, plainly):
    llm = tiny_llm(family)
    if plainly:
        llm.model.set_attn_implementation("eager")
    seen = []
    llm.model.base_model.register_forward_hook(
        lambda _, given, kwargs, output: seen.append((kwargs["inputs_embeds"].shape[1], torch.is_grad_enabled())),
        with_kwargs=True,
    )
    given = prefixes(llm)[0]
    found = []
    for chosen in (True, False):
        prompts_RPD = torch.from_numpy(np.stack([given, 2 * given, -given])).requires_grad_()
        rows, mask_RA = token_rows(llm, STARTS[place], prompts_RPD)
        if chosen:
            logits_NV = llm.token_logits(rows, prompts_RPD, mask_RA)
        else:
            logits_RAV = llm.answer_logits(rows, prompts_RPD, num_answer_tokens=mask_RA.shape[1])
            logits_NV = logits_RAV[mask_RA.bool()]
        logits_NV.log_softmax(-1)[:, 7].sum().backward()
        found.append((logits_NV.detach(), prompts_RPD.grad))
    assert found[0][0].shape == (int(mask_RA.sum()), VOCABULARY)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    width = rows.ids_BT.shape[1]
    before = int(rows.slots_RP.min()) // COLUMNS_MULTIPLE * COLUMNS_MULTIPLE
    split = [(before, False), (width - before, True)] if before else [(width, True)]
    assert seen == [*split, (width, True)], "what stands before all prompts is read without gradient"


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_chosen_tokens_of_the_unedited_llm_are_those_among_all(family):
    llm = tiny_llm(family)
    rows, mask_RA = token_rows(llm, (0, 0, 0))
    expected = llm.answer_logits(rows, None, num_answer_tokens=mask_RA.shape[1])[mask_RA.bool()]
    torch.testing.assert_close(llm.token_logits(rows, None, mask_RA), expected, rtol=1e-4, atol=1e-4)


def test_a_text_ends_before_its_first_stop_text_and_leaves_the_other_rows_alone():
    llm = tiny_llm()
    free = llm.generate(PROMPTS, prefixes(llm), max_new_tokens=12)
    tokens = [tuple(row.token_ids) for row in free]
    place = next(
        place
        for place in range(3, 10)
        if [row[place - 1 : place + 1] for row in tokens].count(tokens[0][place - 1 : place + 1]) == 1
    )
    stop = llm.tokenizer.decode(tokens[0][place - 1 : place + 1])
    stopped = llm.generate(PROMPTS, prefixes(llm), max_new_tokens=12, stop=[stop, "never said"])
    for before, after in zip(free, stopped, strict=True):
        if stop in before.text:
            assert after.text == before.text[: before.text.index(stop)]
            assert after.finish_reason == "stop"
            said = [llm.tokenizer.decode(after.token_ids[:end]) for end in range(len(after.token_ids) + 1)]
            assert [stop in text for text in said] == [False] * len(after.token_ids) + [True]
        else:
            assert after == before
    assert {row.finish_reason for row in stopped} == {"stop", "length"}


def test_any_end_of_sequence_that_the_models_generation_config_names_ends_a_row():
    model = FAMILIES["llama"]
    torch.manual_seed(0)
    free = FrozenLLM(model(), byte_tokenizer(), name="tiny").generate([PROMPTS[0]], [None], max_new_tokens=12)[0]
    assert free.finish_reason == "length"
    end = free.token_ids[5]
    torch.manual_seed(0)
    chat = model()
    chat.generation_config.eos_token_id = [EOS, end]
    row = FrozenLLM(chat, byte_tokenizer(), name="chat").generate([PROMPTS[0]], [None], max_new_tokens=12)[0]
    assert row.finish_reason == "stop"
    assert row.token_ids == free.token_ids[: free.token_ids.index(end) + 1]


def test_decoding_habits_of_the_models_generation_config_do_not_make_it_less_greedy():
    # With embeddings for input, a repetition penalty would not even see the prompt.
    plain = tiny_llm().generate(PROMPTS, prefixes(tiny_llm()), max_new_tokens=12)
    torch.manual_seed(0)
    model = FAMILIES["llama"]()
    model.generation_config = GenerationConfig(
        repetition_penalty=5.0, no_repeat_ngram_size=1, temperature=0.3, do_sample=True, eos_token_id=EOS, min_length=40
    )
    llm = FrozenLLM(model, byte_tokenizer(), name="chat")
    assert llm.generate(PROMPTS, prefixes(llm), max_new_tokens=12) == plain


def test_prompts_of_another_width_are_refused_with_both_widths():
    llm = tiny_llm()
    with pytest.raises(EditorError, match="LLM tiny-llama has width 32, but the editor's prompts have width 48"):
        llm.check_prompt_width(48)
    with pytest.raises(EditorError, match=r"width 32.*width 16"):
        llm.generate(["x"], [np.zeros((3, 16), np.float32)], max_new_tokens=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_leaves_the_llm_as_it_was_to_the_bit(family):
    llm = tiny_llm(family)
    before = {name: tensor.clone() for name, tensor in llm.model.state_dict().items()}
    llm.generate(PROMPTS, prefixes(llm), max_new_tokens=4)
    after = llm.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in llm.model.parameters())
    assert not llm.model.training


def test_an_llm_is_loaded_from_a_directory_and_says_what_it_is(tmp_path):
    llm = tiny_llm("gpt2")
    llm.model.save_pretrained(tmp_path)
    llm.tokenizer.save_pretrained(tmp_path)
    loaded = load_llm(str(tmp_path), "cpu")
    assert (loaded.width, loaded.max_length, loaded.name) == (LLM_WIDTH, CONTEXT, str(tmp_path))
    assert len(loaded.tokenize("Why?")) == 5
    assert loaded.generate(["Why?"], [None], max_new_tokens=6) == llm.generate(["Why?"], [None], max_new_tokens=6)


def saved_llm(family, folder, *, form):
    """A tiny LLM on disk: whole, in shards, as checkpoints of a base model name tensors, or as pickles."""
    llm = tiny_llm(family)
    llm.tokenizer.save_pretrained(folder)
    if form == "pickled":
        llm.model.config.save_pretrained(folder)
        torch.save(llm.model.state_dict(), folder / "pytorch_model.bin")
        return llm
    llm.model.save_pretrained(folder, max_shard_size="20KB" if form == "shards" else "1GB")
    if form == "base":
        weights = load_file(folder / "model.safetensors")
        prefix = f"{llm.model.base_model_prefix}."
        save_file({name.removeprefix(prefix): one for name, one in weights.items()}, folder / "model.safetensors")
    return llm


@pytest.mark.parametrize("form", ["whole", "shards", "base"])
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_alone_are_those_of_the_whole_llm(family, form, tmp_path, monkeypatch):
    llm = saved_llm(family, tmp_path, form=form)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or form == "shards"
    monkeypatch.setattr(llm_module, "load_llm", None)  # nothing but the embeddings is read
    tokenizer, embedding = load_embedding(str(tmp_path))
    ids = torch.arange(VOCABULARY)
    assert torch.equal(embedding(ids), llm.embedding(ids))
    assert type(embedding) is type(llm.embedding)
    assert not any(one.requires_grad for one in embedding.parameters())
    assert tokenizer("Why?")["input_ids"] == llm.tokenize("Why?")


def test_embeddings_in_half_precision_keep_their_size_unless_they_are_computed_with(tmp_path):
    for family, dtype in (("llama", torch.bfloat16), ("gemma", torch.float32)):
        llm = tiny_llm(family)
        llm.model.bfloat16().save_pretrained(tmp_path / family)
        llm.tokenizer.save_pretrained(tmp_path / family)
        _, embedding = load_embedding(str(tmp_path / family))
        assert embedding.weight.dtype == dtype
        ids = torch.arange(VOCABULARY)
        assert torch.equal(embedding(ids).float(), load_llm(str(tmp_path / family), "cpu").embedding(ids))


def test_embeddings_come_with_the_whole_llm_where_there_are_no_safetensors(tmp_path):
    llm = saved_llm("gpt2", tmp_path, form="pickled")
    _, embedding = load_embedding(str(tmp_path))
    assert torch.equal(embedding.weight, llm.embedding.weight)
    with pytest.raises(ModelError, match=r"LLM .*: cannot be loaded .*safetensors"):
        load_embedding(str(tmp_path), safetensors_only=True)


def test_embeddings_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"no-such: no config\.json there"):
        load_embedding(str(tmp_path / "no-such"))
    saved_llm("llama", tmp_path, form="shards")
    for shard in tmp_path.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ModelError, match=rf"LLM {tmp_path}: cannot be loaded"):
        load_embedding(str(tmp_path))
    for shard in tmp_path.glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(ModelError, match=rf"LLM {tmp_path}: cannot be loaded"):
        load_embedding(str(tmp_path))


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no-such: no config\.json there"):
        load_llm(str(tmp_path / "no-such"), "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(ModelError, match=r"LLM .*: cannot be loaded"):
        load_llm(str(tmp_path), "cpu")
    with pytest.raises(ConfigError, match="device is 'tpu9'"):
        load_llm(str(tmp_path), "tpu9")


def test_an_answer_ends_with_the_tokenizers_own_end_which_an_llm_may_lack():
    llm = tiny_llm()
    assert llm.end_token_id == llm.tokenizer.eos_token_id == EOS
    llm.eos_token_ids = [7, EOS]  # as of chat models whose generation config names the end of a text first
    assert llm.end_token_id == EOS
    llm.tokenizer.eos_token = None
    assert llm.end_token_id == 7
    llm.eos_token_ids = []
    with pytest.raises(ModelError, match="names no token that ends a text; set answer_eos to false"):
        _ = llm.end_token_id
