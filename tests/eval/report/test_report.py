"""The report from rows made by hand: what a reader sees, what a machine reads, and that texts stay texts."""

import json
import re

import pytest

from recipe_ray.eval.report.contents import Cell, Contents, FailedCell
from recipe_ray.eval.report.rendering import RESULT_NAMES, markdown_text, render
from recipe_ray.eval.report.tables import MISSING, all_tables, examples

RETRIEVAL = {
    "retrieval_right_fact": 0.5,
    "retrieval_right_fact_ci_low": 0.4,
    "retrieval_right_fact_ci_high": 0.6,
    "retrieval_right_fact_n": 50,
}
NASTY = '<script>alert("1")</script> | `x` **bold** <b>&amp;</b>\n# heading'


def row(editor, num_edits, *, measure="free", mode="lifelong", data="testbed", **values):
    return {
        "editor": editor,
        "data": data,
        "llm": "tiny",
        "T": num_edits,
        "mode": "single" if num_edits == 1 else mode,
        "measure": measure,
        "n": 50,
        "reliability": 0.9,
        "reliability_ci_low": 0.85,
        "reliability_ci_high": 0.95,
        "generality": 0.8,
        "generality_ci_low": 0.7,
        "generality_ci_high": 0.9,
        "locality": 1.0,
        "locality_ci_low": 1.0,
        "locality_ci_high": 1.0,
        "seconds_per_edit": 0.01,
        "tokens_per_s": 100.0,
        "command": "python jobs/evaluate.py",
        "commit": "abc",
        **values,
    }


def cell(editor, num_edits, **values):
    rows = tuple(row(editor, num_edits, measure=measure, **values) for measure in ("free", "teacher_forced"))
    return Cell(rows=rows)


def contents(*cells, **others):
    return Contents(cells=cells or (cell("recipe", 1), cell("recipe", 10), cell("rome", 1), cell("rome", 10)), **others)


def table(found, title):
    (one,) = [one for one in found if one.title.startswith(title)]
    return one


def test_a_row_shows_values_with_intervals_and_a_data_sets_own_kinds_have_a_table_of_their_own():
    kind = "generality/Compositionality_I"
    own = {kind: 0.25, f"{kind}_ci_low": 0.2, f"{kind}_ci_high": 0.3}
    found = all_tables(contents(cell("recipe", 1000, **own)))
    quality = table(found, "Quality on testbed: free")
    assert quality.columns == ("editor", "T", "mode", "reliability", "generality", "locality", "n")
    assert quality.rows == (
        (
            *("recipe", "1,000", "lifelong", "0.900 (0.850–0.950)", "0.800 (0.700–0.900)", "1.000 (1.000–1.000)"),
            "50",
        ),
    )
    kinds = table(found, "Quality on testbed by the data set's own kinds")
    assert kinds.columns[3:] == (kind,)
    assert kinds.rows[0][3:] == ("0.250 (0.200–0.300)",)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_what_was_not_measured_is_a_dash_and_null_and_a_nought_is_a_nought(missing):
    of = contents(
        cell("recipe", 1, generality=missing, reliability=0.0), cell("rome", 1), cell("ft", 1, tokens_per_s=missing)
    )
    quality = table(all_tables(of), "Quality on testbed: free")
    assert [one[4] for one in quality.rows] == [MISSING, "0.800 (0.700–0.900)", "0.800 (0.700–0.900)"]
    assert quality.rows[0][3].startswith("0.000 ")
    efficiency = table(all_tables(of), "Efficiency")
    assert efficiency.rows[2][efficiency.columns.index("tokens a s")] == MISSING
    found = json.loads(render(of)["results.json"])
    assert found[0]["generality"] is None
    assert found[0]["reliability"] == 0.0


def test_the_json_holds_every_measured_row_and_its_promised_names():
    bare = Cell(rows=({"editor": "grace", "data": "testbed", "T": 1, "mode": "single", "measure": "free"},))
    found = json.loads(render(contents(cell("recipe", 1, right=3), bare))["results.json"])
    assert [one["editor"] for one in found] == ["recipe", "recipe", "grace"]
    assert all(set(RESULT_NAMES) <= set(one) for one in found)
    assert found[0]["right"] == 3


