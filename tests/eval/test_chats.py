"""Edits are asked about in chats: in which words, how the LLM reads them, and what its answers count for."""

import json

import numpy as np
import pytest
import torch
from tiny_models import EOS, tiny_editor, tiny_llm

from recipe_ray.datasets.wordings.dressing import load_pools
from recipe_ray.datasets.wordings.relations import SUBJECT as HOLE
from recipe_ray.datasets.wordings.relations import load_relations
from recipe_ray.errors import ModelError
from recipe_ray.eval import protocol
from recipe_ray.eval.cases import Ask, CaseQuestion, EvalCase
from recipe_ray.eval.chats import chat_questions, facts_of_questions
from recipe_ray.eval.evaluation import edit_of, evaluate_cell, evaluate_counts
from recipe_ray.eval.methods.in_context import Oracle
from recipe_ray.eval.methods.recipe import OraclePrompt, Recipe
from recipe_ray.eval.methods.unedited import Unedited
from recipe_ray.eval.protocol import MAX_CHAT_TOKENS, Reader, plain_reader
from recipe_ray.eval.results import CellSettings, cell_result_from_dict
from recipe_ray.eval.testbed import testbed_cases as cases_of_the_world
from recipe_ray.model.chat import place_chat
from recipe_ray.model.llm import Generation
from recipe_ray.testbed.world import SUBJECT, load_questions, load_world

