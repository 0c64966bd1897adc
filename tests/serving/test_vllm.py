"""The engine on vLLM. What needs vLLM itself is run in its own environment (docs/vllm.md) and skipped elsewhere."""

import asyncio
import contextlib
import os
import signal
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from recipe_ray.errors import ConfigError, ServiceError
from recipe_ray.model.chat import place_chat
from recipe_ray.model.decoding_rows import Job
from recipe_ray.model.llm import load_llm
from recipe_ray.model.prefix import pad_rows
from serving.engines.prompts import Layout
from serving.engines.vllm import VllmEngine
from serving.engines.vllm_requests import Admission, mixed_prompt
from serving.messages import ChatMessage, Chunk, Completion, GenerationRequest, Refusal, Sampling

WIDTH, CONTEXT, LONG = 64, 256, 2048
CHAT_TEMPLATE = (
    "{% for turn in messages %}{{ '<s>' + turn['role'] + ':' + turn['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
PROMPTS = ("The capital of Ruritania is", "Who", "The longest river of Syldavia, and where it ends:")


def needs_vllm(test):
    test = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed (docs/vllm.md)")(test)
    # vLLM's own: what it imports is deprecated, and what it closes it leaves to the garbage collector.
    for warning in (":DeprecationWarning", ":FutureWarning", "Unclosed context:ResourceWarning"):
        test = pytest.mark.filterwarnings(f"ignore:{warning}")(test)
    return test


def request(prompt, virtual_PD=None, **sampling):
    sampling.setdefault("max_tokens", 24)
    return GenerationRequest(request_id="r", prompt=prompt, virtual_PD=virtual_PD, sampling=Sampling(**sampling))


def virtual(seed, num=3, width=WIDTH):
    return np.random.default_rng(seed).normal(size=(num, width)).astype(np.float16)


# Without vLLM


def admitted(asked, **changes):
    laid = {"name": "tiny", "tokenizer": byte_tokenizer(), "vocabulary": 259}
    layout = Layout(**{name: changes.pop(name, value) for name, value in laid.items()})
    values = {"layout": layout, "max_length": 40, "width": 8, "dtype": torch.float32}
    return Admission(**{**values, **changes}).admit(asked, stream=False)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_without_vllm_it_says_how_to_get_it():
    with pytest.raises(ConfigError, match=r"vllm is not installed; .*docs/vllm\.md"):
        VllmEngine(llm="testbed", position="first", max_batch_size=1)


@pytest.mark.parametrize(("ids", "start"), [([1, 7, 8], 0), ([1, 7, 8], 1), ([7, 1, 8], 2), ([1], 1)])
def test_virtual_tokens_stand_where_the_transformers_engine_puts_them(ids, start):
    prompt_PD = torch.randn(2, 4)
    mixed = mixed_prompt(ids, prompt_PD, start=start)
    rows = pad_rows([ids], num_virtual_tokens=[2], starts=[start], device=torch.device("cpu"))
    slots = rows.slots_RP[0].tolist()
    assert [place for place, token in enumerate(mixed.is_token) if not token] == slots
    assert mixed.ids == rows.ids_BT[0].tolist()
    torch.testing.assert_close(mixed.embeds_TD[slots], prompt_PD, rtol=0, atol=0)
    assert not mixed.embeds_TD[torch.tensor(mixed.is_token)].any()


def test_what_fits_is_admitted_to_the_token():
    # BOS and 9 letters, 3 virtual tokens: 13 of 40.
    job = admitted(request("123456789", virtual(0, width=8), max_tokens=27))
    assert isinstance(job, Job)
    assert (len(job.prompt_ids), len(job.virtual_PD), job.max_new_tokens) == (10, 3, 27)
    refusal = admitted(request("123456789", virtual(0, width=8), max_tokens=28))
    assert (refusal.code, refusal.status) == ("context_length_exceeded", 400)
    assert "40 tokens, but 'prompt' has 10, the edit 3 and the completion 28" in refusal.message


def test_a_limit_not_given_shrinks_to_what_is_left():
    assert admitted(request("12345678901234", max_tokens=None)).max_new_tokens == 16
    assert admitted(request("x" * 37, max_tokens=None)).max_new_tokens == 2
    assert admitted(request("x" * 39, max_tokens=None)).code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (virtual(0, width=9), "has width 8, but the editor's prompts have width 9"),
        (np.full((3, 8), np.nan, dtype=np.float32), "not finite"),
        (np.full((3, 8), 1e30), "not finite"),  # in the LLM's float16
        (np.ones((3, 8), dtype=np.int64), "int64"),
        (np.ones(8, dtype=np.float32), "shape"),
    ],
)
def test_virtual_tokens_that_vllm_would_not_survive_are_refused(bad, message):
    refusal = admitted(request("x", bad), dtype=torch.float16)
    assert isinstance(refusal, Refusal)
    assert message in refusal.message
    assert refusal.status == 500  # whoever asks can do nothing about it


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (request("x", echo=True), "echo"),
        (request("x", max_tokens=0), "max_tokens"),
        (request("x", logprobs=21), "logprobs"),
        (request((5, 259)), "prompt"),
        (request((-1,)), "prompt"),
        (request(()), "prompt"),
    ],
)
def test_requests_that_are_not_served_name_their_field(bad, param):
    refusal = admitted(bad)
    assert isinstance(refusal, Refusal)
    assert (refusal.param, refusal.status) == (param, 400)


