"""The measurement: one editor on one data set, with T edits in force at once.

Cases are taken in groups of T, each group edited apart from the others; every editor gets the same cases. The query is
always the prompt alone. How answers are compared: `protocol`.
"""

import functools
import statistics
from collections.abc import Callable, Sequence

from recipe_ray.errors import ConfigError
from recipe_ray.eval.cases import SORTS, Ask, EvalCase
from recipe_ray.eval.efficiency import Way, clock, peak_memory_bytes, reading_speeds, start_peak_memory
from recipe_ray.eval.methods.base import Edit, Found, Method, ReadsChats, Retrieves
from recipe_ray.eval.protocol import Reader
from recipe_ray.eval.results import CellResult, CellSettings, Efficiency, Failure, Mode
from recipe_ray.eval.scoring import Answer, ChatAnswer, ChatSheet, Lookups, Sheet
from recipe_ray.eval.statistics import Score


def edit_of(case: EvalCase) -> Edit:
    """What a method may see of a case."""
    return Edit(fact_id=case.fact_id, prompt=case.prompt, target=case.target, subject=case.subject)


def evaluate_cell(
    method: Method,
    cases: Sequence[EvalCase],
    settings: CellSettings,
    *,
    unedited: Reader,
    told: Callable[[Sequence[ChatAnswer]], object] | None = None,
    bystanders: Sequence[EvalCase] = (),
) -> CellResult:
    """Measure one editor with `settings.num_edits` edits in force at once.

    Args:
        method: the editor, with no edit in force; left so, whatever happens.
        cases: all are asked about, in whole groups of T less the bystanders, in their order.
        settings: what is measured.
        unedited: the LLM without any editor, for what locality is held to. It may be the LLM that the method changes:
            it is asked before.
        told: is given every chat with its answer.
        bystanders: edits that are in force beside each group, and that nothing is asked about.

    Raises:
        ConfigError: the cases are no whole groups.
        EditorError: the method cannot make one of the edits.
    """
    num_asked = settings.num_edits - len(bystanders)
    if not cases or num_asked < 1 or len(cases) % num_asked:
        raise ConfigError(f"{len(cases)} cases cannot be taken in groups of {num_asked}; give a divisor")
    device = unedited.llm.device
    start_peak_memory(device)
    sheet = Sheet(cases, unedited)
    if not method.changes_llm and method.reader.llm is unedited.llm and method.reader is not unedited:
        method.reader.reads_as(unedited)
    speed_prompts = _speed_prompts(cases[:num_asked], settings.num_speed_prompts)
    plain = Way(unedited, lambda prompts: [Ask(prompt) for prompt in prompts])
    # A method that changes the LLM must be timed apart from it; the others take turns with it, below.
    speeds = reading_speeds([plain], speed_prompts) if method.changes_llm else []

    chats = Chats(method, cases, unedited) if settings.chat and isinstance(method, ReadsChats) else None
    seconds: list[float] = []
    asks: list[Ask] = []
    answers: list[Answer] = []
    found: list[Found] = []
    state_bytes = 0
    for start in range(0, len(cases), num_asked):
        group = cases[start : start + num_asked]
        rows = slice(len(asks), len(asks) + sum(len(case.questions) for case in group))
        prompts = sheet.prompts[rows]
        try:
            seconds += _apply(method, [*group, *bystanders], settings.mode)
            asks += method.asks(prompts)
            if isinstance(method, Retrieves):
                found.append(method.retrieve(prompts))
            if start == 0:
                state_bytes = method.state_bytes()
                edited = Way(method.reader, method.asks)
                speeds += reading_speeds([edited] if method.changes_llm else [plain, edited], speed_prompts)
            if method.changes_llm:
                answers += sheet.answers(method.reader, asks[rows], rows)
            if chats is not None:
                chats.take(start, start + num_asked)
        finally:
            method.undo()
    if not method.changes_llm:
        answers = sheet.answers(method.reader, asks, slice(None))

    if chats is not None and told is not None:
        told(chats.answers())

    free, teacher_forced = sheet.scores(answers, settings)
    lookups = Lookups(sheet, found) if found else None
    return CellResult(
        editor=method.name,
        llm=unedited.llm.name,
        settings=settings,
        num_cases=len(cases),
        free=free,
        teacher_forced=teacher_forced,
        retrieval={} if lookups is None else lookups.scores(settings),
        related_margins=() if lookups is None else lookups.margins(related=True),
        unrelated_margins=() if lookups is None else lookups.margins(related=False),
        efficiency=Efficiency(
            seconds_per_edit=statistics.median(seconds),
            ttft_s=speeds[1].ttft_s,
            tokens_per_s=speeds[1].tokens_per_s,
            unedited_ttft_s=speeds[0].ttft_s,
            unedited_tokens_per_s=speeds[0].tokens_per_s,
            state_bytes=state_bytes,
            peak_memory_bytes=peak_memory_bytes(device),
        ),
        failures=(*sheet.failures(answers, settings), *(() if chats is None else chats.failures(settings))),
        chat={} if chats is None else chats.scores(settings),
        chat_retrieval={} if chats is None else chats.retrieval(settings),
    )


