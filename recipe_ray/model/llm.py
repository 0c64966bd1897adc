"""The frozen LLM: any Hugging Face causal LM, prefixed through its input embeddings, never changed.

Shape letters: B rows, T padded length, A answer length, P virtual tokens, D LLM width, V vocabulary.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from recipe_ray.config import Precision, PromptPosition
from recipe_ray.errors import ConfigError, EditorError, ModelError
from recipe_ray.model.chat import Placed, place_text
from recipe_ray.model.hub import computes_in_bfloat16, is_bidirectional, layers_of, loading, model_source, pick_device
from recipe_ray.model.prefix import PaddedRows, pad_rows, start_in_text

# Shapes of products of matrices that come again: a CPU compiles each new one.
COLUMNS_MULTIPLE = 8
TOKENS_MULTIPLE = 16
UNBOUNDED_CONTEXT = 2**20  # for models that state no limit

LLMDtype = Literal["auto", "bfloat16", "float16", "float32"]
Quantization = Literal["int8", "int4"]
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What the LLM gave for one prompt.

    Attributes:
        text: the new text, cut before the stop text.
        token_ids: the new tokens as generated, end-of-sequence and stop text included.
        num_prompt_tokens: tokens of the prompt, without virtual tokens.
        finish_reason: `stop` at a stop text or end-of-sequence, `length` at the limit.
    """

    text: str
    token_ids: list[int]
    num_prompt_tokens: int
    finish_reason: Literal["stop", "length"]