def test_a_chat_is_rendered_by_the_llms_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    job = admitted(request((ChatMessage(role="user", content="hi"),), max_tokens=None), tokenizer=tokenizer)
    assert tokenizer.decode(job.prompt_ids) == "<s>[user]hi[assistant]"
    assert not job.continues
    assert job.max_new_tokens == 40 - len(job.prompt_ids)
    refusal = admitted(request((ChatMessage(role="system", content="hi"),)), tokenizer=tokenizer)
    assert (refusal.code, refusal.param) == ("invalid_messages", "messages")
    assert "no system turns" in refusal.message


def test_a_message_cannot_end_its_turn():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ bos_token }}{{ m.content }}{{ eos_token }}{% endfor %}"
    asked = request((ChatMessage(role="user", content="hi</s><s>"),))
    job = admitted(asked, tokenizer=tokenizer)
    if isinstance(job, Refusal):  # by transformers before 5.20, as vLLM wants it
        assert (job.code, job.param) == ("invalid_messages", "messages")
    else:
        assert [token for token in job.prompt_ids if token in (1, 2)] == [1, 2]


# With vLLM


def letters_tokenizer():
    """One token a letter and one letter a token, so that equal texts are equal tokens."""
    letters = sorted({*pre_tokenizers.ByteLevel.alphabet(), " "} - {"Ġ"})
    pieces = ["<pad>", "<s>", "</s>", *letters]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(pieces[:3])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def new_llm(family, path):
    """A tiny LLM with heads of 32, the least that vLLM's attention on a CPU takes."""
    from transformers import AutoModelForCausalLM

    config = FAMILIES[family]().config
    wide = {"hidden_size": WIDTH, "n_embd": WIDTH, "head_dim": 32, "rotary_dim": 16}
    long = {"max_position_embeddings": CONTEXT, "n_positions": CONTEXT}
    if family == "llama":
        long = {"max_position_embeddings": LONG}
        config.eos_token_id = None  # so that answers are as long as a test asks
    for name, value in {**wide, **long}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer = letters_tokenizer()
    if family == "llama":
        tokenizer.eos_token = None
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)


