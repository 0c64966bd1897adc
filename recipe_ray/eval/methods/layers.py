"""The parts of an LLM that editors of weights work on: the MLP's last projection of a layer, in every family alike."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recipe_ray.errors import EditorError
from recipe_ray.model.llm import FrozenLLM

# Of a decoder layer: Llama, Qwen, Mistral, Gemma; GPT-J; GPT-2; OPT.
_PROJECTIONS = ("mlp.down_proj", "mlp.fc_out", "mlp.c_proj", "fc2")


def decoder_layers(llm: FrozenLLM) -> nn.ModuleList:
    """The LLM's decoder layers, first to last."""
    return max((one for one in llm.model.modules() if isinstance(one, nn.ModuleList)), key=len)


def mlp_projection(llm: FrozenLLM, layer: int) -> nn.Module:
    """The projection from the MLP's inner width I to D of a layer; negative numbers count from the last.

    Raises:
        EditorError: no such layer, or a family whose MLP is not known.
    """
    layers = decoder_layers(llm)
    if not -len(layers) <= layer < len(layers):
        raise EditorError(f"LLM {llm.name} has {len(layers)} layers, layer {layer} is asked for; give one it has")
    for path in _PROJECTIONS:
        with contextlib.suppress(AttributeError):
            found = layers[layer].get_submodule(path)
            if isinstance(getattr(found, "weight", None), Tensor) and found.weight.ndim == 2:
                return found
    raise EditorError(
        f"LLM {llm.name} ({llm.model.config.model_type}) keeps its MLP's projection in none of "
        f"{', '.join(_PROJECTIONS)}; editors of weights know Llama, Qwen, Mistral, GPT-J, GPT-2 and OPT"
    )


def weight_DI(projection: nn.Module) -> Tensor:
    """A view of the projection's weight as [D, I]: y = W x. Writing into it changes the LLM."""
    weight: Tensor = projection.weight.data  # type: ignore[assignment]
    return weight.t() if type(projection).__name__ == "Conv1D" else weight


class SavedWeights:
    """Copies of weights, to put back what was to the bit.

    Args:
        modules: whose parameters are kept.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = tuple(modules)
        self._saved: list[list[Tensor]] = []
        for module in self._modules:
            self._saved.append([one.detach().clone() for one in module.parameters(recurse=True)])

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back."""
        for module, saved in zip(self._modules, self._saved, strict=True):
            for parameter, was in zip(module.parameters(recurse=True), saved, strict=True):
                parameter.copy_(was)

    def changed_bytes(self) -> int:
        """Size of the weights that differ from what was saved, a tensor at a time."""
        return sum(
            parameter.numel() * parameter.element_size()
            for module, saved in zip(self._modules, self._saved, strict=True)
            for parameter, was in zip(module.parameters(recurse=True), saved, strict=True)
            if not torch.equal(parameter, was)
        )


@contextlib.contextmanager
def hooked(module: nn.Module, hook: Any, *, before: bool = False) -> Iterator[None]:
    """A forward hook (or, `before`, a pre-hook) for as long as the block runs."""
    handle = module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def inputs_of(
    llm: FrozenLLM, ids: Sequence[Sequence[int]], modules: Mapping[int, nn.Module]
) -> tuple[dict[int, Tensor], Tensor]:
    """What modules read in one pass of the LLM over rows of token ids.

    Returns:
        By the module's number its input [B, T, its width], and which of it is no padding, bool [B, T]: rows end
        together, so that column -1 is the last token of all.
    """
    rows = llm.pad(ids, [0] * len(ids), "first")
    read: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            read[number] = given[0]

        return hook

    with contextlib.ExitStack() as hooks:
        for number, module in modules.items():
            hooks.enter_context(hooked(module, keep(number), before=True))
        llm.answer_logits(rows, None, num_answer_tokens=1)
    return read, rows.mask_BT.bool()


def last_subject_token(llm: FrozenLLM, prompt: str, subject: str) -> int:
    """Index, in the prompt's tokens, of the last token of the subject's last occurrence.

    Raises:
        EditorError: the subject is empty or not in the prompt.
    """
    start = prompt.rfind(subject) if subject else -1
    if start < 0:
        raise EditorError(f"edit {prompt!r}: its subject {subject!r} does not stand in it; give a subject that does")
    end = start + len(subject)
    encoded = llm.tokenizer(prompt, return_offsets_mapping=True)
    covering = [place for place, (begin, stop) in enumerate(encoded["offset_mapping"]) if begin < end and stop > start]
    return covering[-1]
