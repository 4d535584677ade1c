"""The flights of this process: the questions that are on their way, for all pages that ask one of them."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from django_moe_personalize.fetching.cache import Answers, get_cache, pick
from django_moe_personalize.fetching.flight import Flight, Key
from django_moe_personalize.fetching.resolve import Experiences, log_bug
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.fetching.upstream import Question
from django_moe_personalize.resilience import Deadline, monotonic
from django_moe_personalize.runtime import Runtime, part
from django_moe_personalize.visitor import Visitor

MAX_SECONDS = 30.0
"""How long pages join a flight. After this time pages start another flight, because the leader may never finish."""

MAX_FLIGHTS = 4096
"""How many flights pages can share at a time. If there are more questions, each page asks MoEngage for itself."""


class Flights:
    """The flights of this process, by visitor and keys. Thread-safe."""

    def __init__(self, *, max_seconds: float = MAX_SECONDS, max_flights: int = MAX_FLIGHTS) -> None:
        self.landed = 0
        """How many flights have ended. If the number changes while a page reads the cache, the page reads again."""
        self.may_start_in_page = True
        """Whether a page's own thread may ask MoEngage, without a look into a shared cache or at the kill switch."""
        self._max_seconds = max_seconds
        self._max_flights = max_flights
        self._lock = threading.Lock()
        # The oldest flight first.
        self._flights: dict[Key, Flight] = {}

    def join(self, question: Question, known: Experiences) -> tuple[Flight, bool]:
        """Return the flight for this question, and whether the caller leads it. The leader calls take_off()."""
        key = question.visitor.digest, question.keys
        with self._lock:
            now = monotonic()
            flight = self._flights.get(key)
            if flight is not None and now < flight.until:
                flight.is_followed = True
                return flight, False
            flight = Flight(key, question, known, now + self._max_seconds, self)
            while self._flights and now >= self._flights[oldest := next(iter(self._flights))].until:
                del self._flights[oldest]
            if len(self._flights) < self._max_flights:
                self._flights[key] = flight
        return flight, True

    def start_over(self, *, may_start_in_page: bool) -> None:
        """Let no later page join the flights of now: the kill switch has changed."""
        with self._lock:
            self._flights.clear()
            self.may_start_in_page = may_start_in_page

    def finish(self, flight: Flight, experiences: Experiences) -> None:
        """End the flight: give ``experiences`` to its pages. The next page with this question starts another flight."""
        with self._lock:
            self.landed += 1
            flight.found, followers, flight.followers = experiences, flight.followers, ()
            # If this flight took too long, another flight may have replaced it.
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
        for follower in followers:
            if follower.set_running_or_notify_cancel():
                follower.set_result(experiences)

    def follow(self, flight: Flight) -> Future[Experiences]:
        """Return a future for one page, which waits without reading. A page that cancels it cancels no other."""
        future: Future[Experiences] = Future()
        with self._lock:
            if flight.found is None:
                flight.followers = (*flight.followers, future)
                return future
        future.set_result(flight.found)
        return future


@part
def get_flights(runtime: Runtime) -> Flights:
    """Return the flights of this process."""
    flights = Flights()
    get_switch(runtime).watch(flights)
    return flights


def start_fetch(runtime: Runtime, visitor: Visitor, keys: tuple[str, ...]) -> tuple[Answers, Flight | None]:
    """Return the answers in memory and, unless they cover all keys, the flight that fetches the answers.

    A background thread refreshes stale answers, and the page doesn't wait. Never raises.
    """
    try:
        flights, cache = get_flights(runtime), get_cache(runtime)
        landed, known = flights.landed, cache.peek(visitor.digest, keys)
        if not known.due:
            return known.answers, None
        question = Question(runtime, visitor, keys, Deadline(runtime.settings.deadline))
        flight, leads = flights.join(question, pick(known.answers, keys) if known.answers else {})
        is_complete = bool(known.answers) and known.answers.keys() >= {*known.due}
        if leads:
            if flights.landed != landed:
                # A flight has ended since peek(), maybe with the answer.
                known = cache.peek(visitor.digest, keys)
            if known.due:
                flight.take_off(known, is_waited_for=not is_complete)
            else:
                flights.finish(flight, pick(known.answers, keys))
        return known.answers, None if is_complete else flight
    except Exception as error:
        log_bug(runtime, error)
        return {}, None
