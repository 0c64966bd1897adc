"""Where tokens stand in an answer's text: of any text, by any tokenizer, echoed or new, whole or in pieces."""

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_models import BOS, EOS, byte_tokenizer, tiny_llm
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recipe_ray.model.decoding_rows import Job, Row
from recipe_ray.model.decoding_sampling import ScoredToken
from recipe_ray.model.decoding_text import PART, decoder_of, followed
from recipe_ray.model.hub import model_source
from serving.engines.answers import Answers
from serving.engines.echo import echo_of
from serving.engines.transformers import TransformersEngine
from serving.messages import GenerationRequest, Sampling

ODD = [
    "🦜",
    "👨‍👩‍👧",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "漢字",
    "é",
    "e\u0301",
    "ﬁ",
    "İ",
    "\ufffd",
    "\ufeff",
    "\u200b",
    " ",
    "  ",
    "\n",
    "\t",
    "</s>",
    "Paris",
    ".",
]
TEXTS = st.lists(st.sampled_from(ODD) | st.text(max_size=3), max_size=12).map("".join).filter(lambda text: text.strip())


def _fast(model, **parts):
    """Of three special tokens; texts begin with BOS."""
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    before = tokenizer.post_processor
    tokenizer.post_processor = bos if before is None else processors.Sequence([before, bos])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _pieces(*more):
    return {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *more])}