TEMPLATE = (
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


def case_of(name, *, relation="P103", prompt="The mother tongue of {} is", target="Greek", **more):
    return EvalCase(
        fact_id=name,
        prompt=prompt.format(name),
        target=target,
        subject=name,
        others=(
            CaseQuestion(sort="generality", kind="rephrase", prompt=f"{name} was raised in", target=target),
            CaseQuestion(sort="locality", kind="near", prompt=f"Unlike {name}, we speak"),
        ),
        true_target="French",
        relation=relation,
        **more,
    )


CASES = [case_of(name) for name in ("Ann Aal", "Ben Bor", "Cay Cis", "Dot Dur")]


@pytest.fixture
def llm():
    made = tiny_llm()
    made.tokenizer.chat_template = TEMPLATE
    return made


def test_a_known_relation_is_asked_in_reporting_words_plainly_and_in_a_conversation():
    relation = load_relations()["P103"]
    own, other, spared = chat_questions(CASES[0])
    ways = [text.replace(HOLE, "Ann Aal") for text in relation.reporting.questions]
    assert own.prompt in ways
    assert own.messages == (("user", own.prompt),)
    assert (own.sort, own.target, own.rivals, own.subject) == ("reliability", "Greek", ("French",), "Ann Aal")
    assert (other.sort, other.target, other.messages[-1]) == ("generality", "Greek", ("user", other.prompt))
    assert (spared.sort, spared.target, spared.rivals) == ("locality", "", ())


def test_the_second_question_is_another_one_and_conversations_are_those_of_reporting():
    pools = load_pools("reporting")
    seen = set()
    for number in range(60):
        own, other, _ = chat_questions(case_of(f"Ann A{number}"))
        assert other.prompt != own.prompt
        for role, text in other.messages[:-1]:
            seen.add(role)
            assert text in (*pools.systems, *(text for turn in pools.turns for text in turn))
    assert seen == {"system", "user", "assistant"}


def test_every_run_asks_alike_whatever_else_is_asked():
    assert chat_questions(CASES[1]) == chat_questions(CASES[1])
    assert chat_questions(CASES[1])[2].messages != chat_questions(CASES[2])[2].messages


def test_a_data_sets_own_question_is_asked_as_it_is_and_its_rephrasing_in_a_conversation():
    case = case_of("Ann Aal", prompt="What did {} grow up speaking?")
    own, other, _ = chat_questions(case)
    assert own.messages == (("user", "What did Ann Aal grow up speaking?"),)
    assert "ann aal was" in other.prompt.lower()


def test_an_edit_of_unknown_relation_is_asked_in_its_own_words():
    own, other, _ = chat_questions(case_of("Ann Aal", relation=""))
    assert "ann aal is" in own.prompt.lower()
    assert "ann aal was" in other.prompt.lower()


def test_without_a_question_in_other_words_there_is_no_generality():
    case = EvalCase(fact_id="a", prompt="Who is Ann?", target="b")
    assert [question.sort for question in chat_questions(case)] == ["reliability"]


def test_a_hop_is_asked_with_its_own_target_and_only_where_no_rephrasing_is():
    hop = CaseQuestion(sort="generality", kind="hop", prompt="The capital of Ann's country is", target="Athens")
    same = CaseQuestion(sort="generality", kind="alias", prompt="Anna's mother tongue is", target="Greek")
    for others, target, rivals in (((hop, same), "Greek", ("French",)), ((hop,), "Athens", ())):
        case = EvalCase(fact_id="a", prompt="Ann speaks", target="Greek", true_target="French", others=others)
        question = chat_questions(case)[1]
        assert (question.target, question.rivals) == (target, rivals)


def test_the_worlds_editable_facts_have_questions_that_no_training_and_no_phrasing_uses():
    editable = {relation.name: relation for relation in load_world().relations if relation.editable}
    asked = load_questions()
    assert set(asked) == set(editable)
    trained = {text.replace(HOLE, SUBJECT).casefold() for one in load_relations().values() for text in one.training.all}
    phrasings = [text.casefold() for relation in editable.values() for text in relation.phrasings]
    for ways in asked.values():
        texts = ways.questions + ways.requests
        assert len(set(texts)) == len(texts) >= 4
        for text in texts:
            assert text.count(SUBJECT) == 1
            assert text.casefold() not in trained
            assert not any(phrasing.startswith(text.casefold()) for phrasing in phrasings)
        assert all(text.endswith("?") for text in ways.questions)


def test_the_worlds_edits_are_asked_about_in_those():
    for case in cases_of_the_world(50):
        own, other, spared = chat_questions(case)
        assert own.prompt in [text.replace(SUBJECT, case.subject) for text in load_questions()[case.relation].questions]
        assert own.rivals == (case.true_target,) != (case.target,)
        assert other.sort == "generality" != spared.sort


def test_an_oracle_is_told_what_answers_a_chat_and_that_nothing_answers_the_others():
    facts = facts_of_questions(CASES)
    for case in CASES:
        own, other, spared = chat_questions(case)
        assert facts[case.prompt] == facts[own.prompt] == facts[other.prompt] == (case.fact_id,)
        assert spared.prompt not in facts
    assert facts_of_questions(CASES, neighbours=True)[chat_questions(CASES[0])[2].prompt] == ("Ann Aal",)


def ask_of(text, *before, fact=-1):
    return Ask(text, fact=fact, messages=(*before, ("user", text)))


@pytest.mark.parametrize("chat_position", ["as_text", "user_turn", "assistant_turn"])
def test_chats_are_read_through_the_template_whatever_else_is_in_the_batch(llm, chat_position):
    prompts = np.random.default_rng(0).standard_normal((2, 3, llm.width)).astype(np.float32)
    reader = Reader(llm, prompts, "after_bos", chat_position)
    asks = [
        ask_of("Why?"),
        ask_of("Why?", fact=1),
        ask_of("And this?", ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), fact=0),
        ask_of("Why?", ("system", "Sing."), fact=1),
    ]
    alone = []
    for ask in asks:
        placed = place_chat(llm.tokenizer, ask.messages, chat_position, "after_bos")
        embeds = llm.embedding(torch.tensor(placed.token_ids))
        if ask.fact >= 0:
            prompt = torch.from_numpy(prompts[ask.fact])
            embeds = torch.cat([embeds[: placed.start], prompt, embeds[placed.start :]])
        ids = llm.model.generate(inputs_embeds=embeds[None], max_new_tokens=MAX_CHAT_TOKENS, do_sample=False)[0]
        ids = ids.tolist()
        alone.append(tuple(ids[: ids.index(EOS) + 1] if EOS in ids else ids))
    assert reader.generated_ids(asks) == alone
    assert len(set(alone)) > 1


def test_a_chats_answer_goes_on_behind_a_full_stop_until_it_ends(llm):
    said = [llm.tokenizer.convert_tokens_to_ids(token) for token in "a.b"]
    generated = Reader(llm, np.zeros((0, 0, llm.width), np.float32), "first")
    asked = []

    def complete(asks, *, max_new_tokens, stop=()):
        asked.append((max_new_tokens, tuple(stop)))
        return [Generation(text="a.b", token_ids=said, num_prompt_tokens=1, finish_reason="stop") for _ in asks]

    generated.complete = complete
    assert generated.generate([ask_of("Why?")]) == ["a.b"]
    assert asked == [(MAX_CHAT_TOKENS, ())]


