"""An evaluation as cells: it goes on where it was left, and what one cell does wrong costs no other."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_models import tiny_editor, tiny_llm

from jobs.evaluate import describe
from recipe_ray.distributed.cells import Cell, CellRunner, Outcome, read_cell, write_cell
from recipe_ray.distributed.evaluate import evaluate, on_cluster
from recipe_ray.distributed.evaluate_args import EvaluateArgs
from recipe_ray.distributed.evaluate_plan import planned, units_of
from recipe_ray.errors import ConfigError, EditorError, FactError, OutputError
from recipe_ray.eval.methods.registry import METHODS, Registered
from recipe_ray.eval.methods.unedited import Unedited
from recipe_ray.eval.report.contents import Cell as MeasuredCell

EDITORS = ("unedited", "oracle")
COUNTS = ("1", "3")
NUM_CELLS = len(EDITORS) * 3  # single, batch, lifelong


@pytest.fixture
def args(tmp_path):
    return EvaluateArgs(output=str(tmp_path / "run"), editors=EDITORS, num_edits=COUNTS, samples=3, device="cpu")


class Here:
    """Measures in this process, keeps what was asked of it, and stops where it is told to."""

    def __init__(self, *, stop_after=None):
        self.asked = []
        self.stop_after = stop_after

    def __call__(self, setup, units):
        runner = CellRunner(setup)
        for unit in units:
            for cell in unit.cells:
                if len(self.asked) == self.stop_after:
                    raise KeyboardInterrupt
                self.asked.append((cell.editor, cell.num_edits, cell.mode))
                yield runner.run(cell, unit.cases[cell.data])


def results(args):
    return json.loads(Path(args.output, "results.json").read_text())


def measured(args):
    """What does not depend on the clock."""
    names = ("editor", "measure", "reliability", "generality", "generality_novel", "locality", "n")
    return [{name: row[name] for name in names} for row in results(args)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What the oracle measures with no other editor beside it."""
    output = str(tmp_path_factory.mktemp("alone"))
    args = EvaluateArgs(output=output, editors=("oracle",), num_edits=("1",), samples=3, device="cpu")
    evaluate(args, execute=Here())
    return measured(args)


def test_a_run_that_was_stopped_measures_only_the_rest_and_then_nothing(args, tmp_path):
    first, second, third = Here(stop_after=2), Here(), Here()
    with pytest.raises(KeyboardInterrupt):
        evaluate(args, execute=first)
    report = evaluate(args, execute=second)
    assert len(first.asked) == 2
    assert len(second.asked) == report.num_now == NUM_CELLS - 2
    assert not set(first.asked) & set(second.asked)
    files = {path: path.read_bytes() for path in (tmp_path / "run").glob("report.*")}
    again = evaluate(args, execute=third)
    assert third.asked == []
    assert (again.num_measured, again.num_now) == (NUM_CELLS, 0)
    assert files == {path: path.read_bytes() for path in files}
    assert len(results(args)) == 2 * NUM_CELLS  # free and teacher-forced


def test_a_cell_is_known_by_what_makes_a_difference_to_it_and_nothing_else(args, tmp_path):
    def identities(**changes):
        return {cell.identity for cell in planned(dataclasses.replace(args, **changes)).cells}

    before = identities()
    assert len(before) == NUM_CELLS
    assert identities(output=str(tmp_path / "elsewhere"), num_edits=("3", "1")) == before
    assert identities(num_edits=("1",)) < before
    assert not identities(seed=1) & before
    assert not identities(device="auto") & before
    assert not identities(preset="7b") & before
    tiny_editor().save(tmp_path / "editor")
    assert identities(editor=str(tmp_path / "editor")) == before  # neither of these editors has anything of it


