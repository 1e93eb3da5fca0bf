"""OpenAI's interface: `/v1/chat/completions`, `/v1/completions` and `/v1/models`."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from itertools import accumulate
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from sse_starlette import EventSourceResponse, JSONServerSentEvent, ServerSentEvent

from ptune.data.messages import (
    OBSERVATION,
    USER,
    check_text,
    read_messages,
    read_tools,
    with_system,
)
from ptune.data.prompt import Conversation
from ptune.data.rows import BadRecord
from ptune.data.seeds import derive_seed
from ptune.data.tool_forms import tool_form
from ptune.errors import DataError, PTuneError
from ptune.generation.engine import Token
from ptune.serving.answers import Answer, Answers, random_seed
from ptune.serving.errors import openai_error
from ptune.serving.openai_schema import ChatCompletionRequest, CompletionRequest
from ptune.serving.options import Serving
from ptune.serving.tool_calls import CallReader, call_reader


class OpenAIApi:
    """The handlers.

    Args:
        answers: of the server.
        serving: how it answers.
    """

    def __init__(self, answers: Answers, serving: Serving) -> None:
        self._answers = answers
        self._serving = serving
        self._created = int(time.time())
        self.router = APIRouter(prefix="/v1")
        self.router.get("/models")(self.models)
        self.router.get("/models/{name}")(self.model)
        self.router.post("/chat/completions")(self.chat)
        self.router.post("/completions")(self.complete)

    async def models(self) -> dict[str, Any]:
        """The prefixes by name, and the bare base."""
        return {"object": "list", "data": [self._model(n) for n in self._answers.store.names]}

    async def model(self, name: str) -> dict[str, Any]:
        """One of them."""
        self._answers.store.check(name)
        return self._model(name)

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "ptune"}

    async def chat(self, body: ChatCompletionRequest) -> Response:
        """Answer a conversation."""
        tools = read_tools(body.tools, "tools") if body.tool_choice != "none" else ""
        said = self._conversation(body, tools)
        ids = await self._answers.prompt(said, self._most(body.most_tokens))
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        begun = self._begin(body, [ids], body.most_tokens, logprobs)
        name = body.model or self._serving.default
        calls = call_reader(self._answers.generation, tools)
        if not body.stream:
            return await _Whole(self._answers, begun, name, calls).chat()
        stream = _Stream(self._answers, begun, name, "chat.completion.chunk")
        usage = body.stream_options is not None and body.stream_options.include_usage
        return EventSourceResponse(stream.chat(usage, calls), sep="\n")

    async def complete(self, body: CompletionRequest) -> Response:
        """Answer texts as questions."""
        prompts = [
            await self._answers.prompt(
                Conversation.from_turns(check_text(text, "prompt"), system=self._serving.system),
                self._most(body.max_tokens),
            )
            for text in body.prompts
        ]
        begun = self._begin(body, prompts, body.max_tokens, body.logprobs)
        name = body.model or self._serving.default
        if not body.stream:
            return await _Whole(self._answers, begun, name, None).completion()
        usage = body.stream_options is not None and body.stream_options.include_usage
        stream = _Stream(self._answers, begun, name, "text_completion")
        return EventSourceResponse(stream.completion(usage), sep="\n")

    def _most(self, asked: int | None) -> int:
        return self._serving.max_new_tokens if asked is None else asked

    def _begin(
        self,
        body: ChatCompletionRequest | CompletionRequest,
        prompts: list[list[int]],
        most: int | None,
        logprobs: int | None,
    ) -> list[Answer]:
        """Submit `n` requests for each prompt; all of them, or none."""
        if (count := len(prompts) * body.n) > (most_at_once := self._answers.worker.capacity):
            raise DataError(
                f"n asks for {count} answers, and this server takes {most_at_once} at once; "
                "ask for fewer"
            )
        seed = random_seed() if body.seed is None else body.seed
        begun: list[Answer] = []
        try:
            for ids in prompts:
                for _ in range(body.n):
                    # The first draws as it would alone.
                    own = derive_seed(seed, "choice", len(begun)) if begun else seed
                    sampling = body.sampling(self._most(most), own, logprobs)
                    name = body.model or self._serving.default
                    begun.append(self._answers.begin(ids, name, sampling, body.stop))
        except PTuneError:
            for answer in begun:
                answer.close()
            raise
        return begun

    def _conversation(self, body: ChatCompletionRequest, tools: str) -> Conversation:
        unused: set[str] = set()
        given = [_plain(message) for message in body.messages]
        form = tool_form(self._answers.generation)
        messages = read_messages(given, "messages", unused, False, form)
        own = "" if messages[0].role == "system" else self._serving.system
        messages = with_system(messages, own, tools, form)
        if unused:
            names = ", ".join(sorted(unused))
            raise DataError(f"messages hold {names}, which nothing here uses; leave it out")
        if messages[-1].role == USER and not messages[-1].content.strip():
            raise DataError("the last message is blank, which asks nothing; write a question")
        if messages[-1].role not in (USER, OBSERVATION):
            raise DataError(
                f"the last message, of role {messages[-1].role!r}, asks nothing; "
                "end with a question, or with a tool's reply"
            )
        return Conversation(tuple(messages))


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content may come in parts, and whose role may be OpenAI's newer name."""
    message = {name: value for name, value in message.items() if value is not None}
    if message.get("role") == "developer":
        message["role"] = "system"
    if isinstance(calls := message.get("tool_calls"), list):
        # A streamed call has its place in the list, which clients send back.
        message["tool_calls"] = [
            {key: value for key, value in call.items() if key != "index"}
            if isinstance(call, dict)
            else call
            for call in calls
        ]
    if isinstance(parts := message.get("content"), list):
        texts = []
        for part in parts:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise BadRecord("messages: only parts of type 'text' can be read")
            texts.append(check_text(part.get("text"), "messages", blank_is_fine=True))
        message["content"] = "\n".join(texts)
    return message


