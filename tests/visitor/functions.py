"""Functions of a site, for CONSENT, IDENTIFY and ATTRIBUTES."""

import asyncio

from django_moe_personalize.visitor import Consent


def answer(request):
    """Return what the test stored on the request. Must run where blocking is allowed."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return request.answer
    raise AssertionError("runs in the event loop")


async def aanswer(request):
    """Return what the test stored on the request, in an event loop."""
    return request.answer


class Answer:
    """An object whose call is a coroutine. It has no hash, like the objects of most dataclasses."""

    __hash__ = None

    async def __call__(self, request):
        return request.answer


answer_object = Answer()


def fail(request):
    """Raise an exception that quotes the visitor."""
    raise LookupError("ada@example.com")


def consent_from_session(request):
    """Allow tracking if the session says so."""
    return Consent(track=request.session.get("choice") == "all")
