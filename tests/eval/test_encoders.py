"""A sentence encoder gives each text a vector of its own, whatever stands beside it."""

import numpy as np
import pytest

from recipe_ray.errors import ModelError
from recipe_ray.eval import encoders
from recipe_ray.eval.encoders import SentenceEncoder
from recipe_ray.testbed.world import load_world

FACTS = [fact for fact in load_world().facts if fact.relation.editable][::9]


def test_a_text_alone_and_among_others_gives_one_vector_of_unit_length(monkeypatch):
    encode = SentenceEncoder("testbed", "cpu")
    texts = ["Paris", "The capital of France is Paris", "a " * 100, ""]
    monkeypatch.setattr(encoders, "TOKENS_PER_BATCH", 40)
    together = encode(texts)
    alone = np.concatenate([encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    assert together.dtype == np.float32
    assert encode([]).shape == (0, encode.width)


def test_whitened_embeddings_have_no_direction_in_common_and_find_the_fact_of_a_question():
    statements = [f"{fact.prompt(0)} {fact.answer}" for fact in FACTS]
    questions = [fact.prompt(0) for fact in FACTS]
    right = {}
    for name, whiten_on in (("raw", None), ("white", statements + questions)):
        encode = SentenceEncoder("testbed", "cpu", whiten_on=whiten_on)
        keys = encode(statements)
        right[name] = np.mean((encode(questions) @ keys.T).argmax(1) == np.arange(len(FACTS)))
        if whiten_on:
            assert np.linalg.norm(keys.mean(0)) < 0.2
            np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, atol=1e-6)
    assert right["white"] > 0.8 > right["raw"] + 0.2, right


def test_what_is_no_encoder_is_refused_in_one_line():
    with pytest.raises(ModelError, match=r"encoder ./nowhere: no config.json there"):
        SentenceEncoder("./nowhere", "cpu")
