"""The continuous batch: sampling, stop texts, whole characters, scores, places that come free."""

import numpy as np
import pytest
import torch
from tiny_models import EOS, LLM_WIDTH, VOCABULARY, byte_tokenizer, tiny_llm
from transformers import MambaConfig, MambaForCausalLM

from recipe_ray.errors import EditorError, ModelError
from recipe_ray.model.decoding import Decoder, Job
from recipe_ray.model.decoding_sampling import Choice, choose
from recipe_ray.model.decoding_text import TextStream, context_of, continuation, decoder_of
from recipe_ray.model.llm import FrozenLLM

OTHERS = ["The capital of Ruritania is", "Why?", "In 1897, when"]


@pytest.fixture(scope="module")
def llm():
    return tiny_llm("llama")


def job(llm, text, **changes):
    return Job(**{"prompt_ids": llm.tokenize(text), "max_new_tokens": 12, **changes})


def run(decoder, *jobs):
    """All pieces of each job."""
    rows = [decoder.add(one) for one in jobs]
    pieces = {row: [] for row in rows}
    while decoder.busy:
        for piece in decoder.step():
            pieces[piece.row].append(piece)
    return [pieces[row] for row in rows]


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def virtual(llm, num=3, seed=7):
    scale = llm.embedding(torch.arange(VOCABULARY)).std().item()
    return scale * np.random.default_rng(seed).standard_normal((num, LLM_WIDTH)).astype(np.float32)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_seed_gives_the_same_text_in_any_company(llm, top_p):
    sampled = job(llm, "Hello", temperature=1.5, top_p=top_p, seed=5)
    ((alone,),) = run(Decoder(llm), sampled)
    company = [job(llm, text, temperature=0.7, seed=number) for number, text in enumerate(OTHERS)]
    *_, (among,) = run(Decoder(llm), *company, job(llm, "y"), sampled)
    assert among.row.new == alone.row.new
    others = {
        tuple(run(Decoder(llm), job(llm, "Hello", temperature=1.5, seed=seed))[0][0].row.new) for seed in range(4)
    }
    assert len(others) == 4
    assert Decoder(llm).add(job(llm, "Hello", temperature=1.0)).choice.random is not None


def test_the_end_of_a_text_is_passed_where_that_is_asked_for(llm):
    decoder = Decoder(llm)
    decoder._eos = frozenset(range(VOCABULARY))  # whatever comes ends the text
    (ended,), (going_on,) = run(decoder, job(llm, "Hello"), job(llm, "Hello", ignore_eos=True))
    assert (len(ended.row.new), len(going_on.row.new)) == (1, 12)


def test_samples_follow_the_probabilities():
    from random import Random

    logits_NV = torch.tensor([[0.0, 2.0, 1.0, -1.0]]).repeat(4000, 1)
    for temperature, top_p, kept in ((1.0, 1.0, [0, 1, 2, 3]), (2.0, 1.0, [0, 1, 2, 3]), (1.0, 0.7, [1, 2])):
        random = Random(0)
        choices = [Choice(temperature=temperature, top_p=top_p, random=random)] * len(logits_NV)
        counts = torch.bincount(choose(logits_NV, choices), minlength=4) / len(logits_NV)
        expected = (logits_NV[0] / temperature).softmax(-1)
        mask = torch.zeros(4)
        mask[kept] = 1
        expected = expected * mask / (expected * mask).sum()
        torch.testing.assert_close(counts, expected, atol=0.03, rtol=0)
        assert all(counts[token] == 0 for token in range(4) if token not in kept)


