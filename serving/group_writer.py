"""Writes of concurrent requests gathered into groups, each one commit, and the versions that come of it."""

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from recipe_ray.config import EditorIdentity
from recipe_ray.errors import OutputError, RecipeError, ServiceError, TableError
from recipe_ray.facts import Fact
from recipe_ray.store.file_cache import FileCache
from recipe_ray.store.table import GroupId
from recipe_ray.store.upkeep.merging import merge_small_files
from recipe_ray.store.upkeep.renewal import Renewal, renew
from recipe_ray.store.writing import Encode, UnfitFactsError, Written, write_facts
from serving.messages import Refusal, SnapshotInfo, WriteResult
from serving.versions import Versions

logger = logging.getLogger("ray.serve")

MAX_GROUP = 5000
"""Facts of one commit; more of one request stay together."""
MAX_WAITING = 100_000
"""Facts that wait for their commit; requests beyond are refused."""
MERGE_EVERY = 256
"""Commits after which the small files that they made are merged."""
POLL_S = 1.0
"""Seconds between looks at the log for commits of others."""
_RETRY_S = 0.5
_NUM_NAMED = 3  # facts in one refusal
Value = TypeVar("Value")

_OVERLOADED = Refusal(
    message="too many facts are waiting to be written; try again later", code="rate_limited", status=429
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions:
    """How a writer works.

    Attributes:
        max_group: facts of one commit.
        max_waiting: facts that may wait.
        poll_s: seconds between looks at the log for commits of others.
        merge_every: commits after which small files are merged; None for never.
    """

    max_group: int = MAX_GROUP
    max_waiting: int = MAX_WAITING
    poll_s: float = POLL_S
    merge_every: int | None = MERGE_EVERY


@dataclass(frozen=True, slots=True, eq=False)
class _Put:
    facts: tuple[Fact, ...]
    done: "asyncio.Future[WriteResult | Refusal]" = field(default_factory=asyncio.Future)


@dataclass(frozen=True, slots=True, eq=False)
class _Activation:
    version: int
    done: "asyncio.Future[SnapshotInfo | Refusal]" = field(default_factory=asyncio.Future)


class Writer:
    """See `serving.writer.FactWriter`. Belongs to one event loop, on which none of its work is done.

    One task takes what waits, in its order: all puts up to the next activation are one group and one commit, and while
    it runs the next group gathers. Another task follows the log, for those who write to the table elsewhere.

    Args:
        table: URI, where it lies.
        identity: of the editor that encodes.
        encode: encodes statements; called in a thread, once at a time.
        options: how.

    Raises:
        TableError: the table is not there, moved, or was encoded by another editor.
    """

    def __init__(
        self, table: str, *, identity: EditorIdentity, encode: Encode, options: WriterOptions | None = None
    ) -> None:
        self._versions = Versions(table, identity)
        self._identity, self._encode = identity, encode
        self._options = options or WriterOptions()
        self._version = self._versions.find()
        self._fault: str | None = None
        self._id, self._numbers = uuid.uuid4().hex, itertools.count()
        self._cache = FileCache()
        self._renewal: Renewal | None = None  # what an older release left in the table
        self._num_turns = self._turn_renewed = 0  # a rollback, ours or another's, may bring it back: then anew
        self._not_before = datetime.min.replace(tzinfo=UTC)
        self._waiting: deque[_Put | _Activation] = deque()
        self._num_waiting = self._num_unmerged = 0
        self._wanted, self._changed = asyncio.Event(), asyncio.Event()
        self._is_closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._merging: asyncio.Task[None] | None = None

    async def write(self, facts: Sequence[Fact]) -> WriteResult | Refusal:
        """See FactWriter.

        Raises:
            RecipeError: the table cannot be written; whether all of them or none are, the next write tells.
        """
        if not facts:
            return WriteResult(snapshot=self._version, outcomes=(), fact_ids=())
        if self._num_waiting and self._num_waiting + len(facts) > self._options.max_waiting:
            return _OVERLOADED
        put = _Put(tuple(facts))
        self._num_waiting += len(put.facts)
        self._ask(put)
        return await put.done

    async def activate(self, version: int) -> SnapshotInfo | Refusal:
        """See FactWriter.

        Raises:
            RecipeError: the table cannot be written.
        """
        activation = _Activation(version)
        self._ask(activation)
        return await activation.done

    async def current_version(self) -> int:
        """See FactWriter."""
        self._start()
        return self._version

    async def wait_for(self, after_version: int, timeout_s: float = 10.0) -> int:
        """See FactWriter."""
        self._start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._version <= after_version and not self._is_closing:
                    await self._changed.wait()
        return self._version

    async def snapshots(self, limit: int) -> list[SnapshotInfo]:
        """See FactWriter.

        Raises:
            RecipeError: the log cannot be read.
        """
        self._start()
        return await asyncio.to_thread(self._versions.newest, limit, until=self._version)

    async def check_health(self) -> None:
        """See FactWriter.

        Raises:
            ServiceError: the table is not the one that was given any more.
        """
        self._start()
        if self._fault is not None:
            raise ServiceError(self._fault)
        for task in self._tasks:
            if task.done():
                task.result()

    async def close(self) -> None:
        """See FactWriter."""
        self._is_closing = True
        self._wanted.set()
        if not self._tasks:
            return
        work, *others = self._tasks
        await work
        self._changed.set()  # those who wait for a version shall not hold up the end
        for task in others:
            task.cancel()
        await asyncio.gather(*others, *([self._merging] if self._merging else []), return_exceptions=True)

    def _start(self) -> None:
        """Begin work with the first call: what constructs a writer need not run on its loop."""
        if not self._tasks and not self._is_closing:
            self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._follow())]

    def _ask(self, what: _Put | _Activation) -> None:
        if self._is_closing:
            raise ServiceError("the writer is stopping; try again later")
        if self._fault is not None:
            raise ServiceError(self._fault)
        self._start()
        self._waiting.append(what)
        self._wanted.set()

    async def _work(self) -> None:
        await self._renew()
        while True:
            await self._wanted.wait()
            self._wanted.clear()  # before the work: what is wanted while it goes on is looked at afterwards
            if self._needs_renewal():
                await self._renew()
            while self._waiting:
                if isinstance(self._waiting[0], _Activation):
                    activation = self._waiting.popleft()
                    assert isinstance(activation, _Activation)
                    await self._activate(activation)
                else:
                    await self._commit(self._take_group())
            if self._is_closing:
                return

    async def _renew(self) -> None:
        """Bring the table to the texts' canonical form; where storage fails, the next write does it."""
        try:
            renewal = await asyncio.to_thread(self._renewed)
        except RecipeError as error:
            logger.warning("what an older release left in the table is not renewed yet: %s", error)
            return
        if renewal.num_encoded or renewal.num_joined:
            logger.info(
                "%d facts were encoded again in their canonical form, %d joined with a later one of the same prompt",
                renewal.num_encoded,
                renewal.num_joined,
            )
        self._advance(renewal.version)

    def _renewed(self) -> Renewal:
        renewal, turn = self._renewal, self._num_turns
        if renewal is None or self._needs_renewal():
            self._renewal = renewal = renew(self._versions.table_uri, self._encode)
            self._turn_renewed = turn
        return renewal

    def _needs_renewal(self) -> bool:
        renewal = self._renewal
        return renewal is None or not (renewal.is_canonical or self._turn_renewed == self._num_turns)

    def _take_group(self) -> list[_Put]:
        """The puts that go together: those that wait, less those that nobody waits for any more."""
        group: list[_Put] = []
        num_facts = 0
        while self._waiting:
            put = self._waiting[0]
            if isinstance(put, _Activation) or (group and num_facts + len(put.facts) > self._options.max_group):
                break
            self._waiting.popleft()
            self._num_waiting -= len(put.facts)
            if not put.done.done():
                group.append(put)
                num_facts += len(put.facts)
        return group

    async def _commit(self, group: list[_Put]) -> None:
        """Write a group; requests whose facts cannot be stored are refused, and the rest goes on."""
        while group:
            facts = [fact for put in group for fact in put.facts]
            try:
                written, fact_ids = await asyncio.to_thread(self._write, facts)
            except UnfitFactsError as error:
                group = _refuse_unfit(group, error)
                continue
            except Exception as error:  # noqa: BLE001 -- whatever it is, those who wait are told, and the next group comes
                for put in group:
                    _fail(put.done, error)
                return
            self._advance(written.version)
            outcomes, ids = iter(written.outcomes), iter(fact_ids)
            for put in group:
                of_put = tuple(itertools.islice(outcomes, len(put.facts)))
                ids_of_put = tuple(itertools.islice(ids, len(put.facts)))
                _answer(put.done, WriteResult(snapshot=written.version, outcomes=of_put, fact_ids=ids_of_put))
            self._note_commit(written)
            return

    def _write(self, facts: Sequence[Fact]) -> tuple[Written, list[str]]:
        """Write a group, in a thread; again where storage failed, since the failure may have come behind the commit.

        Returns:
            What became of it, and the ids under which the table has its facts.
        """
        now = max(datetime.now(UTC), self._not_before)  # a clock that is set back shall not let an older group win
        self._not_before = now + timedelta(microseconds=len(facts))
        renewal = self._renewed()
        facts = [renewal.under_its_id(fact, dated=now) for fact in facts]
        group = GroupId(writer=self._id, number=next(self._numbers))
        attempts = Retrying(
            retry=retry_if_exception_type((TableError, OutputError)),
            stop=stop_after_attempt(2),
            wait=wait_fixed(_RETRY_S),
            reraise=True,
        )
        written = attempts(
            write_facts,
            self._versions.table_uri,
            facts,
            self._encode,
            identity=self._identity,
            group=group,
            now=now,
            cache=self._cache,
        )
        return written, [fact.fact_id for fact in facts]

    async def _activate(self, activation: _Activation) -> None:
        if activation.done.done():
            return
        try:
            answer = await asyncio.to_thread(self._versions.activate, activation.version)
        except Exception as error:  # noqa: BLE001 -- as in _commit
            _fail(activation.done, error)
            return
        if isinstance(answer, SnapshotInfo):
            self._advance(answer.version)
        _answer(activation.done, answer)
        self._num_turns += 1
        await self._renew()

    def _advance(self, version: int) -> None:
        """Make a version current and wake those who wait for one; an older one changes nothing."""
        if version > self._version:
            self._version = version
            self._changed.set()
            self._changed = asyncio.Event()

    def _note_commit(self, written: Written) -> None:
        """Count commits, and merge their files in the background once there are many."""
        every = self._options.merge_every
        self._num_unmerged += bool(written.num_written)
        if every is None or self._num_unmerged < every or (self._merging and not self._merging.done()):
            return
        self._num_unmerged = 0
        self._merging = asyncio.create_task(self._merge())

    async def _merge(self) -> None:
        try:
            report = await asyncio.to_thread(merge_small_files, self._versions.table_uri)
        except RecipeError as error:  # the table is as it was, and the next merge takes more
            logger.warning("small files were not merged: %s", error)
            return
        self._advance(report.version)

    async def _follow(self) -> None:
        """Notice what others commit, and what they do to the table."""
        is_away = False
        while True:
            await asyncio.sleep(self._options.poll_s)
            try:
                newest, fault = await asyncio.to_thread(self._versions.look, self._version)
            except RecipeError as error:
                if not is_away:  # once, however long it lasts
                    logger.warning("the table's log cannot be read, its version stays as it is: %s", error)
                is_away = True
                continue
            if is_away:
                logger.info("the table's log can be read again")
            if fault is not None and fault != self._fault:
                logger.error("the table is not followed any more: %s", fault)
            is_away, self._fault = False, fault
            if newest > self._version:
                self._num_turns += 1
                self._wanted.set()
            self._advance(newest)


def _refuse_unfit(group: Sequence[_Put], error: UnfitFactsError) -> list[_Put]:
    """Refuse the puts that hold facts at fault; gives the others."""
    rest, begin = [], 0
    for put in group:
        faults = [error.faults[place] for place in range(begin, begin + len(put.facts)) if place in error.faults]
        begin += len(put.facts)
        if faults:
            more = f" (and {len(faults) - _NUM_NAMED} more facts)" if len(faults) > _NUM_NAMED else ""
            message = "; ".join(faults[:_NUM_NAMED]) + more + "; nothing of this request was written"
            _answer(put.done, Refusal(message=message, code="fact_not_encodable", param="facts"))
        else:
            rest.append(put)
    return rest


def _answer(done: "asyncio.Future[Value]", value: Value) -> None:
    if not done.done():  # the client left
        done.set_result(value)


def _fail(done: "asyncio.Future[Value]", error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