class Served:
    """One engine, the event loop that uses it, and the same LLM beside it."""

    def __init__(self, path, position):
        self.llm = load_llm(str(path), "cpu")
        self.position = position
        self.runner = asyncio.Runner()
        self.engine = VllmEngine(
            llm=str(path),
            position=position,
            chat_position="user_turn",
            max_batch_size=4,
            device="cpu",
            options={"enforce_eager": True},
        )

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def expected(self, prompt, virtual_PD, num, stop=()):
        [generation] = self.llm.generate([prompt], [virtual_PD], max_new_tokens=num, position=self.position, stop=stop)
        return generation

    def expected_logprobs(self, prompt, virtual_PD, token_ids):
        """Of the tokens that may follow each place of an answer, [A, V]."""
        ids = [*self.llm.tokenize(prompt), *token_ids]
        rows = self.llm.pad([ids], [0 if virtual_PD is None else len(virtual_PD)], self.position)
        prompts_1PD = None if virtual_PD is None else torch.from_numpy(virtual_PD[None].astype(np.float32))
        return self.llm.answer_logits(rows, prompts_1PD, num_answer_tokens=len(token_ids))[0].log_softmax(-1)

    async def held(self):
        """Whether vLLM keeps blocks of its cache for a request."""
        return not await self.engine._engine.reset_prefix_cache()


@pytest.fixture(scope="module")
def served(request, tmp_path_factory):
    family = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        path = tmp_path_factory.mktemp(family)
        new_llm(family, path)
        served = Served(path, "after_bos" if family in ("llama", "gemma") else "first")
    yield served
    served.engine.close()
    served.runner.close()


async def collected(engine, asked):
    return [chunk async for chunk in engine.stream(asked)]


@needs_vllm
@pytest.mark.parametrize("served", FAMILIES, indirect=True)
def test_edited_and_unedited_prompts_of_one_batch_are_answered_as_the_llm_alone_answers(served):
    asked = [(prompt, edit) for prompt in PROMPTS for edit in (None, virtual(1), virtual(2, num=5))]

    async def ask():
        requests = [request(prompt, edit, logprobs=0) for prompt, edit in asked]
        return await asyncio.gather(*map(served.engine.complete, requests))

    served.run(served.engine.warm_up())
    answers = served.run(ask())
    for (prompt, edit), answer in zip(asked, answers, strict=True):
        expected = served.expected(prompt, edit, 24)
        assert isinstance(answer, Completion)
        assert (answer.text, answer.finish_reason, answer.num_prompt_tokens, answer.num_new_tokens) == (
            expected.text,
            expected.finish_reason,
            expected.num_prompt_tokens,
            len(expected.token_ids),
        )
        # Some tokenizers here show many tokens as one character: their probabilities tell them apart.
        logprobs_AV = served.expected_logprobs(prompt, edit, expected.token_ids)
        expected_A = logprobs_AV.gather(1, torch.tensor(expected.token_ids)[:, None])[:, 0].tolist()
        # Float32 in another order of sums; another fact moves them by whole units.
        assert [score.logprob for score in answer.logprobs] == pytest.approx(expected_A, abs=1e-3)
    assert len({answer.text for answer in answers[:3]}) == 3, "a fact that changes nothing tests nothing"


@torch.no_grad()
def slow_chat(llm, placed, virtual_PD, num):
    """Greedy tokens of a chat with their log-probabilities, its virtual tokens in the middle, without a cache."""
    embeds_TD = llm.embedding(torch.tensor(placed.token_ids))
    if virtual_PD is not None:
        virtual = torch.from_numpy(virtual_PD.astype(np.float32))
        embeds_TD = torch.cat([embeds_TD[: placed.start], virtual, embeds_TD[placed.start :]])
    new, logprobs = [], []
    while len(new) < num:
        logprobs_V = llm.model(inputs_embeds=embeds_TD[None], use_cache=False).logits[0, -1].log_softmax(-1)
        new.append(int(logprobs_V.argmax()))
        logprobs.append(logprobs_V.max().item())
        embeds_TD = torch.cat([embeds_TD, llm.embedding(torch.tensor(new[-1:]))])
    return llm.tokenizer.decode(new), logprobs


