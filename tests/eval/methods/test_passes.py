"""Where prompts end, whoever lays them out."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_llm

from recipe_ray.eval.cases import Ask
from recipe_ray.eval.methods.answers import answer_ids
from recipe_ray.eval.methods.base import Edit, latest
from recipe_ray.eval.methods.passes import EditRows, PassesReader, PromptPasses

FAMILIES = ("llama", "gpt2", "gptj")
PROMPTS = ["The capital of Ruritania is", "Why?", "x"]


class Log:
    """What a pass was taken for, pass by pass."""

    def __init__(self, llm, passes):
        self.seen = []
        self.passes = passes
        llm.model.get_output_embeddings().register_forward_hook(self.note)

    def note(self, module, args, output):
        self.seen.append(
            (self.passes.reads_prompts, self.passes.last_B.tolist(), self.passes.prompt_BT.sum(1).tolist())
        )


def followed(family):
    llm, passes = tiny_llm(family), PromptPasses()
    passes.follow(llm)
    return llm, passes, Log(llm, passes)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_pass_of_a_generation_alone_reads_prompts(family):
    llm, _, log = followed(family)
    lengths = [len(llm.tokenize(prompt)) for prompt in PROMPTS]
    expected = [max(lengths) - 1] * len(PROMPTS)
    llm.generate(PROMPTS, [None] * len(PROMPTS), max_new_tokens=3)
    assert log.seen == [(True, expected, lengths), (False, expected, lengths), (False, expected, lengths)]


def test_a_prompt_of_one_token_is_read_once():
    llm, passes = tiny_llm("gpt2", bos=False), PromptPasses()
    passes.follow(llm)
    log = Log(llm, passes)
    llm.generate(["x"], [None], max_new_tokens=3)
    assert [reads for reads, _, _ in log.seen] == [True, False, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_read_along_with_prompts_are_no_prompts(family):
    llm, passes, log = followed(family)
    answers = [(5, 6, 7), (8,), (9, 9)]
    lengths = [len(llm.tokenize(prompt)) for prompt in PROMPTS]
    PassesReader(llm, passes).answer_logits([Ask(prompt) for prompt in PROMPTS], answers)
    width = max(length + len(answer) for length, answer in zip(lengths, answers, strict=True))
    assert log.seen == [(True, [width - 1 - len(answer) for answer in answers], lengths)]
    llm.generate(PROMPTS, [None] * 3, max_new_tokens=1)  # what is said of answers holds for one block of passes
    assert log.seen[-1] == (True, [max(lengths) - 1] * 3, lengths)


def test_the_loss_of_an_edit_is_that_of_its_row_alone():
    llm, passes = tiny_llm(), PromptPasses()
    targets = ["a", "bcd", "e"]
    edits = [Edit(fact_id=one, prompt=one, target=target) for one, target in zip(PROMPTS, targets, strict=True)]
    losses = EditRows.of(llm, edits).losses(llm, passes)
    for edit, loss in zip(edits, losses, strict=True):
        prompt, answer = llm.tokenize(edit.prompt), answer_ids(llm, edit.target)
        logits = llm.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        assert loss.item() == pytest.approx(
            torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item(), rel=1e-4
        )


def test_an_answer_begins_with_the_targets_tokens_and_ends_with_the_stop():
    llm = tiny_llm()
    ids = answer_ids(llm, "Paris")
    assert ids[:-1] == llm.tokenize_answer(" Paris")
    assert llm.tokenizer.decode(ids) == " Paris."


def test_the_later_edit_of_a_fact_counts():
    edits = [Edit(fact_id=name, prompt="p", target=str(number)) for number, name in enumerate("abcab")]
    assert [(edit.fact_id, edit.target) for edit in latest(edits)] == [("c", "2"), ("a", "3"), ("b", "4")]


def test_a_reader_says_the_same_of_an_llm_that_nobody_edits():
    llm, passes, _ = followed("llama")
    asks = [Ask(prompt) for prompt in PROMPTS]
    reader = PassesReader(llm, passes)
    assert np.allclose(reader.token_accuracies(asks, reader.generated_ids(asks)), 1)
