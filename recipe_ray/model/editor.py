"""The editor: everything RECIPE trains, its encoding of facts and queries, and its directory on disk.

Shape letters: B queries, F facts, C pooled width, K key width, P virtual tokens, D LLM width, S sentinel tokens.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from recipe_ray.config import EditorConfig, EditorIdentity, editor_config_from_dict
from recipe_ray.errors import ConfigError, EditorError, ModelError
from recipe_ray.model.embedding import load_embedding
from recipe_ray.model.encoder import TextEncoder, TokenIds, empty_encoder, load_encoder
from recipe_ray.model.hub import pick_device
from recipe_ray.model.llm import FrozenLLM
from recipe_ray.model.prefetch import prefetched
from recipe_ray.model.prompt_encoder import PromptEncoder, StatementPromptEncoder, StatementReader
from recipe_ray.model.tensors import WEIGHTS_FILE, read_tensors, read_vector, write_whole
from recipe_ray.model.transfer import HostRows, Sender
from recipe_ray.published import CARD_FILE, published_editor, published_names

ENCODER_FOLDER = "encoder"
SENTINEL_TENSOR = "sentinel_key"  # derived from the weights; kept so that the identity is read without a model
FROZEN = "frozen_encoder"  # in the card: the digest of the encoder's frozen tensors
SENTINEL_INIT_RANGE = 0.05  # of the authors' code
# Of inference, padding included: bounds memory, whatever the lengths. On a CPU larger batches leave the cache: 8192
# took a fifth longer than 2048. An H100 waits with smaller ones for the host: 16384 took a fifth longer than 32768.
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 32768}
CPU = torch.device("cpu")
STATEMENTS_PER_BATCH = 256  # read by a prompt encoder together
TEXTS_PER_CHUNK = 4096  # tokenised together, while the chunk before is computed


class Head(nn.Module):
    """head(c) = ReLU(W2 x + b2) + x with x = W1 c + b1."""

    def __init__(self, pooled_width: int, key_width: int) -> None:
        super().__init__()
        self.project = nn.Linear(pooled_width, key_width)
        self.transform = nn.Linear(key_width, key_width)

    def forward(self, pooled_BC: Tensor) -> Tensor:
        """[B, C] to [B, K]."""
        x_BK = self.project(pooled_BC)
        return cast(Tensor, functional.relu(self.transform(x_BK)) + x_BK)


class Editor(nn.Module):
    """Retriever, prompt encoder and Knowledge Sentinel.

    Queries carry the similarity's scale, so `queries_BK @ keys_FK.T` are the logits of the contrastive losses and the
    scores of retrieval alike: q·k/√K for `inner_product`, the learned temperature times the cosine for `cosine`.
    """

    threshold: Tensor  # scalar float32, of an editor without sentinel

    def __init__(self, config: EditorConfig, encoder: TextEncoder, *, llm_width: int) -> None:
        super().__init__()
        self.config = config
        self.llm_width = llm_width
        self.encoder = encoder
        if config.trained_encoder_layers is not None:
            encoder.freeze_below(config.trained_encoder_layers)
        self.key_head = Head(encoder.width, config.key_width)
        self.query_head = Head(encoder.width, config.key_width)
        # One start for both heads: then a query already lies near the key of a like statement, since a random
        # projection keeps inner products; two independent starts would hide what the encoder knows.
        self.query_head.load_state_dict(self.key_head.state_dict())
        self.prompt_encoder: PromptEncoder | StatementPromptEncoder | None = None
        if config.num_virtual_tokens:
            kind = PromptEncoder if config.prompt_source == "key" else StatementPromptEncoder
            self.prompt_encoder = kind(config.key_width, config.num_virtual_tokens, llm_width)
        self._reader: tuple[StatementReader, ...] = ()  # in a tuple, so that nn.Module does not look inside
        if config.num_sentinel_tokens:
            sentinel_SH = torch.empty(config.num_sentinel_tokens, encoder.hidden_width)
            self.sentinel_SH = nn.Parameter(sentinel_SH.uniform_(-SENTINEL_INIT_RANGE, SENTINEL_INIT_RANGE))
        else:
            self.register_buffer("threshold", torch.tensor(torch.inf))
        if config.similarity == "cosine":
            self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    @property
    def device(self) -> torch.device:
        """Where the editor computes."""
        return self.key_head.project.weight.device

    def keys(self, pooled_FC: Tensor) -> Tensor:
        """Keys [F, K] of pooled statements."""
        keys_FK = self.key_head(pooled_FC)
        return functional.normalize(keys_FK, dim=-1) if self.config.similarity == "cosine" else keys_FK

    def queries(self, pooled_BC: Tensor) -> Tensor:
        """Queries [B, K] of pooled prompts, scaled."""
        queries_BK = self.query_head(pooled_BC)
        if self.config.similarity == "cosine":
            return functional.normalize(queries_BK, dim=-1) * self.log_scale.exp()
        return cast(Tensor, queries_BK / math.sqrt(self.config.key_width))

    def sentinel(self) -> Tensor:
        """Θ [K], the sentinel's key; an editor without a sentinel has none."""
        return self.keys(self.encoder.embed(self.sentinel_SH[None]))[0]

    def prompts(self, keys_FK: Tensor, tokens: tuple[Tensor, Tensor] | None) -> Tensor:
        """Continuous prompts [F, P, D].

        Args:
            keys_FK: of F statements.
            tokens: ids and mask [F, N] of the statements, as `StatementReader.pad` gives them; read only where prompts
                are made of statements.
        """
        if self.prompt_encoder is None:
            return keys_FK.new_empty(len(keys_FK), 0, self.llm_width)
        inputs_FK = self.prompt_inputs(keys_FK)
        if isinstance(self.prompt_encoder, PromptEncoder):
            return cast(Tensor, self.prompt_encoder(inputs_FK))
        assert tokens is not None
        ids_FN, mask_FN = tokens
        embeds_FND = self.reader.embed(ids_FN).to(keys_FK.device)
        return cast(Tensor, self.prompt_encoder(inputs_FK, embeds_FND, mask_FN.to(keys_FK.device)))

    @property
    def reader(self) -> StatementReader:
        """The LLM's tokenizer and embeddings, loaded when they are first asked for unless they were given.

        Raises:
            ModelError: the LLM that the editor was trained for is not there.
        """
        if not self._reader:
            try:
                self.read_with(StatementReader(*load_embedding(self.config.llm)))
            except ModelError as error:
                raise ModelError(f"{error}; this editor reads statements with the embeddings of that LLM") from error
        return self._reader[0]

    def read_with(self, reader: StatementReader) -> None:
        """Read statements with an LLM's embeddings that are loaded already."""
        self._reader = (reader,)

    def prompt_inputs(self, keys_FK: Tensor) -> Tensor:
        """Keys with entries of about unit size, as the prompt encoder's layers expect."""
        return keys_FK * math.sqrt(self.config.key_width) if self.config.similarity == "cosine" else keys_FK

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Without gradients and, in the middle of training too, without dropout."""
        training = self.training
        if training:  # to tell every module costs a fifth of a short query
            self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            if training:
                self.train()

    def encode_facts(
        self, statements: Sequence[str], dtype: npt.DTypeLike = np.float32
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Keys [F, K] and continuous prompts [F, P, D] of statements; computed in bfloat16 on a GPU.

        Args:
            statements: F texts.
            dtype: of what is given, float32 or float16, in which what is too large is infinite.
        """
        device, config = self.device, self.config
        precision = torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda")
        keys = HostRows(len(statements), (config.key_width,), dtype, device)
        prompts = HostRows(len(statements), (config.num_virtual_tokens, self.llm_width), dtype, device)
        with self._inference(), precision:
            for start, order, batches in self._pooled_chunks(statements):
                # All of a chunk is queued before the first result is waited for.
                chunk_keys = [self.keys(pooled_BC) for pooled_BC in batches]
                keys.put(start, torch.cat(chunk_keys), order)
                if config.prompt_source == "key":
                    prompts.put(start, torch.cat([self.prompts(keys_BK, None) for keys_BK in chunk_keys]), order)
                    continue
                keys_FK = torch.cat(chunk_keys)[order]
                read = self._read(keys_FK, statements[start : start + len(keys_FK)])
                prompts.put(start, read, torch.arange(len(read), device=device))
        return keys.array(), prompts.array()

    def prompts_of(self, keys_FK: Tensor, statements: Sequence[str]) -> npt.NDArray[np.float32]:
        """Continuous prompts [F, P, D], float32, of statements whose keys are there already."""
        with self._inference():
            return self._read(keys_FK.to(self.device), statements).float().cpu().numpy()

    def _read(self, keys_FK: Tensor, statements: Sequence[str]) -> Tensor:
        if self.config.prompt_source == "key":
            return self.prompts(keys_FK, None)
        token_ids = self.reader.tokenize(statements)
        made = [
            self.prompts(keys_FK[start:end], self.reader.pad(token_ids[start:end]))
            for start in range(0, len(token_ids), STATEMENTS_PER_BATCH)
            for end in (start + STATEMENTS_PER_BATCH,)
        ]
        return torch.cat(made) if made else keys_FK.new_empty(0, self.config.num_virtual_tokens, self.llm_width)

    def encode_queries(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Queries [B, K], float32, scaled."""
        encoded = HostRows(len(queries), (self.config.key_width,), np.float32, self.device)
        with self._inference():
            for start, order, batches in self._pooled_chunks(queries):
                encoded.put(start, torch.cat([self.queries(pooled_BC) for pooled_BC in batches]), order)
        return encoded.array()

    def _pooled_chunks(self, texts: Sequence[str]) -> Iterator[tuple[int, Tensor, Iterator[Tensor]]]:
        """Yields a chunk of the texts at a time: where it starts, its order, and the pooled vectors of its batches.

        The order, int64 [texts of the chunk], is where among those vectors each text's is.
        """
        send = Sender(self.device)
        starts = range(0, len(texts), TEXTS_PER_CHUNK)

        def lay_out(start: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
            token_ids = self.encoder.tokenize(texts[start : start + TEXTS_PER_CHUNK])
            batches = self.batches(token_ids)
            order = np.argsort([row for batch in batches for row in batch])
            padded = [self.encoder.pad([token_ids[row] for row in batch], device=CPU) for batch in batches]
            return send(torch.from_numpy(order)), [(send(ids_BT), send(mask_BT)) for ids_BT, mask_BT in padded]

        chunks = prefetched(lay_out, starts) if len(starts) > 1 else map(lay_out, starts)
        for start, (order, padded) in zip(starts, chunks, strict=True):
            yield start, order, (self.encoder(ids_BT, mask_BT) for ids_BT, mask_BT in padded)

    def batches(self, token_ids: Sequence[TokenIds]) -> list[list[int]]:
        """Rows of texts of like length, together no more than TOKENS_PER_BATCH with their padding."""
        limit = TOKENS_PER_BATCH.get(self.device.type, TOKENS_PER_BATCH["cpu"])
        batches: list[list[int]] = []
        for row in sorted(range(len(token_ids)), key=lambda row: -len(token_ids[row])):
            if not batches or len(token_ids[batches[-1][0]]) * (len(batches[-1]) + 1) > limit:
                batches.append([])
            batches[-1].append(row)
        return batches

    def fingerprint(self) -> str:
        """Hex digest over shape and weights: equal fingerprints give equal keys."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        _digest_tensors(digest, self.state_dict())
        return digest.hexdigest()[:32]

    def frozen(self) -> dict[str, Tensor]:
        """What of the encoder is not trained, by its name in the state."""
        names = {f"encoder.{name}" for name in self.encoder.frozen_names}
        return {name: tensor for name, tensor in self.state_dict().items() if name in names}

    def frozen_digest(self) -> str | None:
        """Hex digest over what is not trained, which tells one pretrained encoder from others; None: all is trained."""
        if self.config.trained_encoder_layers is None:
            return None
        digest = hashlib.sha256()
        _digest_tensors(digest, self.frozen())
        return digest.hexdigest()[:32]

    def identity(self) -> EditorIdentity:
        """What tables keep of this editor.

        Raises:
            EditorError: an ablation, whose facts no table holds.
        """
        _check_servable(self.config, "this editor")
        sentinel_K = self.sentinel_array()
        card = _Card(config=self.config, fingerprint=self.fingerprint(), llm_width=self.llm_width)
        return card.identity(sentinel_K)

    def sentinel_array(self) -> npt.NDArray[np.float32]:
        """Θ [K], float32, encoded now."""
        with self._inference():
            return self.sentinel().float().cpu().numpy()

    def thresholds(self, queries_BK: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[B], what a fact's score must exceed for it to be applied: the similarity to Θ, or the one threshold."""
        if self.config.num_sentinel_tokens:
            return queries_BK @ self.sentinel_array()
        return np.full(len(queries_BK), self.threshold.item(), np.float32)

    def load_weights(self, directory: str | Path) -> None:
        """Take over the weights that `save` wrote for an editor of this shape; what is frozen stays.

        Raises:
            EditorError: missing, damaged, of another shape, or trained upon an encoder that is frozen otherwise.
        """
        folder = Path(directory)
        self._check_frozen(folder)
        try:
            weights = read_tensors(folder)
            if self.config.num_sentinel_tokens:
                weights.pop(SENTINEL_TENSOR)
            self.load_state_dict({**weights, **self.frozen()})
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise _unreadable(folder / WEIGHTS_FILE, error) from error

    def _check_frozen(self, folder: Path) -> None:
        wanted, found = _read_card(folder).frozen_digest, self.frozen_digest()
        if found != wanted:
            raise EditorError(
                f"{folder}: was trained upon an encoder {self.config.encoder} whose frozen layers have the digest "
                f"{wanted}, and those of the one here have {found}; give the very weights that it was trained upon"
            )

    def save(
        self,
        directory: str | Path,
        *,
        extra: Mapping[str, Any] | None = None,
        write: Callable[[Mapping[str, Tensor], Path], None] = write_whole,
    ) -> None:
        """Write the editor's directory: card and weights.

        Of an encoder that is all trained, its config and tokenizer too; of one that is partly frozen the card holds the
        name, by which it is loaded, and a digest of what is frozen.

        Args:
            directory: new, or one to write over.
            extra: goes into the card.
            write: how to write the weights.
        """
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        frozen = self.frozen()
        if self.config.trained_encoder_layers is None:
            self.encoder.model.config.save_pretrained(path / ENCODER_FOLDER)
            self.encoder.tokenizer.save_pretrained(path / ENCODER_FOLDER)
        state = {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        if self.config.num_sentinel_tokens:
            weights[SENTINEL_TENSOR] = torch.from_numpy(self.sentinel_array())
        write(weights, path)
        card = {
            "config": self.config.to_dict(),
            "fingerprint": self.fingerprint(),
            "llm_width": self.llm_width,
            **({} if self.config.trained_encoder_layers is None else {FROZEN: self.frozen_digest()}),
            **(extra or {}),
        }
        (path / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n")


def new_editor(config: EditorConfig, llm: FrozenLLM) -> Editor:
    """A fresh editor on a pretrained encoder, its prompts of the size of the LLM's own token embeddings.

    Args:
        config: the editor's shape.
        llm: the LLM that it is for.
    """
    editor = Editor(config, load_encoder(config.encoder, config.pooling), llm_width=llm.width)
    editor.read_with(StatementReader(llm.tokenizer, llm.embedding))
    encoder = editor.prompt_encoder
    if encoder is None:
        return editor
    vocabulary = torch.arange(cast(Any, llm.embedding).num_embeddings)
    with torch.no_grad():
        sample_ND = llm.embedding(vocabulary[:: max(1, len(vocabulary) // 1024)].to(llm.device))
        own = sample_ND.float().std().cpu()
        if isinstance(encoder, PromptEncoder):
            own = own / encoder(torch.randn(256, config.key_width)).std()
        encoder.scale.copy_(own)
    return editor


def load_editor(path: str | Path, device: str = "auto") -> Editor:
    """Load the directory that `Editor.save` wrote, or the published editor of that name, in evaluation mode.

    Raises:
        EditorError: no editor there, damaged, written by another version, or trained upon other weights of its encoder.
        ModelError: the encoder of which it trained the top alone cannot be had.
        ConfigError: a device that this machine lacks.
    """
    where = pick_device(device)
    folder = _folder(path)
    card = _read_card(folder)
    if card.config.trained_encoder_layers is not None:
        encoder = load_encoder(card.config.encoder, card.config.pooling)
    else:
        try:
            encoder = empty_encoder(str(folder / ENCODER_FOLDER), card.config.pooling)
        except (ModelError, ConfigError) as error:
            raise _unreadable(folder / ENCODER_FOLDER, error.__cause__ or error) from error
    editor = Editor(card.config, encoder, llm_width=card.llm_width)
    editor.load_weights(folder)
    if editor.fingerprint() != card.fingerprint:
        raise EditorError(
            f"{folder}: weights of fingerprint {editor.fingerprint()}, but {CARD_FILE} says {card.fingerprint}; "
            "the files are not of one training, copy the whole directory again"
        )
    return editor.to(where).eval()


def read_identity(path: str | Path) -> EditorIdentity:
    """What `Editor.identity` gives, read from the directory without building a model.

    Raises:
        EditorError: no editor there, damaged, or an ablation, whose facts no table holds.
    """
    folder = _folder(path)
    card = _read_card(folder)
    _check_servable(card.config, str(folder))
    try:
        sentinel_K = read_vector(folder, SENTINEL_TENSOR)
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(folder / WEIGHTS_FILE, error) from error
    return card.identity(sentinel_K)


def read_config(path: str | Path) -> EditorConfig:
    """The configuration that an editor was trained with, from its directory.

    Raises:
        EditorError: no editor there.
    """
    return _read_card(_folder(path)).config


def read_fingerprint(path: str | Path) -> str:
    """What `Editor.fingerprint` gives, of an ablation too, from the editor's directory without its weights.

    Raises:
        EditorError: no editor there.
    """
    return _read_card(_folder(path)).fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """The card of an editor's directory, less what only readers want."""

    config: EditorConfig
    fingerprint: str
    llm_width: int
    frozen_digest: str | None = None

    def identity(self, sentinel_K: npt.NDArray[np.float32]) -> EditorIdentity:
        return EditorIdentity(
            fingerprint=self.fingerprint,
            encoder=self.config.encoder,
            llm=self.config.llm,
            llm_width=self.llm_width,
            key_width=self.config.key_width,
            num_virtual_tokens=self.config.num_virtual_tokens,
            sentinel_K=sentinel_K,
        )


def _folder(path: str | Path) -> Path:
    return published_editor(path) or Path(path)


def read_card(path: str | Path) -> dict[str, Any]:
    """All that the card in an editor's directory says.

    Raises:
        EditorError: no editor there.
    """
    folder = _folder(path)
    try:
        card = json.loads((folder / CARD_FILE).read_text())
    except (OSError, ValueError) as error:
        raise EditorError(
            f"{folder}: no trained editor there ({_one_line(error)}); give the directory that jobs/train.py printed, "
            f"or the name of an editor that ships with the package ({', '.join(published_names()) or 'none does'})"
        ) from error
    for name, expected in (("config", dict), ("fingerprint", str), ("llm_width", int)):
        if not isinstance(card, dict) or not isinstance(card.get(name), expected):
            raise EditorError(f"{folder / CARD_FILE}: {name!r} is missing or malformed; train or copy the editor again")
    return cast("dict[str, Any]", card)


def _read_card(folder: Path) -> _Card:
    card = read_card(folder)
    path = folder / CARD_FILE
    try:
        config = editor_config_from_dict(card["config"], place=str(path))
    except ConfigError as error:
        raise _unreadable(path, error) from error
    if config.trained_encoder_layers is not None and not isinstance(card.get(FROZEN), str):
        raise EditorError(f"{path}: {FROZEN!r} is missing or malformed; train or copy the editor again")
    return _Card(
        config=config,
        fingerprint=card["fingerprint"],
        llm_width=card["llm_width"],
        frozen_digest=card.get(FROZEN),
    )


def _check_servable(config: EditorConfig, place: str) -> None:
    for name in ("num_virtual_tokens", "num_sentinel_tokens"):
        if not getattr(config, name):
            raise EditorError(
                f"{place}: an ablation ({name} is 0), which can be evaluated, not served; train one with {name} above 0"
            )


def _unreadable(path: Path, error: BaseException) -> EditorError:
    return EditorError(f"{path}: cannot be read ({_one_line(error)}); train or copy the editor again")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _digest_tensors(digest: "hashlib._Hash", tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
