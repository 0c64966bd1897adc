"""Asking the canary of a table and files that it lacks, on the workers of a cluster, before anyone is served from them.

Each shard is searched in a task of its own, so the memory of one holds a shard, as that of a server's part does.

B questions, K key width, P virtual tokens, D LLM width.
"""

import hashlib
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from recipe_ray.distributed import stages, workers
from recipe_ray.distributed.nightly_args import NightlyConfig
from recipe_ray.eval.canary import CanaryQuestion, CanaryReport, Told, judge
from recipe_ray.retrieval import NO_FACT, decide
from recipe_ray.store.files import localize_editor
from recipe_ray.store.indexes.exact import inner_products
from recipe_ray.store.live.preview import preview
from recipe_ray.store.parquet import DataFile, read_batches
from recipe_ray.store.table import FactTable

_BATCH_SIZE = 32  # questions that the LLM answers together
_MORE_TOKENS = 4  # than the target has: enough to see where it ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A fact of the dump.

    Attributes:
        rank: by which it was drawn: the lowest are taken.
        namespace, fact_id, prompt, target: what the dump says.
    """

    rank: bytes
    namespace: str
    fact_id: str
    prompt: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The best fact of a shard for a question, with its prompt [P, D] where it is above the sentinel."""

    score: float
    shard: int
    fact_id: str
    target: str
    prompt_PD: npt.NDArray[Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardAnswer:
    """What a shard tells: by question its best fact, and by namespace and id the targets of facts asked for."""

    nearest: tuple[Nearest | None, ...]
    targets: Mapping[tuple[str, str], str]


def ask_canary(
    table: FactTable, files: Sequence[DataFile], questions: Sequence[CanaryQuestion], config: NightlyConfig
) -> CanaryReport:
    """Ask the questions, and some about facts in the files, of what the table would tell once it had the files.

    Raises:
        EditorError: the editor cannot be read, or was trained for an LLM of another width.
        ModelError: the LLM cannot be had.
        TableError: a file is missing or damaged.
    """
    at = datetime.now(UTC)
    drawn = _draw(table, files, config, at)
    asked = [*questions, *(_question_about(one) for one in drawn)]
    editor = config.editor
    queries_BK = workers.on_worker(encode_questions, editor=editor, prompts=[question.prompt for question in asked])
    sentinel_B = inner_products(queries_BK, table.identity.sentinel_K)
    found = list(
        stages.results(
            range(table.num_shards),
            ask_shard,
            table_uri=table.uri,
            version=table.version,
            files=files,
            queries_BK=queries_BK,
            sentinel_B=sentinel_B,
            namespaces=[question.namespace for question in asked],
            ids=[(one.namespace, one.fact_id) for one in drawn],
            at=at,
        )
    )
    best = [_best([answer.nearest[place] for answer in found]) for place in range(len(asked))]
    said = _answers(asked, best, config)
    told = [
        Told(
            fact_id=one.fact_id if one is not None and one.prompt_PD is not None else None,
            target=one.target if one is not None and one.prompt_PD is not None else None,
            score=None if one is None else one.score,
            sentinel=float(sentinel),
            answer=answer,
        )
        for one, sentinel, answer in zip(best, sentinel_B, said, strict=True)
    ]
    # A fact that was drawn may not stand: of two events of one time either may win.
    standing = {key: target for answer in found for key, target in answer.targets.items()}
    stands = [True] * len(questions) + [standing.get((one.namespace, one.fact_id)) == one.target for one in drawn]
    kept = [place for place, good in enumerate(stands) if good]
    return judge([asked[place] for place in kept], [told[place] for place in kept], config.limits())


def _draw(table: FactTable, files: Sequence[DataFile], config: NightlyConfig, at: datetime) -> list[Drawn]:
    """Draw facts from the files: the same in every run, whichever files they lie in."""
    if not config.sample:
        return []
    found = stages.results(files, draw_from_file, table_uri=table.uri, num=config.sample, seed=config.seed, at=at)
    return heapq.nsmallest(config.sample, (one for of_file in found for one in of_file), key=lambda one: one.rank)


def draw_from_file(file: DataFile, *, table_uri: str, num: int, seed: int, at: datetime) -> list[Drawn]:
    """Draw live facts that have a prompt and a target."""
    namespace = file.partition["namespace"]

    def drawn() -> Iterator[Drawn]:
        for batch in read_batches(table_uri, file.path, ["fact_id", "op", "prompt", "target", "expires_at"]):
            for row in batch.to_pylist():
                is_live = row["op"] == "upsert" and (row["expires_at"] is None or row["expires_at"] > at)
                if is_live and row["prompt"] and row["target"]:
                    said = f"{seed}\0{namespace}\0{row['fact_id']}\0{row['target']}"
                    yield Drawn(
                        rank=hashlib.blake2b(said.encode(), digest_size=16).digest(),
                        namespace=namespace,
                        fact_id=row["fact_id"],
                        prompt=row["prompt"],
                        target=row["target"],
                    )

    return heapq.nsmallest(num, drawn(), key=lambda one: one.rank)


def _question_about(one: Drawn) -> CanaryQuestion:
    return CanaryQuestion(
        sort="sampled", place=one.fact_id, prompt=one.prompt, target=one.target, namespace=one.namespace
    )


def encode_questions(*, editor: str, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Queries [B, K], as a server's retriever encodes them: on a CPU."""
    from recipe_ray.model.editor import load_editor  # seconds, which tasks that only read do not spend

    return load_editor(localize_editor(editor), "cpu").encode_queries(prompts)


def ask_shard(
    shard: int,
    *,
    table_uri: str,
    version: int,
    files: Sequence[DataFile],
    queries_BK: npt.NDArray[np.float32],
    sentinel_B: npt.NDArray[np.float32],
    namespaces: Sequence[str],
    ids: Sequence[tuple[str, str]],
    at: datetime,
) -> ShardAnswer:
    """Search one shard of the table as it would be, by the code of a server's index shard."""
    view = preview(FactTable.open(table_uri, version), files, shards=[shard], at=at)
    nearest: list[Nearest | None] = []
    for hits, sentinel in zip(view.search(queries_BK, namespaces, 1), sentinel_B, strict=True):
        if not hits:
            nearest.append(None)
            continue
        (hit,) = hits
        decision = decide(np.array([0]), np.array([hit.score], np.float32), np.array([sentinel], np.float32))
        fact, applied = view.fact_of(hit), decision.row_B[0] != NO_FACT
        nearest.append(
            Nearest(
                score=hit.score,
                shard=shard,
                fact_id=hit.fact_id,
                target=fact["target"],
                prompt_PD=np.array(view.prompt(hit)) if applied else None,  # a copy: what is mapped stays behind
            )
        )
    facts = {key: view.fact(*key) for key in ids}
    return ShardAnswer(
        nearest=tuple(nearest), targets={key: fact["target"] for key, fact in facts.items() if fact is not None}
    )


def _best(nearest: Sequence[Nearest | None]) -> Nearest | None:
    """The best of all shards, in the order of a server: by score, then shard, then id."""
    found = [one for one in nearest if one is not None]
    return min(found, key=lambda one: (-one.score, one.shard, one.fact_id), default=None)


def _answers(
    questions: Sequence[CanaryQuestion], best: Sequence[Nearest | None], config: NightlyConfig
) -> Sequence[str | None]:
    """What the LLM says to the questions that have a target, where there is one to be asked."""
    if config.llm is None:
        return [None] * len(questions)
    from recipe_ray.model.hub import absolute_model  # here: no task needs transformers for it

    asked = [place for place, question in enumerate(questions) if question.target]
    found = [best[place] for place in asked]
    use_gpu = config.device == "cuda" or (config.device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1)
    said = workers.on_worker(
        generate_answers,
        num_gpus=int(use_gpu),
        editor=config.editor,
        llm=absolute_model(config.llm),
        device="cuda" if use_gpu else "cpu",
        prompts=[questions[place].prompt for place in asked],
        targets=[questions[place].target for place in asked],
        prefixes=[None if one is None else one.prompt_PD for one in found],
    )
    answers: list[str | None] = [None] * len(questions)
    for place, answer in zip(asked, said, strict=True):
        answers[place] = answer
    return answers


def generate_answers(
    *,
    editor: str,
    llm: str,
    device: str,
    prompts: Sequence[str],
    targets: Sequence[str],
    prefixes: Sequence[npt.NDArray[Any] | None],
) -> list[str]:
    """Greedy answers, each a little longer than its target, behind the prompts of the facts that are applied."""
    from recipe_ray.model.editor import read_config
    from recipe_ray.model.llm import load_llm

    frozen = load_llm(llm, device)
    position = read_config(localize_editor(editor)).prompt_position
    answers = []
    for start in range(0, len(prompts), _BATCH_SIZE):
        batch = slice(start, start + _BATCH_SIZE)
        longest = max(len(frozen.tokenize_answer(f" {target}")) for target in targets[batch])
        generated = frozen.generate(
            prompts[batch], prefixes[batch], max_new_tokens=longest + _MORE_TOKENS, position=position
        )
        answers += [one.text for one in generated]
    return answers
