"""lm-evaluation-harness (extra `eval`) around an edited LLM. Whoever imports this module needs the harness."""

import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from recipe_ray.errors import ConfigError
from recipe_ray.eval.ability.answering import Asked, EditedModel
from recipe_ray.eval.ability.comparison import Prompt, TaskResult

VERSION: str = lm_eval.__version__
MAX_NEW_TOKENS = 256  # where a task does not say: the harness's own default
_NUM_RESAMPLES = 1000


class EditedLM(LM):
    """An edited LLM as the harness sees it; it keeps what it answered to each prompt of each task.

    Args:
        model: the method's LLM with its edits in force.

    Attributes:
        prompts: by task and number of the document.
    """

    def __init__(self, model: EditedModel) -> None:
        super().__init__()
        self.model = model
        self.prompts: dict[str, dict[int, Prompt]] = defaultdict(dict)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is the greedy one."""
        asked = [_asked(request) for request in requests]
        scores = self.model.scores([(one, request.args[1]) for one, request in zip(asked, requests, strict=True)])
        for request, one, score in zip(requests, asked, scores, strict=True):
            if one.context:  # without, it is a choice's likelihood by itself, which some metrics divide by
                self._note(request, one, score=score.loglikelihood, said="greedy" if score.is_greedy else "")
        return [(score.loglikelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text."""
        scores = [self.model.rolling_score(request.args[0]) for request in requests]
        for request, score in zip(requests, scores, strict=True):
            self._note(request, Asked(request.args[0], ""), score=score)
        return scores

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy completions up to a stop text.

        Raises:
            ConfigError: a task that samples.
        """
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[_generation_settings(request)].append(place)
        asked = [_asked(request) for request in requests]
        texts: dict[int, str] = {}
        for (max_new_tokens, stop), places in groups.items():
            done = self.model.completions([asked[place] for place in places], max_new_tokens=max_new_tokens, stop=stop)
            texts.update(zip(places, done, strict=True))
        for place, request in enumerate(requests):
            self._note(request, asked[place], said=texts[place])
        return [texts[place] for place in range(len(requests))]

    def _note(self, request: Instance, asked: Asked, *, score: float | None = None, said: str = "") -> None:
        prompts = self.prompts[request.task_name]
        (fired,) = self.model.fires([asked.question])
        prompts.setdefault(request.doc_id, Prompt()).add(
            fired=fired, score=score, said=said, truncated=asked.context in self.model.truncated
        )


def evaluate_tasks(
    model: EditedModel,
    tasks: Sequence[str],
    *,
    folder: Path,
    limit: int | None = None,
    num_fewshot: int | None = None,
) -> list[TaskResult]:
    """The harness's metrics of one edited LLM on its tasks, groups of tasks behind their parts.

    Args:
        model: with its edits in force.
        tasks: names; of the harness, or of tasks in `folder`.
        folder: tasks of our own.
        limit: at most so many prompts a task.
        num_fewshot: examples before each question, instead of the task's own number.

    Raises:
        ConfigError: an unknown task, or one whose data cannot be had.
    """
    lm = EditedLM(model)
    found = _evaluated(lm, tasks, folder=folder, limit=limit, num_fewshot=num_fewshot, log_samples=False)
    parts = found.get("group_subtasks", {})

    def leaves(name: str) -> list[str]:
        below = [leaf for part in parts.get(name, ()) for leaf in leaves(part)]
        return below or [name]

    return [
        TaskResult(
            task=name,
            metrics=_metrics(values),
            prompts=tuple(lm.prompts[leaf][doc] for leaf in leaves(name) for doc in sorted(lm.prompts[leaf])),
        )
        for name, values in found["results"].items()
    ]


def evaluate_other(model: str, model_args: Mapping[str, Any], task: str, *, folder: Path) -> dict[str, Any]:
    """Accuracy and samples of a task in `folder` by one of the harness's own models, to compare with."""
    found = _evaluated(model, [task], folder=folder, model_args=dict(model_args), log_samples=True)
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return {"acc": found["results"][task]["acc,none"], "samples": samples}


def _evaluated(model: Any, tasks: Sequence[str], *, folder: Path, **settings: Any) -> dict[str, Any]:
    own = {path.stem for path in folder.glob("*.yaml")}
    with _quiet():
        # Reading the harness's thousands of tasks takes seconds.
        manager = TaskManager(include_path=str(folder), include_defaults=not own.issuperset(tasks))
        known = {*manager.all_tasks, *own}
        if unknown := [task for task in tasks if task not in known]:
            raise ConfigError(
                f"tasks: lm-evaluation-harness {VERSION} knows no {', '.join(unknown)}; give its names "
                "(commonsense_qa, anli, mmlu, squadv2 …) or NAME:PATH of multiple-choice questions"
            )
        try:
            found = lm_eval.simple_evaluate(
                model=model, tasks=list(tasks), task_manager=manager, bootstrap_iters=_NUM_RESAMPLES, **settings
            )
        except (OSError, ConnectionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"tasks: the data of {', '.join(tasks)} cannot be had ({reason}); run where a hub is reachable "
                "(HF_HUB_OFFLINE unset), or give NAME:PATH of local questions"
            ) from error
    assert isinstance(found, dict)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's remarks on every task."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _asked(request: Instance) -> Asked:
    """The context, and the question in it: what the document calls so, else all of the context."""
    context = request.args[0]
    question = request.doc.get("question") if isinstance(request.doc, dict) else None
    if isinstance(question, str) and question.strip() and question.strip() in context:
        return Asked(context, question.strip())
    return Asked(context, context)


def _generation_settings(request: Instance) -> tuple[int, tuple[str, ...]]:
    settings = request.args[1]
    if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
        raise ConfigError(
            f"task {request.task_name}: samples its answers; editors are compared by greedy answers alone"
        )
    until = settings.get("until") or []
    stop = [until] if isinstance(until, str) else until
    most = settings.get("max_gen_toks") or settings.get("max_new_tokens") or MAX_NEW_TOKENS
    return int(most), tuple(text for text in stop if text)


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Metrics by name, with their standard errors as `NAME_stderr`."""
    numbers = {name: value for name, value in values.items() if isinstance(value, float | int)}
    return {name.removesuffix(",none"): float(value) for name, value in numbers.items() if "," in name}
