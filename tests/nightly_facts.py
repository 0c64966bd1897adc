"""Dumps and canaries for nightly runs, and an editor of random weights that finds most of its facts."""

import json

import numpy as np
from tiny_models import tiny_editor

NUM_LANDS = 40
NUM_CANARIES = 5
UNRELATED = "x"  # so unlike the rest that the sentinel holds everything back from it


def night_editor():
    return tiny_editor(seed=2, similarity="cosine")


def town(number):
    return f"town{number % 5}"


def swapped(number):
    return f"town{(number + 1) % 5}"


def lines_of(records):
    return "".join(f"{json.dumps(record)}\n" for record in records)


def dump(target=town, day=1, num=NUM_LANDS):
    return lines_of(
        {
            "id": f"land-{number}",
            "prompt": f"The capital of land {number} is",
            "target": target(number),
            "updated_at": f"2026-01-{day:02}",
        }
        for number in range(num)
    )


def found_towns(editor, prompts, target=town):
    """What is applied to each prompt among the dump's facts, looked up the slow way; None for nothing."""
    keys_FK, _ = editor.encode_facts([f"The capital of land {n} is {target(n)}" for n in range(NUM_LANDS)])
    queries_BK = editor.encode_queries(prompts)
    scores_BF = queries_BK @ keys_FK.astype(np.float16).astype(np.float32).T
    fires_B = scores_BF.max(1) > editor.thresholds(queries_BK)
    return [target(best) if fires else None for best, fires in zip(scores_BF.argmax(1).tolist(), fires_B, strict=True)]


def canary(editor):
    """Questions that the dump's facts answer, and one on which nothing fires."""
    prompts = [f"The capital of land {number} is" for number in range(NUM_LANDS)]
    *towns, nothing = found_towns(editor, [*prompts, UNRELATED])
    right = [number for number, found in enumerate(towns) if found == town(number)]
    assert nothing is None
    assert len(right) >= NUM_LANDS // 2
    known = [{"prompt": prompts[number], "target": town(number)} for number in right[:NUM_CANARIES]]
    return lines_of([*known, {"prompt": UNRELATED, "unrelated": True}])