class FrozenLLM:
    """A causal LM in evaluation mode whose parameters take no gradient.

    Args:
        model: the LM; its weights are left alone, its `requires_grad` flags and generation config are cleared.
        tokenizer: its tokenizer; needs no padding token.
        name: how messages and tables call it.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
        self.model = cast(Any, model).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.embedding: nn.Module = model.get_input_embeddings()
        self.eos_token_ids = _eos_token_ids(self.model, tokenizer)
        # generate() fills what it is not told from here, such as a repetition penalty that sees no embedded prompt.
        self.model.generation_config = GenerationConfig()
        self._saves_memory = False

    @property
    def device(self) -> torch.device:
        """Where the LM computes."""
        return cast(torch.device, self.model.device)

    @property
    def width(self) -> int:
        """D, the width of the input embeddings."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def max_length(self) -> int:
        """Context in tokens, virtual tokens and answer included."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or UNBOUNDED_CONTEXT)

    def save_memory(self) -> None:
        """Keep no activations on the way forward, compute them again on the way back (gradient checkpointing).

        transformers does so in training mode alone; what that mode would change beside, dropout, is turned off.
        """
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for name in ("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout"):
            if getattr(self.model.config, name, 0):
                setattr(self.model.config, name, 0.0)
        if hasattr(self.model, "activation_checkpointing_enable"):
            self.model.activation_checkpointing_enable()
        else:  # as transformers 5.17 calls it
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.train()
        self._saves_memory = True

    def shard(self) -> None:
        """Spread the layers' weights over the workers of the default process group (FSDP2), gathered as each computes.

        Embeddings and head stay whole: prompts are laid among embeddings outside the layers.
        """
        for layer in layers_of(self.model):
            fully_shard(layer)

    @property
    def end_token_id(self) -> int:
        """The token that ends an answer: the tokenizer's own, which of chat models is that of a turn.

        Raises:
            ModelError: the LLM has none.
        """
        own = self.tokenizer.eos_token_id
        if own is None and not self.eos_token_ids:
            raise ModelError(f"llm {self.name}: names no token that ends a text; set answer_eos to false")
        return int(own if own is not None else self.eos_token_ids[0])

    def check_prompt_width(self, width: int) -> None:
        """Refuse continuous prompts that were made for an LLM of another width.

        Raises:
            EditorError: naming both widths.
        """
        check_prompt_width(self.name, self.width, width)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a prompt, with BOS where the tokenizer adds one."""
        return cast("list[int]", self.tokenizer(text)["input_ids"])

    def tokenize_answer(self, text: str) -> list[int]:
        """Token ids of an answer that continues a prompt: no special tokens."""
        return cast("list[int]", self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def pad(
        self,
        token_ids: Sequence[Sequence[int]],
        num_virtual_tokens: Sequence[int],
        position: PromptPosition,
        *,
        device: torch.device | None = None,
    ) -> PaddedRows:
        """`pad_rows` for this LM's tokenizer and, unless another is given, its device."""
        return pad_rows(
            token_ids,
            num_virtual_tokens=num_virtual_tokens,
            starts=[start_in_text(ids, position, self.tokenizer.bos_token_id) for ids in token_ids],
            device=device or self.device,
        )

    def answer_logits(self, rows: PaddedRows, prompts_RPD: Tensor | None, *, num_answer_tokens: int) -> Tensor:
        """Logits [B, A, V] that predict the last A tokens of every row; no others are computed."""
        output = self.model(
            inputs_embeds=rows.embed(self.embedding, prompts_RPD),
            attention_mask=rows.mask_BT,
            position_ids=rows.position_ids_BT,
            use_cache=False,
            logits_to_keep=num_answer_tokens + 1,
        )
        return cast(Tensor, output.logits[:, :-1])

    def columns_before_prompts(self, rows: PaddedRows, num_columns: int) -> int:
        """Columns that hold no continuous prompt yet and none of the last ones: to be read without gradient."""
        if self._saves_memory:  # a cache and recomputed activations do not go together
            return 0
        before = min(int(rows.slots_RP.min()), rows.ids_BT.shape[1] - num_columns)
        return before - before % COLUMNS_MULTIPLE

    def token_logits(self, rows: PaddedRows, prompts_RPD: Tensor | None, mask_RA: Tensor) -> Tensor:
        """Logits [N, V] that predict those of the rows' last A tokens where the mask is 1, a row behind another.

        What stands before every row's continuous prompt is read without gradient, and no other token reaches the head.

        Args:
            rows: R rows, each with a continuous prompt or none.
            prompts_RPD: the prompts; None for the unedited LLM.
            mask_RA: 1 where a token is to be predicted; A is shorter than every row.
        """
        embeds_BTD = rows.embed(self.embedding, prompts_RPD)
        num_columns = mask_RA.shape[1] + 1
        before = 0 if prompts_RPD is None else self.columns_before_prompts(rows, num_columns)
        cache = None
        if before:
            with torch.no_grad():
                cache = self.model.base_model(
                    inputs_embeds=embeds_BTD[:, :before],
                    attention_mask=rows.mask_BT[:, :before],
                    position_ids=rows.position_ids_BT[:, :before],
                    use_cache=True,
                ).past_key_values
        read_RA = functional.pad(mask_RA.bool(), (0, 1))  # a token is predicted one column before it stands
        num_read = int(mask_RA.sum())
        padding = (0, 0, 0, -num_read % TOKENS_MULTIPLE)
        with _head_reads(self.model, lambda hidden_RAD: functional.pad(hidden_RAD[read_RA], padding)[None]):
            output = self.model(
                inputs_embeds=embeds_BTD[:, before:],
                attention_mask=rows.mask_BT,
                position_ids=rows.position_ids_BT[:, before:],
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=num_columns,
            )
        return cast(Tensor, output.logits[0, :num_read])

    def generate(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[npt.NDArray[np.floating[Any]] | None],
        *,
        max_new_tokens: int,
        position: PromptPosition = "first",
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        """`generate_placed` for B texts, whose continuous prompts stand at `position`."""
        rows = [place_text(self.tokenizer, prompt, position) for prompt in prompts]
        return self.generate_placed(rows, prefixes, max_new_tokens=max_new_tokens, stop=stop)

    @torch.inference_mode()
    def generate_placed(
        self,
        placed: Sequence[Placed],
        prefixes: Sequence[npt.NDArray[np.floating[Any]] | None],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        """Go on greedily in one batch, rows with and without a continuous prompt side by side.

        Args:
            placed: B texts or chats, and where their continuous prompts stand.
            prefixes: B continuous prompts [P, D], None for the unedited LLM.
            max_new_tokens: at most so many a row.
            stop: texts before which an answer ends.
        """
        given = [prefix for prefix in prefixes if prefix is not None]
        for prefix in given:
            self.check_prompt_width(prefix.shape[-1])
        rows = pad_rows(
            [one.token_ids for one in placed],
            num_virtual_tokens=[0 if prefix is None else len(prefix) for prefix in prefixes],
            starts=[one.start for one in placed],
            device=self.device,
        )
        stacked = torch.from_numpy(np.stack(given).astype(np.float32)).to(self.device) if given else None
        criteria = StoppingCriteriaList([_StopAtText(self.tokenizer, stop)] if stop else [])
        output_BN = self.model.generate(
            inputs_embeds=rows.embed(self.embedding, stacked),
            attention_mask=rows.mask_BT,
            generation_config=GenerationConfig(
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=self.eos_token_ids or None,
                pad_token_id=self.eos_token_ids[0] if self.eos_token_ids else 0,
            ),
            stopping_criteria=criteria,
        )
        return [
            self._finish(new, len(one.token_ids), stop) for new, one in zip(output_BN.tolist(), placed, strict=True)
        ]

    def _finish(self, token_ids: list[int], num_prompt_tokens: int, stop: Sequence[str]) -> Generation:
        """Cut one row where its own answer ends: other rows of the batch may have gone on."""
        finish: Literal["stop", "length"] = "length"
        for end, token in enumerate(token_ids):
            if token in self.eos_token_ids:
                token_ids, finish = token_ids[: end + 1], "stop"
                break
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True)
        if cut := [place for place in (text.find(part) for part in stop) if place >= 0]:
            text, finish = text[: min(cut)], "stop"
            token_ids = self._until_stop(token_ids, stop)
        return Generation(text=text, token_ids=token_ids, num_prompt_tokens=num_prompt_tokens, finish_reason=finish)

    def _until_stop(self, token_ids: list[int], stop: Sequence[str]) -> list[int]:
        for end in range(1, len(token_ids) + 1):
            text = self.tokenizer.decode(token_ids[:end], skip_special_tokens=True)
            if any(part in text for part in stop):
                return token_ids[:end]
        return token_ids


@contextlib.contextmanager
def _head_reads(model: Any, choose: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the LM's head read only a part of what it is given; what a family does with logits behind it stays."""
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: (choose(given[0]),))
    try:
        yield
    finally:
        hook.remove()


class _StopAtText(StoppingCriteria):
    """Ends a row once its new text holds a stop text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        # A token is at least a byte, so a stop text that the newest token completes lies within this many tokens.
        self.tail = max(len(text.encode()) for text in stop) + 1

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, -self.tail :], skip_special_tokens=True)
        return torch.tensor(
            [any(part in text for part in self.stop) for text in texts], dtype=torch.bool, device=input_ids.device
        )


def load_llm(
    name: str,
    device: str = "auto",
    *,
    dtype: LLMDtype = "auto",
    quantization: Quantization | None = None,
    trust_remote_code: bool = False,
    safetensors_only: bool = False,
) -> FrozenLLM:
    """Load a causal LM by any of its names (`hub`).

    Args:
        name: which.
        device: auto, cpu, cuda or cuda:N.
        dtype: of its weights; auto is bfloat16 on a GPU and float32 on a CPU.
        quantization: of its linear layers, by bitsandbytes; everything else keeps `dtype`.
        trust_remote_code: run Python that its repository brings along.
        safetensors_only: refuse weights in other formats, which are pickles.

    Raises:
        ModelError: not there, not a causal LM, or unreadable.
        ConfigError: a device or a package that this machine lacks.
    """
    where = pick_device(device)
    source = model_source(name, "llm")
    weights = _DTYPES.get(dtype, torch.bfloat16 if where.type == "cuda" else torch.float32)
    options: dict[str, Any] = {"use_safetensors": True} if safetensors_only else {}
    if quantization is not None:
        options |= {"quantization_config": _bitsandbytes(quantization, weights), "device_map": {"": where}}
    with loading(name, "LLM"):
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=weights, trust_remote_code=trust_remote_code, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    # Quantised weights are put there while they are read, and refuse to move.
    return FrozenLLM(model if quantization is not None else model.to(where), tokenizer, name=name)


def load_llm_to_train(name: str, precision: Precision, device: torch.device) -> FrozenLLM:
    """Load a causal LM as a training on this device reads it fastest.

    On a CPU, without casting weights at every step a pass forward took an eighth less time, and over short rows passes
    forward and backward took 1.4 times as long with fused attention as with products of matrices.

    Raises:
        ModelError, ConfigError: as `load_llm`.
    """
    llm = load_llm(name, str(device), dtype="bfloat16" if computes_in_bfloat16(precision, device) else "auto")
    if device.type == "cpu":
        llm.model.set_attn_implementation("eager")
    return llm


def _bitsandbytes(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How to quantise: LLM.int8(), or NF4 with scales quantised too."""
    for package in ("bitsandbytes", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"quantization is {quantization}, which needs the package {package}; "
                "pip install bitsandbytes accelerate, or leave quantization out"
            )
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def llm_width(name: str) -> int:
    """D of an LLM, from its configuration alone.

    Raises:
        ModelError: not there, unreadable, or no causal LM.
    """
    source = model_source(name, "llm")
    with loading(name, "LLM"):
        config = AutoConfig.from_pretrained(source).get_text_config()
    if is_bidirectional(config.model_type):
        raise ModelError(f"llm {name}: is a bidirectional encoder ({config.model_type}); give a causal LM")
    return int(config.hidden_size)


def check_prompt_width(llm: str, llm_width: int, prompt_width: int) -> None:
    """Refuse continuous prompts that were made for an LLM of another width.

    Raises:
        EditorError: naming both widths.
    """
    if prompt_width != llm_width:
        raise EditorError(
            f"LLM {llm} has width {llm_width}, but the editor's prompts have width {prompt_width}; "
            "serve the LLM the editor was trained for, or train an editor for this one"
        )


def _eos_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What ends a text: chat models name several tokens in their generation config."""
    stated = model.generation_config.eos_token_id if model.generation_config else None
    if stated is None:
        stated = tokenizer.eos_token_id
    if stated is None:
        return []
    return [stated] if isinstance(stated, int) else list(stated)
