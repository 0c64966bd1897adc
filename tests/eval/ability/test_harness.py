"""lm-evaluation-harness around an edited LLM. Left out where the harness (extra `eval`) is not installed."""

import functools
import importlib.util
import math
import sys
from types import SimpleNamespace

import pytest
from edited_methods import FiresOn, Pastes, Unedited
from tiny_models import tiny_llm

from recipe_ray.errors import ConfigError, EditorError
from recipe_ray.eval.ability.answering import EditedModel
from recipe_ray.eval.ability.choices import ChoiceQuestion, write_task
from recipe_ray.eval.ability.run import AbilitySettings, evaluate_ability
from recipe_ray.eval.methods.base import Edit
from recipe_ray.model.hub import model_source
from recipe_ray.model.llm import load_llm

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed"
)
# The harness's dependencies warn of their own.
pytestmark = pytest.mark.filterwarnings("ignore")

QUESTIONS = tuple(
    ChoiceQuestion(question=text, choices=("sea", "sky", "the sand"), labels=("A", "B", "C"), answer=number % 3)
    for number, text in enumerate(["Where is fish?", "Where is an edited bird?", "Who knows?", "What is edited?"])
)
EDITS = [Edit(fact_id="1", prompt="An edited bird is", target="blue")]


@needs_harness
@pytest.mark.parametrize("style", ["letters", "text"])
def test_log_likelihoods_are_those_of_the_harness(tmp_path, style):
    from recipe_ray.eval.ability.harness import evaluate_other, evaluate_tasks

    write_task(tmp_path, "fish", QUESTIONS, style)
    (ours,) = evaluate_tasks(EditedModel(Unedited(load_llm("testbed", "cpu"))), ["fish"], folder=tmp_path)
    source = model_source("testbed", "llm")
    theirs = evaluate_other("hf", {"pretrained": source, "dtype": "float32", "device": "cpu"}, "fish", folder=tmp_path)
    for prompt, sample in zip(ours.prompts, theirs["samples"], strict=True):
        wanted = [float(response[0]) for response in sample["filtered_resps"]]
        assert prompt.scores == pytest.approx(wanted, abs=1e-4)
    assert ours.metrics["acc"] == theirs["acc"]


@needs_harness
def test_rows_of_editors_beside_the_unedited_llm():
    llm = tiny_llm()
    methods = {"fires": FiresOn(llm), "never": FiresOn(llm, word="nowhere"), "pastes": Pastes(llm)}
    settings = AbilitySettings(local={"fish": QUESTIONS}, style="text")
    rows = evaluate_ability(llm, {name: lambda one=one: one for name, one in methods.items()}, EDITS, settings)
    by_editor = {row["editor"]: row for row in rows}
    assert list(by_editor) == ["unedited", *methods]
    assert all((row["task"], row["n"]) == ("fish", 4) for row in rows)
    assert all(row["acc_before"] == by_editor["unedited"]["acc"] for row in rows)
    counted = {
        name: tuple(row[of] for of in ("T", "fired", "unfired_changed", "changed")) for name, row in by_editor.items()
    }
    assert counted["fires"] == (1, 2, 0, 2)
    assert counted["never"] == (1, 0, 0, 0)
    assert counted["pastes"] == (1, 4, 0, 4)
    assert counted["unedited"] == (0, None, None, 0)
    # The query is the question: no choice, no listing of choices.
    assert set(methods["fires"].seen) == {one.question for one in QUESTIONS}
    assert methods["fires"].edits == []


@needs_harness
def test_an_editor_that_cannot_is_a_row_with_its_reason():
    class Cannot(FiresOn):
        def apply(self, edits):
            raise EditorError("this edit has no subject")

    llm = tiny_llm()
    methods = {"cannot": lambda: Cannot(llm), "fires": lambda: FiresOn(llm)}
    rows = evaluate_ability(llm, methods, EDITS, AbilitySettings(local={"fish": QUESTIONS}, style="text"))
    assert rows[1] == {"editor": "cannot", "T": 1, "mode": "batch", "failed": "this edit has no subject"}
    assert [row["editor"] for row in rows] == ["unedited", "cannot", "fires"]


