"""The site's callables, and saying a thing once."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from asgiref.sync import async_to_sync
from django.test import override_settings

from django_moe_personalize.runtime import log_once
from django_moe_personalize.visitor import hooks
from django_moe_personalize.visitor.hooks import CallableError, acall, call


def answer_sync(request):
    """Answer, provided that blocking is allowed here."""
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    return f"sync {request}"


async def answer_async(request):
    """Answer from an event loop."""
    asyncio.get_running_loop()
    return f"async {request}"


class AnswerAsync:
    """A callable object whose call is a coroutine."""

    async def __call__(self, request):
        return f"object {request}"


answer_object = AnswerAsync()


def fail(request):
    """Raise an error that quotes the visitor."""
    raise KeyError("ada@example.com")


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """Call a dotted path both ways."""
    return call if request.param == "sync" else async_to_sync(acall)


@pytest.fixture(autouse=True)
def nothing_said():
    """Start with nothing imported and nothing logged."""
    hooks.forget_callables(setting="MOE_PERSONALIZE")


@pytest.mark.parametrize(
    ("name", "answer"),
    [("answer_sync", "sync r"), ("answer_async", "async r"), ("answer_object", "object r")],
)
def test_functions_of_either_kind_answer_either_way(ask, name, answer):
    """A sync function runs where it may block, an async one in a loop, whoever calls."""
    assert ask(f"tests.test_callables.{name}", "r", str) == answer


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.test_callables.fail", "tests.test_callables.fail raised KeyError"),
        ("tests.test_callables.absent", "tests.test_callables.absent raised ImportError"),
        ("tests.test_callables.answer_sync", "tests.test_callables.answer_sync returned a value of type str"),
    ],
)
def test_a_failure_names_types_and_the_path_alone(ask, path, message):
    """What the callable raised, an import that fails and a wrong answer are one error without their text."""
    with pytest.raises(CallableError) as caught:
        ask(path, "ada@example.com", (int, float))
    assert str(caught.value) == message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ is (" raised " in message)


def test_an_error_of_ours_is_passed_on():
    """A CallableError met on the way keeps its message."""
    error = CallableError("the customer id is odd")
    assert CallableError.build("shop.identify", error) is error


def test_a_key_is_logged_once(caplog):
    """The second call with a key is silent, another key is not."""
    log_once("a", "%s failed", "first")
    log_once("a", "%s failed", "second")
    log_once(("b", 1), "other", level=logging.ERROR)
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("django_moe_personalize", "WARNING", "first failed"),
        ("django_moe_personalize", "ERROR", "other"),
    ]


def test_of_many_threads_one_speaks(caplog):
    """Threads that fail at one moment log one line."""
    barrier = threading.Barrier(8, timeout=10)

    class Key:
        """A key whose every look-up waits for the other threads'."""

        def __hash__(self):
            barrier.wait()
            return 1

    key = Key()
    threads = [threading.Thread(target=log_once, args=(key, "failed")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caplog.records) == 1


def test_what_was_logged_is_bounded(caplog):
    """However many keys there are, the memory of them stays small."""
    for number in range(3 * hooks.MAX_LOGGED):
        log_once(number, "failed")
        assert len(hooks._logged) <= hooks.MAX_LOGGED
    assert len(caplog.records) == 3 * hooks.MAX_LOGGED


def test_a_change_of_our_settings_forgets_what_was_said(caplog):
    """A test with other settings sees its own warnings; other settings change nothing."""
    log_once("a", "failed")
    with override_settings(LANGUAGE_CODE="de"):
        log_once("a", "failed")
    assert len(caplog.records) == 1
    with override_settings(MOE_PERSONALIZE={"SANDBOX": True}):
        log_once("a", "failed")
    assert len(caplog.records) == 2