class Chats:
    """The chats of a cell, as they are asked and answered group by group.

    Args:
        method: that takes chats.
        cases: all.
        unedited: the LLM without any editor.
    """

    def __init__(self, method: Method, cases: Sequence[EvalCase], unedited: Reader) -> None:
        assert isinstance(method, ReadsChats)
        self._method: Method = method
        self._reading: ReadsChats = method
        self._sheet = ChatSheet(cases, unedited)
        self._asks: list[Ask] = []
        self._found: list[Found] = []
        self._answers: list[ChatAnswer] = []

    def take(self, start: int, stop: int) -> None:
        """Ask about a group of cases, whose edits are in force."""
        rows = self._sheet.rows_of(start, stop)
        self._asks += self._reading.chat_asks([question.ask for question in self._sheet.questions[rows]])
        if isinstance(self._method, Retrieves):
            self._found.append(self._method.retrieve(self._sheet.prompts[rows]))
        if self._method.changes_llm:
            self._answers += self._sheet.chat_answers(self._method.reader, self._asks[rows], rows)

    def answers(self) -> list[ChatAnswer]:
        """Of all chats, in their order."""
        if len(self._answers) < len(self._asks):
            self._answers = self._sheet.chat_answers(self._method.reader, self._asks, slice(None))
        return self._answers

    def scores(self, settings: CellSettings) -> dict[str, Score]:
        """See `CellResult.chat`."""
        return self._sheet.chat_scores(self.answers(), settings)

    def failures(self, settings: CellSettings) -> tuple[Failure, ...]:
        """Examples of wrong answers."""
        return self._sheet.chat_failures(self.answers(), settings)

    def retrieval(self, settings: CellSettings) -> dict[str, Score]:
        """See `CellResult.chat_retrieval`."""
        return Lookups(self._sheet, self._found).scores(settings) if self._found else {}


def evaluate_counts(
    method: Method,
    cases: Sequence[EvalCase],
    counts: Sequence[int],
    *,
    data: str,
    unedited: Reader,
    chat: bool = False,
    told: Callable[[int, Sequence[ChatAnswer]], object] | None = None,
    bystanders: Sequence[EvalCase] = (),
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, dict[str, float]]]:
    """By number of simultaneous edits, each a divisor of the cases: scores of answers, and those of retrieval.

    Args:
        method, cases, unedited, bystanders: as in `evaluate_cell`.
        counts: numbers of edits in force at once.
        data: name of the data set.
        chat: whether edits are asked about in chats too.
        told: is given the number of edits and every chat with its answer.
    """
    answers, retrieval = {}, {}
    for num in counts:
        settings = CellSettings(
            data=data, num_edits=num, mode="single" if num == 1 else "batch", num_speed_prompts=0, chat=chat
        )
        tell = functools.partial(told, num) if told else None
        result = evaluate_cell(method, cases, settings, unedited=unedited, told=tell, bystanders=bystanders)
        answers[str(num)] = result.values()
        retrieval[str(num)] = {
            **{name: score.value for name, score in result.retrieval.items()},
            **{f"chat_{name}": score.value for name, score in result.chat_retrieval.items()},
        }
    return answers, retrieval


def _apply(method: Method, group: Sequence[EvalCase], mode: Mode) -> list[float]:
    """Seconds an edit of each call."""
    edits = [edit_of(case) for case in group]
    device = method.reader.llm.device
    seconds = []
    for call in [[edit] for edit in edits] if mode == "lifelong" else [edits]:
        begun = clock(device)
        method.apply(call)
        seconds.append((clock(device) - begun) / len(call))
    return seconds


def _speed_prompts(group: Sequence[EvalCase], num: int) -> list[str]:
    """Questions of a group, those that its edits answer first."""
    questions = [question for case in group for question in case.questions]
    questions.sort(key=lambda question: SORTS.index(question.sort))
    return [question.prompt for question in questions[:num]]