def test_an_editor_trained_anew_is_measured_anew(args, tmp_path):
    found = []
    for seed in (0, 1):
        tiny_editor(seed=seed).save(tmp_path / "editor")
        plan = planned(dataclasses.replace(args, editor=str(tmp_path / "editor"), editors=("unedited", "recipe")))
        found.append({(cell.editor, cell.identity) for cell in plan.cells})
    assert {editor for editor, _ in found[0] ^ found[1]} == {"recipe"}


def test_an_editor_with_other_hyperparameters_is_measured_anew(args, monkeypatch):
    found = []
    for rate in (0.1, 0.2):
        one = Registered(build=lambda context, _: Unedited(context.llm), presets={"testbed": {"learning_rate": rate}})
        monkeypatch.setitem(METHODS, "tuned", one)
        plan = planned(dataclasses.replace(args, editors=("unedited", "tuned"), num_edits=("1",)))
        found.append({(cell.editor, cell.identity) for cell in plan.cells})
    assert {editor for editor, _ in found[0] ^ found[1]} == {"tuned"}


def test_what_is_set_for_an_editor_makes_its_cells_anew_and_no_others(args):
    few = dataclasses.replace(args, editors=("unedited", "grace"), num_edits=("1",))
    found = []
    for settings in ((), ("grace.num_steps=3",)):
        plan = planned(dataclasses.replace(few, set=settings))
        found.append({(cell.editor, cell.identity) for cell in plan.cells})
        assert plan.setup.settings == settings
    assert {editor for editor, _ in found[0] ^ found[1]} == {"grace"}


@pytest.mark.parametrize("setting", ["rome.layer=2", "layer=2", "no_such.layer=2"])
def test_what_is_set_for_nobody_compared_is_refused(args, setting):
    with pytest.raises(
        ConfigError, match=f"set names '{setting}'; give EDITOR.NAME=VALUE of an editor that is compared"
    ):
        dataclasses.replace(args, editors=("unedited", "grace"), set=(setting,))


def test_a_batch_that_is_the_same_as_one_edit_after_another_is_not_measured_twice(args, monkeypatch):
    one = Registered(build=lambda context, _: Unedited(context.llm), one_by_one=True)
    monkeypatch.setitem(METHODS, "in_order", one)
    both = dataclasses.replace(args, editors=("in_order",))
    assert [(cell.num_edits, cell.mode) for cell in planned(both).cells] == [(1, "single"), (3, "lifelong")]
    alone = dataclasses.replace(both, modes=("batch",))
    assert [(cell.num_edits, cell.mode) for cell in planned(alone).cells] == [(3, "batch")]


@pytest.fixture
def chatting(args, tmp_path):
    """The same of an LLM with a chat template."""
    llm = tiny_llm()
    llm.tokenizer.chat_template = "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}[a]"
    llm.model.save_pretrained(tmp_path / "llm")
    llm.tokenizer.save_pretrained(tmp_path / "llm")
    return dataclasses.replace(args, llm=str(tmp_path / "llm"), num_edits=("1",), preset="testbed")


def test_editors_are_asked_in_chats_where_the_llm_has_a_template(chatting):
    report = evaluate(chatting, execute=Here())
    assert not report.without_chats
    rows = {(row["editor"], row["measure"]): row for row in results(chatting)}
    assert set(rows) == {(editor, measure) for editor in EDITORS for measure in ("free", "teacher_forced", "chat")}
    assert rows["unedited", "chat"]["locality"] == 1.0
    assert rows["oracle", "chat"]["reliability_n"] == 3
    assert rows["oracle", "chat"]["ended"] is not None
    assert rows["oracle", "free"]["ended"] is None
    page = Path(report.report).read_text()
    assert "Quality on testbed: chat, first sentence" in page


def test_an_editor_asked_in_chats_is_measured_anew_and_the_others_are_not(chatting):
    asked = {cell.editor: cell.identity for cell in planned(chatting).cells}
    one = {cell.editor: cell.identity for cell in planned(dataclasses.replace(chatting, chat=("oracle",))).cells}
    assert one["oracle"] == asked["oracle"]
    assert one["unedited"] != asked["unedited"]


