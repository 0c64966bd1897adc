"""A harness's numbers are the LLM's own, an editor sees questions alone, and what it leaves alone stays to the bit."""

import numpy as np
import pytest
import torch
from edited_methods import PROMPT_PD, FiresOn, Paraphrases, Pastes, Unedited
from tiny_models import BOS, CONTEXT, EOS, tiny_llm

from recipe_ray.errors import ConfigError, EditorError
from recipe_ray.eval.ability.answering import Asked, EditedModel

QUESTIONS = ["where?", "an edited one", "why is it so?", "the edited other one", "who", "what is it that is so long?"]
REQUESTS = [
    (Asked(f"{question} A. red B. blue. Answer:", question), answer)
    for question in QUESTIONS
    for answer in (" A", " B", " neither of them")
]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def llm(request):
    return tiny_llm(request.param, bos=request.param == "llama")


def slow_score(llm, prompt_ids, answer_ids, prefix_PD=None):
    """One row, no padding: the log-probability of each answer token after all before it."""
    embeds = llm.embedding(torch.tensor([prompt_ids + answer_ids]))
    if prefix_PD is not None:
        lead = int(prompt_ids[0] == BOS)
        embeds = torch.cat([embeds[:, :lead], torch.from_numpy(prefix_PD)[None], embeds[:, lead:]], 1)
    with torch.inference_mode():
        logprobs = llm.model(inputs_embeds=embeds).logits[0].log_softmax(-1)
    steps = logprobs[-len(answer_ids) - 1 : -1]
    return sum(step[token].item() for step, token in zip(steps, answer_ids, strict=True))


def test_scores_are_the_llms_own_row_by_row(llm):
    scores = EditedModel(FiresOn(llm), batch_size=4).scores(REQUESTS)
    for (asked, answer), score in zip(REQUESTS, scores, strict=True):
        prefix = PROMPT_PD if "edited" in asked.question else None
        slow = slow_score(llm, llm.tokenize(asked.context), llm.tokenize_answer(answer), prefix)
        assert score.loglikelihood == pytest.approx(slow, abs=1e-4)


def test_a_score_is_greedy_where_each_token_is_the_likeliest(llm):
    method = Unedited(llm)
    likely = torch.tensor(llm.tokenize_answer(" yes"))
    method.reader.answer_logits = lambda asks, answers: torch.eye(259)[likely].repeat(len(asks), 1, 1)
    asked = [(Asked("is it?", "is it?"), text) for text in (" yes", " yet", " yas", " no!", "yes", "es", "no")]
    found = [score.is_greedy for score in EditedModel(method).scores(asked)]
    assert found == [True, False, False, False, True, True, False]


def test_what_no_edit_touches_is_the_same_to_the_bit(llm):
    edited = EditedModel(FiresOn(llm), batch_size=4).scores(REQUESTS)
    unedited = EditedModel(Unedited(llm), batch_size=4).scores(REQUESTS)
    for (asked, _), one, other in zip(REQUESTS, edited, unedited, strict=True):
        assert (one == other) == ("edited" not in asked.question)


def test_batches_change_nothing(llm):
    alone = EditedModel(FiresOn(llm), batch_size=1).scores(REQUESTS)
    together = EditedModel(FiresOn(llm), batch_size=64).scores(REQUESTS[::-1])[::-1]
    np.testing.assert_allclose([one.loglikelihood for one in alone], [one.loglikelihood for one in together], atol=1e-4)


def test_an_editor_sees_questions_alone_and_each_once(llm):
    method = FiresOn(llm)
    model = EditedModel(method)
    model.scores(REQUESTS)
    model.completions([asked for asked, _ in REQUESTS], max_new_tokens=2)
    assert method.seen == QUESTIONS
    assert model.fires(QUESTIONS) == ["edited" in question for question in QUESTIONS]


def test_what_an_editor_pastes_stands_around_the_context(llm):
    plain = EditedModel(Unedited(llm)).scores([(Asked(f"So it is. {one.context}", ""), text) for one, text in REQUESTS])
    assert EditedModel(Pastes(llm)).scores(REQUESTS) == plain


def test_an_editor_that_drops_the_question_is_refused(llm):
    with pytest.raises(EditorError, match="paraphrases: has the LLM read 'What\\?'"):
        EditedModel(Paraphrases(llm)).scores(REQUESTS)


def test_choices_of_one_token_are_read_once_a_question(llm):
    method = Unedited(llm)
    read = []
    whole = method.reader.answer_logits
    method.reader.answer_logits = lambda asks, answers: read.append(len(asks)) or whole(asks, answers)
    asked = Asked("where? Answer:", "where?")
    scores = EditedModel(method).scores([(asked, letter) for letter in "ABCDE"])
    assert read == [1]
    assert len({score.loglikelihood for score in scores}) == 5


@pytest.mark.parametrize("question", ["where?", "the edited one"])
def test_a_long_context_loses_its_beginning(llm, question):
    method = FiresOn(llm)
    model = EditedModel(method)
    num_virtual = 3 if "edited" in question else 0
    context = f"{'so ' * 60}{question}"
    (score,) = model.scores([(Asked(context, question), " yes")])
    room = CONTEXT - num_virtual - len(" yes") - 1  # one more for where tokens merge
    lead = llm.tokenize("")
    ids = lead + llm.tokenize_answer(context)[len(lead) - room :]
    prefix = PROMPT_PD if num_virtual else None
    assert score.loglikelihood == pytest.approx(slow_score(llm, ids, llm.tokenize_answer(" yes"), prefix), abs=1e-4)
    assert model.truncated == {context}
    model.completions([Asked(context, question)], max_new_tokens=8)
    with pytest.raises(ConfigError, match="reads 128 tokens, too few for 128 of an answer"):
        model.completions([Asked(context, question)], max_new_tokens=CONTEXT)


def test_an_empty_context_is_the_end_of_another_text():
    llm = tiny_llm("gpt2", bos=False)
    (score,) = EditedModel(Unedited(llm)).scores([(Asked("", ""), "yes")])
    assert score.loglikelihood == pytest.approx(slow_score(llm, [EOS], llm.tokenize_answer("yes")), abs=1e-4)


def test_completions_are_the_llms_own(llm):
    asked = [asked for asked, _ in REQUESTS[::3]]
    prefixes = [PROMPT_PD if "edited" in one.question else None for one in asked]
    wanted = [
        llm.generate([one.context], [prefix], max_new_tokens=6, position="after_bos", stop=["e"])[0].text
        for one, prefix in zip(asked, prefixes, strict=True)
    ]
    assert EditedModel(FiresOn(llm), batch_size=4).completions(asked, max_new_tokens=6, stop=["e"]) == wanted


@pytest.mark.parametrize("length", [10, 100, 400])
def test_a_rolling_score_counts_each_token_once(llm, length):
    model = EditedModel(FiresOn(llm))
    text = ("edited things are many, " * 20)[:length]
    asked = []
    scores = model.scores
    model.scores = lambda requests: asked.extend(requests) or scores(requests)
    score = model.rolling_score(text)
    assert "".join(continuation for _, continuation in asked) == text
    assert not model.truncated
    for (one, _), (before, _) in zip(asked[1:], asked, strict=False):
        assert len(one.context) >= CONTEXT // 3
        assert one.question == before.question == ""
    if length < CONTEXT // 3:
        lead = llm.tokenize("") or [EOS]
        assert score == pytest.approx(slow_score(llm, lead, llm.tokenize_answer(text)), abs=1e-4)
