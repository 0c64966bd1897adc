"""What an editor is made of, and how it is known: configuration that travels with every artefact."""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from recipe_ray.errors import ConfigError

Pooling = Literal["max", "min", "mean", "pooler"]
Similarity = Literal["inner_product", "cosine"]
PromptPosition = Literal["first", "after_bos", "last"]
ChatPosition = Literal["as_text", "user_turn", "assistant_turn"]
PromptSource = Literal["key", "statement"]
Questions = Literal["both", "random", "alternate"]
Precision = Literal["float32", "bfloat16", "auto"]

INVENTED = "invented"  # as data: facts about subjects that do not exist, of `recipe_ray.datasets.wordings`
TESTBED = "testbed"  # the id of the LM and the encoder that ship with the package


# Of a field of `EditorConfig` that came after editors had been written: its default says what those were. What is
# written leaves it out where it has that default, so that their cards can be read and their fingerprints stay.
LATER = {"later": True}


def _among(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name} is {value!r}; give one of {', '.join(get_args(choices))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EditorConfig:
    """Shape of the trained modules.

    Attributes:
        llm: the frozen causal LM: Hugging Face id, path or short name (docs/training.md).
        encoder: the bidirectional encoder: likewise.
        key_width: K, width of keys, queries and sentinel (paper: 4096).
        num_virtual_tokens: P, length of a continuous prompt (paper: 3). 0 is an ablation, to be evaluated and not
            served: the statement's own words are put before the question, and only the retriever is trained.
        num_sentinel_tokens: learned embedding vectors behind the Knowledge Sentinel (paper: 10). 0 is an ablation
            likewise: one threshold for all queries, fitted to tuning edits after training.
        pooling: what is concatenated of the encoder's token outputs (paper: max, min, mean; the authors' code adds the
            pooler output).
        similarity: inner_product divides by the square root of K (paper); cosine normalises keys, queries and sentinel
            and learns the temperature.
        prompt_position: the continuous prompt stands first (the authors' code), after the LLM's BOS token, or last,
            between the text and what follows.
        chat_position: where it stands in a chat: as in a text, before the last turn of the user, or before the
            assistant's turn that answers it.
        prompt_source: what a continuous prompt is made of: the key alone (paper), or the statement's last tokens too,
            as the LLM embeds them.
        trained_encoder_layers: so many of the encoder's top layers are trained, and its pooler where that is pooled;
            all below stays as it was pretrained, and is not saved with the editor. None trains the whole encoder.
    """

    llm: str
    encoder: str
    key_width: int = 4096
    num_virtual_tokens: int = 3
    num_sentinel_tokens: int = 10
    pooling: tuple[Pooling, ...] = ("max", "min", "mean")
    similarity: Similarity = "inner_product"
    prompt_position: PromptPosition = "first"
    chat_position: ChatPosition = dataclasses.field(default="as_text", metadata=LATER)
    prompt_source: PromptSource = dataclasses.field(default="key", metadata=LATER)
    trained_encoder_layers: int | None = dataclasses.field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        for name, least in (("key_width", 1), ("num_virtual_tokens", 0), ("num_sentinel_tokens", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; give {least} or more")
        if self.trained_encoder_layers is not None and self.trained_encoder_layers < 0:
            raise ConfigError(
                f"trained_encoder_layers is {self.trained_encoder_layers}; give 0 or more, or null to train the whole"
            )
        if self.prompt_source == "statement" and 0 < self.num_virtual_tokens < 3:
            raise ConfigError(
                f"num_virtual_tokens is {self.num_virtual_tokens}, but prompt_source is statement, of which the first "
                "and the last copy nothing; give 3 or more"
            )
        _among("similarity", self.similarity, Similarity)
        _among("prompt_position", self.prompt_position, PromptPosition)
        _among("chat_position", self.chat_position, ChatPosition)
        _among("prompt_source", self.prompt_source, PromptSource)
        if not self.pooling or len(set(self.pooling)) < len(self.pooling):
            raise ConfigError(f"pooling is {self.pooling}; name each part once, at least one")
        for part in self.pooling:
            _among("pooling", part, Pooling)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `editor_config_from_dict` is the inverse."""
        values = dataclasses.asdict(self)
        unsaid = [
            one.name for one in dataclasses.fields(self) if "later" in one.metadata and values[one.name] == one.default
        ]
        return {name: value for name, value in values.items() if name not in unsaid}


def editor_config_from_dict(values: Mapping[str, Any], *, place: str) -> EditorConfig:
    """Rebuild a config that `EditorConfig.to_dict` made.

    Raises:
        ConfigError: a field is missing, unknown or of another type, with the place.
    """
    fields = dataclasses.fields(EditorConfig)
    needed = {field.name for field in fields if "later" not in field.metadata}
    if wrong := sorted((needed - set(values)) | (set(values) - {field.name for field in fields})):
        raise ConfigError(f"{place}: field {wrong[0]!r} is missing or unknown; was it written by another version?")
    types: dict[str, Any] = {one.name: one.type if one.type in (int, int | None) else str for one in fields}
    types["pooling"] = (list, tuple)
    for name, value in values.items():
        if not isinstance(value, types[name]):
            raise ConfigError(f"{place}: {name} is {value!r}; was it written by another version?")
    return EditorConfig(**{**values, "pooling": tuple(values["pooling"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class EditorIdentity:
    """What a table says of the editor that encoded it.

    Attributes:
        fingerprint: hex digest over the trained modules' weights and shape; keys of one fingerprint only compare with
            queries of the same.
        encoder, llm: the ids the editor was trained with, informative.
        llm_width: D, width of the LLM's input embeddings.
        key_width: K.
        num_virtual_tokens: P.
        sentinel_K: float32, the Knowledge Sentinel's key.
    """

    fingerprint: str
    encoder: str
    llm: str
    llm_width: int
    key_width: int
    num_virtual_tokens: int
    sentinel_K: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """Weights of the loss terms; 0 leaves a term out. The LLM runs only where edit or locality has a weight.

    Attributes:
        neighbour: queries against their own key (both contrastive terms of the paper have weight 1).
        sentinel: queries against the Knowledge Sentinel.
        edit: reliability and generality.
        locality: KL between the edited and the unedited LLM.
    """

    neighbour: float = 1.0
    sentinel: float = 1.0
    edit: float = 1.0
    locality: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise ConfigError(f"loss weight {field.name} is {getattr(self, field.name)}; give 0 or more")
        if not any(getattr(self, field.name) for field in dataclasses.fields(self)):
            raise ConfigError("all loss weights are 0; there is nothing to train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of training with its own loss weights."""

    num_steps: int
    weights: LossWeights = LossWeights()

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"a stage has {self.num_steps} steps; give 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """Which terms there are, and over what; their weights are the stages'.

    Attributes:
        margin: what is won already is dropped: answer tokens, and queries of the sentinel terms, whose right
            probability exceeds this many times the highest other one (authors' code: 1.2); None drops none (paper).
        temperature: divides the similarities in the contrastive terms (paper: 1).
        questions: both: each edit is asked in its own words and in others, in every term (paper). random: likewise,
            but of the two a random one counts in the neighbour-oriented term and the other one in the sentinel-oriented
            (the authors' code). alternate: every other edit is asked in its own words only, the rest in others only;
            a step then takes twice the edits in the same time, and each has twice the negatives.
        gather_negatives: keys of all workers are negatives, not only of a query's own.
        queue_size: keys of so many past edits are negatives too.
    """

    margin: float | None = None
    temperature: float = 1.0
    questions: Questions = "both"
    gather_negatives: bool = False
    queue_size: int = 0

    def __post_init__(self) -> None:
        _among("questions", self.questions, Questions)
        if self.margin is not None and self.margin < 1:
            raise ConfigError(f"margin is {self.margin}; give a factor of 1 or more, or None")
        if not self.temperature > 0:
            raise ConfigError(f"temperature is {self.temperature}; give a positive number")
        if self.queue_size < 0:
            raise ConfigError(f"queue_size is {self.queue_size}; give 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What is trained and tuned on.

    Attributes:
        sources: `testbed` alone, or data sets, each `FORM:PATH` (see `recipe_ray.datasets.forms`), of which every edit
            is drawn with equal chance; none in a preset that leaves them to the user.
        tuning_sources: likewise, to choose by; if empty, a twentieth of the subjects of `sources` is set aside.
        hard_negatives: chance that an edit is followed by one of the same subject or the same template.
        swapped_targets: chance that an edit takes the target of another of the same template.
        random_text: file of texts, one a line, local or s3://, to ask in place of locality questions.
        random_text_share: how often.
        source_weights: chances of the sources, one each; equal ones if empty.
        wordings: ask of edits whose relation `recipe_ray.datasets.wordings` has in its words too, take swapped targets
            from all of their kind too, and leave alone other facts of the same subject and relation.
        chat_share: chance that a question is asked in a chat, through the LLM's template, in words and surroundings of
            its own; whole questions are asked so nearly always then.
        held_out: leave out the relations of `recipe_ray.datasets.wordings` that are held out for evaluation.
    """

    sources: tuple[str, ...] = (TESTBED,)
    tuning_sources: tuple[str, ...] = ()
    hard_negatives: float = 0.0
    swapped_targets: float = 0.0
    random_text: str | None = None
    random_text_share: float = 0.0
    source_weights: tuple[float, ...] = ()
    wordings: bool = False
    chat_share: float = 0.0
    held_out: bool = False

    def __post_init__(self) -> None:
        if self.source_weights and (
            len(self.source_weights) != len(self.sources) or not all(one > 0 for one in self.source_weights)
        ):
            raise ConfigError(
                f"source_weights is {self.source_weights}, and data names {len(self.sources)} sources; "
                "give a positive number for each"
            )
        if TESTBED in self.sources + self.tuning_sources and (len(self.sources) > 1 or self.tuning_sources):
            raise ConfigError(f"data names {TESTBED!r} beside other sources; it is mixed with none, give it alone")
        for name in ("hard_negatives", "swapped_targets", "random_text_share", "chat_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a chance from 0 to 1")
        of_sets = (
            "hard_negatives",
            "swapped_targets",
            "random_text",
            "source_weights",
            "wordings",
            "chat_share",
            "held_out",
        )
        if self.sources == (TESTBED,) and (given := next((name for name in of_sets if getattr(self, name)), None)):
            raise ConfigError(
                f"{given} is {getattr(self, given)!r}, which is of data sets, but data is {TESTBED!r}, whose edits are "
                f"made hard already; leave it out, or give data {INVENTED!r} or FORM:PATH"
            )
        if bool(self.random_text) != bool(self.random_text_share):
            raise ConfigError(
                f"random_text is {self.random_text!r} and random_text_share {self.random_text_share}; give both or none"
            )

    def check_given(self) -> None:
        """Refuse to go on without any source.

        Raises:
            ConfigError: there is none.
        """
        if not self.sources:
            raise ConfigError(f"data is empty; give {TESTBED!r}, or FORM:PATH of edits to train on")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How an editor is trained.

    Attributes:
        editor: shape of the trained modules, and the LLM and encoder they are trained for.
        stages: one after another.
        losses: which terms there are, and over what.
        data: what is trained and tuned on.
        batch_size: edits a step, over all workers.
        accumulate: turns in which a worker goes through its share of a step, to save memory; without `gather_negatives`
            or a queue, a turn's edits are the only negatives.
        encoder_lr: peak learning rate of the text encoder (paper: 1e-5 for everything, with pretrained RoBERTa).
        head_lr: of heads, sentinel and temperature.
        prompt_lr: of the prompt encoder.
        start: an editor whose weights the training begins with, in place of fresh ones: a directory, local or s3://, or
            the name of a published editor; of this training's shape.
        num_warm_start: edits to whose answers' embeddings the prompt encoder is fitted, by least squares, before the
            first step (see `recipe_ray.model.training.warm_start`); 0 for the paper's cold start.
        warmup_share: share of all steps over which the rates rise; they fall along a cosine to nothing afterwards.
        max_grad_norm: gradients are scaled down to this norm.
        answer_end: text behind every target that the edited LLM must say too, so that answers end; empty for none.
        answer_eos: the token that ends a text follows, so that the LLM stops by itself.
        precision: in which encoder, heads and LLM compute; auto is bfloat16 where the device multiplies it faster than
            float32. Trained weights and similarities are float32 always.
        llm_checkpointing: keep no activations of the LLM but compute them again on the way back, to save memory.
        shard_llm: spread the LLM's layers over the workers (FSDP2), for one that does not fit a GPU.
        seed: of weights and data.
        num_workers: data-parallel workers of one training, at most.
        min_workers: go on with as few as these where workers are lost, until they come back; None for always all.
        cpus_per_worker: CPUs a worker reserves and computes with; None shares out what the cluster has.
        device: auto, cpu or cuda.
        log_every: steps between two reports of the metrics, each their mean since the last.
        checkpoint_every: steps between two checkpoints; each is measured on tuning edits, and the best one wins.
    """

    editor: EditorConfig
    stages: tuple[Stage, ...]
    losses: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    batch_size: int = 8
    accumulate: int = 1
    encoder_lr: float = 1e-5
    head_lr: float = 1e-5
    prompt_lr: float = 1e-5
    start: str | None = None
    num_warm_start: int = 0
    warmup_share: float = 0.05
    max_grad_norm: float = 1.0
    answer_end: str = ""
    answer_eos: bool = False
    precision: Precision = "float32"
    llm_checkpointing: bool = False
    shard_llm: bool = False
    seed: int = 0
    num_workers: int = 1
    min_workers: int | None = None
    cpus_per_worker: float | None = None
    device: str = "auto"
    log_every: int = 25
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("stages is empty; give at least one stage of training")
        for name in ("batch_size", "accumulate", "num_workers", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("encoder_lr", "head_lr", "prompt_lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a positive number")
        _among("precision", self.precision, Precision)
        if not 0 <= self.warmup_share < 1:
            raise ConfigError(f"warmup_share is {self.warmup_share}; give a share from 0 to below 1")
        if self.num_warm_start < 0:
            raise ConfigError(f"num_warm_start is {self.num_warm_start}; give 0 or more")
        if self.cpus_per_worker is not None and self.cpus_per_worker <= 0:
            raise ConfigError(f"cpus_per_worker is {self.cpus_per_worker}; give a positive number, or leave it out")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.num_workers:
            raise ConfigError(
                f"min_workers is {self.min_workers}; give 1 to num_workers ({self.num_workers}), or leave it out"
            )
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        num_slices = self.num_workers * self.accumulate
        if self.batch_size < 2 * num_slices:
            raise ConfigError(
                f"batch_size is {self.batch_size}, num_workers {self.num_workers}, accumulate {self.accumulate}; "
                f"contrastive losses need other edits beside each, give a batch_size of {2 * num_slices} or more"
            )
        if self.losses.queue_size and self.num_workers > 1 and not self.losses.gather_negatives:
            raise ConfigError(
                f"queue_size is {self.losses.queue_size} and num_workers {self.num_workers}, but gather_negatives is "
                "off; a queue holds the keys of all workers, turn it on or leave the queue out"
            )
        weights = [stage.weights for stage in self.stages]
        if not self.editor.num_virtual_tokens and (
            self.num_warm_start or any(one.edit or one.locality for one in weights)
        ):
            raise ConfigError(
                "num_virtual_tokens is 0, but there are losses of the edited LLM or a warm start; without a continuous "
                "prompt set the weights edit and locality, and num_warm_start, to 0"
            )
        if not self.editor.num_sentinel_tokens and any(one.sentinel for one in weights):
            raise ConfigError(
                "num_sentinel_tokens is 0, but the sentinel's loss has a weight; set the weight sentinel to 0"
            )
        if self.editor.prompt_source == "statement" and self.num_warm_start:
            raise ConfigError(
                f"prompt_source is 'statement' and num_warm_start {self.num_warm_start}, but prompts of statements "
                "begin as copies of their tokens; set num_warm_start to 0"
            )
        if self.start is not None and self.num_warm_start:
            raise ConfigError(
                f"start is {self.start!r} and num_warm_start {self.num_warm_start}, which would overwrite the prompt "
                "encoder that it begins with; set num_warm_start to 0, or leave start out"
            )
        if self.shard_llm and self.num_workers == 1:
            raise ConfigError("shard_llm is on, but num_workers is 1; give 2 or more, or leave it off")

    def to_dict(self) -> dict[str, Any]:
        """Plain values as JSON gives them back."""
        values = {**dataclasses.asdict(self), "editor": self.editor.to_dict()}
        return cast("dict[str, Any]", json.loads(json.dumps(values)))

    @property
    def num_steps(self) -> int:
        """Of all stages."""
        return sum(stage.num_steps for stage in self.stages)

    def stretched(self, num_steps: int) -> "TrainConfig":
        """The same training in `num_steps` steps, its stages in the proportions they have.

        Raises:
            ConfigError: fewer steps than stages.
        """
        if num_steps < len(self.stages):
            raise ConfigError(f"num_steps is {num_steps}; give at least {len(self.stages)}, one for each stage")
        shares = itertools.accumulate(stage.num_steps / self.num_steps for stage in self.stages)
        ends = [0]
        for num_later, share in zip(reversed(range(len(self.stages))), shares, strict=True):
            ends.append(min(max(round(share * num_steps), ends[-1] + 1), num_steps - num_later))
        stages = (
            dataclasses.replace(stage, num_steps=end - begin)
            for stage, (begin, end) in zip(self.stages, itertools.pairwise(ends), strict=True)
        )
        return dataclasses.replace(self, stages=tuple(stages))

    def weights_at(self, step: int) -> LossWeights:
        """Loss weights of a step, counted from 0."""
        for stage in self.stages:
            if step < stage.num_steps:
                return stage.weights
            step -= stage.num_steps
        return self.stages[-1].weights