def test_an_llm_without_a_template_is_asked_no_chats_and_that_is_said(args):
    few = dataclasses.replace(args, num_edits=("1",))
    report = evaluate(few, execute=Here())
    assert report.without_chats
    assert "nothing was asked in chats: the LLM has no chat template" in describe(report).splitlines()
    assert {row["measure"] for row in results(few)} == {"free", "teacher_forced"}
    assert not planned(dataclasses.replace(few, chat=())).without_chats


class Broken(Unedited):
    def apply(self, edits):
        raise ValueError("no such thing\nas this")


class Unsupported(Unedited):
    def apply(self, edits):
        raise EditorError("LLM testbed (llama) is of a family that this editor does not know; take another")


class Hungry(Unedited):
    def apply(self, edits):
        raise MemoryError


class Untidy(Unedited):
    def apply(self, edits):
        next(self.reader.llm.model.parameters()).data[0, 0] += 1


@pytest.mark.parametrize(
    ("broken", "reason", "traced"),
    [
        (Broken, "ValueError: no such thing as this", True),
        (Unsupported, "LLM testbed (llama) is of a family that this editor does not know; take another", False),
        (Hungry, "out of memory on device cpu; give a larger one, a smaller LLM, or fewer edits at once", True),
        (Untidy, "broken left the LLM changed after undo; its numbers would be those of others too", False),
    ],
)
def test_a_cell_that_fails_says_why_and_the_rest_is_as_without_it(args, alone, monkeypatch, broken, reason, traced):
    monkeypatch.setitem(METHODS, "broken", Registered(build=lambda context, _: broken(context.llm)))
    few = dataclasses.replace(args, editors=("broken", "oracle"), num_edits=("1",))
    report = evaluate(few, execute=Here())
    (failed,) = report.failed
    assert (failed.editor, failed.num_edits, failed.mode, failed.reason) == ("broken", 1, "single", reason)
    assert ("Traceback" in failed.traceback) == traced
    assert measured(few) == alone


def test_data_without_rephrasings_is_one_line_and_the_testbed_is_measured(args, tmp_path):
    path = tmp_path / "own.jsonl"
    records = [{"prompt": f"The colour of {name} is", "target": "red"} for name in ("grass", "snow", "coal")]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    given = dataclasses.replace(args, data=("testbed", f"edits:{path}"), editors=("unedited",), num_edits=("1", "all"))
    plan = planned(given)
    assert [cell.data for cell in plan.cells] == ["testbed"] * 3
    assert [cell.num_edits for cell in plan.cells] == [1, 1000, 1000]
    assert [(one.data, one.num_edits) for one in plan.failed] == [
        ("edits:own.jsonl", 1),
        ("edits:own.jsonl", "all"),
        ("edits:own.jsonl", "all"),
    ]
    assert {one.reason.count("\n") for one in plan.failed} == {0}
    assert "rephrasing" in plan.failed[0].reason


def test_a_data_set_that_cannot_be_read_fails_before_anything_is_measured(args):
    here = Here()
    with pytest.raises(FactError, match="nowhere"):
        evaluate(dataclasses.replace(args, data=("edits:/nowhere.jsonl",)), execute=here)
    assert here.asked == []


