"""Fetch for a page: from this process's memory, else by a flight."""

from __future__ import annotations

from django_moe_personalize.fetching.cache import Answers, get_cache, pick
from django_moe_personalize.fetching.flight import Flight, get_flights
from django_moe_personalize.fetching.resolve import log_bug
from django_moe_personalize.fetching.upstream import Question
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import Runtime
from django_moe_personalize.visitor import Visitor


def start_fetch(runtime: Runtime, visitor: Visitor, keys: tuple[str, ...]) -> tuple[Answers, Flight | None]:
    """Return the answers if this process has all of them in memory, else the flight that fetches them.

    A stale answer is returned at once and refreshed in the background. Never raises.
    """
    try:
        flights, cache = get_flights(runtime), get_cache(runtime)
        landed, known = flights.landed, cache.peek(visitor.digest, keys)
        if not known.due:
            return known.answers, None
        question = Question(runtime, visitor, keys, Deadline(runtime.settings.deadline))
        flight, leads = flights.join(question, pick(known.answers, keys))
        is_complete = all(key in known.answers for key in known.due)
        if leads:
            if flights.landed != landed:
                # A flight has landed since peek(), maybe with the answer.
                known = cache.peek(visitor.digest, keys)
            if known.due:
                flight.take_off(known, is_waited_for=not is_complete)
            else:
                flights.finish(flight, pick(known.answers, keys))
        return known.answers, None if is_complete else flight
    except Exception as error:
        log_bug(runtime, error)
        return {}, None
