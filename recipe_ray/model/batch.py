"""A step's edits as tensors: all that needs no trained weight, so that it can be made ahead of the step.

Shape letters: B edits of this worker, N questions, R rows of the LLM, T tokens, A answer length, P virtual tokens.
"""

import dataclasses
import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from recipe_ray.config import ChatPosition, LossConfig, PromptPosition
from recipe_ray.errors import ModelError
from recipe_ray.examples import EditExample, Question
from recipe_ray.model.chat import Placed, place_chat, place_text
from recipe_ray.model.encoder import TextEncoder, TokenIds
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.prefix import PaddedRows, pad_rows
from recipe_ray.model.prompt_encoder import StatementReader

PARTS = ("reliability", "generality", "locality")
CPU_LENGTH_GROUPS = 4
# A CPU compiles products of matrices for each new shape: a batch seen before went forward in a fifth less time.
CPU_LENGTH_MULTIPLE = 8
CPU = torch.device("cpu")

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderGroup:
    """Texts that go through the encoder together: right-padded ids and mask, both int64 [texts, T]."""

    ids_BT: Tensor
    mask_BT: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Questions about edits in one wording.

    Attributes:
        own_N: int64, the edit of each among the worker's edits.
        neighbour_N: float32, 1 where the question counts in the neighbour-oriented term, over the number of questions
            of the whole batch.
        sentinel_N: likewise for the sentinel-oriented term.
        weight: one over the number of questions of the whole batch.
    """

    own_N: Tensor
    weight: float
    neighbour_N: Tensor
    sentinel_N: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMGroup:
    """Rows that go through the LLM together.

    Attributes:
        rows: with room for a continuous prompt.
        own_R: int64, the edit whose prompt stands in each row.
        part_R: int64, place in PARTS.
        weight_R: float32, one over the answer tokens of that part in the whole batch.
        answers_RA: int64 answer tokens, right-aligned, 0 before them.
        mask_RA: 1 where an answer token stands.
        num_asked_tokens: of the answers, those of questions about edits, whose rows come first.
        unprefixed: the rows of locality, in order, without room for a prompt; None where there are none.
    """

    rows: PaddedRows
    own_R: Tensor
    part_R: Tensor
    weight_R: Tensor
    answers_RA: Tensor
    mask_RA: Tensor
    num_asked_tokens: int
    unprefixed: PaddedRows | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One worker's share of a step, or of a part of it where gradients accumulate.

    Attributes:
        names: of all edits of the step, for complaints.
        encoder_groups: all texts, by length.
        text_order: int64, for each text its place in the groups, one group behind another. The texts are the B
            statements, the questions of reliability and of generality, and the B locality questions.
        asked: for reliability and generality.
        statement_tokens: ids and mask, int64 [B, N], of the statements' last tokens as the LLM has them, where prompts
            are made of them.
        statement_ids_B: int64, equal for edits of one prompt: not to be told apart by a query.
        shares: edits of each worker, in this part of the step.
        locality_weight: one over the edits of the whole batch.
        llm_groups: rows of the LLM; empty where no term needs it.
    """

    names: tuple[str, ...]
    encoder_groups: tuple[EncoderGroup, ...]
    text_order: Tensor
    asked: tuple[Asked, Asked]
    statement_tokens: tuple[Tensor, Tensor] | None
    statement_ids_B: Tensor
    shares: tuple[int, ...]
    locality_weight: float
    llm_groups: tuple[LLMGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which part of a step is a worker's, and in how many turns it goes through it."""

    rank: int = 0
    num_workers: int = 1
    num_turns: int = 1

    def slices(self, num_edits: int) -> list[list[slice]]:
        """For each turn, the rows of each worker; as even as can be."""
        num_slices = self.num_turns * self.num_workers
        edges = [num_edits * place // num_slices for place in range(num_slices + 1)]
        return [
            [
                slice(edges[turn * self.num_workers + rank], edges[turn * self.num_workers + rank + 1])
                for rank in range(self.num_workers)
            ]
            for turn in range(self.num_turns)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMaker:
    """Turns examples into tensors for an encoder and an LLM.

    Attributes:
        encoder, llm: whose tokenizers read.
        losses: which questions count where.
        num_virtual_tokens, position, chat_position: of continuous prompts.
        answer_end: text behind every target.
        answer_eos: whether the token that ends a text follows.
        reader: of statements, where prompts are made of them.
    """

    encoder: TextEncoder
    llm: FrozenLLM
    losses: LossConfig
    num_virtual_tokens: int
    position: PromptPosition
    answer_end: str
    chat_position: ChatPosition = "as_text"
    answer_eos: bool = False
    reader: StatementReader | None = None

    def make(
        self, examples: Sequence[EditExample], *, seed: int = 0, share: Share = Share(), edit: bool, locality: bool
    ) -> list[StepBatch]:
        """What a worker needs of a step, a `StepBatch` a turn, on the CPU.

        Args:
            examples: the edits of the whole step, over all workers and turns.
            seed: of which question counts where, alike for every worker.
            share: the worker's.
            edit, locality: whether the LLM is asked questions of edits, and of locality.
        """
        asked = self._asked(len(examples), seed)
        texts = _Texts.of(examples, self)
        names = tuple(example.name for example in examples)
        batches = []
        for slices in share.slices(len(examples)):
            rows = range(*slices[share.rank].indices(len(examples)))
            mine = [[one for one in part if one.row in rows] for part in asked]
            counts = [len(part) for part in asked]
            groups, order = self._encoder_groups(
                [texts.statements[row] for row in rows]
                + [texts.questions[place][one.row] for place, part in enumerate(mine) for one in part]
                + [texts.questions[2][row] for row in rows]
            )
            llm_rows = []
            if edit:
                llm_rows = [(one.row, place) for place, part in enumerate(mine) for one in part]
            if locality:
                llm_rows += [(row, 2) for row in rows]
            num_tokens = [
                sum(texts.answer_length(one.row, place) for one in part) for place, part in enumerate(asked)
            ] + [sum(texts.answer_length(row, 2) for row in range(len(examples)))]
            batches.append(
                StepBatch(
                    names=names,
                    encoder_groups=groups,
                    text_order=order,
                    asked=(_asked(mine[0], rows.start, counts[0]), _asked(mine[1], rows.start, counts[1])),
                    statement_tokens=self._statement_tokens(examples[rows.start : rows.stop]),
                    statement_ids_B=torch.tensor([_id(examples[row].prompt) for row in rows], dtype=torch.long),
                    shares=tuple(len(range(*one.indices(len(examples)))) for one in slices),
                    locality_weight=1 / len(examples),
                    llm_groups=self._llm_groups(texts, llm_rows, rows.start, num_tokens),
                )
            )
        return batches

    def _statement_tokens(self, examples: Sequence[EditExample]) -> tuple[Tensor, Tensor] | None:
        if self.reader is None:
            return None
        return self.reader.pad(self.reader.tokenize([example.statement for example in examples]))

    def _placed(self, question: Question) -> Placed:
        tokenizer, messages = self.llm.tokenizer, question.messages
        if not messages:
            return place_text(tokenizer, question.prompt, self.position)
        try:
            return place_chat(tokenizer, messages, self.chat_position, self.position)
        except ModelError:  # some templates, such as Gemma's, take no system turn
            rest = [message for message in messages if message[0] != "system"]
            if len(rest) == len(messages):
                raise
            return place_chat(tokenizer, rest, self.chat_position, self.position)

    def _answer(self, question: Question) -> list[int]:
        """An answer that goes on in a text, or that stands by itself in a chat."""
        ids = self.llm.tokenize_answer(f"{'' if question.messages else ' '}{question.target}{self.answer_end}")
        return [*ids, self.llm.end_token_id] if self.answer_eos else ids

    def _asked(self, num_edits: int, seed: int) -> tuple[list["_Question"], list["_Question"]]:
        """The questions of reliability and generality, and in which contrastive term each counts."""
        rows = range(num_edits)
        if self.losses.questions == "alternate":
            return [_Question(row) for row in rows[0::2]], [_Question(row) for row in rows[1::2]]
        if self.losses.questions == "random":
            rng = random.Random(seed)
            own = [rng.random() < 0.5 for _ in rows]
            return (
                [_Question(row, neighbour=own[row], sentinel=not own[row]) for row in rows],
                [_Question(row, neighbour=not own[row], sentinel=own[row]) for row in rows],
            )
        return [_Question(row) for row in rows], [_Question(row) for row in rows]

    def _encoder_groups(self, token_ids: Sequence[TokenIds]) -> tuple[tuple[EncoderGroup, ...], Tensor]:
        groups, order = [], [0] * len(token_ids)
        place = 0
        for rows in self._by_length([len(ids) for ids in token_ids]):
            ids_BT, mask_BT = self.encoder.pad([token_ids[row] for row in rows], device=CPU)
            ids_BT, mask_BT = (functional.pad(one, (0, -one.shape[1] % self._multiple)) for one in (ids_BT, mask_BT))
            groups.append(EncoderGroup(ids_BT=ids_BT, mask_BT=mask_BT))
            for row in rows:
                order[row] = place
                place += 1
        return tuple(groups), torch.tensor(order, dtype=torch.long)

    @property
    def _multiple(self) -> int:
        return CPU_LENGTH_MULTIPLE if self.llm.device.type == "cpu" else 1

    def _by_length(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows of like length together: on a CPU padding costs as much as tokens do, a GPU takes all in one go."""
        num_groups = CPU_LENGTH_GROUPS if self.llm.device.type == "cpu" else 1
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        size = max(1, math.ceil(len(order) / num_groups))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _llm_groups(
        self, texts: "_Texts", llm_rows: Sequence[tuple[int, int]], first: int, num_tokens: Sequence[int]
    ) -> tuple[LLMGroup, ...]:
        groups = []
        for places in self._by_length([texts.row_length(*one) for one in llm_rows]):
            rows = sorted((llm_rows[place] for place in places), key=lambda one: one[1])
            answers = [texts.answers[part][row] for row, part in rows]
            prompts = [texts.prompts[part][row] for row, part in rows]
            ids = [[*prompt.token_ids, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
            width = max(map(len, answers))
            spared = [row_ids for row_ids, (_, part) in zip(ids, rows, strict=True) if part == 2]
            num_asked = len(rows) - len(spared)
            groups.append(
                LLMGroup(
                    rows=pad_rows(
                        ids,
                        num_virtual_tokens=[self.num_virtual_tokens] * len(ids),
                        starts=[prompt.start for prompt in prompts],
                        device=CPU,
                        multiple_of=self._multiple,
                    ),
                    own_R=torch.tensor([row - first for row, _ in rows]),
                    part_R=torch.tensor([part for _, part in rows]),
                    weight_R=torch.tensor([1 / num_tokens[part] for _, part in rows]),
                    answers_RA=torch.tensor([[0] * (width - len(one)) + one for one in answers]),
                    mask_RA=torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in answers]),
                    num_asked_tokens=sum(map(len, answers[:num_asked])),
                    unprefixed=self.llm.pad(spared, [0] * len(spared), self.position, device=CPU) if spared else None,
                )
            )
        return tuple(groups)


def to_device(value: Value, device: torch.device) -> Value:
    """The same dataclass with its tensors, at any depth, on a device."""

    def move(one: Any) -> Any:
        if isinstance(one, Tensor):
            return one.to(device, non_blocking=True)
        if isinstance(one, tuple):
            return tuple(map(move, one))
        if dataclasses.is_dataclass(one) and not isinstance(one, type):
            fields = {field.name: move(getattr(one, field.name)) for field in dataclasses.fields(one)}
            return type(one)(**fields)
        return one

    return value if device.type == "cpu" else move(value)


@dataclass(frozen=True, slots=True)
class _Question:
    row: int
    neighbour: bool = True
    sentinel: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """Token ids of a whole step: statements and, by part, questions for the encoder, prompts and answers for the LM."""

    statements: list[TokenIds]
    questions: list[list[TokenIds]]
    prompts: list[list[Placed]]
    answers: list[list[list[int]]]
    num_virtual_tokens: int

    @classmethod
    def of(cls, examples: Sequence[EditExample], maker: BatchMaker) -> "_Texts":
        asked = [
            [Question(prompt=one.prompt, target=one.target, messages=one.messages) for one in examples],
            [
                Question(prompt=one.generality_prompt, target=one.generality_target, messages=one.generality_messages)
                for one in examples
            ],
            [
                Question(prompt=one.locality_prompt, target=one.locality_target, messages=one.locality_messages)
                for one in examples
            ],
        ]
        return cls(
            statements=maker.encoder.tokenize([one.statement for one in examples]),
            questions=[maker.encoder.tokenize([one.prompt for one in part]) for part in asked],
            prompts=[[maker._placed(one) for one in part] for part in asked],
            answers=[[maker._answer(one) for one in part] for part in asked],
            num_virtual_tokens=maker.num_virtual_tokens,
        )

    def answer_length(self, row: int, part: int) -> int:
        return len(self.answers[part][row])

    def row_length(self, row: int, part: int) -> int:
        return len(self.prompts[part][row].token_ids) + len(self.answers[part][row])


def _asked(questions: Sequence[_Question], first: int, num_asked: int) -> Asked:
    return Asked(
        own_N=torch.tensor([one.row - first for one in questions], dtype=torch.long),
        weight=1 / num_asked,
        neighbour_N=torch.tensor([one.neighbour / num_asked for one in questions], dtype=torch.float32),
        sentinel_N=torch.tensor([one.sentinel / num_asked for one in questions], dtype=torch.float32),
    )


def _id(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())
