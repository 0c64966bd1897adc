"""Small models from any corpus: they learn, keep to whole documents, and go on where they were interrupted."""

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from recipe_ray.examples import EditExample
from recipe_ray.model.encoder import load_encoder
from recipe_ray.model.llm import FrozenLLM, load_llm
from recipe_ray.pretraining.encoder import POOLING, new_encoder, train_encoder
from recipe_ray.pretraining.lm import LMShape, Sentence, document_tokens, new_lm, packed, share_answered, train_lm
from recipe_ray.pretraining.tokenizer import train_tokenizer

SHAPE = LMShape(hidden_size=32, num_layers=2, max_length=64, row_tokens=24, rows_per_step=16)
FACTS = [(f"The sign of {name} is", sign) for name, sign in zip("abcdefgh", "stuvwxyz", strict=True)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"{prompt} {answer}." for prompt, answer in FACTS], vocabulary_size=300, max_length=64)


def documents(step):
    while True:
        for prompt, answer in FACTS[step % 3 :] + FACTS[: step % 3]:
            yield [Sentence(prompt, answer, foreseeable=True)]


def test_a_row_holds_whole_documents_and_the_chances_of_targets(tokenizer):
    ids, shares = packed(documents(0), tokenizer, SHAPE)
    assert ids.shape == shares.shape == (16, 25)
    whole = [document_tokens([Sentence(prompt, answer, foreseeable=True)], tokenizer) for prompt, answer in FACTS]
    rest = [list(row) for row in ids.tolist()]
    place = 0
    for row in rest:
        while row and row[0]:
            expected = whole[place % len(whole)][0]
            assert row[: len(expected)] == expected
            row = row[len(expected) :]
            place += 1
        assert not any(row)
    assert shares.unique().tolist() == pytest.approx([0.0, 0.1, 1.0])


def test_an_lm_learns_what_it_reads_and_an_interrupted_training_ends_alike(tokenizer, tmp_path):
    def train(folder, *, stop_at=None, steps=160):
        torch.manual_seed(0)
        model = new_lm(tokenizer, SHAPE)

        def until(step):
            if step == stop_at:
                raise KeyboardInterrupt
            return documents(step)

        options = {"output": tmp_path / folder, "steps": steps, "learning_rate": 1e-2, "seed": 1, "save_every": 10}
        train_lm(model, tokenizer, until, SHAPE, **options)
        return model

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("cut", stop_at=35)
    resumed = train("cut")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    with pytest.raises(KeyboardInterrupt):
        train("longer", stop_at=35, steps=40)
    train("longer")  # 30 steps of 40, and the rest as a cycle of 160 has it
    for folder in ("cut", "longer"):
        assert share_answered(load_llm(str(tmp_path / folder)), FACTS) == 1.0
    assert not (tmp_path / "cut" / "state.pt").exists()
    untrained = FrozenLLM(LlamaForCausalLM(whole.config), tokenizer, name="untrained")
    assert share_answered(untrained, FACTS) < 0.5


def test_an_encoder_learns_to_find_a_statement_by_its_question(tokenizer, tmp_path):
    examples = [
        EditExample(
            statement=f"{prompt} {answer}",
            prompt=prompt,
            target=answer,
            generality_prompt=f"Sign: {prompt.split()[3]} is",
            generality_target=answer,
            locality_prompt="x",
            locality_target="y",
        )
        for prompt, answer in FACTS
    ]
    torch.manual_seed(0)
    embeddings = new_lm(tokenizer, SHAPE).get_input_embeddings().weight.detach()
    encoder = new_encoder(tokenizer, embeddings, hidden_size=48, num_heads=4, max_length=64)
    measured = train_encoder(
        encoder,
        embeddings,
        lambda step: examples,
        examples,
        output=tmp_path,
        steps=60,
        learning_rate=3e-3,
        seed=0,
        save_every=20,
    )
    assert measured["generality_prompt"] == 1.0
    assert measured["steps"] == 60
    loaded = load_encoder(str(tmp_path), POOLING)
    assert loaded.max_tokens == 64
    text = loaded.pad(loaded.tokenize(["The sign of a is"]))
    torch.testing.assert_close(loaded(*text), encoder(*text))
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 64