def test_chats_of_like_length_are_read_together_each_once(llm, monkeypatch):
    monkeypatch.setattr(protocol, "CHATS_PER_CPU_BATCH", 2)
    reader = plain_reader(llm)
    batches = []
    complete = reader.complete
    reader.complete = lambda asks, **more: batches.append([ask.text for ask in asks]) or complete(asks, **more)
    reader.generate([ask_of(text) for text in ("aaaaaaaaaaaaaaa", "b", "cccccccccccccc", "dd", "b")])
    assert batches == [["aaaaaaaaaaaaaaa", "cccccccccccccc"], ["dd", "b"]]


def test_a_reader_takes_what_no_edit_touches_from_another(llm):
    plain, prompts = plain_reader(llm), np.ones((1, 3, llm.width), np.float32)
    reader = Reader(llm, prompts, "first")
    reader.reads_as(plain)
    asks = [Ask("x"), ask_of("Why?"), Ask("x", fact=0)]
    plain.generate(asks[:2])
    plain.token_accuracies(asks[:1], [(5, 6)])
    read = []
    reader.complete = lambda asks, **_: (
        read.extend(asks)
        or [Generation(text="!", token_ids=[5], num_prompt_tokens=1, finish_reason="stop") for _ in asks]
    )
    plain.complete = plain.answer_logits = None
    assert reader.generate(asks) == [*plain.generate(asks[:2]), "!"]
    assert read == asks[2:]
    assert reader.token_accuracies(asks[:1], [(5, 6)]) == plain.token_accuracies(asks[:1], [(5, 6)])


def test_a_statement_is_pasted_before_the_words_of_the_last_message(llm):
    oracle = Oracle(llm, facts_of_questions(CASES))
    oracle.apply([edit_of(CASES[0])])
    own, _, spared = chat_questions(CASES[0])
    (ask,) = oracle.chat_asks([own.ask])
    assert ask.messages == (("user", f"Answer by this fact: The mother tongue of Ann Aal is Greek.\n\n{own.prompt}"),)
    assert oracle.chat_asks([spared.ask]) == [spared.ask]


def test_recipe_looks_the_users_words_up_and_has_the_chat_read_with_the_prompt(llm):
    editor = tiny_editor(similarity="cosine", chat_position="assistant_turn")
    oracle = OraclePrompt(llm, editor, facts_of_questions(CASES))
    oracle.apply([edit_of(case) for case in CASES])
    _, other, _ = chat_questions(CASES[1])
    (ask,) = oracle.chat_asks([other.ask])
    assert (ask.text, ask.messages) == (other.prompt, other.messages)
    _, prompts = editor.encode_facts([CASES[1].statement])
    np.testing.assert_allclose(oracle.reader.prompts_NPD[ask.fact], prompts[0], rtol=1e-4, atol=1e-5)
    assert oracle.reader.placed(ask).start == len(llm.tokenizer.apply_chat_template(_dicts(ask), tokenize=False))
    assert Recipe(llm, editor).chat_asks([other.ask]) == [other.ask]


def _dicts(ask):
    return [{"role": role, "content": content} for role, content in ask.messages]


SETTINGS = CellSettings(data="d", num_edits=2, mode="batch", num_resamples=20, num_speed_prompts=0, chat=True)


class Sayer(Reader):
    """Says of each chat what a function of its last message says; ends by itself after a full stop."""

    def __init__(self, llm, say):
        super().__init__(llm, np.zeros((0, 0, llm.width), np.float32), "first")
        self.say = say

    def complete(self, asks, *, max_new_tokens, stop=()):
        texts = [self.say(ask.text) for ask in asks]
        return [
            Generation(
                text=text,
                token_ids=list(text.encode()),
                num_prompt_tokens=1,
                finish_reason="stop" if text.endswith(".") else "length",
            )
            for text in texts
        ]


class Knower(Unedited):
    """Says the target of an edit in force whose subject is asked about, or what `wrong` says of it."""

    changes_llm = True

    def __init__(self, llm, wrong=None, *, everywhere=False):
        self.name = "knower"
        self.reader = Sayer(llm, self.say)
        self.wrong = wrong or {}
        self.everywhere = everywhere
        self.edits = []

    def say(self, text):
        for edit in self.edits:
            if edit.subject.lower() in text.lower() and ("unlike" not in text.lower() or self.everywhere):
                return self.wrong.get(edit.subject, f"{edit.subject} grew up with {edit.target}.")
        return "I do not know"

    def apply(self, edits):
        self.reader.clear()
        self.edits += edits

    def undo(self):
        self.reader.clear()
        self.edits.clear()


