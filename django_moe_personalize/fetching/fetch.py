"""Fetch for a page: from this process's memory, else by a flight."""

from __future__ import annotations

from django_moe_personalize.fetching.cache import get_cache
from django_moe_personalize.fetching.flight import Flight, get_flights
from django_moe_personalize.fetching.resolve import Experiences, log_bug, pick
from django_moe_personalize.fetching.upstream import Question


def start_fetch(question: Question) -> tuple[Experiences | None, Flight | None]:
    """Return the experiences if this process has all of them in memory, else the flight that fetches them.

    A stale experience is returned at once and refreshed in the background. Never raises.
    """
    try:
        return _start_fetch(question)
    except Exception as error:
        log_bug(question.runtime, error)
        return {}, None


def _start_fetch(question: Question) -> tuple[Experiences | None, Flight | None]:
    runtime, visitor, keys, *_ = question
    flights, cache = get_flights(runtime), get_cache(runtime)
    landed = flights.landed
    known = cache.peek(visitor.digest, keys)
    experiences = pick(known.answers, keys)
    if not known.due:
        return experiences, None
    flight, leads = flights.join(question, experiences)
    is_complete = all(key in known.answers for key in known.due)
    if leads:
        if flights.landed != landed:
            # A flight has landed since peek(), maybe with the answer.
            known = cache.peek(visitor.digest, keys)
        if known.due:
            flight.take_off(known, is_waited_for=not is_complete)
        else:
            flights.finish(flight, pick(known.answers, keys))
    return (experiences, None) if is_complete else (None, flight)