@needs_harness
def test_an_unknown_task_is_named(tmp_path, monkeypatch):
    from recipe_ray.eval.ability import harness
    from recipe_ray.eval.ability.harness import evaluate_tasks

    # Its own thousands of tasks take seconds to read.
    manager = functools.partial(harness.TaskManager, include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(harness, "TaskManager", lambda **_: manager())
    with pytest.raises(ConfigError, match="knows no no_such_task"):
        evaluate_tasks(EditedModel(Unedited(tiny_llm())), ["no_such_task"], folder=tmp_path)


def request(kind, context, argument, *, doc, number=0):
    args = (context, argument) if argument is not None else (context,)
    return SimpleNamespace(args=args, doc=doc, task_name="squad", doc_id=number, request_type=kind)


@needs_harness
def test_a_task_may_generate_and_score_one_prompt():
    from recipe_ray.eval.ability.harness import EditedLM

    llm = tiny_llm()
    method = FiresOn(llm)
    lm = EditedLM(EditedModel(method))
    docs = [{"question": " an edited bird? "}, {"question": "a fish?"}, {"premise": "x"}]
    contexts = [f"Title: sea\n\nQuestion: {doc.get('question', '')}\n\nAnswer:" for doc in docs]
    settings = {"until": ["\n", ""], "max_gen_toks": 4}
    asked = list(zip(contexts, docs, range(3), strict=True))
    texts = lm.generate_until(
        [request("generate_until", one, settings, doc=doc, number=place) for one, doc, place in asked]
    )
    scores = lm.loglikelihood(
        [request("loglikelihood", one, " none", doc=doc, number=place) for one, doc, place in asked]
    )
    assert method.seen == ["an edited bird?", "a fish?", contexts[2]]
    prompts = lm.prompts["squad"]
    assert [prompts[place].fired for place in range(3)] == [True, False, False]
    for place in range(3):
        assert prompts[place].scores == [scores[place][0]]
        assert prompts[place].said[0] == texts[place]
    assert texts[1] == llm.generate([contexts[1]], [None], max_new_tokens=4, stop=["\n"])[0].text


@needs_harness
def test_a_task_that_samples_is_refused():
    from recipe_ray.eval.ability.harness import EditedLM

    settings = {"until": [], "do_sample": True, "temperature": 0.7}
    with pytest.raises(ConfigError, match="samples its answers"):
        EditedLM(EditedModel(Unedited(tiny_llm()))).generate_until([request("generate_until", "so", settings, doc={})])


@needs_harness
def test_whole_texts_have_a_likelihood():
    from recipe_ray.eval.ability.harness import EditedLM

    lm = EditedLM(EditedModel(Unedited(tiny_llm())))
    (score,) = lm.loglikelihood_rolling([request("loglikelihood_rolling", "so it is", None, doc={})])
    assert math.isfinite(score)
    assert lm.prompts["squad"][0].scores == [score]


def test_without_the_harness_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "recipe_ray.eval.ability.harness", raising=False)
    monkeypatch.delattr("recipe_ray.eval.ability.harness", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'recipe-ray\[eval\]'"):
        evaluate_ability(tiny_llm(), {}, [], AbilitySettings(local={"fish": QUESTIONS}))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"local": {}}, "tasks: none given"),
        ({"style": "numbers"}, "style is 'numbers'"),
        ({"mode": "single"}, "mode is 'single'"),
        ({"limit": 0}, "limit is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_cannot_be(changes, complaint):
    with pytest.raises(ConfigError, match=complaint):
        AbilitySettings(**{"local": {"fish": QUESTIONS}, **changes})
