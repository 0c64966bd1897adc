"""The text encoder f_rm: a Hugging Face bidirectional model and masked pooling (arXiv 2405.03279, section 4).

Shape letters: B texts, T tokens, H encoder width, C width of the pooled vector (H times the parts pooled).
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from recipe_ray.config import Pooling
from recipe_ray.errors import ConfigError, ModelError
from recipe_ray.model.hub import is_causal, layers_of, loading, model_source
from recipe_ray.presets import ROBERTA
from recipe_ray.text import canonical

# int32, one text's. Arrays and not lists: thousands of lists at a time set off collections of Python's garbage, each of
# which looks at every object there is and takes as long as tokenising itself.
TokenIds: TypeAlias = npt.NDArray[np.int32]


class TextEncoder(nn.Module):
    """Pools the token outputs of a bidirectional encoder into one vector a text.

    Args:
        model: the encoder; trained with everything else.
        tokenizer: its tokenizer.
        pooling: the parts, in the order in which they are concatenated.

    Raises:
        ConfigError: `pooler` is asked of an encoder that has no pooler output.
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, pooling: Sequence[Pooling]) -> None:
        super().__init__()
        self.model = cast(Any, model)
        self.tokenizer = tokenizer
        self.pooling = tuple(pooling)
        self.frozen_names: frozenset[str] = frozenset()  # of parameters that stay as they were pretrained
        if backend := getattr(tokenizer, "backend_tokenizer", None):  # its file may say both; all of a text is wanted
            backend.no_padding()
            backend.no_truncation()
        if "pooler" in self.pooling and getattr(model, "pooler", None) is None:
            raise ConfigError(f"pooling names 'pooler', but {type(model).__name__} has none; leave it out")

    def freeze_below(self, num_layers: int) -> None:
        """From now on train so many of the top layers alone, and the pooler where there is one.

        Behind what is frozen no graph is kept, but for the sentinel's, whose vectors enter at the bottom.

        Raises:
            ConfigError: the encoder has fewer layers.
        """
        layers = layers_of(self.model)
        if num_layers > len(layers):
            raise ConfigError(
                f"trained_encoder_layers is {num_layers}, but {type(self.model).__name__} has {len(layers)} layers; "
                f"give at most {len(layers)}"
            )
        self.requires_grad_(False)
        for module in (*layers[len(layers) - num_layers :], getattr(self.model, "pooler", None)):
            if module is not None:
                module.requires_grad_(True)
        self.frozen_names = frozenset(name for name, one in self.named_parameters() if not one.requires_grad)

    @property
    def hidden_width(self) -> int:
        """H."""
        return int(self.model.config.hidden_size)

    @property
    def width(self) -> int:
        """C, the width of the pooled vector."""
        return self.hidden_width * len(self.pooling)

    @property
    def max_tokens(self) -> int:
        """The longest text in tokens; positions of RoBERTa and its kin begin behind the padding id."""
        positions = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        padding_id = getattr(positions, "padding_idx", None)
        return int(self.model.config.max_position_embeddings) - (0 if padding_id is None else padding_id + 1)

    def tokenize(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids with the encoder's special tokens, of each text in its canonical form.

        Of a text that is too long the end is kept: the question.
        """
        if not texts:
            return []
        limit = self.max_tokens
        return [
            ids if len(ids) <= limit else np.concatenate([ids[:1], ids[-(limit - 1) :]])
            for ids in self._whole([canonical(text) for text in texts])
        ]

    def _whole(self, texts: list[str]) -> Iterator[TokenIds]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:  # a tokenizer written in Python
            all_ids = iter(self.tokenizer(texts, truncation=False, verbose=False)["input_ids"])
        else:  # masks and offsets, which nothing reads, take a quarter of the time of `self.tokenizer`
            all_ids = (encoding.ids for encoding in backend.encode_batch_fast(texts))
        return (np.array(ids, np.int32) for ids in all_ids)

    def pad(self, token_ids: Sequence[TokenIds], *, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Right-padded ids and mask, both int64 [B, T], on the encoder's device unless another is given."""
        lengths_B = np.fromiter(map(len, token_ids), np.int64, len(token_ids))
        mask_BT = np.arange(lengths_B.max()) < lengths_B[:, None]
        ids_BT = np.full(mask_BT.shape, int(self.model.config.pad_token_id or 0))
        ids_BT[mask_BT] = np.concatenate(token_ids)
        device = device or self.model.device
        return torch.from_numpy(ids_BT).to(device), torch.from_numpy(mask_BT.astype(np.int64)).to(device)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Pooled vectors [B, C] of padded token ids."""
        return self._pool(self.model(input_ids=ids_BT, attention_mask=mask_BT), mask_BT)

    def embed(self, embeddings_BTH: Tensor) -> Tensor:
        """Pooled vectors [B, C] of embedding vectors without tokens.

        The encoder adds its position embeddings and embedding LayerNorm, as it does to every text (the authors' code
        enters behind both); so the sentinel lives where texts live.
        """
        mask_BT = torch.ones(embeddings_BTH.shape[:2], dtype=torch.long, device=embeddings_BTH.device)
        return self._pool(self.model(inputs_embeds=embeddings_BTH, attention_mask=mask_BT), mask_BT)

    def _pool(self, output: Any, mask_BT: Tensor) -> Tensor:
        pooler_BH = output.pooler_output if "pooler" in self.pooling else None
        return pool(output.last_hidden_state, mask_BT, self.pooling, pooler_BH)


def pool(hidden_BTH: Tensor, mask_BT: Tensor, parts: Sequence[Pooling], pooler_BH: Tensor | None = None) -> Tensor:
    """Concatenate poolings over the tokens that are no padding: [B, T, H] and [B, T] to [B, C]."""
    padding_BT1 = mask_BT[..., None] == 0
    pooled = []
    for part in parts:
        if part == "max":
            pooled.append(hidden_BTH.masked_fill(padding_BT1, -torch.inf).amax(1))
        elif part == "min":
            pooled.append(hidden_BTH.masked_fill(padding_BT1, torch.inf).amin(1))
        elif part == "mean":
            pooled.append(hidden_BTH.masked_fill(padding_BT1, 0).sum(1) / mask_BT.sum(1, keepdim=True))
        else:
            assert pooler_BH is not None  # TextEncoder refuses encoders without one
            pooled.append(pooler_BH)
    return torch.cat(pooled, -1)


def load_encoder(name: str, pooling: Sequence[Pooling]) -> TextEncoder:
    """Load a pretrained encoder in float32 by any of its names (`hub`).

    Raises:
        ModelError: not there or unreadable.
        ConfigError: it lacks what `pooling` names.
    """
    source = model_source(name, "encoder")
    with loading(name, "encoder"):
        model = AutoModel.from_pretrained(source, dtype=torch.float32, **_pooler_option(source, pooling))
        tokenizer = AutoTokenizer.from_pretrained(source)
    return TextEncoder(model, tokenizer, pooling)


def empty_encoder(directory: str, pooling: Sequence[Pooling]) -> TextEncoder:
    """The encoder that a directory's config describes, in float32, with weights still to be filled in.

    Raises:
        ModelError: not there or unreadable.
        ConfigError: it lacks what `pooling` names.
    """
    with loading(directory, "encoder"):
        config = AutoConfig.from_pretrained(directory)
        model = AutoModel.from_config(config, dtype=torch.float32, **_pooler_option(directory, pooling))
        tokenizer = AutoTokenizer.from_pretrained(directory)
    return TextEncoder(model, tokenizer, pooling)


def check_encoder(name: str) -> None:
    """Refuse what is no bidirectional encoder, by its configuration alone.

    Raises:
        ModelError: not there, unreadable, or a causal LM.
    """
    source = model_source(name, "encoder")
    with loading(name, "encoder"):
        architecture = AutoConfig.from_pretrained(source).model_type
    if is_causal(architecture):
        raise ModelError(
            f"encoder {name}: is a causal LM ({architecture}), of which the first tokens see none of the rest; "
            f"give a bidirectional encoder such as {ROBERTA}"
        )


def _pooler_option(source: str, pooling: Sequence[Pooling]) -> dict[str, bool]:
    """BERT's kin build an untrained pooler unless told not to; parameters that nothing uses would stall DDP."""
    has_pooler = AutoConfig.from_pretrained(source).model_type in ("bert", "roberta", "xlm-roberta", "camembert")
    return {"add_pooling_layer": False} if has_pooler and "pooler" not in pooling else {}
