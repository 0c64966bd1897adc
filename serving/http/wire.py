"""OpenAI's requests as they come over the wire, and our extension `recipe`: what is taken, and what is refused."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeGuard

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from recipe_ray.text import VISIBLE, has_visible
from serving.errors import ApiError

MAX_CHOICES = 128  # OpenAI's limit of `n`
MAX_STOP_TEXTS = 4  # OpenAI's
MAX_STOP_CHARS = 1024  # the end of an answer is compared with each stop text at each token
MAX_LOGPROBS = 20
MAX_TOKEN_ID = 2**31 - 1
MAX_INT64 = 2**63 - 1

_SHOWN_CHARS = 40  # of a value in a message about it
_SHOWN_NAME_CHARS = 100  # of a field's name
_SAYS_SOMETHING = r"\S"


class Wire(BaseModel):
    """What every object of a request has in common: no unknown fields, no guessing of types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, eq=False)  # `typing` would take (0,) and (False,) for the same mark
class Neutral:
    """Marks a field of OpenAI's that is not offered: it is taken where it would change nothing, and else refused.

    Args:
        values: those that change nothing, beside null.
    """

    values: tuple[Any, ...] = ()

    def check(self, given: object) -> object:
        """Refuse what would change something."""
        if given is None or any(_equal(given, value) for value in self.values):
            return given
        remedy = " or ".join([*(f"give {_shown(value)}" for value in self.values), "leave it out"])
        raise PydanticCustomError(
            "unsupported_value",
            "is {given}, which is not supported; {remedy}",
            {"given": _shown(given), "remedy": remedy},
        )

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, core_schema.any_schema())

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": [None, *self.values], "description": "Not offered: taken where it changes nothing."}


def _equal(given: object, value: object) -> bool:
    return given == value and isinstance(given, bool) == isinstance(value, bool)  # 0 equals false


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except ValueError:  # a number of thousands of digits
        return "too large a number"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _number(value: object) -> object:
    """2.0 is an integer to JSON, as some clients write it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("is not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can say this, and no tokenizer can
        raise ValueError("holds half a surrogate pair, which is no character; send whole characters") from error
    return value


def _words(value: object) -> str:
    if not isinstance(value, str) or not has_visible(value):
        raise ValueError("is not a text with words in it; give one or leave it out")
    return _whole(value)


def _prompts(value: object) -> "tuple[str | tuple[int, ...], ...]":
    """A prompt's forms as one: a text, token ids, or a list of either, which may be mixed."""
    if isinstance(value, str) or _are_token_ids(value):
        value = [value]
    if not isinstance(value, list):
        raise ValueError("is neither a text, nor token ids, nor a list of either")
    if not value:
        raise ValueError("is empty; give text to complete")
    return tuple(_prompt(item) for item in value)


def _are_token_ids(value: object) -> TypeGuard[list[int | float]]:
    return isinstance(value, list) and bool(value) and all(type(_number(item)) is int for item in value)


def _prompt(value: object) -> str | tuple[int, ...]:
    if isinstance(value, str):
        if not re.search(_SAYS_SOMETHING, value):
            raise ValueError("is empty; give text to complete")
        return _whole(value)
    if not _are_token_ids(value):
        raise ValueError("is neither a text, nor token ids, nor a list of either")
    if min(value) < 0 or max(value) > MAX_TOKEN_ID:
        raise ValueError("holds a number that is no token id")
    return tuple(map(int, value))


def _stop_texts(value: object) -> tuple[str, ...]:
    given = [] if value is None else value if isinstance(value, list) else [value]
    texts = tuple(text for text in given if isinstance(text, str) and 0 < len(text) <= MAX_STOP_CHARS)
    if len(texts) < len(given) or len(texts) > MAX_STOP_TEXTS:
        raise ValueError(
            f"is not a text or a list of at most {MAX_STOP_TEXTS} texts, each of 1 to {MAX_STOP_CHARS} characters"
        )
    return tuple(_whole(text) for text in texts)


def _content(value: object) -> str:
    """A message's text; of several parts, one a line."""
    if not isinstance(value, list):
        return _whole(value)
    if not value:
        raise ValueError("is empty; give a text")
    return "\n".join(_part(part) for part in value)


def _part(part: object) -> str:
    if not isinstance(part, dict) or part.keys() != {"type", "text"} or part["type"] != "text":
        raise ValueError('holds a part that is no text; give parts {"type": "text", "text": …} alone')
    return _whole(part["text"])