def test_an_editor_is_made_once_for_its_cells_and_a_trained_one_once_for_all_data(args, tmp_path, monkeypatch):
    monkeypatch.setitem(
        METHODS, "trained", Registered(build=lambda context, _: Unedited(context.llm), needs=frozenset({"training"}))
    )
    path = tmp_path / "own.jsonl"
    records = [
        {
            "prompt": f"The colour of {name} is",
            "target": "red",
            "generality": [{"prompt": f"{name} has the colour", "target": "red"}],
            "locality": [{"prompt": f"The weight of {name} is", "target": "1"}],
        }
        for name in ("grass", "snow", "coal")
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    given = dataclasses.replace(
        args, data=("testbed", f"edits:{path}"), training_data=("testbed",), editors=("oracle", "trained")
    )
    plan = planned(given)
    units = units_of(plan.cells, plan.data)
    assert [sorted({(cell.editor, cell.data) for cell in unit.cells}) for unit in units] == [
        [("oracle", "testbed")],
        [("trained", "edits:own.jsonl"), ("trained", "testbed")],
        [("oracle", "edits:own.jsonl")],
    ]


CELL = Cell(editor="a/b", data="edits:own file", num_edits=3, mode="batch", num_cases=3, identity="feed")


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_cells_file_gives_back_what_was_written(place, request, tmp_path):
    folder = f"{request.getfixturevalue('s3')}/run" if place == "s3" else str(tmp_path / "run")
    failure = {"kind": "rephrase", "question": "q", "wanted": "w", "got": "g"}
    rows = ({"measure": "free", "reliability": 0.5, "generality": None}, {"measure": "teacher_forced"})
    measured = MeasuredCell(rows=rows, examples=(failure,), margins_related=(1.5, -0.5), margins_unrelated=(0.25,))
    assert read_cell(folder, CELL) is None
    write_cell(folder, CELL, measured)
    found = read_cell(folder, CELL)
    assert [{name: row.get(name) for name in rows[0]} for row in found.rows] == [
        rows[0],
        {"measure": "teacher_forced", "reliability": None, "generality": None},
    ]
    assert (found.examples, found.margins_related, found.margins_unrelated) == ((failure,), (1.5, -0.5), (0.25,))


def test_a_damaged_file_is_one_line_that_says_what_to_do(tmp_path):
    path = tmp_path / "cells" / f"{CELL.name}.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 no more PAR1")
    with pytest.raises(OutputError, match="remove it, and the cell is measured again"):
        read_cell(str(tmp_path), CELL)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"editors": ("rmoe",)}, "'rmoe'"),
        ({"editors": ("recipe",)}, "give editor too"),
        ({"num_edits": ("ten",)}, "'ten'"),
        ({"num_edits": ("0",)}, "'0'"),
        ({"data": ()}, "data is empty"),
        ({"chat": ("rmoe",)}, "chat names 'rmoe'"),
        ({"chat": ("lte",)}, "which reads no chats"),
        ({"samples": 0}, "samples is 0"),
        ({"ablations": ("no-prompt",)}, "NAME=DIRECTORY"),
        ({"ablations": ("recipe=x",)}, "give another"),
        ({"data": ("zsre:x",), "tuning_data": ("zsre:x",)}, "give other edits to report on"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(changes, named):
    with pytest.raises(ConfigError, match=named):
        EvaluateArgs(**changes)


def test_without_recipes_editor_only_those_are_compared_that_need_none():
    compared = EvaluateArgs().compared()
    assert {"unedited", "oracle"} <= set(compared)
    assert not [name for name in compared if "editor" in METHODS[name].needs]
    assert EvaluateArgs(editor="x").compared() == tuple(METHODS)


@pytest.mark.ray
@pytest.mark.faults
def test_a_worker_that_dies_costs_its_cell_alone(args, ray_cluster, monkeypatch):
    class Dying(CellRunner):
        def run(self, cell, cases):
            import os

            if cell.mode == "batch":
                os._exit(1)
            return Outcome(cell=cell)

    monkeypatch.setattr("recipe_ray.distributed.evaluate.CellRunner", Dying)
    plan = planned(args)
    outcomes = {
        (one.cell.editor, one.cell.mode): one.reason for one in on_cluster(plan.setup, units_of(plan.cells, plan.data))
    }
    assert len(outcomes) == NUM_CELLS
    assert {mode for (_, mode), reason in outcomes.items() if reason} == {"batch"}
    assert all("its worker died" in reason for reason in outcomes.values() if reason)