def test_next_to_no_temperature_and_next_to_no_top_p_are_greedy(llm):
    ((greedy,),) = run(Decoder(llm), job(llm, "Hello"))
    for wish in ({"temperature": 1e-6}, {"temperature": 1.0, "top_p": 1e-9}):
        ((piece,),) = run(Decoder(llm), job(llm, "Hello", seed=1, **wish))
        assert piece.row.new == greedy.row.new


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_ends_before_its_stop_text(llm, stream):
    ((whole,),) = run(Decoder(llm), job(llm, "The river", max_new_tokens=24))
    for begin, end in ((3, 5), (0, 1), (7, 12), (len(whole.text) - 2, len(whole.text))):
        stop = whole.text[begin:end]
        cut = whole.text.index(stop)
        (pieces,) = run(Decoder(llm), job(llm, "The river", max_new_tokens=24, stop=("no such", stop), stream=stream))
        assert text_of(pieces) == whole.text[:cut]
        assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
        expected = llm.generate(["The river"], [None], max_new_tokens=24, stop=("no such", stop))[0]
        assert pieces[-1].row.new == expected.token_ids


class Script:
    """Decodes as the byte tokenizer does, of texts that the test writes."""

    def __init__(self):
        self.tokenizer = byte_tokenizer()
        self.decode = decoder_of(self.tokenizer)

    def tokens(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def feed(self, text, stop=()):
        """What is shown after each byte, and at the end."""
        stream, shown = TextStream(self.decode, [], stop), []
        for token in self.tokens(text):
            stream.push(token)
            shown.append(stream.take())
            if stream.stopped:
                break
        return [*shown, stream.finish()]


def test_no_piece_of_a_stop_text_is_shown_before_it_is_clear_that_it_is_none():
    assert Script().feed("a##b###c", stop=("###",)) == ["a", "", "", "##b", "", "", "", ""]
    assert Script().feed("a##", stop=("###",)) == ["a", "", "", "##"]
    assert Script().feed("xabab!", stop=("abac", "b!")) == ["x", "", "", "", "ab", "a", ""]


def test_half_a_character_is_never_shown():
    text = "é漢🦜z"
    shown = Script().feed(text)
    assert "".join(shown) == text
    assert [piece for piece in shown if piece] == list(text)
    script, stream = Script(), TextStream(Script().decode, [], ())
    for token in script.tokens("漢")[:2]:
        stream.push(token)
        assert stream.take() == ""
    assert stream.finish() == "\ufffd", "what never became a character is shown at the end"


def test_bytes_that_are_no_text_are_shown_some_time():
    script = Script()
    stream, continuation_byte = TextStream(script.decode, [], ()), script.tokens("é")[1]
    for _ in range(200):
        stream.push(continuation_byte)
    assert len(stream.take()) > 100


def test_pieces_together_are_the_whole_text(llm):
    for seed in range(6):
        wish = {"temperature": 1.0, "seed": seed, "max_new_tokens": 40}
        ((whole,),) = run(Decoder(llm), job(llm, "é: ", **wish))
        (pieces,) = run(Decoder(llm), job(llm, "é: ", stream=True, **wish))
        assert text_of(pieces) == whole.text
        assert len(pieces) > 2


def test_a_space_before_the_first_word_is_kept_behind_a_prompt_and_dropped_without_one():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"▁The": 0, "▁city": 1, "▁Paris": 2, "?": 3}, unk_token="?"))
    backend.decoder = decoders.Metaspace()
    decode = decoder_of(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert continuation(decode, context_of(decode, [0, 1]), [2]) == " Paris"
    assert continuation(decode, [], [2]) == "Paris"
    stream = TextStream(decode, context_of(decode, [0, 1]), ())
    stream.push(2)
    assert stream.take() == " Paris"


def test_a_cancelled_row_frees_its_place(llm):
    decoder = Decoder(llm, max_rows=1)
    first = decoder.add(job(llm, "first", max_new_tokens=100))
    second = decoder.add(job(llm, "second", max_new_tokens=3))
    third = decoder.add(job(llm, "third", max_new_tokens=3))
    for _ in range(5):
        decoder.step()
    assert (len(first.new), len(second.new), decoder.num_rows, decoder.num_waiting) == (5, 0, 1, 2)
    decoder.cancel(first)
    decoder.cancel(third)
    pieces = [piece for _ in range(5) for piece in decoder.step()]
    assert not decoder.busy
    assert [piece.row for piece in pieces] == [second]
    assert second.new == llm.generate(["second"], [None], max_new_tokens=3)[0].token_ids
    assert (len(first.new), third.new) == (5, [])


def test_a_row_cancelled_while_its_prompt_is_read_leaves_the_others_alone(llm):
    decoder = Decoder(llm, prefill_tokens=16)
    runs = decoder.add(job(llm, "runs", max_new_tokens=30))
    decoder.step()
    gone, stays = (decoder.add(job(llm, text)) for text in ("a prompt that is read in parts", "of which one stays ..."))
    decoder.step()
    decoder.step()
    decoder.cancel(gone)
    while decoder.busy:
        decoder.step()
    assert runs.new == llm.generate(["runs"], [None], max_new_tokens=30)[0].token_ids
    assert stays.new == llm.generate(["of which one stays ..."], [None], max_new_tokens=12)[0].token_ids


def test_prompts_that_wait_do_not_stop_the_rows_that_run(llm):
    decoder = Decoder(llm, prefill_tokens=8)
    runs = decoder.add(job(llm, "runs", max_new_tokens=30))
    decoder.step()
    for _ in range(4):
        decoder.add(job(llm, "a prompt that is read in parts of eight", max_new_tokens=1))
    for _ in range(10):
        before = len(runs.new)
        decoder.step()
        decoder.step()
        assert len(runs.new) == before + 1


def test_rows_and_tokens_in_memory_have_limits(llm):
    decoder = Decoder(llm, max_rows=4, max_cached_tokens=60)
    rows = [decoder.add(job(llm, "x" * 9, max_new_tokens=10)) for _ in range(5)]  # 20 tokens each at the end
    long = decoder.add(job(llm, "x" * 39, max_new_tokens=10))  # 50
    last = decoder.add(job(llm, "y", max_new_tokens=10))
    most, alone = 0, False
    while decoder.busy:
        decoder.step()
        most = max(most, decoder.num_rows)
        alone = alone or (0 < len(long.new) < 10 and decoder.num_rows == 1)
        assert not last.new or len(long.new) == 10, "nobody overtakes"
    assert (most, alone) == (3, True)
    assert all(len(row.new) == 10 for row in [*rows, long, last])


@torch.no_grad()
def plain_logprobs(llm, ids, prefix=None, start=0):
    """log_softmax of one forward over a row: what precedes each token but the first of `ids`."""
    embeds, columns = llm.embedding(torch.tensor(ids)), list(range(len(ids)))
    if prefix is not None:
        embeds = torch.cat([embeds[:start], torch.from_numpy(prefix), embeds[start:]])
        columns = [column + len(prefix) * (column >= start) for column in columns]
    logprobs_TV = llm.model(inputs_embeds=embeds[None], use_cache=False).logits[0].float().log_softmax(-1)
    return logprobs_TV[[column - 1 for column in columns[1:]]]


@pytest.mark.parametrize("starts", [(0, 0, 0), (1, 1, 1), (9, 0, 20)])
@pytest.mark.parametrize("prefill_tokens", [512, 8])
@pytest.mark.parametrize("max_new_tokens", [0, 4])
def test_scores_are_those_of_a_plain_forward(llm, prefill_tokens, max_new_tokens, starts):
    wish = {"logprobs": 3, "prompt_logprobs": True, "max_new_tokens": max_new_tokens}
    texts = ["The capital of Ruritania", "Why?", "A longer prompt than these"]
    prefixes = [virtual(llm), None, virtual(llm, 6)]
    decoder = Decoder(llm, prefill_tokens=prefill_tokens)
    jobs = [
        job(llm, text, virtual_PD=prefix, start=start, **wish)
        for text, prefix, start in zip(texts, prefixes, starts, strict=True)
    ]
    answers = run(decoder, job(llm, "another"), *jobs)[1:]
    for one, (piece,), prefix in zip(jobs, answers, prefixes, strict=True):
        ids = [*one.prompt_ids, *piece.row.new]
        scored = [*piece.prompt_tokens, *piece.tokens]
        assert [token.token_id for token in scored] == ids
        assert (len(piece.row.new), scored[0].logprob) == (max_new_tokens, None)
        expected_TV = plain_logprobs(llm, ids, prefix, one.start)
        top = expected_TV.topk(3)
        for token, logprobs_V, top_ids, top_values in zip(
            scored[1:], expected_TV, top.indices.tolist(), top.values.tolist(), strict=True
        ):
            assert token.logprob == pytest.approx(logprobs_V[token.token_id].item(), abs=1e-4)
            assert [number for number, _ in token.top] == top_ids
            assert [value for _, value in token.top] == pytest.approx(top_values, abs=1e-4)


def test_scores_behind_a_stop_text_are_not_told(llm):
    ((whole,),) = run(Decoder(llm), job(llm, "The river", max_new_tokens=24))
    # Behind a whole character: of bytes that make none, nobody can say which of them made which of the marks for it.
    firsts = (whole.text.index(character) for character in whole.text)
    kept = next(place for place in firsts if place > 1 and whole.text[place - 1 : place + 1].isascii())
    stop = whole.text[kept]
    for stream in (False, True):
        (pieces,) = run(Decoder(llm), job(llm, "The river", max_new_tokens=24, stop=(stop,), logprobs=0, stream=stream))
        tokens = [token.token_id for piece in pieces for token in piece.tokens]
        assert llm.tokenizer.decode(tokens) == whole.text[:kept]
        assert text_of(pieces) == whole.text[:kept]


def test_every_token_scored_is_told_once_with_its_text(llm):
    wish = {"temperature": 1.0, "seed": 3, "max_new_tokens": 40, "logprobs": 1, "stream": True, "prompt_logprobs": True}
    (pieces,) = run(Decoder(llm), job(llm, "é", **wish))
    assert [token.token_id for piece in pieces for token in piece.tokens] == pieces[0].row.new
    assert [len(piece.prompt_tokens) for piece in pieces] == [3] + [0] * (len(pieces) - 1)


def test_end_of_sequence_ends_a_row_and_is_scored(llm):
    biased = tiny_llm("llama")
    always = biased.embedding.weight[EOS] * 50
    biased.model.lm_head.weight = torch.nn.Parameter(biased.model.lm_head.weight.clone(), requires_grad=False)
    biased.model.lm_head.weight[EOS] = always
    found = {}
    for text in OTHERS + list("abcdefgh"):
        ((piece,),) = run(Decoder(biased), job(biased, text, logprobs=0))
        found[piece.finish] = piece
    assert found["stop"].row.new[-1] == EOS
    assert found["stop"].tokens[-1].token_id == EOS
    assert "</s>" not in found["stop"].text


def test_a_row_without_finite_scores_fails_alone(llm):
    poison = np.full((3, LLM_WIDTH), np.nan, dtype=np.float32)
    decoder = Decoder(llm, max_rows=2)
    jobs = [job(llm, "Hello"), job(llm, "Hello", virtual_PD=poison, stream=True), *(job(llm, text) for text in OTHERS)]
    good, bad, *others = run(decoder, *jobs)
    assert [piece.finish for piece in bad] == ["failed"]
    for text, (piece,) in zip(["Hello", *OTHERS], [good, *others], strict=True):
        assert piece.row.new == llm.generate([text], [None], max_new_tokens=12)[0].token_ids


def test_what_cannot_be_decoded_is_refused(llm):
    with pytest.raises(EditorError, match=rf"width {LLM_WIDTH}.* width 5"):
        Decoder(llm).add(job(llm, "x", virtual_PD=np.zeros((3, 5), dtype=np.float32)))
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=LLM_WIDTH, num_hidden_layers=1, state_size=4)
    mamba = FrozenLLM(MambaForCausalLM(config), byte_tokenizer(), name="tiny-mamba")
    with pytest.raises(ModelError, match=r"tiny-mamba.* plain attention"):
        Decoder(mamba)