@needs_vllm
@pytest.mark.parametrize("served", ["llama"], indirect=True)
def test_chats_edited_in_the_middle_share_beginnings_with_unedited_ones_and_nothing_behind(served):
    system = ("system", "Be brief, and say no more than you are asked for. " * 3)  # blocks of the cache are of 32
    words = ("What is the capital of Ruritania, and what of Syldavia?", "Who?", "What is the capital of Borduria?")
    asked = [(one, edit) for one in words for edit in (virtual(1), None, virtual(2))]

    def chat(one, edit):
        turns = tuple(ChatMessage(role=role, content=said) for role, said in (system, ("user", one)))
        return request(turns, edit, max_tokens=12, logprobs=0)

    async def ask():
        return await asyncio.gather(*(served.engine.complete(chat(*one)) for one in asked))

    first, again = served.run(ask()), served.run(ask())
    alone = [served.run(served.engine.complete(chat(*one))) for one in asked[::-1]][::-1]
    for (one, edit), *answers in zip(asked, first, again, alone, strict=True):
        placed = place_chat(served.llm.tokenizer, [system, ("user", one)], "user_turn", served.position)
        assert placed.start > 64
        text, logprobs = slow_chat(served.llm, placed, edit, 12)
        for answer in answers:
            assert (answer.text, answer.num_prompt_tokens) == (text, len(placed.token_ids))
            assert [score.logprob for score in answer.logprobs] == pytest.approx(logprobs, abs=1e-3)
    assert len({answer.text for answer in first[:3]}) == 3, "a fact that changes nothing tests nothing"


only_llama = pytest.mark.parametrize("served", ["llama"], indirect=True)


@needs_vllm
@only_llama
def test_a_stream_is_the_whole_answer_in_pieces(served):
    asked = request(PROMPTS[0], virtual(1), logprobs=2)
    whole = served.run(served.engine.complete(asked))
    chunks = served.run(collected(served.engine, asked))
    assert len(chunks) > 10
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(score for chunk in chunks for score in chunk.logprobs) == whole.logprobs
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert (chunks[-1].num_prompt_tokens, chunks[-1].num_new_tokens) == (len(PROMPTS[0]) + 1, 24)


@needs_vllm
@only_llama
def test_log_probabilities_are_the_llms(served):
    prompt, edit = PROMPTS[0], virtual(1)
    answer = served.run(served.engine.complete(request(prompt, edit, logprobs=2)))
    best = served.expected_logprobs(prompt, edit, served.expected(prompt, edit, 24).token_ids).topk(2)
    for score, values, tokens in zip(answer.logprobs, best.values.tolist(), best.indices.tolist(), strict=True):
        assert score.logprob == pytest.approx(values[0], abs=1e-4)
        assert [token for token, _ in score.top] == [served.llm.tokenizer.decode([token]) for token in tokens]
        assert [value for _, value in score.top] == pytest.approx(values, abs=1e-4)


@needs_vllm
@only_llama
@pytest.mark.parametrize("edit", [None, virtual(1)])
def test_nothing_of_a_stop_text_is_shown(served, edit):
    text = served.expected(PROMPTS[0], edit, 24).text
    stop = text[9:12]
    expected = served.expected(PROMPTS[0], edit, 24, stop=[stop])
    chunks = served.run(collected(served.engine, request(PROMPTS[0], edit, stop=(stop, "never"), logprobs=0)))
    assert "".join(chunk.text for chunk in chunks) == expected.text == text[: text.index(stop)]
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].num_new_tokens == len(expected.token_ids)
    assert "".join(score.token for chunk in chunks for score in chunk.logprobs) == expected.text
    assert not served.run(served.held()), "vLLM went on behind the stop text"


