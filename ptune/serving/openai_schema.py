"""What OpenAI's clients send, checked: every field is honoured, neutral, or refused by name.

https://platform.openai.com/docs/api-reference/chat/create, with `top_k` and `repetition_penalty` as
vLLM has them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    field_validator,
    model_validator,
)

from ptune.config.shared_settings import TEMPERATURE_RANGE
from ptune.generation.sampling import MOST_LOGPROBS, TOP_K, Sampling

# Fields of which only a value that asks for nothing is taken; other fields are unknown.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),  # an answer holds one call
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# These say who asks, which changes no answer.
_IGNORED = ("metadata", "prompt_cache_key", "safety_identifier", "user")
_MOST = 2**31 - 1


def _not_too_small(temperature: float) -> float:
    if 0 < temperature < (least := TEMPERATURE_RANGE.least or 0):
        raise ValueError(f"{temperature} is too small; use 0, or {least} on")
    return temperature


# 0 is greedy; by a number that is too small, logits cannot be divided.
Temperature = Annotated[FiniteFloat, Field(ge=0), AfterValidator(_not_too_small)]


class StreamOptions(BaseModel):
    """How a stream is written."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class _Sampled(BaseModel):
    """What both kinds of completion have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    max_tokens: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    temperature: Annotated[Temperature, Field(le=2)] = 0.95
    top_p: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.7
    top_k: Annotated[int, Field(ge=0, le=_MOST)] = TOP_K
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field([], max_length=4)
    presence_penalty: Annotated[FiniteFloat, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[FiniteFloat, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[FiniteFloat, Field(ge=0.01, le=10)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def drop_what_asks_for_nothing(cls, fields: Any) -> Any:
        """Take out null, neutral values, and who asks."""
        if not isinstance(fields, dict):
            raise ValueError("the body is no JSON object")
        left = {}
        for name, value in fields.items():
            if value is None or name in _IGNORED:
                continue
            if name in _NEUTRAL and name not in cls.model_fields:
                if any(value == v and type(value) is type(v) for v in _NEUTRAL[name]):
                    continue
                raise ValueError(f"{name} is not supported; leave it out")
            left[name] = value
        return left

    @field_validator("stop", mode="before")
    @classmethod
    def one_stop(cls, value: Any) -> Any:
        """A single text is a list of one."""
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def options_have_an_effect(self) -> _Sampled:
        """Refuse options of a stream without one."""
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options has no effect without stream; leave one of them out")
        return self

    def sampling(self, max_new_tokens: int, seed: int, logprobs: int | None) -> Sampling:
        """How to choose the tokens."""
        return Sampling(
            max_new_tokens,
            self.temperature > 0,
            self.top_p,
            self.temperature or 1.0,
            self.top_k,
            seed,
            self.repetition_penalty,
            self.presence_penalty,
            self.frequency_penalty,
            logprobs,
        )


class ChatCompletionRequest(_Sampled):
    """The body of `/v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=1000)
    max_completion_tokens: Annotated[int, Field(ge=1, le=_MOST)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: Literal["none", "auto"] | None = None

    @model_validator(mode="after")
    def no_contradictions(self) -> ChatCompletionRequest:
        """Refuse what has no effect."""
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs has no effect without logprobs; leave one of them out")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are the same; leave one out")
        if self.tool_choice is not None and not self.tools:
            raise ValueError("tool_choice has no effect without tools; leave one of them out")
        return self

    @property
    def most_tokens(self) -> int | None:
        """Of the answer."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens


class CompletionRequest(_Sampled):
    """The body of `/v1/completions`."""

    prompt: str | list[str]
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None

    @property
    def prompts(self) -> list[str]:
        """Each is answered `n` times."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @field_validator("prompt")
    @classmethod
    def some_prompts(cls, value: str | list[str]) -> str | list[str]:
        """Refuse none, and too many."""
        if not 1 <= len(value) <= (16 if isinstance(value, list) else _MOST):
            raise ValueError("prompt is empty, or of more than 16 texts")
        return value
