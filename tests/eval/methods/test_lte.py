"""LTE reads facts before questions in an aligned copy of the LLM; the LLM itself is never touched."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_models import tiny_llm

from recipe_ray.errors import EditorError
from recipe_ray.eval.cases import Ask
from recipe_ray.eval.methods.base import Edit
from recipe_ray.eval.methods.lte import LTE, PRESETS, Alignment, LTEArgs, align, alignment_rows
from recipe_ray.eval.methods.supervised import Row, SupervisedArgs, changed_copy, fine_tune
from recipe_ray.eval.protocol import plain_reader
from recipe_ray.eval.testbed import testbed_tuning_cases
from recipe_ray.examples import EditRecord, Question
from recipe_ray.model.llm import load_llm
from recipe_ray.testbed.edits import EditStream
from recipe_ray.testbed.world import load_world

FULL = SupervisedArgs(lora_rank=None, learning_rate=1e-3, num_epochs=2, batch_size=4)
LOW_RANK = dataclasses.replace(FULL, lora_rank=2, learning_rate=3e-2)
ARGS = LTEArgs(template="{facts} {question}", fact="{statement}.", fact_separator=" ", supervised=FULL)
COLOURS = ("red", "blue", "green", "grey", "white", "black")
EDITS = [Edit(fact_id=colour, prompt=f"thing {number} is", target=colour) for number, colour in enumerate(COLOURS)]
RECORDS = [
    EditRecord(
        prompt=edit.prompt,
        target=edit.target,
        generality={"rephrase": (Question(prompt=f"so {edit.prompt}", target=edit.target),)},
        locality={"other": (Question(prompt=f"no {edit.prompt}", target="this"),)},
    )
    for edit in EDITS
]


def encode(texts):
    """Texts of one digit are alike, whatever else they say; neighbours in number a little less."""
    angles = np.array([next(int(char) for char in text if char.isdigit()) / 3 for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def logits_of(llm):
    with torch.inference_mode():
        return llm.answer_logits(llm.pad([[1, 40, 50, 60]], [0], "first"), None, num_answer_tokens=3)


def nll(llm, rows):
    """Mean over rows of -log P of the answer, each row alone."""
    total = 0.0
    with torch.inference_mode():
        for row in rows:
            padded = llm.pad([row.prompt + row.answer], [0], "first")
            logits = llm.answer_logits(padded, None, num_answer_tokens=len(row.answer))[0].log_softmax(-1)
            total -= logits[range(len(row.answer)), row.answer].sum().item()
    return total / len(rows)


@pytest.mark.parametrize(
    ("family", "args"), [("llama", FULL), ("llama", LOW_RANK), ("gpt2", LOW_RANK), ("gptj", LOW_RANK)]
)
def test_fine_tuning_learns_in_a_copy_and_leaves_the_llm_as_it_was_to_the_bit(family, args, tmp_path):
    llm = tiny_llm(family)
    before = {name: one.clone() for name, one in llm.model.state_dict().items()}
    said = logits_of(llm)
    rows = [Row(prompt=(1, 40, 50 + number), answer=(70 + number, 80)) for number in range(4)]
    many = dataclasses.replace(args, num_epochs=40)
    alignment = Alignment(llm=llm.name, args=ARGS, change=fine_tune(llm, rows, many))
    alignment.save(tmp_path)
    loaded = Alignment.load(tmp_path)
    assert (loaded.llm, loaded.args) == (llm.name, ARGS)
    taught = changed_copy(llm, loaded.change)

    assert nll(taught, rows) < 0.5 * nll(llm, rows)
    assert torch.equal(logits_of(taught), logits_of(changed_copy(llm, alignment.change)))
    for name, one in llm.model.state_dict().items():
        assert torch.equal(one, before[name]), name
    assert torch.equal(logits_of(llm), said)
    assert not any(one.requires_grad for one in llm.model.parameters())


def test_low_rank_changes_only_what_reads_for_attention():
    llm = tiny_llm()
    rows = [Row(prompt=(1, 40), answer=(70,))]
    taught = changed_copy(llm, fine_tune(llm, rows, LOW_RANK))
    was = dict(llm.model.named_parameters())
    changed = {name for name, one in taught.model.named_parameters() if not torch.equal(one, was[name])}
    assert changed == {f"model.layers.{n}.self_attn.{part}_proj.weight" for n in (0, 1) for part in "qkv"}
    for name in changed:
        difference = (dict(taught.model.named_parameters())[name] - was[name]).double()
        assert torch.linalg.matrix_rank(difference, rtol=1e-4) <= 2


def test_how_many_rows_go_through_together_changes_no_step():
    llm = tiny_llm()
    rows = [Row(prompt=(1, *range(40, 41 + 3 * number)), answer=(70,) * (1 + number % 3)) for number in range(8)]
    wide, narrow = (
        fine_tune(llm, rows, dataclasses.replace(FULL, batch_size=8, tokens_per_pass=tokens)) for tokens in (10**6, 1)
    )
    for name, one in wide.items():
        torch.testing.assert_close(one, narrow[name], atol=2e-5, rtol=1e-4)


def test_rows_are_parallel_and_all_that_is_out_of_scope_is_the_llms_own_answer():
    llm = tiny_llm()
    rows = alignment_rows(llm, ARGS, training=RECORDS, encode=encode)
    own = plain_reader(llm)
    texts = [llm.tokenizer.decode(row.prompt, skip_special_tokens=True) for row in rows]
    num_facts = set()
    for place, record in enumerate(RECORDS):
        in_scope, in_alone, out_scope, out_alone = range(4 * place, 4 * place + 4)
        question = texts[in_alone]
        assert question in (record.prompt, f"so {record.prompt}")
        assert texts[in_scope].endswith(f" {question}")
        assert texts[out_scope].endswith(f" {texts[out_alone]}")
        assert llm.tokenizer.decode(rows[in_scope].answer) == f" {record.target}."
        for one in (in_alone, out_scope, out_alone):
            (wanted,) = own.generated_ids([Ask(texts[one] if one != out_scope else texts[out_alone])])
            assert rows[one].answer == wanted
        for one in (in_scope, out_scope):
            assert f"{record.statement}." in texts[one]
            num_facts.add(texts[one].count("."))
    assert num_facts == {1, 2, 3}


def test_the_nearest_statements_stand_before_the_question_in_the_order_of_their_likeness():
    llm = tiny_llm()
    alignment = Alignment(llm=llm.name, args=ARGS, change={})
    method = LTE(llm, ARGS, alignment=alignment, encode=encode)
    assert method.asks(["is 2 blue"]) == [Ask("is 2 blue")]
    assert method.retrieve(["is 2 blue"]).fact_ids_B == (None,)
    for edit in EDITS:
        method.apply([edit])
    method.apply([Edit(fact_id="green", prompt="thing 2 is", target="gold")])
    (ask,) = method.asks(["is 2 blue"])
    assert ask == Ask("thing 2 is gold. thing 1 is blue. thing 3 is grey. is 2 blue")
    found = method.retrieve(["is 4", "is 0"])
    assert found.fact_ids_B == ("white", "red")
    assert found.applied_B.all()
    np.testing.assert_allclose(found.score_B, 1, atol=1e-6)
    in_force = ("red", "blue", "gold", "grey", "white", "black")
    assert method.state_bytes() == sum(len(f"thing 0 is {word}") + 2 * 4 for word in in_force)
    one = LTE(llm, dataclasses.replace(ARGS, num_retrieved=1), alignment=alignment, encode=encode)
    one.apply(EDITS)
    assert one.asks(["5?"]) == [Ask("thing 5 is black. 5?")]
    method.undo()
    assert method.asks(["is 2 blue"]) == [Ask("is 2 blue")]
    assert method.state_bytes() == 0


def test_statements_that_do_not_fit_are_left_out_the_least_alike_first():
    llm = tiny_llm()  # a context of 128 tokens, a token a byte
    long = ["x" * 60, "y" * 60, "z" * 60]
    assert ARGS.read(llm, "q", long) == f"{long[0]}. q"
    assert ARGS.read(llm, "q" * 90, long) == "q" * 90


def test_an_aligned_testbed_follows_facts_in_scope_and_keeps_its_answers_out_of_scope():
    llm = load_llm("testbed", "cpu")
    stream = EditStream(load_world(), batch_size=16, seed="test of LTE")
    training = [
        EditRecord(
            prompt=one.prompt,
            target=one.target,
            generality={"rephrase": (Question(prompt=one.generality_prompt, target=one.target),)},
            locality={"near": (Question(prompt=one.locality_prompt, target=one.locality_target),)},
        )
        for number in range(4)
        for one in stream.batch(number)
    ]
    supervised = dataclasses.replace(PRESETS["testbed"].supervised, num_epochs=1, batch_size=32)
    args = dataclasses.replace(PRESETS["testbed"], supervised=supervised)
    before = {name: one.clone() for name, one in llm.model.state_dict().items()}

    def flat(texts):
        return np.ones((len(texts), 1), np.float32)

    method = LTE(llm, args, alignment=align(llm, args, training=training, encode=flat), encode=flat)
    cases = testbed_tuning_cases(40)
    spared = [question.prompt for case in cases for question in case.questions if question.sort == "locality"]
    own = plain_reader(llm).generate([Ask(prompt) for prompt in spared])
    without_facts = method.reader.generate(method.asks(spared))
    followed, kept = [], []
    for case, prompt in zip(cases, spared, strict=True):
        method.apply([Edit(fact_id="one", prompt=case.prompt, target=case.target)])
        followed += method.asks([case.prompt])
        kept += method.asks([prompt])
    right = [got == case.target for got, case in zip(method.reader.generate(followed), cases, strict=True)]
    assert np.mean(right) > 0.8
    for given, share in ((without_facts, 0.9), (method.reader.generate(kept), 0.6)):
        assert np.mean([got == want for got, want in zip(given, own, strict=True)]) > share
    for name, one in llm.model.state_dict().items():
        assert torch.equal(one, before[name]), name


def test_what_cannot_be_is_refused_in_one_line(tmp_path):
    with pytest.raises(EditorError, match="LTE has no edits to learn from"):
        align(tiny_llm(), ARGS, training=[], encode=encode)
    with pytest.raises(EditorError, match="no alignment that can be read"):
        Alignment.load(tmp_path)
    change = {"model.norm.weight": torch.zeros(5)}
    with pytest.raises(EditorError, match=r"tiny-llama has no weight model.norm.weight of shape \(5,\)"):
        LTE(tiny_llm(), ARGS, alignment=Alignment(llm="other", args=ARGS, change=change), encode=encode)