class _Reply:
    """What whole and streamed answers have in common."""

    def __init__(self, answers: Answers, begun: list[Answer], name: str) -> None:
        self._tokenizer = answers.tokenizer
        self._begun = begun
        self._name = name
        self._id = uuid.uuid4().hex
        self._created = int(time.time())

    def _head(self, kind: str, object_name: str) -> dict[str, Any]:
        head = {"id": f"{kind}-{self._id}", "object": object_name}
        return head | {"created": self._created, "model": self._name}

    def _usage(self) -> dict[str, int]:
        prompt = sum({id(answer.prompt): len(answer.prompt) for answer in self._begun}.values())
        completion = sum(answer.completion_tokens for answer in self._begun)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _spelt(self, token_id: int) -> tuple[str, bytes]:
        """A token with its leading blank; one that holds a part of a character as its bytes."""
        spelt: bytes = self._tokenizer.token_bytes(token_id)
        try:
            return spelt.decode(), spelt
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt), spelt

    def _chat_logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if not tokens or tokens[0].logprob is None:
            return None

        def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
            text, spelt = self._spelt(token_id)
            return {"token": text, "logprob": logprob, "bytes": list(spelt)}

        content = [
            entry(token.id, token.logprob)
            | {"top_logprobs": [entry(i, value) for i, value in token.alternatives]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _completion_logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if not tokens or tokens[0].logprob is None:
            return None
        texts = [self._spelt(token.id)[0] for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._spelt(i)[0]: v for i, v in t.alternatives} for t in tokens],
            "text_offset": [*accumulate(map(len, texts[:-1]), initial=0)],
        }

    def _message(
        self, text: str, calls: CallReader | None, finish: str
    ) -> tuple[dict[str, Any], str]:
        """A chat's answer, and why it ended; a call of a tool as data."""
        call = calls(text) if calls else None
        if call is None:
            return {"role": "assistant", "content": text}, finish
        called = {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        return {"role": "assistant", "content": None, "tool_calls": [called]}, "tool_calls"


class _Whole(_Reply):
    """Answers that are sent when they are finished."""

    def __init__(
        self, answers: Answers, begun: list[Answer], name: str, calls: CallReader | None
    ) -> None:
        super().__init__(answers, begun, name)
        self._calls = calls

    async def _collect(self) -> list[tuple[str, list[Token], str]]:
        async def one(answer: Answer) -> tuple[str, list[Token], str]:
            texts, tokens = [], []
            async for piece in answer.pieces():
                texts.append(piece.text)
                tokens += piece.tokens
            return "".join(texts), tokens, answer.finish or "stop"

        collecting = [asyncio.ensure_future(one(answer)) for answer in self._begun]
        try:
            return list(await asyncio.gather(*collecting))
        finally:  # one has failed, or the client has gone
            for answer, task in zip(self._begun, collecting, strict=True):
                answer.close()
                task.cancel()  # `gather` leaves the others waiting when one fails

    async def chat(self) -> Response:
        choices = []
        for index, (text, tokens, finish) in enumerate(await self._collect()):
            message, finish = self._message(text, self._calls, finish)
            choice = {"index": index, "message": message, "finish_reason": finish}
            choices.append(choice | {"logprobs": self._chat_logprobs(tokens)})
        head = self._head("chatcmpl", "chat.completion")
        return JSONResponse(head | {"choices": choices, "usage": self._usage()})

    async def completion(self) -> Response:
        choices = []
        for index, (text, tokens, finish) in enumerate(await self._collect()):
            choice = {"index": index, "text": text, "finish_reason": finish}
            choices.append(choice | {"logprobs": self._completion_logprobs(tokens)})
        head = self._head("cmpl", "text_completion")
        return JSONResponse(head | {"choices": choices, "usage": self._usage()})


class _Stream(_Reply):
    """Answers that are sent as they come, those to one request mixed."""

    def __init__(self, answers: Answers, begun: list[Answer], name: str, object_name: str) -> None:
        super().__init__(answers, begun, name)
        kind = "cmpl" if object_name == "text_completion" else "chatcmpl"
        self._shared = self._head(kind, object_name)

    def _chunk(self, index: int, **choice: Any) -> ServerSentEvent:
        choice = {"index": index, "finish_reason": None, "logprobs": None} | choice
        return JSONServerSentEvent(self._shared | {"choices": [choice]})

    async def chat(self, usage: bool, calls: CallReader | None) -> AsyncIterator[ServerSentEvent]:
        async def one(index: int, answer: Answer) -> AsyncIterator[ServerSentEvent]:
            yield self._chunk(index, delta={"role": "assistant", "content": ""})
            if calls:  # whether it is a call is known at its end
                pieces = [piece async for piece in answer.pieces()]
                tokens = [token for piece in pieces for token in piece.tokens]
                text = "".join(piece.text for piece in pieces)
                delta, finish = self._message(text, calls, answer.finish or "stop")
                del delta["role"]  # said already, and clients join what they are sent
                for number, call in enumerate(delta.get("tool_calls", ())):
                    call["index"] = number
                yield self._chunk(index, delta=delta, logprobs=self._chat_logprobs(tokens))
            else:
                async for piece in answer.pieces():
                    logprobs = self._chat_logprobs(piece.tokens)
                    if piece.text or logprobs:
                        yield self._chunk(index, delta={"content": piece.text}, logprobs=logprobs)
                finish = answer.finish or "stop"
            yield self._chunk(index, delta={}, finish_reason=finish)

        async for event in self._mixed(one, usage):
            yield event

    async def completion(self, usage: bool) -> AsyncIterator[ServerSentEvent]:
        async def one(index: int, answer: Answer) -> AsyncIterator[ServerSentEvent]:
            async for piece in answer.pieces():
                logprobs = self._completion_logprobs(piece.tokens)
                if piece.text or logprobs:
                    yield self._chunk(index, text=piece.text, logprobs=logprobs)
            yield self._chunk(index, text="", finish_reason=answer.finish)

        async for event in self._mixed(one, usage):
            yield event

    async def _mixed(
        self, one: Callable[[int, Answer], AsyncIterator[ServerSentEvent]], usage: bool
    ) -> AsyncIterator[ServerSentEvent]:
        """Events of all answers, then the usage, then `[DONE]`; an error ends them all."""
        events: asyncio.Queue[ServerSentEvent | BaseException | None] = asyncio.Queue()

        async def pump(index: int, answer: Answer) -> None:
            try:
                async for event in one(index, answer):
                    events.put_nowait(event)
                events.put_nowait(None)
            except Exception as error:
                events.put_nowait(error)

        pumps = [asyncio.create_task(pump(*numbered)) for numbered in enumerate(self._begun)]
        try:
            left = len(pumps)
            while left:
                event = await events.get()
                if isinstance(event, BaseException):
                    _, body = openai_error(event)
                    yield JSONServerSentEvent(body)
                    yield ServerSentEvent("[DONE]")
                    return
                if event is None:
                    left -= 1
                else:
                    yield event
            if usage:
                yield JSONServerSentEvent(self._shared | {"choices": [], "usage": self._usage()})
            yield ServerSentEvent("[DONE]")
        finally:  # also when the client has gone
            for answer in self._begun:
                answer.close()
            for task in pumps:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*pumps, return_exceptions=True)