_TEXT_SCHEMA = {"type": "string", "minLength": 1, "pattern": _SAYS_SOMETHING}
_WORDS_SCHEMA = {"type": "string", "minLength": 1, "pattern": VISIBLE}
_IDS_SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
    "minItems": 1,
}
_PROMPT_SCHEMA = {
    "anyOf": [
        _TEXT_SCHEMA,
        _IDS_SCHEMA,
        {"type": "array", "items": {"anyOf": [_TEXT_SCHEMA, _IDS_SCHEMA]}, "minItems": 1},
    ],
    "description": "A text, token ids, or a list of texts and token ids, each a prompt by itself.",
}
_STOP_TEXT_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
_STOP_SCHEMA = {
    "anyOf": [
        _STOP_TEXT_SCHEMA,
        {"type": "array", "items": _STOP_TEXT_SCHEMA, "maxItems": MAX_STOP_TEXTS},
        {"type": "null"},
    ],
    "description": "Texts before which the answer ends.",
}
_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
                "additionalProperties": False,
            },
            "minItems": 1,
        },
    ],
    "description": "A text, or parts of it, which become one line each.",
}

Prompts = Annotated[tuple[str | tuple[int, ...], ...], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
StopTexts = Annotated[tuple[str, ...], PlainValidator(_stop_texts), WithJsonSchema(_STOP_SCHEMA)]
Content = Annotated[str, PlainValidator(_content), WithJsonSchema(_CONTENT_SCHEMA)]
Text = Annotated[str, AfterValidator(_whole)]
Words = Annotated[str, PlainValidator(_words), WithJsonSchema(_WORDS_SCHEMA)]
Whole = BeforeValidator(_number)  # behind the limits, which else would not be told to OpenAPI
Version = Annotated[int, Field(ge=0, le=MAX_INT64), Whole]


def fault(param: str, message: str) -> PydanticCustomError:
    """A contradiction of fields; `message` goes on from the field's name."""
    return PydanticCustomError("contradiction", "{message}", {"param": param, "message": message})


class RecipeOptions(Wire):
    """Our extension of OpenAI's requests: whether and how facts are applied."""

    edits: bool = Field(default=True, description="False gives the unedited LLM.")
    query: Words | None = Field(
        default=None, description="What to look facts up with, in place of the prompt's own words; of all prompts."
    )
    namespace: Words | None = Field(
        default=None, description="Whose facts; the key's own or the server's if not given."
    )
    snapshot: Version | None = Field(default=None, description="Version to answer from; the current one if not given.")
    min_snapshot: Version | None = Field(
        default=None, description="Wait until the current version is at least this one: read your writes."
    )
    top_k: Annotated[int, Field(ge=1, le=16), Whole] = Field(
        default=1, description="At most so many facts, each above the sentinel."
    )

    @model_validator(mode="after")
    def _versions_agree(self) -> Self:
        if None not in (self.snapshot, self.min_snapshot) and self.min_snapshot > self.snapshot:  # type: ignore[operator]
            raise fault(
                "recipe.min_snapshot",
                f"is {self.min_snapshot}, and 'recipe.snapshot' is {self.snapshot}, which comes before it; give one",
            )
        return self


class StreamOptions(Wire):
    """What a stream tells beside the answer."""

    include_usage: bool | None = Field(default=None, description="A last chunk with the counts of tokens.")
    include_obfuscation: Annotated[Any, Neutral((False,))] = None


class GenerationBody(Wire):
    """What completions and chats have in common."""

    model: Text | None = Field(default=None, description="One of GET /v1/models; the first of them if not given.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None,
        description="0 if not given, which is greedy (OpenAI's default is 1): what a fact says is not left to chance.",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), Whole] | None = Field(
        default=None, description="Answers to each prompt; greedy ones are equal."
    )
    stop: StopTexts = ()
    seed: Annotated[int, Field(ge=-MAX_INT64 - 1, le=MAX_INT64), Whole] | None = Field(
        default=None, description="Of the sampling; answer i of `n` is drawn with seed + i."
    )
    ignore_eos: bool | None = Field(
        default=None, description="Go on to the last token allowed where the LLM would end: for measuring."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    recipe: RecipeOptions | None = None
    user: Text | None = Field(default=None, description="Taken, and not used.")
    presence_penalty: Annotated[Any, Neutral((0,))] = None
    frequency_penalty: Annotated[Any, Neutral((0,))] = None
    logit_bias: Annotated[Any, Neutral(({},))] = None

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise fault("stream_options", "is for a stream; give it with 'stream': true")
        return self


class CompletionRequest(GenerationBody):
    """`POST /v1/completions`."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0), Whole] | None = Field(
        default=None, description="0 with `echo` alone, to score a prompt."
    )
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES), Whole] | None = Field(
        default=None, description="Only equal to `n`."
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), Whole] | None = None
    echo: bool | None = None
    suffix: Annotated[Any, Neutral(("",))] = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.best_of not in (None, self.n or 1):
            raise fault(
                "best_of", f"is {self.best_of}, which is not supported beside 'n' of {self.n or 1}; leave it out"
            )
        if self.max_tokens == 0 and not self.echo:
            raise fault("max_tokens", "is 0, which asks for nothing without 'echo'; give at least 1")
        return self


class Message(Wire):
    """One turn of a chat; tools and what is not text are not offered."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Annotated[Any, Neutral()] = None
    # What the official client's answers hold beside the text, when they are sent back as turns.
    refusal: Annotated[Any, Neutral()] = None
    annotations: Annotated[Any, Neutral(([],))] = None
    audio: Annotated[Any, Neutral()] = None
    function_call: Annotated[Any, Neutral()] = None
    tool_calls: Annotated[Any, Neutral(([],))] = None


class ChatRequest(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: Annotated[int, Field(ge=1), Whole] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1), Whole] | None = Field(
        default=None, description="The newer name of `max_tokens`."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS), Whole] | None = None
    metadata: dict[Text, Text] | None = Field(default=None, description="Taken, and not kept.")
    store: Annotated[Any, Neutral((False,))] = None
    safety_identifier: Text | None = Field(default=None, description="Taken, and not used.")
    prompt_cache_key: Text | None = Field(default=None, description="Taken, and not used.")
    response_format: Annotated[Any, Neutral(({"type": "text"},))] = None
    modalities: Annotated[Any, Neutral((["text"],))] = None
    service_tier: Annotated[Any, Neutral(("auto", "default"))] = None
    tools: Annotated[Any, Neutral(([],))] = None
    tool_choice: Annotated[Any, Neutral(("none", "auto"))] = None
    parallel_tool_calls: Annotated[Any, Neutral((True,))] = None
    functions: Annotated[Any, Neutral(([],))] = None
    function_call: Annotated[Any, Neutral(("none", "auto"))] = None
    audio: Annotated[Any, Neutral()] = None
    prediction: Annotated[Any, Neutral()] = None
    reasoning_effort: Annotated[Any, Neutral(("none",))] = None
    verbosity: Annotated[Any, Neutral(("medium",))] = None
    web_search_options: Annotated[Any, Neutral()] = None
    moderation: Annotated[Any, Neutral()] = None
    prompt_cache_options: Annotated[Any, Neutral()] = None
    prompt_cache_retention: Annotated[Any, Neutral(("in_memory", "24h"))] = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise fault("top_logprobs", "is for log-probabilities; give it with 'logprobs': true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise fault("max_tokens", "differs from 'max_completion_tokens', its newer name; give one of them")
        return self


def bad_request(faults: Sequence[Any]) -> ApiError:
    """The first of pydantic's faults, in one sentence, under the field's name as the client wrote it."""
    kind, complaint, context = faults[0]["type"], faults[0]["msg"], faults[0].get("ctx", {})
    place, *path = faults[0]["loc"]
    param = context.get("param") or ".".join(map(str, path))
    if kind == "json_invalid":
        return invalid_json(context["error"])
    if not param:
        if kind == "missing":
            return invalid_json("it is empty")
        message = "the body is not a JSON object; send one, as 'Content-Type: application/json'"
        return ApiError(400, message, code="invalid_type")
    if kind == "extra_forbidden":
        return unknown_field(place, param)
    where, param = _where(place, param)
    if kind == "missing":
        return ApiError(400, f"{where} is missing", param=param, code="missing_required_parameter")
    code = kind if kind == "unsupported_value" else "invalid_value"
    complaint = complaint.removeprefix("Value error, ").replace("Input should", "should")
    return ApiError(400, f"{where} {complaint}", param=param, code=code)


def unknown_field(place: str, param: str) -> ApiError:
    """A field of a body, or a query parameter, that is none."""
    where, param = _where(place, param)
    message = f"{where} is not a field of this request; leave it out"
    return ApiError(400, message, param=param, code="unknown_parameter")


def doubled_field(place: str, param: str) -> ApiError:
    """A field of a body, or a query parameter, that stands twice: which of the two is meant nobody can tell."""
    where, param = _where(place, param)
    return ApiError(400, f"{where} stands twice; give it once", param=param, code="duplicate_field")


def unexpected_body() -> ApiError:
    """A body of a request that has none."""
    return ApiError(
        400, "this request has no body; give what it needs in the path and the query", code="unexpected_body"
    )


def _where(place: str, param: str) -> tuple[str, str]:
    """What a message calls a field, and its name for programs."""
    param = param[:_SHOWN_NAME_CHARS]
    return f"'{param}'" if place == "body" else f"the {place} parameter '{param}'", param


def invalid_json(why: str) -> ApiError:
    """A body that cannot be read."""
    return ApiError(400, f"the body is not JSON: {why}; send a UTF-8 JSON object", code="invalid_json")
