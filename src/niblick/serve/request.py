"""What a client may ask for: the body of `/v1/completions`, checked field by field.

Every mistake is a `RequestError`: an HTTP status and the error object that OpenAI's clients expect.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from niblick.engine import Sampling
from niblick.errors import NiblickError
from niblick.limits import cut, quoted
from niblick.text.tokenizer import Tokenizer

MOST_TEXTS = 128  # of one request: prompts times n
MOST_STOPS = 16
MOST_STOP_CHARACTERS = 1000
MOST_LIKELIEST = 20
MOST_LIKELIHOODS = 1 << 20  # of one answer: some 100 bytes each

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
TokenIds = list[StrictInt]


class RequestError(Exception):
    """A request that is refused; `status` is HTTP's, the rest is OpenAI's error object."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.headers = cut(message, 500), status, headers or {}
        self.param, self.code = param, code

    def document(self) -> dict[str, Any]:
        """The error object."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        }


class StreamOptions(BaseModel):
    """`include_usage`: one more event with the token counts."""

    model_config = ConfigDict(extra="forbid")
    include_usage: StrictBool = False
    include_obfuscation: StrictBool = False


class CompletionRequest(BaseModel):
    """The body of `/v1/completions`; `top_k` and `across_documents` are this server's own."""

    model_config = ConfigDict(extra="forbid")
    model: StrictStr | None = None
    prompt: StrictStr | list[StrictStr] | TokenIds | list[TokenIds] = ""
    max_tokens: Annotated[int, Field(strict=True, ge=0)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(strict=True, ge=0)] | None = None
    n: Annotated[int, Field(strict=True, ge=1, le=MOST_TEXTS)] | None = None
    best_of: StrictInt | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(strict=True, ge=0, le=MOST_LIKELIEST)] | None = None
    echo: StrictBool | None = None
    stop: StrictStr | list[StrictStr] | None = None
    seed: StrictInt | None = None
    suffix: StrictStr | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    user: StrictStr | None = None
    across_documents: StrictBool | None = None


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text to write: its prompt's ids and how it draws."""

    ids: NDArray[np.integer[Any]]
    shown: int  # ids in front that `echo` leaves out: the BOS that a text's prompt begins with
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class Order:
    """A checked request: its texts, prompts in order and `n` of each, and what is wanted."""

    texts: list[Text]
    max_tokens: int
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    echo: bool
    likeliest: int | None
    across_documents: bool


def parse_body(body: bytes) -> CompletionRequest:
    """The request in a JSON body; `RequestError` names the first field that is wrong."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise RequestError("the body must be a JSON object")
    try:
        return CompletionRequest.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = [str(part) for part in first["loc"]]
        if not place:
            raise RequestError("the names of fields must be valid Unicode") from None
        name = place[0]
        if first["type"] == "extra_forbidden":
            known = ", ".join(CompletionRequest.model_fields)
            raise RequestError(
                f"unknown argument {quoted('.'.join(place))}; known: {known}", param=cut(name, 60)
            ) from None
        if name == "prompt":
            raise RequestError(
                "prompt must be a text, a list of texts, a list of token ids or a list of such"
                " lists",
                param="prompt",
            ) from None
        message = f"{name} {quoted(given.get(name))}: {first['msg']}"
        raise RequestError(message, param=name) from None


def check(
    request: CompletionRequest, tokenizer: Tokenizer, *, most_tokens: int, most_prompt: int
) -> Order:
    """What to do; `RequestError` where it is out of bounds or not offered here."""
    _refuse(request)
    stops = [request.stop] if isinstance(request.stop, str) else (request.stop or [])
    if len(stops) > MOST_STOPS or any(not 1 <= len(s) <= MOST_STOP_CHARACTERS for s in stops):
        raise RequestError(
            f"stop: accepted are up to {MOST_STOPS} texts of 1 to {MOST_STOP_CHARACTERS}"
            " characters",
            param="stop",
        )
    max_tokens = min(16, most_tokens) if request.max_tokens is None else request.max_tokens
    if max_tokens > most_tokens:
        raise RequestError(
            f"max_tokens {quoted(max_tokens)}: this server writes at most {most_tokens:,}",
            param="max_tokens",
        )
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options goes with stream: true", param="stream_options")
    prompts = [_encoded(prompt, tokenizer, most_prompt) for prompt in _prompts(request.prompt)]
    count = request.n or 1
    if not 1 <= len(prompts) * count <= MOST_TEXTS:
        raise RequestError(
            f"{len(prompts)} prompts times n {count}: accepted are 1 to {MOST_TEXTS} texts",
            param="n" if count > 1 else "prompt",
        )
    if request.logprobs is not None:
        read = sum(len(ids) for ids, _ in prompts) if request.echo else 0
        told = count * (read + len(prompts) * max_tokens) * (1 + request.logprobs)
        if told > MOST_LIKELIHOODS:
            raise RequestError(
                f"{told:,} likelihoods in one answer; accepted are {MOST_LIKELIHOODS:,}: fewer"
                " texts, tokens or logprobs",
                param="logprobs",
            )
    return Order(
        texts=[
            Text(ids=ids, shown=shown, sampling=sampling)
            for ids, shown in prompts
            for sampling in _samplings(request, count)
        ],
        max_tokens=max_tokens,
        stops=tuple(stops),
        stream=bool(request.stream),
        usage=bool(request.stream_options and request.stream_options.include_usage),
        echo=bool(request.echo),
        likeliest=request.logprobs,
        across_documents=bool(request.across_documents),
    )


def _refuse(request: CompletionRequest) -> None:
    """What the interface has and a model here has not."""
    for name in ("presence_penalty", "frequency_penalty", "suffix", "logit_bias"):
        if getattr(request, name):
            raise RequestError(f"{name} is not offered here; leave it out", param=name)
    if request.best_of not in (None, request.n or 1):
        raise RequestError("best_of is not offered here; leave it out, or n", param="best_of")


def _samplings(request: CompletionRequest, count: int) -> list[Sampling]:
    """Text i of a prompt draws from seed + i."""
    seed = secrets.randbits(62) if request.seed is None else request.seed
    return [
        Sampling(
            temperature=1.0 if request.temperature is None else request.temperature,
            top_k=min(request.top_k or 0, 1 << 30),
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=seed + i,
        )
        for i in range(count)
    ]


def _prompts(prompt: Any) -> list[Any]:
    """Each a text or a list of ids."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)


def _encoded(
    prompt: str | list[int], tokenizer: Tokenizer, most: int
) -> tuple[NDArray[np.integer[Any]], int]:
    """Ids of a prompt, and how many of them stand before what was given."""
    if isinstance(prompt, str):
        try:
            ids: NDArray[np.integer[Any]] = tokenizer.encode_document(prompt)
        except NiblickError as error:
            raise RequestError(str(error), param="prompt") from None
        shown = 1
    else:
        if not prompt or min(prompt) < 0 or max(prompt) >= tokenizer.vocab_size:
            raise RequestError(
                f"prompt: token ids are 0 to {tokenizer.vocab_size - 1}, one at least",
                param="prompt",
            )
        ids, shown = np.array(prompt, dtype=np.int64), 0
    if len(ids) > most:
        raise RequestError(
            f"a prompt of {len(ids):,} tokens; this server reads at most {most:,}",
            param="prompt",
            code="context_length_exceeded",
        )
    return ids, shown