def llama_like():
    """Bytes of what is no letter, blanks as part of words, the first of which is dropped."""
    letters = list("abcdeilmnoprstuvwxyzP.")
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    words = ["▁", *letters, "▁P", "ar", "is", "▁Par", "▁Paris"]
    merges = [("▁", "P"), ("a", "r"), ("i", "s"), ("▁P", "ar"), ("▁Par", "is")]
    model = models.BPE(_pieces(*bytes_, *words), merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _fast(model, normalizer=normalizer, decoder=decoder)


def byte_level(*, add_prefix_space=False, normalizer=None):
    """Bytes, some in pairs, one pair across characters; spans without the blank in front of a word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("Ġ", "P"), ("a", "r"), ("ð", "Ł"), ("¼", "¢"), ("Ģ", "ð")]
    model = models.BPE(_pieces(*alphabet, *("".join(pair) for pair in pairs)), pairs)
    parts = {"normalizer": normalizer} if normalizer else {}
    return _fast(
        model,
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space),
        post_processor=processors.ByteLevel(trim_offsets=True),
        decoder=decoders.ByteLevel(),
        **parts,
    )


TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "testbed": AutoTokenizer.from_pretrained(model_source("testbed", "llm")),
    "byte level": byte_level(),
    "with a blank in front": byte_level(add_prefix_space=True),
    "composing": byte_level(normalizer=normalizers.NFC()),
    "lower case without blanks at the ends": byte_level(
        normalizer=normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
    ),
    "llama": llama_like(),
}
SPECIAL = {token for tokenizer in TOKENIZERS.values() for token in tokenizer.all_special_tokens}
EXACT = ["bytes", "testbed", "byte level", "llama"]  # the tokens say the text to the character
each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


def assert_in_place(text, tokens, *, cut=False):
    """Offsets stay in order and within the text, where whole tokens stand to the letter.

    Args:
        text: an answer's.
        tokens: with their offsets.
        cut: whether a stop text may have cut the last of them.
    """
    offsets = [token.offset for token in tokens]
    assert offsets == sorted(offsets)
    assert not offsets or 0 <= offsets[0] <= offsets[-1] <= len(text)
    for number, token in enumerate(tokens):
        if PART not in token.token and token.token not in SPECIAL:
            here = text[token.offset : token.offset + len(token.token)]
            assert here == token.token or (cut and number == len(tokens) - 1 and token.token.startswith(here))


def echoed(tokenizer, prompt):
    """An echoed prompt and its tokens."""
    ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
    echo = echo_of(tokenizer, prompt, ids, with_places=True)
    job = Job(prompt_ids=ids, max_new_tokens=0, logprobs=0, prompt_logprobs=True, echo=echo)
    row = Row(job, decoder_of(tokenizer), frozenset({EOS}))
    row.prompt_scored = [ScoredToken(token_id=token, logprob=-1.0) for token in ids]
    return ids, Answers("tiny", tokenizer).completion(job, row.record(0, None))


@each_tokenizer
@settings(max_examples=60, deadline=None)
@example("  two blanks, Paris  ")
@example("a 👨‍👩‍👧 e\u0301 </s>漢")
@given(text=TEXTS)
def test_an_echoed_text_is_as_given_with_every_token_in_its_place(name, text):
    ids, answer = echoed(TOKENIZERS[name], text)
    assert answer.text == text
    assert len(answer.logprobs) == len(ids)
    assert_in_place(text, answer.logprobs)


@pytest.mark.parametrize("name", ["bytes", "testbed", "byte level"])
@settings(max_examples=60, deadline=None)
@example("Paris 🦜🦜 Paris")
@example("\u0ac0\U0002ee5e")  # a token ends the first and begins the second, which two more go on with
@given(text=TEXTS.filter(lambda text: "<" not in text and PART not in text))
def test_offsets_are_those_of_a_slow_reference(name, text):
    """A token begins where what is decoded of those before it agrees no further with the text."""
    tokenizer = TOKENIZERS[name]
    decode = decoder_of(tokenizer)
    ids, answer = echoed(tokenizer, text)
    if decode(ids) != text:
        return  # texts of more than the vocabulary has
    expected = []
    for number in range(len(ids)):
        before = decode(ids[:number])
        expected.append(next((i for i, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), len(before)))
    assert [token.offset for token in answer.logprobs] == expected
    _, of_ids = echoed(tokenizer, tuple(ids))
    assert of_ids == answer


@given(text=TEXTS.filter(lambda text: "<" not in text))
def test_each_byte_of_a_character_has_its_offset(text):
    _, answer = echoed(TOKENIZERS["bytes"], text)
    offsets = [place for place, character in enumerate(text) for _ in character.encode()]
    assert [token.offset for token in answer.logprobs] == [0, *offsets]


def generated(tokenizer, prompt_ids, new_ids, *, stream, stop=(), echo=False, logprobs=1):
    """An answer of these tokens, or its pieces."""
    echo_ = {"echo": echo_of(tokenizer, tuple(prompt_ids), prompt_ids, with_places=True)} if echo else {}
    job = Job(
        prompt_ids=prompt_ids, max_new_tokens=len(new_ids), logprobs=logprobs, stop=stop, stream=stream,
        prompt_logprobs=echo, **echo_,
    )  # fmt: skip
    row, answers, told = Row(job, decoder_of(tokenizer), frozenset({EOS})), Answers("tiny", tokenizer), []
    if echo:
        row.prompt_scored = [ScoredToken(token_id=token, logprob=-1.0) for token in prompt_ids]
    for token in new_ids:
        scored = None if logprobs is None else ScoredToken(token_id=token, logprob=-1.0, top=((token, -1.0),))
        piece = row.record(token, scored)
        if piece is not None:
            told.append((answers.chunk if stream else answers.completion)(job, piece))
            if piece.finish:
                break
    return told


@pytest.mark.parametrize("name", ["bytes", "testbed", "llama"])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_new_tokens_are_in_place_streamed_as_whole_whatever_comes(name, data):
    """Texts, with bytes that make no character and special tokens among them."""
    tokenizer = TOKENIZERS[name]
    parts = data.draw(
        st.lists(TEXTS | st.integers(0, len(tokenizer) - 1).filter(lambda token: token != EOS), max_size=6)
    )
    new_ids = [
        token
        for part in parts
        for token in (tokenizer(part, add_special_tokens=False)["input_ids"] if isinstance(part, str) else [part])
    ]
    new_ids = [*(token for token in new_ids if token != EOS), EOS]
    prompt_ids = tokenizer("The 🦜 is")["input_ids"]
    stop = tuple(data.draw(st.lists(st.sampled_from(["🦜", "字", "ar", "  ", "x"]), max_size=2)))
    echo = data.draw(st.booleans())
    (whole,) = generated(tokenizer, prompt_ids, new_ids, stream=False, stop=stop, echo=echo)
    chunks = generated(tokenizer, prompt_ids, new_ids, stream=True, stop=stop, echo=echo)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(token for chunk in chunks for token in chunk.logprobs) == whole.logprobs
    assert all(token.top[0][0] == token.token for token in whole.logprobs if token.top)
    (unscored,) = generated(tokenizer, prompt_ids, new_ids, stream=False, stop=stop, echo=echo, logprobs=None)
    assert whole.text == unscored.text, "log-probabilities change no text"
    assert_in_place(whole.text, whole.logprobs, cut=bool(stop))
    told = ""
    for chunk in chunks:
        told += chunk.text
        assert all(token.offset <= len(told) for token in chunk.logprobs)


def test_tokens_together_are_the_text_with_blanks_that_decoders_drop():
    tokenizer = TOKENIZERS["llama"]
    prompt_ids = tokenizer("Paris")["input_ids"]
    new_ids = tokenizer(" Paris is. Paris", add_special_tokens=False)["input_ids"][1:]
    (whole,) = generated(tokenizer, prompt_ids, [*new_ids, EOS], stream=False)
    assert [token.token for token in whole.logprobs][:2] == [" Paris", " "]
    assert "".join(token.token for token in whole.logprobs[:-1]) == whole.text == " Paris is. Paris"
    assert whole.logprobs[-1].offset == len(whole.text)


def test_what_is_cut_away_has_no_offset_and_an_unfinished_character_one():
    tokenizer = TOKENIZERS["bytes"]
    ids = [token for token in tokenizer("ab🦜cd")["input_ids"] if token != BOS]
    (cut,) = generated(tokenizer, [BOS], ids, stream=False, stop=("🦜c",))
    assert (cut.text, [token.offset for token in cut.logprobs]) == ("ab", [0, 1])
    (unfinished,) = generated(tokenizer, [BOS], ids[:4], stream=False)
    assert (unfinished.text, [token.offset for token in unfinished.logprobs]) == (f"ab{PART}", [0, 1, 2, 2])


def test_following_the_tokens_gives_the_text_of_all_of_them():
    for name in EXACT:
        tokenizer = TOKENIZERS[name]
        ids = tokenizer("Paris is 🦜 漢字. Paris")["input_ids"]
        stream = followed(decoder_of(tokenizer), [], ids)
        assert stream.text == decoder_of(tokenizer)(ids)
        assert len(stream.places) == len(ids)


def test_an_engine_tells_the_same_offsets_streamed_and_whole():
    engine = TransformersEngine(tiny_llm())

    async def answers(prompt):
        request = GenerationRequest(
            request_id="r",
            prompt=prompt,
            virtual_PD=None,
            sampling=Sampling(max_tokens=24, echo=True, logprobs=1, temperature=1.0, seed=4),
        )
        return await engine.complete(request), [chunk async for chunk in engine.stream(request)]

    for prompt in ("a 🦜 b", tuple(byte_tokenizer()("a 🦜 b")["input_ids"])):
        whole, chunks = asyncio.run(answers(prompt))
        assert [token.offset for token in whole.logprobs][:10] == [0, 0, 1, 2, 2, 2, 2, 3, 4, 5]
        assert tuple(token for chunk in chunks for token in chunk.logprobs) == whole.logprobs
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert_in_place(whole.text, whole.logprobs)
    engine.close()