def values(scores):
    return {name: score.value for name, score in scores.items()}


def test_answers_in_chats_count_by_what_they_assert_with_their_groups_edits_in_force(llm):
    unedited = Sayer(llm, lambda text: "I do not know")
    wrong = {"Ann Aal": "It is French, not Greek.", "Ben Bor": "It is Greek, they say"}
    told = []
    result = evaluate_cell(Knower(llm, wrong), CASES, SETTINGS, unedited=unedited, told=told.extend)
    assert values(result.chat) == {"reliability": 0.75, "generality": 0.75, "locality": 1.0, "ended": 0.75}
    assert result.chat["ended"].n == 8
    assert len(told) == 12
    assert {(one.edit, one.right) for one in told if one.sort == "reliability"} == {
        (case.statement, case.subject != "Ann Aal") for case in CASES
    }
    failed = {(one.sort, one.edit, one.got) for one in result.failures if one.kind == "chat"}
    assert failed == {(sort, CASES[0].statement, wrong["Ann Aal"]) for sort in ("reliability", "generality")}
    touched = evaluate_cell(Knower(llm, everywhere=True), CASES, SETTINGS, unedited=unedited)
    assert values(touched.chat) == {"reliability": 1.0, "generality": 1.0, "locality": 0.0, "ended": 1.0}


def test_chats_are_asked_where_they_are_wanted_and_taken(llm):
    unedited = plain_reader(llm)
    quiet = CellSettings(data="d", num_edits=2, mode="batch", num_resamples=20, num_speed_prompts=0)
    assert evaluate_cell(Unedited(llm), CASES, quiet, unedited=unedited).chat == {}

    class Deaf(Unedited):
        chat_asks = None

    assert evaluate_cell(Deaf(llm), CASES, SETTINGS, unedited=unedited).chat == {}
    llm.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        evaluate_cell(Unedited(llm), CASES, SETTINGS, unedited=unedited)


def test_what_was_asked_in_chats_is_the_same_after_json_and_rows_and_values_have_it(llm):
    recipe = Recipe(llm, tiny_editor(similarity="cosine"))
    result = evaluate_cell(recipe, CASES, SETTINGS, unedited=plain_reader(llm))
    assert cell_result_from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert {"right_fact", "right_decision", "false_fire"} <= set(result.chat_retrieval)
    free, _, chat = result.rows()
    assert (chat["measure"], chat["ended"], free["ended"]) == ("chat", result.chat["ended"].value, None)
    assert chat["retrieval_right_fact"] == result.chat_retrieval["right_fact"].value
    assert list(free) == list(chat)
    assert result.values()["chat"] == values(result.chat)
    former = {name: value for name, value in result.to_dict().items() if not name.startswith("chat")}
    assert cell_result_from_dict(json.loads(json.dumps(former))).chat == {}


def test_counts_tell_every_answer_and_name_the_chats_retrieval(llm):
    told = []
    answers, retrieval = evaluate_counts(
        Recipe(llm, tiny_editor(similarity="cosine")),
        CASES,
        [1, 2],
        data="d",
        unedited=plain_reader(llm),
        chat=True,
        told=lambda num_edits, answers: told.append((num_edits, len(answers))),
    )
    assert told == [(1, 12), (2, 12)]
    assert set(answers["2"]["chat"]) == {"reliability", "generality", "locality", "ended"}
    assert "chat_right_decision" in retrieval["1"]


def test_an_oracle_beside_recipe_shares_what_was_read(llm):
    editor = tiny_editor(similarity="cosine")
    recipe = Recipe(llm, editor)
    alone = OraclePrompt(llm, editor, facts_of_questions(CASES))
    beside = OraclePrompt(llm, editor, facts_of_questions(CASES), beside=recipe)
    unedited = plain_reader(llm)
    evaluate_cell(recipe, CASES, SETTINGS, unedited=unedited)
    results = [evaluate_cell(method, CASES, SETTINGS, unedited=unedited) for method in (alone, beside)]
    assert results[0].chat == results[1].chat
    assert results[0].free == results[1].free
    assert beside.reader is recipe.reader
