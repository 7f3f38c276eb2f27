"""`/openai/v1/chat/completions`: answers of tuned models and of their bases, whole or as they grow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from anyio.to_thread import run_sync
from litestar import Litestar, Response, post
from litestar.datastructures import ResponseHeader
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody
from litestar.response import Stream

from tutelage_server.accounts.caller import requires
from tutelage_server.openai.answerers import Answerers
from tutelage_server.openai.asking import question_of
from tutelage_server.openai.models import find_model
from tutelage_server.openai.parameters import Calling, TheSettings, TheStore
from tutelage_server.openai.protocol import Ask, Began, Ended, Piece
from tutelage_server.openai.schemas import Chat, ChatUsage, Choice, Chunk, ChunkChoice, CreateChat, Delta, Message
from tutelage_server.problems import Refused
from tutelage_server.settings import Settings
from tutelage_server.store.tables import new_id

Replies = AsyncGenerator[Began | Piece | Ended, None]
_STREAM = "text/event-stream"


@contextlib.asynccontextmanager
async def answering(app: Litestar) -> AsyncIterator[None]:
    """The application's answering processes, at `app.state.answerers`; none outlives it."""
    settings: Settings = app.state.settings
    app.state.answerers = Answerers(settings.answering, offline=not settings.allow_hub)
    try:
        yield
    finally:
        await app.state.answerers.close()


@post(
    "/chat/completions",
    guards=[requires("read")],
    status_code=200,
    responses={200: ResponseSpec(Chat, description="Answers; with `stream`, events of chunks.")},
    response_headers=[ResponseHeader(name="cache-control", value="no-cache", documentation_only=True)],
)
async def create_chat(
    request: Calling,
    store: TheStore,
    settings: TheSettings,
    data: JSONBody[CreateChat],
) -> Response[Any]:
    """Answer messages with a model: whole, or with `stream` piece by piece."""
    ask = question_of(data, settings.answering.max_tokens, new_id("chatcmpl"))
    found = await run_sync(find_model, store, settings, request.user.tenant_id, data.model)
    answerers: Answerers = request.app.state.answerers
    replies = answerers.answers(found.reference, settings.folder, found.checkpoint, ask)
    try:
        began = await anext(replies)
    except BaseException:
        await replies.aclose()
        raise
    assert isinstance(began, Began)
    if data.stream:
        with_usage = bool(data.stream_options and data.stream_options.include_usage)
        chunks = _chunks(replies, ask, began.prompt_tokens, data.model, with_usage)
        return Stream(chunks, media_type=_STREAM, headers={"x-accel-buffering": "no"})
    async with contextlib.aclosing(replies):
        return Response(await _whole(replies, ask, began.prompt_tokens, data.model))


async def _whole(replies: Replies, ask: Ask, prompt_tokens: int, model: str) -> Chat:
    choices = [Choice(index=index, message=Message(), finish_reason="stop") for index in range(len(ask.seeds))]
    tokens = 0
    async for reply in replies:
        if isinstance(reply, Piece):
            choices[reply.index].message.content += reply.text
        elif isinstance(reply, Ended):
            choices[reply.index].finish_reason = reply.reason
            tokens += reply.tokens
    usage = _usage(prompt_tokens, tokens)
    return Chat(id=ask.id, created=int(time.time()), model=model, choices=choices, usage=usage)


async def _chunks(
    replies: Replies, ask: Ask, prompt_tokens: int, model: str, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Server-sent events: data lines alone, for the client's decoder takes an id or a comment for an empty event."""
    created, tokens = int(time.time()), 0

    def chunk(*choices: ChunkChoice, usage: ChatUsage | None = None) -> bytes:
        made = Chunk(id=ask.id, created=created, model=model, choices=list(choices))
        if with_usage:
            made.usage = usage
        return _event(msgspec.json.encode(made))

    async with contextlib.aclosing(replies):
        try:
            for index in range(len(ask.seeds)):
                yield chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))
            async for reply in replies:
                if isinstance(reply, Piece):
                    yield chunk(ChunkChoice(index=reply.index, delta=Delta(content=reply.text)))
                elif isinstance(reply, Ended):
                    tokens += reply.tokens
                    yield chunk(ChunkChoice(index=reply.index, delta=Delta(), finish_reason=reply.reason))
        except Refused as error:  # the status was sent long ago
            yield _event(msgspec.json.encode({"error": _error(error)}))
            return
        if with_usage:
            yield chunk(usage=_usage(prompt_tokens, tokens))
        yield _event(b"[DONE]")


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _error(error: Refused) -> dict[str, str | None]:
    return {"message": str(error), "type": "server_error", "param": None, "code": error.code or None}


def _usage(prompt_tokens: int, tokens: int) -> ChatUsage:
    return ChatUsage(prompt_tokens=prompt_tokens, completion_tokens=tokens, total_tokens=prompt_tokens + tokens)