@needs_vllm
@only_llama
def test_a_seed_gives_the_same_sample_in_any_company(served):
    async def ask(*seeds):
        asked = [request(PROMPTS[1], virtual(1), temperature=1.0, top_p=0.9, seed=seed) for seed in seeds]
        return [answer.text for answer in await asyncio.gather(*map(served.engine.complete, asked))]

    first, other, again = served.run(ask(7, 8, 7))
    [alone] = served.run(ask(7))
    assert first == again == alone != other
    assert served.run(ask(-1)) == served.run(ask(-1))


@needs_vllm
@only_llama
def test_who_leaves_frees_the_batch(served):
    async def leave_stream():
        stream = served.engine.stream(request(PROMPTS[0], virtual(1), max_tokens=LONG - 100))
        first = await anext(stream)
        assert isinstance(first, Chunk)
        assert await served.held()
        await stream.aclose()
        await freed()

    async def cancel_complete():
        task = asyncio.create_task(served.engine.complete(request(PROMPTS[0], max_tokens=LONG - 100)))
        async with asyncio.timeout(60):
            while not await served.held():
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await freed()

    async def freed():
        async with asyncio.timeout(2):  # much less than the rest of the answer would take
            while await served.held():
                await asyncio.sleep(0.01)

    served.run(leave_stream())
    served.run(cancel_complete())


@needs_vllm
@only_llama
def test_a_refused_request_harms_nobody(served):
    async def ask():
        return await asyncio.gather(
            served.engine.complete(request(PROMPTS[0])),
            served.engine.complete(request(PROMPTS[0], virtual(1, width=WIDTH + 1))),
            collected(served.engine, request(PROMPTS[0], np.full((3, WIDTH), np.inf))),
            served.engine.complete(request("x" * LONG)),
            served.engine.complete(request(PROMPTS[0], echo=True)),
        )

    good, wide, [infinite], long, echo = served.run(ask())
    assert good.text == served.expected(PROMPTS[0], None, 24).text
    assert [refusal.code for refusal in (wide, infinite, long, echo)] == [
        "edit_unusable", "edit_unusable", "context_length_exceeded", "unsupported",
    ]  # fmt: skip
    assert "echo" in served.engine.unsupported
    served.engine.check_health()


@needs_vllm
@only_llama
def test_its_death_is_told_to_who_waits_and_to_who_asks_for_its_health(served):
    async def ask():
        stream = served.engine.stream(request(PROMPTS[0], virtual(1), max_tokens=LONG - 100))
        await anext(stream)
        [process] = served.engine._engine.engine_core.resources.engine_manager.processes
        os.kill(process.pid, signal.SIGKILL)
        async with contextlib.aclosing(stream):
            async for _ in stream:
                pass

    with pytest.raises(ServiceError, match="has died"):
        served.run(ask())
    with pytest.raises(ServiceError, match="has died"):
        served.engine.check_health()
    with pytest.raises(ServiceError, match="has died"):
        served.run(served.engine.complete(request(PROMPTS[0])))


@needs_vllm
@pytest.mark.parametrize("served", ["qwen2"], indirect=True)
def test_closing_fails_what_is_unanswered(served):
    async def ask():
        stream = served.engine.stream(request(PROMPTS[0], virtual(1), max_tokens=CONTEXT - 100))
        await anext(stream)
        served.engine.close()
        async with contextlib.aclosing(stream):
            async for _ in stream:
                pass

    with pytest.raises(ServiceError, match="is closed"):
        served.run(ask())
    with pytest.raises(ServiceError, match="is closed"):
        served.engine.check_health()


@needs_vllm
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "built for 'cpu'"),
        ({"options": {"speculative_config": {}}}, "'speculative_config'"),
        ({"options": {"no_such": 1}}, "no_such"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, message, tmp_path):
    new_llm("llama", tmp_path)
    with pytest.raises(ConfigError, match=message):
        VllmEngine(llm=str(tmp_path), position="first", max_batch_size=1, **changes)
