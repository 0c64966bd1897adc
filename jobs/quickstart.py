"""The whole loop on this machine: train an editor, ingest 1,000 edits, serve, ask over HTTP, measure.

`make quickstart` runs it on a real LLM, `make quickstart LLM=testbed` on a little one that ships with the package.
Everything it makes lies in runs/quickstart, which every start makes anew.
"""

import hashlib
import importlib.metadata
import json
import platform
import shutil
import statistics
import textwrap
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import numpy.typing as npt
import ray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from jobs._cli import run
from jobs._steps import WIDTH, Step, Steps, said_into
from jobs.ingest import describe as describe_ingest
from recipe_ray.config import TESTBED, TrainConfig
from recipe_ray.distributed.cluster import connect
from recipe_ray.distributed.ingest import IngestReport, ingest
from recipe_ray.distributed.ingest_args import IngestConfig
from recipe_ray.distributed.train import TrainReport, train_editor
from recipe_ray.distributed.train_args import TrainArgs
from recipe_ray.errors import ConfigError, OutputError, RecipeError, ServiceError
from recipe_ray.eval.assertion import first_sentence
from recipe_ray.eval.cases import SORTS, EvalCase, num_sampled
from recipe_ray.eval.chats import chat_questions, facts_of_questions
from recipe_ray.eval.evaluation import evaluate_counts
from recipe_ray.eval.methods.base import Method
from recipe_ray.eval.methods.in_context import Oracle
from recipe_ray.eval.methods.recipe import Recipe
from recipe_ray.eval.methods.unedited import Unedited
from recipe_ray.eval.protocol import MAX_CHAT_TOKENS, MAX_NEW_TOKENS, STOP, plain_reader
from recipe_ray.eval.testbed import dump_records, testbed_cases
from recipe_ray.model.editor import load_editor
from recipe_ray.model.hub import model_source
from recipe_ray.model.llm import FrozenLLM, load_llm
from recipe_ray.model.weights import packaged, pin_of
from recipe_ray.presets import SMOLLM2
from recipe_ray.store.snapshot import read_snapshot
from serving.local import serving
from serving.settings import AppArgs, ModelArgs

