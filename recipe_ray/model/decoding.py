"""A frozen LLM that decodes many prompts at once; rows join and leave between two tokens.

Shape letters: B running rows, N joining rows, T columns of the joining rows, P virtual tokens, D LLM width,
V vocabulary.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipe_ray.model.decoding_cache import CacheFactory, KVSlots, PrefillLayer, prefilled
from recipe_ray.model.decoding_rows import Job, Piece, Row
from recipe_ray.model.decoding_sampling import ScoredToken, choose, score
from recipe_ray.model.decoding_text import decoder_of
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.prefix import PaddedRows, pad_rows

PREFILL_TOKENS = {"cuda": 2048, "cpu": 1024}  # read in between two tokens of the running rows
PREFILL_SLACK = 1.25  # as many times more rather than a second pass for a rest
MAX_PADDING = 256  # columns of padding that prompts read in together may have beyond as many as they have tokens
ECHO_SCORES = 2**26  # logits of prompt tokens that are held at a time: 256 MB in float32
GPU_CACHE_SHARE = 0.6  # of the memory that the weights leave; activations and the laying anew take of the rest
CPU_CACHE_BYTES = 2 << 30


@dataclass(slots=True, kw_only=True)
class _Prefill:
    """Rows that are being read in together."""

    rows: list[Row]
    lengths: list[int]
    mask_NT: Tensor
    position_ids_NT: Tensor
    embeds_NTD: Tensor
    asked: list[list[tuple[int, int]]]  # of each row: columns, and the prompt's token that each of them predicts
    cache: Any
    column: int = 0  # read so far

    @property
    def uniform(self) -> bool:
        return min(self.lengths) == max(self.lengths)

    @property
    def scores_prompt(self) -> bool:
        return self.rows[0].job.prompt_logprobs


class Decoder:
    """A continuous batch over one frozen LLM. Not safe for threads: one of them adds, cancels and steps.

    Args:
        llm: the LM.
        max_rows: rows that run at once; others wait, in order.
        max_cached_tokens: rows times the length that the longest may reach; None for what the device's memory allows.
        prefill_tokens: tokens of prompts read in between two tokens of the running rows, which wait for them; None for
            the device's default.

    Raises:
        ModelError: an LM that is no transformer with plain attention.
    """

    def __init__(
        self,
        llm: FrozenLLM,
        *,
        max_rows: int = 32,
        max_cached_tokens: int | None = None,
        prefill_tokens: int | None = None,
    ) -> None:
        self.llm = llm
        self._max_rows = max_rows
        self._caches = CacheFactory(llm.model.config, name=llm.name)
        self.max_cached_tokens = max_cached_tokens or self._tokens_that_fit()
        self._prefill_tokens = prefill_tokens or PREFILL_TOKENS["cpu" if llm.device.type == "cpu" else "cuda"]
        self._decode_text = decoder_of(llm.tokenizer)
        self._eos = frozenset(llm.eos_token_ids)
        self._waiting: deque[Row] = deque()
        self._prefill: _Prefill | None = None
        self._just_prefilled = False
        self.reset()

    def reset(self) -> None:
        """Forget every row, and let their memory go."""
        self._waiting.clear()
        self._prefill = None
        self._running: list[Row] = []  # row i in slot i
        self._slots = KVSlots(max_rows=self._max_rows)
        self._cache = self._caches.running(self._slots)
        self._tokens_B = torch.zeros(0, dtype=torch.long, device=self.llm.device)
        self._lengths_B = self._tokens_B
        self._columns = torch.arange(0, device=self.llm.device)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running or self._prefill)

    @property
    def num_rows(self) -> int:
        """Rows with keys and values in memory."""
        return len(self._running) + (len(self._prefill.rows) if self._prefill else 0)

    @property
    def num_waiting(self) -> int:
        """Rows that wait for those."""
        return len(self._waiting)

    def add(self, job: Job) -> Row:
        """Put a job behind those that wait.

        Raises:
            EditorError: virtual tokens of another LLM's width.
        """
        if job.virtual_PD is not None:
            self.llm.check_prompt_width(job.virtual_PD.shape[-1])
        assert job.prompt_ids, "a prompt has tokens"
        assert 0 <= job.start <= len(job.prompt_ids)
        assert job.num_tokens <= min(self.max_cached_tokens, self.llm.max_length), "a job fits"
        row = Row(job, self._decode_text, self._eos)
        self._waiting.append(row)
        return row

    def cancel(self, row: Row) -> None:
        """Let a row go; it gives nothing more."""
        row.cancelled = True

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """One pass of the LLM: the next token of all running rows, or a part of the prompts of those that wait.

        The two take turns where there is work for both, so that neither long prompts nor many of them stop the rows
        that run.
        """
        self._drop_cancelled()
        if not (self._running and self._just_prefilled):
            if self._prefill is None:
                self._prefill = self._gather()
            if self._prefill is not None:
                self._just_prefilled = True
                return self._read(self._prefill)
        self._just_prefilled = False
        return self._next_tokens() if self._running else []

    def _drop_cancelled(self) -> None:
        if any(row.cancelled for row in self._waiting):
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
        if gone := {slot for slot, row in enumerate(self._running) if row.cancelled}:
            self._leave(gone)
        if self._prefill is not None and all(row.cancelled for row in self._prefill.rows):
            self._prefill = None

    def _gather(self) -> _Prefill | None:
        """The next rows that wait, as many as may run and can be read in together without much padding."""
        rows: list[Row] = []
        longest = max((row.job.num_tokens for row in self._running), default=0)
        lengths: list[int] = []
        while self._waiting:
            job = self._waiting[0].job
            longest = max(longest, job.num_tokens)
            num_rows = len(self._running) + len(rows) + 1
            if num_rows > self._max_rows or num_rows * longest > self.max_cached_tokens:
                break
            lengths.append(len(job.prompt_ids) + job.num_virtual)
            padded = len(lengths) * max(lengths)
            if rows and (
                padded > max(PREFILL_SLACK * self._prefill_tokens, lengths[0])
                or padded > 2 * sum(lengths) + MAX_PADDING
                or job.prompt_logprobs != rows[0].job.prompt_logprobs
            ):
                break
            rows.append(self._waiting.popleft())
        return self._lay_out(rows) if rows else None

    def _lay_out(self, rows: list[Row]) -> _Prefill:
        """Embed prompts, each with its virtual tokens, of which rows may have different numbers."""
        ids = []
        for row in rows:
            tokens, start = list(row.job.prompt_ids), row.job.start
            ids.append(tokens[:start] + [0] * row.job.num_virtual + tokens[start:])
        none = [0] * len(ids)
        padded = pad_rows(ids, num_virtual_tokens=none, starts=none, device=self.llm.device)
        lengths = [len(tokens) for tokens in ids]
        width = max(lengths)
        asked = []
        for row, length in zip(rows, lengths, strict=True):
            if row.job.prompt_logprobs:
                columns = [width - length + place for place in range(length)]
                del columns[row.job.start : row.job.start + row.job.num_virtual]
                # What stands before a token predicts it, a virtual token included; nothing stands before the first.
                asked.append(
                    [(column - 1, token) for column, token in zip(columns, row.job.prompt_ids, strict=True)][1:]
                )
            else:
                asked.append([])
        virtual_QD = [row.job.virtual_PD for row in rows if row.job.virtual_PD is not None]
        if virtual_QD:
            padded = self._with_virtual(padded, rows, lengths)
        prompts_Q1D = torch.from_numpy(np.concatenate(virtual_QD).astype(np.float32))[:, None] if virtual_QD else None
        return _Prefill(
            rows=rows,
            lengths=lengths,
            mask_NT=padded.mask_BT,
            position_ids_NT=padded.position_ids_BT,
            embeds_NTD=padded.embed(
                self.llm.embedding, None if prompts_Q1D is None else prompts_Q1D.to(self.llm.device)
            ),
            asked=asked,
            cache=self._caches.prefill(),
        )

    def _with_virtual(self, padded: PaddedRows, rows: list[Row], lengths: list[int]) -> PaddedRows:
        """Each virtual token as a prompt of its own: rows may have different numbers of them."""
        width = padded.mask_BT.shape[1]
        slots = [
            (place, width - length + row.job.start + number)
            for place, (row, length) in enumerate(zip(rows, lengths, strict=True))
            for number in range(row.job.num_virtual)
        ]
        places_QK = torch.tensor(slots, dtype=torch.long, device=self.llm.device)
        return replace(padded, prefixed_R=places_QK[:, 0], slots_RP=places_QK[:, 1:])

    def _read(self, prefill: _Prefill) -> list[Piece]:
        """Read in some columns of prompts; with the last of them the rows get their first token and join."""
        begin, width = prefill.column, prefill.mask_NT.shape[1]
        columns = self._prefill_tokens // len(prefill.rows)
        if width - begin <= PREFILL_SLACK * columns:
            columns = width - begin
        if prefill.scores_prompt:
            vocabulary = int(self.llm.model.config.get_text_config().vocab_size)
            columns = min(columns, ECHO_SCORES // (len(prefill.rows) * vocabulary))
        prefill.column = end = min(width, begin + max(1, columns))
        output = self.llm.model(
            inputs_embeds=prefill.embeds_NTD[:, begin:end],
            attention_mask=None if prefill.uniform else prefill.mask_NT[:, :end],
            position_ids=prefill.position_ids_NT[:, begin:end],
            past_key_values=prefill.cache,
            use_cache=True,
            logits_to_keep=0 if prefill.scores_prompt else 1,
        )
        for row, logits_TV, asked in zip(prefill.rows, output.logits, prefill.asked, strict=True):
            here = [(column - begin, token) for column, token in asked if begin <= column < end]
            if here:
                places_K, tokens_K = torch.tensor(here, device=self.llm.device).unbind(1)
                num_top = [row.job.logprobs or 0] * len(here)
                row.prompt_scored += score(logits_TV[places_K], tokens_K, num_top)
        if end < width:
            return []
        self._prefill = None
        return self._join(prefill, output.logits[:, -1])

    def _join(self, prefill: _Prefill, logits_NV: Tensor) -> list[Piece]:
        for row in prefill.rows:
            if row.job.prompt_logprobs:
                row.prompt_scored.insert(0, ScoredToken(token_id=row.job.prompt_ids[0], logprob=None))
        pieces, _ = self._take(prefill.rows, logits_NV)
        stay = [
            place for place, (row, piece) in enumerate(zip(prefill.rows, pieces, strict=True))
            if not row.cancelled and (piece is None or piece.finish is None)
        ]  # fmt: skip
        if stay:
            layers = prefilled(prefill.cache)
            longest = max(prefill.lengths[place] for place in stay)
            if len(stay) < len(prefill.rows):
                for layer in layers:
                    _keep(layer, stay, longest)
            self._slots.insert(layers, [prefill.lengths[place] for place in stay])
            self._running += [prefill.rows[place] for place in stay]
            self._rows_changed()
        return [piece for piece in pieces if piece is not None and not piece.row.cancelled]

    def _next_tokens(self) -> list[Piece]:
        """One token for every running row."""
        slots = self._slots
        slots.make_room()
        width = slots.width
        mask_BC = None
        if int(slots.lengths_B.min()) < width:
            if len(self._columns) <= width:
                self._columns = torch.arange(2 * (width + 1), device=self.llm.device)
            mask_BC = self._columns[: width + 1] >= (width - self._lengths_B)[:, None]
        output = self.llm.model(
            input_ids=self._tokens_B[:, None],
            attention_mask=mask_BC,
            position_ids=self._lengths_B[:, None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        slots.advance()
        pieces, self._tokens_B = self._take(self._running, output.logits[:, -1])
        if gone := {slot for slot, piece in enumerate(pieces) if piece is not None and piece.finish is not None}:
            self._leave(gone)
        else:
            self._lengths_B = self._lengths_B + 1
        return [piece for piece in pieces if piece is not None]

    def _take(self, rows: list[Row], logits_NV: Tensor) -> tuple[list[Piece | None], Tensor]:
        """Choose each row's next token: of each, what there is to tell, and all of them, int64 [N]."""
        tokens_N = choose(logits_NV, [row.choice for row in rows])
        scored = [place for place, row in enumerate(rows) if row.job.logprobs is not None]
        scores: dict[int, ScoredToken] = {}
        if scored:
            places = torch.tensor(scored, device=logits_NV.device)
            num_top = [rows[place].job.logprobs or 0 for place in scored]
            scores = dict(zip(scored, score(logits_NV[places], tokens_N[places], num_top), strict=True))
        return [
            row.record(token, scores.get(place))
            for place, (row, token) in enumerate(zip(rows, tokens_N.tolist(), strict=True))
        ], tokens_N

    def _leave(self, gone: set[int]) -> None:
        order = self._slots.remove(gone)
        self._running = [self._running[slot] for slot in order]
        self._rows_changed()

    def _rows_changed(self) -> None:
        """Lay the running rows' last tokens and lengths out anew, as the slots hold them."""
        last = [row.new[-1] for row in self._running]
        self._tokens_B = torch.tensor(last, dtype=torch.long, device=self.llm.device)
        self._lengths_B = torch.from_numpy(self._slots.lengths_B.copy()).to(self.llm.device)

    @torch.inference_mode()
    def _tokens_that_fit(self) -> int:
        """Tokens whose keys and values the device has memory for, by those of one token."""
        cache = self._caches.prefill()
        ids_11 = torch.zeros(1, 1, dtype=torch.long, device=self.llm.device)
        self.llm.model(input_ids=ids_11, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in prefilled(cache))
        if self.llm.device.type == "cuda":
            room = int(GPU_CACHE_SHARE * torch.cuda.mem_get_info(self.llm.device)[0])
        else:
            room = CPU_CACHE_BYTES
        return max(1, room // token_bytes)


def _keep(layer: PrefillLayer, rows: list[int], columns: int) -> None:
    layer.keys = layer.keys[rows][:, :, -columns:]
    layer.values = layer.values[rows][:, :, -columns:]


__all__ = ["Decoder", "Job", "Piece", "Row", "ScoredToken"]