def test_texts_of_users_are_no_markup():
    wrong = {"edit": NASTY, "kind": "reliability", "question": NASTY, "wanted": NASTY, "got": NASTY}
    of = contents(
        Cell(
            rows=(row(NASTY, 10, data=NASTY, command=NASTY),),
            examples=(wrong,),
            margins_related=(1.0,),
            margins_unrelated=(0.0,),
        ),
        failed=(FailedCell(editor=NASTY, data=NASTY, num_edits=10, mode="batch", reason=NASTY),),
        ability=({"editor": NASTY, "task": "csqa", "accuracy": 0.2},),
    )
    files = render(of)
    page = files["report.html"]
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)  # nothing beside the page is asked for
    text = files["report.md"]
    assert "<script" not in text
    assert "\n# heading" not in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in tables if "script" in line}
    headed = {len(re.findall(r"(?<!\\)\|", line)) for line in tables if line.startswith(("| editor", "| what"))}
    assert bars <= headed
    assert all(
        re.fullmatch(r"report\.(md|html)|(results|failed)\.json|figures/[a-z0-9-]+\.svg", name) for name in files
    )


def test_markdown_shows_what_was_said():
    assert markdown_text("a|b\nc") == r"a\|b c"
    assert markdown_text("generality_novel") == "generality_novel"


def test_equal_contents_give_equal_files_and_figures_for_each_question():
    def made():
        of = contents(
            cell("recipe", 1), Cell(rows=cell("recipe", 10).rows, margins_related=(1, 2, 2), margins_unrelated=(-1,))
        )
        return render(of)

    files = made()
    assert files == made()
    assert {name for name in files if name.startswith("figures/")} == {
        "figures/quality-testbed-lifelong.svg",
        "figures/seconds-testbed.svg",
        "figures/margins-testbed-recipe.svg",
    }
    assert all(name in files["report.md"] for name in files if name.startswith("figures/"))
    assert files["report.html"].count("data:image/svg+xml") == 3


def test_failed_cells_leave_the_rest_and_are_told_with_their_reason():
    failed = FailedCell(editor="memit", data="own.jsonl", num_edits="all", mode="batch", reason="no subject")
    files = render(contents(failed=(failed,)))
    assert "| memit | all | batch | own.jsonl | no subject |" in files["report.md"]
    assert "| recipe | 10 | lifelong | 0.900" in files["report.md"]
    assert json.loads(files["failed.json"])[0]["reason"] == "no subject"
    assert "memit" not in files["results.json"]
    assert "no subject" in render(Contents(cells=(), failed=(failed,)))["report.md"]  # even where nothing worked


def test_ablations_stand_beside_the_editor_that_they_are_of_and_in_no_other_table():
    found = all_tables(contents(cell("recipe", 1), cell("rome", 1), cell("no-prompt", 1), ablations=("no-prompt",)))
    assert [one[0] for one in table(found, "Ablations").rows] == ["recipe", "no-prompt"]
    assert [one[0] for one in table(found, "Quality on testbed: free").rows] == ["recipe", "rome"]


def test_retrieval_is_shown_for_those_who_retrieve():
    found = all_tables(contents(cell("recipe", 1, **RETRIEVAL), cell("rome", 1)))
    retrieval = table(found, "Retrieval")
    assert retrieval.columns[3:] == ("right fact",)
    assert retrieval.rows == (("recipe", "1", "single", "0.500 (0.400–0.600)"),)
    assert not [one for one in all_tables(contents(cell("rome", 1))) if one.title.startswith("Retrieval")]


def test_examples_are_those_at_the_most_edits():
    def at(num_edits, question):
        wrong = {"edit": "e", "kind": "reliability", "question": question, "wanted": "a", "got": "b"}
        return Cell(rows=cell("recipe", num_edits).rows, examples=(wrong,))

    shown = examples(contents(at(1, "few"), at(1000, "many")))
    assert [one[6] for one in shown.rows] == ["many"]
