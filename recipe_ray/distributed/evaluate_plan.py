"""The cells of an evaluation: which there are, over what data, and what each one's identity is made of."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe_ray.config import TESTBED, DataConfig
from recipe_ray.datasets.asking import with_relation
from recipe_ray.datasets.cleaning import clean
from recipe_ray.datasets.sources import InventedData, TrainingData, absolute_sources, open_training_data, read_source
from recipe_ray.distributed.cells import Cell, Setup, identity_of
from recipe_ray.distributed.evaluate_args import ALL, EvaluateArgs
from recipe_ray.distributed.provenance import command_line, commit, hardware, versions
from recipe_ray.errors import ConfigError
from recipe_ray.eval.cases import EvalCase, num_sampled, record_cases
from recipe_ray.eval.chats import chat_questions
from recipe_ray.eval.methods.context import Need, Preset, digest_of
from recipe_ray.eval.methods.registry import METHODS, hyperparameters
from recipe_ray.eval.report.contents import FailedCell
from recipe_ray.eval.results import Mode
from recipe_ray.eval.testbed import testbed_cases, testbed_tuning_cases
from recipe_ray.examples import EditExample, EditRecord, Question
from recipe_ray.model.chat import has_chat_template
from recipe_ray.model.editor import read_config, read_fingerprint
from recipe_ray.model.hub import absolute_model
from recipe_ray.model.llm import llm_width
from recipe_ray.store import files

NUM_TUNING = 300
NUM_INVENTED = 2000  # invented edits for those that train on records
SMALL_WIDTH = 512  # LLMs up to this width take the hyperparameters tuned for small ones


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Edits to report on.

    Attributes:
        name: in the report: the file's name without its folder.
        cases: in their order; empty where there are none.
        reason: why there are none.
    """

    name: str
    cases: tuple[EvalCase, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Cells that one worker measures one after the other, and the cases of their data sets by name."""

    cells: tuple[Cell, ...]
    cases: Mapping[str, tuple[EvalCase, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All cells of a run.

    Attributes:
        setup: what they share.
        cells: in the order of the report.
        data: by name.
        failed: cells that cannot be, and why.
        ablations: names of editors that are ablations.
        without_chats: chats were to be asked, and the LLM has no chat template.
    """

    setup: Setup
    cells: tuple[Cell, ...]
    data: dict[str, DataSet]
    failed: tuple[FailedCell, ...]
    ablations: tuple[str, ...]
    without_chats: bool = False


def planned(args: EvaluateArgs) -> Plan:
    """Read the data and lay out the cells, each with its identity.

    Raises:
        RecipeError: as `evaluate.evaluate`.
    """
    folder = files.absolute(args.output)
    files.check_writable(folder)
    llm = absolute_model(args.llm)
    width = llm_width(llm)  # a wrong name fails here, before any worker starts
    chat = args.chat if args.chat and has_chat_template(llm) else ()
    preset: Preset = args.preset or ("testbed" if width <= SMALL_WIDTH else "7b")
    editor = None if args.editor is None else files.absolute_editor(args.editor)
    ablations = args.ablation_folders()
    fingerprints = {name: read_fingerprint(files.localize_editor(where)) for name, where in ablations.items()}
    encoder = args.encoder or TESTBED
    if editor is not None:
        local = files.localize_editor(editor)
        fingerprints["recipe"] = read_fingerprint(local)
        encoder = args.encoder or read_config(local).encoder
    encoder = absolute_model(encoder)
    data = {name: _data_set(name, source, args.seed) for name, source in _by_name(args.data)}
    needs = frozenset(need for name in args.compared() for need in METHODS[name].needs)
    tuning = _tuning(args) if "tuning" in needs else ()
    training, batches, training_digest = _training(args) if "training" in needs else ((), None, "")
    setup = Setup(
        folder=folder,
        llm=llm,
        device=args.device,
        preset=preset,
        settings=args.set,
        seed=args.seed,
        editor=editor,
        ablations=ablations,
        encoder=encoder,
        training=training,
        batches=batches,
        tuning=tuning,
        made_by={"command": command_line(), "commit": commit()},
        hardware=_machine,
    )
    of_need: dict[Need, str] = {
        "editor": fingerprints.get("recipe", ""),
        "training": training_digest,
        "tuning": digest_of(tuning),
        "encoder": encoder,
    }
    cells: list[Cell] = []
    failed: list[FailedCell] = []
    for one in data.values():
        digests: dict[int, str] = {}
        chat_digests: dict[int, str] = {}
        for name in (*args.compared(), *ablations):
            own = {"editor": fingerprints[name]} if name in ablations else {}
            made_from = own or {need: of_need[need] for need in sorted(METHODS[name].needs)}
            given = repr(hyperparameters(name, preset, args.set)) if name in METHODS else ""
            for num_edits, mode in _settings(args, one, name):
                if one.reason is not None:
                    failed.append(
                        FailedCell(editor=name, data=one.name, num_edits=num_edits, mode=mode, reason=one.reason)
                    )
                    continue
                assert isinstance(num_edits, int)
                num_cases = num_sampled(len(one.cases), num_edits, least=args.samples)
                if num_cases not in digests:
                    digests[num_cases] = digest_of(one.cases[:num_cases])
                settings = {
                    "editor": name,
                    "llm": args.llm,
                    "device": args.device,
                    "preset": preset,
                    "hyperparameters": given,
                    "seed": args.seed,
                    "num_edits": num_edits,
                    "mode": mode,
                    "cases": digests[num_cases],
                    "made_from": made_from,
                }
                if name in chat:
                    if num_cases not in chat_digests:
                        chat_digests[num_cases] = digest_of([*map(chat_questions, one.cases[:num_cases])])
                    settings["chats"] = chat_digests[num_cases]
                cells.append(
                    Cell(
                        editor=name,
                        data=one.name,
                        num_edits=num_edits,
                        mode=mode,
                        num_cases=num_cases,
                        chat=name in chat,
                        identity=identity_of(settings),
                    )
                )
    wanted = [name for name in (*args.compared(), *ablations) if name in args.chat]
    return Plan(
        setup=setup,
        cells=tuple(cells),
        data=data,
        failed=tuple(failed),
        ablations=tuple(ablations),
        without_chats=bool(wanted) and not chat,
    )


def units_of(cells: Iterable[Cell], data: dict[str, DataSet]) -> list[Unit]:
    """Cells by worker: those of an editor on a data set stay together, for an editor that is trained those on all.

    So an editor is made once for its cells, and none is trained twice at the same time.
    """
    units: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        trained = cell.editor in METHODS and "training" in METHODS[cell.editor].needs
        units.setdefault((cell.editor, "" if trained else cell.data), []).append(cell)
    return [
        Unit(cells=tuple(unit), cases={name: data[name].cases for name in dict.fromkeys(cell.data for cell in unit)})
        for unit in units.values()
    ]


def _settings(args: EvaluateArgs, data: DataSet, editor: str) -> list[tuple[int | str, Mode]]:
    """Numbers of edits and modes; where a data set has no cases, the numbers as they were asked for.

    Where an editor's batch is the same as one edit after another, the same is not measured twice.
    """
    twice = editor in METHODS and METHODS[editor].one_by_one and "lifelong" in args.modes
    asked: list[int | str]
    if data.reason is None:
        asked = [*args.counts(len(data.cases))]
    else:
        asked = [ALL if text == ALL else int(text) for text in dict.fromkeys(args.num_edits)]
    return [
        (num, mode) for num in asked for mode in args.modes_at(1 if num == 1 else 2) if not (twice and mode == "batch")
    ]


def _by_name(sources: Sequence[str]) -> list[tuple[str, str]]:
    """Names for the report, and what was given: form and file name, or all of it where two are alike."""
    short = {source: _short(source) for source in dict.fromkeys(sources)}
    names = list(short.values())
    return [(name if names.count(name) == 1 else source, source) for source, name in short.items()]


def _short(source: str) -> str:
    form, colon, path = source.partition(":")
    return f"{form}{colon}{path.rstrip('/').rpartition('/')[2]}"


def _data_set(name: str, source: str, seed: int) -> DataSet:
    if source == TESTBED:
        return DataSet(name=name, cases=testbed_cases(seed=seed))
    read = read_source(source)
    (records,) = clean([read.records], num_empty=read.num_empty).records
    try:
        return DataSet(name=name, cases=record_cases([*map(with_relation, records)], name=name, seed=seed))
    except ConfigError as error:  # such as no rephrasings: the other data sets can be asked all the same
        return DataSet(name=name, reason=" ".join(str(error).split()))


def _tuning(args: EvaluateArgs) -> tuple[EvalCase, ...]:
    """Edits to choose thresholds by; none where none were given, and then those who need them say so."""
    cases: list[EvalCase] = []
    for source in args.tuning_sources():
        if source == TESTBED:
            cases += testbed_tuning_cases(seed=args.seed)
            continue
        read = read_source(source)
        (records,) = clean([read.records], num_empty=read.num_empty).records
        cases += record_cases(records, NUM_TUNING, name=source, seed=args.seed)
    return tuple(cases)


def _training(args: EvaluateArgs) -> tuple[tuple[EditRecord, ...], Any, str]:
    """Edits to train on, the same in batches, and what they are known by; none where none were given."""
    sources = args.training_sources()
    if not sources:
        return (), None, ""
    tuning = args.tuning_sources()
    config = DataConfig(sources=sources, tuning_sources=() if TESTBED in (*sources, *tuning) else tuning)
    data: TrainingData = open_training_data(absolute_sources(config))
    if isinstance(data, InventedData):
        records = tuple(map(_record, data.sample(NUM_INVENTED, f"records {args.seed}")))
    else:
        records = tuple(record for part in data.training_edits for record in part)  # type: ignore[attr-defined]
    return records, functools.partial(_batches, data), digest_of(records)


def _batches(data: TrainingData, batch_size: int, seed: str) -> Any:
    return data.training(batch_size, seed)


def _record(example: EditExample) -> EditRecord:
    """An invented edit as a data set's record."""
    return EditRecord(
        prompt=example.prompt,
        target=example.target,
        generality={"rephrase": (Question(prompt=example.generality_prompt, target=example.generality_target),)},
        locality={"neighbour": (Question(prompt=example.locality_prompt, target=example.locality_target),)},
    )


def _machine() -> dict[str, str]:
    return {"hardware": hardware(), "versions": versions()}