NUM_STEPS = 5
SIMULTANEOUS = (1, 10, 100)  # and all of them
NUM_QUESTIONS = 5
LEAST_ASKED = 200  # with few in force, of many
SPEED_TOKENS = 48
SHOWN_CHARS = 60  # of an answer
TIMEOUT_S = 300.0  # of a request, on a busy machine
MARK_FILE = "QUICKSTART"
LOG_FILE = "quickstart.log"
BAD_LINES = (
    '{"prompt": "The capital of Atlantis is", "target": ""}',
    '{"prompt": "The capital of Lemuria is"',
    '{"id": "x1", "op": "replace", "prompt": "The capital of Mu is", "target": "Hiva"}',
)
SHOWN = (
    ("reliability", "loss of the answer, asked in the edit's own words"),
    ("generality", "loss of the answer, asked in other words"),
    ("right_fact", "share of questions that find their fact"),
    ("right_none", "share of unrelated questions left alone"),
)
SORTS_EXPLAINED = """
     reliability: the edit's own question; in a chat, a plain one
     generality: the same in other words; in a chat, behind greetings, earlier turns and haste
     generality_novel: in words that no training of the testbed uses
     locality: unrelated questions, answered as without edits
"""
MODES = (
    ("free", "as completion: share of answers that are right to the letter"),
    ("teacher_forced", "as completion: share of right tokens, each behind the right ones"),
    ("chat", "in a chat: share of answers whose first sentence says it"),
)
PACKAGES = ("recipe-ray", "torch", "transformers", "ray", "pyarrow", "deltalake", "faiss-cpu", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is done with an LLM, so that it takes minutes on 2 CPU cores.

    Attributes:
        preset: the training's set-up.
        num_steps: of the training; None for the preset's.
        settings: of the training, that differ from the preset's.
        num_asked: edits asked about at each number in force; at all in force, None asks about all.
        num_speed_pairs: prompts that are timed with edits and without.
    """

    preset: str
    num_steps: int | None = None
    settings: tuple[str, ...] = ()
    num_asked: int | None = None
    num_speed_pairs: int = 40


PLANS = {
    # The published editor is trained already: rates a tenth of those it was trained at make it no worse.
    SMOLLM2: Plan(
        preset=SMOLLM2,
        num_steps=40,
        settings=("encoder_lr=1e-5", "head_lr=5e-5", "prompt_lr=1e-4", "log_every=5"),
        num_asked=60,
        num_speed_pairs=5,
    ),
    TESTBED: Plan(preset=TESTBED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartArgs:
    """Which LLM, and where the quickstart puts what it makes.

    Attributes:
        output: folder, local; what an earlier quickstart left there is removed first.
        llm: a real LLM, whose published editor is trained on, or the little testbed, whose editor is trained from
            nothing.
        start: another editor to train on than the published one: its directory.
        preset: the training's set-up, instead of the LLM's; `smoke` shows the path in a minute and teaches nothing.
        num_steps: of the training, instead of the LLM's.
        num_edits: how many are ingested.
        num_asked: how many of them are asked about, instead of the LLM's.
    """

    output: Path = Path("runs/quickstart")
    llm: Literal["smollm2-135m-instruct", "testbed"] = "smollm2-135m-instruct"
    start: str | None = None
    preset: str | None = None
    num_steps: int | None = None
    num_edits: int = 1000
    num_asked: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_edits", "num_asked"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; give 1 or more")

    @property
    def asked(self) -> int:
        """How many edits are asked about where all are in force."""
        return min(self.num_edits, self.num_asked or PLANS[self.llm].num_asked or self.num_edits)

    def training(self) -> TrainConfig:
        """What is trained, and how."""
        plan = PLANS[self.llm]
        return TrainArgs(
            preset=self.preset or plan.preset,
            start=self.start or (None if self.llm == TESTBED else self.llm),
            num_steps=self.num_steps or plan.num_steps,
            set=plan.settings,
        ).config()


def main(args: QuickstartArgs) -> None:
    """Train, ingest, serve, ask and measure: the whole loop on this machine, with a report of it."""
    folder = _emptied(args.output.absolute())
    log = folder / LOG_FILE
    with said_into(log) as shown:
        console = Console(file=shown, width=WIDTH, markup=False, emoji=False)  # an LLM may say [/INST] or :x:
        try:
            _Quickstart(args, folder, console).run()
        except RecipeError as error:
            traceback.print_exc()
            raise type(error)(f"{error} (all that was said: {log})") from error
        except Exception:
            traceback.print_exc()
            console.print(f"failed; all that was said: {log}", soft_wrap=True)
            raise


class _Quickstart:
    """The five steps, one after another."""

    def __init__(self, args: QuickstartArgs, folder: Path, console: Console) -> None:
        self._args = args
        self._plan = PLANS[args.llm]
        self._folder = folder
        self._console = console
        self._steps = Steps(console, NUM_STEPS)
        self._cases = testbed_cases(args.num_edits)
        self._editor, self._table = str(folder / "editor"), str(folder / "table")

    def run(self) -> None:
        """All of them, and the report."""
        started = time.monotonic()
        weights, chat = self._weights()
        # Serving wants a little more than one CPU, and training all there are; a single core is reported as two.
        connect(num_cpus=2, training=True, show_workers=True)
        try:
            trained = self._train()
            ingested = self._ingest()
            speed = self._serve(chat=chat)
        finally:
            ray.shutdown()
        edits, retrieval = self._measure(chat=chat)
        seconds = {**self._steps.seconds, "total": time.monotonic() - started}
        report = {
            "llm": self._args.llm,
            "weights": weights,
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "edits": edits,
            "retrieval": retrieval,
            "ingest": _ingest_report(ingested),
            "serving": speed,
            "training": _training_report(trained),
            "versions": _versions(),
        }
        path = self._folder / "report.json"
        path.write_text(json.dumps(report, indent=2) + "\n")
        _print_measured(self._console, report)
        self._console.print(
            f"\neditor {self._editor}\ntable  {self._table}\nreport {path}\nlog    {self._folder / LOG_FILE}\n"
            f"done in {seconds['total']:.0f} s",
            soft_wrap=True,
            highlight=False,
        )

    def _weights(self) -> tuple[dict[str, str], bool]:
        """What the LLM is, and whether it can chat."""
        config = self._args.training()
        with (
            self._steps.step(
                "weights", f"weights: the LLM {self._args.llm} and the encoder {config.editor.encoder}"
            ) as step,
            step.show("loading", 2, unit="models") as advance,
        ):
            llm = load_llm(self._args.llm, "cpu")  # from a GGUF file, which is dequantised once
            advance(1)
            model_source(config.editor.encoder, "encoder")
            advance(1)
            said = _weights_report(self._args.llm)
        self._say(f"{said['package']} {said['version']}, SHA-256 {said['sha256'][:16]}…")
        return said, llm.tokenizer.chat_template is not None

    def _train(self) -> TrainReport:
        config = self._args.training()
        what = f"train the published editor on, for {config.num_steps} steps on facts that do not exist"
        if config.start is None:
            what = f"train an editor, for {config.num_steps} steps on facts that do not exist"
        with self._steps.step("train", what) as step:
            trained = train_editor(
                config, run="training", storage=str(self._folder), output=self._editor, show=step.show
            )
        _print_training(self._console, trained)
        return trained

    def _ingest(self) -> IngestReport:
        dump = self._folder / "edits.jsonl"
        _write_dump(dump, self._cases)
        config = IngestConfig(source=str(dump), table=self._table, editor=self._editor, num_shards=1)
        with self._steps.step("ingest", f"ingest {len(self._cases):,} counterfactual edits of real facts") as step:
            ingested = ingest(config, show=step.show)
        for line in describe_ingest(ingested).splitlines():
            self._say(line)
        return ingested

    def _serve(self, *, chat: bool) -> dict[str, float]:
        app_args = AppArgs(models=(ModelArgs(editor=self._editor, table=self._table),))
        with (
            self._steps.step("serve", "serve, and ask over HTTP without edits and with them") as step,
            serving(app_args, port=0, quiet=True) as url,
            httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client,
        ):
            table = _answers(client, self._cases[:NUM_QUESTIONS], step, chat=chat)
            speed = _measure_speed(client, self._cases[: self._plan.num_speed_pairs], step)
        self._console.print(table)
        return speed

    def _measure(self, *, chat: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        asked = self._args.asked
        how = f"{asked} of them asked about" if asked < len(self._cases) else "all asked about"
        with self._steps.step("measure", f"measure with 1 to {len(self._cases):,} edits in force, {how}") as step:
            return _measure_edits(self._folder, self._args.llm, self._cases, step, num_asked=asked, chat=chat)

    def _say(self, text: str) -> None:
        self._console.print(f"     {text}", soft_wrap=True, highlight=False)


def _emptied(folder: Path) -> Path:
    """A new folder in place of the one that an earlier quickstart made there, and of nothing else."""
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if not (folder / MARK_FILE).is_file():
                raise OutputError(f"{folder}: is not empty and not of a quickstart; give another --output, or empty it")
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK_FILE).write_text("Made by jobs/quickstart.py, which empties this folder when it starts again.\n")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); give another --output") from error
    return folder


def _write_dump(path: Path, cases: Sequence[EvalCase]) -> None:
    """The edits as JSON Lines, with bad rows among them as a real dump has."""
    lines = [json.dumps(record) for record in dump_records(tuple(cases))]
    for number, bad in enumerate(BAD_LINES):
        lines.insert(100 * (number + 1), bad)
    path.write_text("\n".join(lines) + "\n")


def _weights_report(llm: str) -> dict[str, str]:
    """The package that holds the LLM, its version, and the hash of the file with the weights."""
    if pin := pin_of(llm):
        package, version, path = pin.package, pin.version, packaged(llm, "llm")
    else:
        package, path = "recipe-ray", Path(model_source(llm, "llm")) / "model.safetensors"
        version = importlib.metadata.version(package)
    with path.open("rb") as file:
        return {"package": package, "version": version, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _ask(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    if response.status_code != httpx.codes.OK:
        raise ServiceError(f"{response.request.url}: {response.status_code} {response.text[:200]}")
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def _complete(
    client: httpx.Client, prompt: str, *, edits: bool, max_tokens: int, stop: str | None, ignore_eos: bool = False
) -> dict[str, Any]:
    wish = {"max_tokens": max_tokens, "stop": stop, "ignore_eos": ignore_eos}
    return _ask(client, "/v1/completions", prompt=prompt, recipe={"edits": edits}, **wish)


def _chat(client: httpx.Client, words: str, *, edits: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": words}]
    path = "/v1/chat/completions"
    return _ask(client, path, messages=messages, max_tokens=MAX_CHAT_TOKENS, recipe={"edits": edits})


def _answers(client: httpx.Client, cases: Sequence[EvalCase], step: Step, *, chat: bool) -> Table:
    """Each edit's question before and after, in other words or in a chat, and an unrelated question."""
    asked = [
        [("text", words) for words in (case.prompt, *(() if chat else case.prompts("generality")))]
        + [("chat", question.prompt) for question in chat_questions(case)[:1] if chat]
        + [("text", words) for words in case.prompts("locality")]
        for case in cases
    ]
    table = Table("asked as", "question", "without edits", "with edits", "fact applied")
    with step.show("asking", sum(map(len, asked)), unit="questions") as advance:
        for questions in asked:
            for form, words in questions:
                table.add_row(form, words, *_answer(client, form, words))
                advance(1)
            table.add_section()
    return table


def _answer(client: httpx.Client, form: str, words: str) -> tuple[str, str, str]:
    """What is said without edits and with them, and the fact that was applied."""
    if form == "chat":
        before, after = (_chat(client, words, edits=edits) for edits in (False, True))
        texts = [first_sentence(choice["message"]["content"]) for choice in (before, after)]
    else:
        before, after = (
            _complete(client, words, edits=edits, max_tokens=MAX_NEW_TOKENS, stop=STOP) for edits in (False, True)
        )
        texts = [choice["text"].strip() for choice in (before, after)]
    fact = after["recipe"]["fact"]
    said = [textwrap.shorten(text, SHOWN_CHARS, placeholder=" …") for text in texts]
    return said[0], said[1], fact["statement"] if fact else "-"


def _measure_speed(client: httpx.Client, cases: Sequence[EvalCase], step: Step) -> dict[str, float]:
    """Edited over unedited, request by request in turn: seconds to the first token, and tokens a second after it."""
    first: dict[bool, list[float]] = {True: [], False: []}
    more: dict[bool, list[float]] = {True: [], False: []}
    with step.show("timing", len(cases), unit="questions") as advance:
        for case in cases:
            for edits in (True, False):
                timings = []
                for max_tokens in (1, SPEED_TOKENS):
                    begun = time.perf_counter()
                    # An edited answer ends by itself, long before so many tokens.
                    _complete(client, case.prompt, edits=edits, max_tokens=max_tokens, stop=None, ignore_eos=True)
                    timings.append(time.perf_counter() - begun)
                first[edits].append(timings[0])
                more[edits].append((SPEED_TOKENS - 1) / max(timings[1] - timings[0], 1e-9))
            advance(1)
    return {
        "ttft_ratio": _median_ratio(first),
        "tokens_per_s_ratio": _median_ratio(more),
        "ttft_s": statistics.median(first[True]),
        "tokens_per_s": statistics.median(more[True]),
        "num_pairs": len(cases),
    }


def _median_ratio(values: dict[bool, list[float]]) -> float:
    return statistics.median(edited / unedited for edited, unedited in zip(values[True], values[False], strict=True))


def _measure_edits(
    folder: Path, llm_name: str, cases: tuple[EvalCase, ...], step: Step, *, num_asked: int, chat: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scores of the three editors and of retrieval, over what the table holds."""
    llm = load_llm(llm_name)
    methods = _methods(folder, llm, cases)
    unedited = plain_reader(llm)
    edits: dict[str, Any] = {}
    retrieval: dict[str, Any] = {}
    counts = (*(number for number in SIMULTANEOUS if number < len(cases)), len(cases))
    with step.show("asking", len(counts) * len(methods), unit="tables") as advance:
        for num_edits in counts:
            asked, bystanders = _sample(cases, num_edits, num_asked)
            edits[str(num_edits)] = {}
            for method in methods:
                answers, lookups = evaluate_counts(
                    method, asked, [num_edits], data=TESTBED, unedited=unedited, chat=chat, bystanders=bystanders
                )
                edits[str(num_edits)][method.name] = answers[str(num_edits)]
                if isinstance(method, Recipe):
                    retrieval[str(num_edits)] = lookups[str(num_edits)]
                advance(1)
    return edits, retrieval


def _sample(
    cases: tuple[EvalCase, ...], num_edits: int, num_asked: int
) -> tuple[tuple[EvalCase, ...], tuple[EvalCase, ...]]:
    """The edits that are asked about with so many in force, and those that are in force beside them."""
    if num_edits > num_asked:
        return cases[:num_asked], cases[num_asked:num_edits]
    return cases[: num_sampled(num_asked, num_edits, least=min(num_asked, LEAST_ASKED))], ()


def _methods(folder: Path, llm: FrozenLLM, cases: Sequence[EvalCase]) -> tuple[Method, ...]:
    """RECIPE with the vectors that the table holds, no editor, and the right statement pasted."""
    editor = load_editor(folder / "editor")
    snapshot = read_snapshot(str(folder / "table"))
    row_of = {statement: row for row, statement in enumerate(snapshot.facts["statement"].to_pylist())}

    def stored(statements: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        rows = [row_of[statement] for statement in statements]
        return snapshot.keys_FK[rows].astype(np.float32), snapshot.prompts_FPD[rows].astype(np.float32)

    pasted = Oracle(llm, facts_of_questions(cases, neighbours=True), name="in_context")
    return Recipe(llm, editor, encode_facts=stored), Unedited(llm), pasted


def _ingest_report(report: IngestReport) -> dict[str, Any]:
    return {
        "facts_per_s": report.facts_per_s,
        "seconds": report.seconds,
        "new": report.counts.new,
        "quarantined": report.counts.quarantined,
        "version": report.version,
        "size_bytes": report.size_bytes,
    }


def _training_report(report: TrainReport) -> dict[str, Any]:
    return {
        "num_steps": report.num_steps,
        "edits_per_s": report.edits_per_s,
        "before": report.before,
        "after": report.after,
        "fingerprint": report.fingerprint,
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def _print_training(console: Console, report: TrainReport) -> None:
    table = Table("on facts that no step saw", "before", "after", box=SIMPLE)
    for name, title in SHOWN:
        if name in report.before:
            table.add_row(title, f"{report.before[name]:.3f}", f"{report.after[name]:.3f}")
    console.print(table)


def _print_measured(console: Console, report: dict[str, Any]) -> None:
    console.print(SORTS_EXPLAINED, soft_wrap=True, highlight=False)
    for mode, title in MODES:
        table = Table("edits in force", "editor", *SORTS, title=title)
        for num_edits, editors in report["edits"].items():
            for name, metrics in editors.items():
                if mode in metrics:
                    values = (metrics[mode].get(sort) for sort in SORTS)
                    table.add_row(num_edits, name, *("" if value is None else f"{value:.3f}" for value in values))
            table.add_section()
        if table.row_count:
            console.print(table)
    for num_edits, metrics in report["retrieval"].items():
        console.print(
            f"retrieval among {num_edits}: right fact {metrics['right_fact']:.3f}, "
            f"right decision {metrics['right_decision']:.3f}"
        )
    speed = report["serving"]
    console.print(
        f"ingest {report['ingest']['facts_per_s']:.0f} facts/s; edited over unedited: time to first token "
        f"{speed['ttft_ratio']:.2f}, tokens a second {speed['tokens_per_s_ratio']:.2f}"
    )


if __name__ == "__main__":
    run(main, QuickstartArgs)
