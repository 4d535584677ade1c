"""The functions of a site that settings name: sync and async ones, from sync and async code."""

from __future__ import annotations

import asyncio

import pytest
from asgiref.sync import async_to_sync

from django_moe_personalize.visitor.hooks import CallableError, acall, call


def answer_sync(request):
    """Answer where blocking is allowed."""
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    return f"sync {request}"


async def answer_async(request):
    """Answer in an event loop."""
    asyncio.get_running_loop()
    return f"async {request}"


class AnswerAsync:
    """An object with an async ``__call__``."""

    async def __call__(self, request):
        return f"object {request}"


answer_object = AnswerAsync()


def fail(request):
    """Raise an error that quotes a visitor."""
    raise KeyError("ada@example.com")


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """Return call() or acall(), as a sync function."""
    return call if request.param == "sync" else async_to_sync(acall)


@pytest.mark.parametrize(
    ("name", "answer"),
    [("answer_sync", "sync r"), ("answer_async", "async r"), ("answer_object", "object r")],
)
def test_sync_and_async_functions(ask, name, answer):
    """A sync function runs where it may block and an async one in an event loop, for sync and async callers."""
    for _ in range(2):
        assert ask(f"tests.test_callables.{name}", "r", str) == answer


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.test_callables.fail", "tests.test_callables.fail raised KeyError"),
        ("tests.test_callables.absent", "tests.test_callables.absent raised ImportError"),
        ("tests.test_callables.answer_sync", "tests.test_callables.answer_sync returned a value of type str"),
    ],
)
def test_error_shows_no_visitor(ask, path, message):
    """An error of the function, a failed import and a wrong result become one error, with types and the path alone."""
    with pytest.raises(CallableError) as caught:
        ask(path, "ada@example.com", (int, float))
    assert str(caught.value) == message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ is (" raised " in message)


def test_own_error_keeps_its_message():
    """build() returns a CallableError as it is."""
    error = CallableError("the customer id is odd")
    assert CallableError.build("shop.identify", error) is error
