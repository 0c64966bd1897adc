"""The quality benchmark asks in chats and keeps every answer for a person to read."""

import json
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_editor, tiny_llm

TEMPLATE = (
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture
def quality(monkeypatch, tmp_path, capsys):
    """Runs the benchmark on a tiny LLM and a random editor; gives its JSON."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import edit_quality

    llm = tiny_llm()
    llm.tokenizer.chat_template = TEMPLATE
    folder = tmp_path / "llm"
    llm.model.save_pretrained(folder)
    llm.tokenizer.save_pretrained(folder)
    tiny_editor(similarity="cosine").save(tmp_path / "editor")

    def run(*flags):
        fixed = ["--llm", str(folder), "--editors", f"mine={tmp_path / 'editor'}", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["edit_quality.py", *fixed, *flags])
        edit_quality.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def edit_about(prompt):
    return {
        "prompt": prompt,
        "target": "Greek",
        "subject": " ".join(prompt.split()[-3:-1]),
        "generality": [{"kind": "rephrase", "prompt": f"In other words: {prompt}"}],
        "locality": [{"kind": "other", "prompt": f"Far from that, {prompt}", "target": "so"}],
    }


def test_chats_are_measured_beside_completions_and_every_answer_is_kept(quality, tmp_path):
    answers = tmp_path / "answers.jsonl"
    result = quality(
        *("--data", "testbed", "--num-edits", "1", "2", "--max-cases", "4", "--chat", "--answers", str(answers))
    )
    edits = result["edits"]
    assert list(edits) == ["unedited", "in_context", "mine", "mine, right fact"]
    assert set(edits["mine"]) == {"1", "2"}
    for by_count in edits.values():
        for metrics in by_count.values():
            assert set(metrics) == {"free", "teacher_forced", "chat"}
            assert set(metrics["chat"]) == {"reliability", "generality", "locality", "ended"}
    assert edits["unedited"]["any"]["chat"]["locality"] == 1.0
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == 5 * 4 * 3
    for name in ("mine", "unedited"):
        right = [
            row["right"]
            for row in rows
            if row["editor"] == name and row["num_edits"] == 1 and row["sort"] == "locality"
        ]
        (metrics,) = [metrics for count, metrics in edits[name].items() if count in ("1", "any")]
        assert metrics["chat"]["locality"] == sum(right) / len(right)
    assert {"messages", "wanted", "rivals", "got", "ended", "edit"} <= set(rows[0])


def test_more_edits_may_be_in_force_than_are_asked_about(quality):
    result = quality("--data", "testbed", "--num-edits", "2", "7", "--max-cases", "5", "--only-editors")
    assert list(result["edits"]["mine"]) == ["2", "7"]
    assert result["data"]["cases"] == 4
    alone = quality("--data", "testbed", "--num-edits", "2", "--max-cases", "4", "--only-editors")
    assert alone["edits"]["mine"]["2"] == result["edits"]["mine"]["2"]
    assert alone["retrieval"]["mine"]["2"] == result["retrieval"]["mine"]["2"]


def test_edits_of_the_relations_held_out_are_measured_apart(quality, tmp_path):
    held_out = "The capital of Far Land is"
    other = "The mother tongue of Ann Aal is"
    data = tmp_path / "edits.jsonl"
    data.write_text("".join(json.dumps(edit_about(prompt)) + "\n" for prompt in (held_out, other)))
    for group, edit in (("held-out", held_out), ("trained", other)):
        answers = tmp_path / f"{group}.jsonl"
        result = quality(
            *("--data", f"edits:{data}", "--relations", group, "--num-edits", "1", "--only-editors"),
            *("--chat", "--answers", str(answers)),
        )
        assert list(result["edits"]) == ["mine", "mine, right fact"]
        assert result["data"]["cases"] == 1
        assert {json.loads(line)["edit"] for line in answers.read_text().splitlines()} == {f"{edit} Greek"}


def test_flags_that_contradict_are_refused(quality, capsys):
    for flags, message in (
        (["--answers", "x.jsonl"], "--answers are those of chats; give --chat too"),
        (["--relations", "held-out"], "--relations are those of data sets"),
    ):
        with pytest.raises(SystemExit):
            quality("--data", "testbed", *flags)
        assert message in capsys.readouterr().err
