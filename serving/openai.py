"""OpenAI's text completions, as far as they are offered, and our extension `recipe`: the shapes on the wire."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from serving.errors import ApiError
from serving.messages import Completion, Finding

MAX_PROMPTS = 64
MAX_STOP_TEXTS = 4  # of OpenAI's completions

# Fields of OpenAI that change the answer, with the values that leave it what we offer.
_NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "temperature": (0,),
    "top_p": (1,),
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "stream_options": (),
    "echo": (False,),
    "logprobs": (),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}


class RecipeOptions(BaseModel):
    """Our extension of the request.

    Attributes:
        edits: false gives the unedited LLM.
        query: what to look facts up with, in place of the prompt; one text for all prompts of the request.
        namespace: whose facts; the server's default if not given.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    edits: bool = True
    query: str | None = None
    namespace: str | None = None

    @field_validator("query", "namespace")
    @classmethod
    def _says_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("is empty; give text or leave it out")
        return value


class CompletionRequest(BaseModel):
    """`POST /v1/completions`. Decoding is greedy: `seed` and `user` are accepted and change nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str | list[str]
    max_tokens: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    recipe: RecipeOptions = Field(default_factory=RecipeOptions)
    user: str | None = None
    seed: int | None = None
    temperature: Any = None
    top_p: Any = None
    n: Any = None
    best_of: Any = None
    stream: Any = None
    stream_options: Any = None
    echo: Any = None
    logprobs: Any = None
    suffix: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt_is_text(cls, value: object) -> object:
        given = value if isinstance(value, list) else [value]
        texts = [text for text in given if isinstance(text, str)]
        if len(texts) < len(given):
            raise ValueError("is neither a text nor a list of texts; token ids are not supported")
        if not texts or not all(text.strip() for text in texts):
            raise ValueError("is empty; give text to complete")
        if len(texts) > MAX_PROMPTS:
            raise ValueError(f"holds {len(texts)} texts; give at most {MAX_PROMPTS} in one request")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_is_text(cls, value: object) -> object:
        texts = [] if value is None else value if isinstance(value, list) else [value]
        if len(texts) > MAX_STOP_TEXTS or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"is not a text or a list of at most {MAX_STOP_TEXTS} texts, none empty")
        return value

    @property
    def prompts(self) -> list[str]:
        """The prompts, one or more."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The stop texts, none or more."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def parse_request(body: bytes, *, model_name: str, max_new_tokens: int) -> CompletionRequest:
    """Validate the body of a completion request.

    Raises:
        ApiError: 400 naming the field, or 404 for a model that is not served here.
    """
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _bad_request(error) from error
    for name, neutral in _NEUTRAL_VALUES.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            remedy = " or ".join([*(f"give {_json(value)}" for value in neutral), "leave it out"])
            raise ApiError(
                400,
                f"'{name}' is {_json(value)}, which is not supported: an answer is one greedy completion, sent whole; "
                f"{remedy}",
                param=name,
                code="unsupported_value",
            )
    if request.max_tokens is not None and request.max_tokens > max_new_tokens:
        raise ApiError(
            400,
            f"'max_tokens' is {request.max_tokens}; this server gives at most {max_new_tokens}",
            param="max_tokens",
            code="invalid_value",
        )
    if request.model not in (None, model_name):
        raise ApiError(
            404,
            f"the model {request.model!r} is not served here; give {model_name!r}",
            param="model",
            code="model_not_found",
        )
    return request


def completion_body(
    *, completion_id: str, created: int, model_name: str, snapshot: int, answers: Sequence[tuple[Finding, Completion]]
) -> dict[str, Any]:
    """The JSON of an answer, one choice for each prompt."""
    num_prompt_tokens = sum(completion.num_prompt_tokens for _, completion in answers)
    num_new_tokens = sum(completion.num_new_tokens for _, completion in answers)
    return {
        "id": completion_id,
        "object": "text_completion",
        "created": created,
        "model": model_name,
        "choices": [
            {
                "index": index,
                "text": completion.text,
                "logprobs": None,
                "finish_reason": completion.finish_reason,
                "recipe": _recipe_body(snapshot, finding),
            }
            for index, (finding, completion) in enumerate(answers)
        ],
        "usage": {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": num_new_tokens,
            "total_tokens": num_prompt_tokens + num_new_tokens,
        },
    }


def _recipe_body(snapshot: int, finding: Finding) -> dict[str, Any]:
    scores = {"score": finding.score, "sentinel_score": finding.sentinel_score}
    fact = finding.edit and {
        "id": finding.edit.fact_id,
        "statement": finding.edit.statement,
        "source": finding.edit.source,
        **scores,
    }
    return {
        "snapshot": snapshot,
        "edits": finding.declined != "edits_off",
        "fact": fact,
        "reason": finding.declined,
        **scores,
    }


def _bad_request(error: ValidationError) -> ApiError:
    """The first fault, in one sentence, under the field's name as the client wrote it."""
    fault = error.errors(include_url=False, include_input=False)[0]
    if fault["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {fault['ctx']['error']}", code="invalid_json")
    field = ".".join(str(part) for part in fault["loc"])
    if not field:
        return ApiError(400, 'the body is not a JSON object; give {"prompt": …}', code="invalid_type")
    if fault["type"] == "extra_forbidden":
        message = f"'{field}' is not a field of this request; leave it out"
    elif fault["type"] == "missing":
        message = f"'{field}' is missing"
    else:
        message = f"'{field}' {fault['msg'].removeprefix('Value error, ').replace('Input should', 'should')}"
    return ApiError(400, message, param=field, code="invalid_value")


def _json(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
