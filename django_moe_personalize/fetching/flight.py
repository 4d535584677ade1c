"""Single flight: of those who ask the same at the same time, one asks. No Django."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Reader(Protocol):
    """Brings the outcome of a flight about in the thread or task of one who waits for it."""

    def read(self, seconds: float) -> None:
        """Work on it, after whoever else does, for at most ``seconds`` in all."""
        ...

    async def aread(self) -> None:
        """See read(). Never blocks the event loop; lasts until the outcome is there."""
        ...

    def release(self) -> None:
        """Leave it to others, so that the outcome comes though nobody here waits for it."""
        ...


class Flight(Future[T]):
    """The outcome of one leader's work. No follower can cancel it for the others."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self.until = until
        self.partial: T | None = None
        """What the leader knows so far, for those who cannot wait for the outcome."""
        self.followed = False
        """Whether anybody has joined its leader."""
        self.reader: Reader | None = None
        """Whom those who wait may help, where no thread works on the outcome."""

    def cancel(self) -> bool:
        """Return False: it cannot be cancelled, not even by an event loop that cancels who waits for it."""
        return False


class SingleFlight(Generic[K, T]):
    """Give everyone who asks for the same key at the same time the outcome of one of them.

    ``join`` makes the first who comes for a key its leader; the others follow, on the same future.
    The leader calls ``finish`` whatever happens, best in a ``finally``. One who never does holds up
    nobody for long: followers wait as long as they themselves like, and who comes ``max_seconds``
    after it leads anew. Choose it above what a leader's work may last, or two lead at a time.

    Whoever finds nothing in a cache and then leads looks again before it asks: the flight it just
    missed may have filled it.

    At most ``max_flights`` keys are shared at a time; beyond, everyone leads alone. A forked child
    starts with none: futures of the parent's leaders never complete there.
    """

    def __init__(
        self, *, max_seconds: float = 30.0, max_flights: int = 4096, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_seconds = max_seconds
        self._max_flights = max_flights
        self._clock = clock
        self._lock = threading.Lock()
        # Oldest first: a key is only ever added, never moved.
        self._flights: dict[K, Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: K) -> tuple[Flight[T], bool]:
        """Return the future of ``key``'s outcome, and True to the caller who leads and must ``finish`` it."""
        with self._lock:
            now = self._clock()
            flight = self._flights.get(key)
            if flight is not None and now < flight.until:
                flight.followed = True
                return flight, False
            flight = Flight(now + self._max_seconds)
            self._drop_abandoned(now)
            if len(self._flights) < self._max_flights:
                self._flights[key] = flight
        return flight, True

    def finish(self, key: K, flight: Flight[T], result: T) -> None:
        """Hand the leader's ``result`` to all who follow; who comes for ``key`` from now on leads anew."""
        # First the result, then the key: nobody leads anew for what is known.
        flight.set_result(result)
        with self._lock:
            # It is another's if this leader was given up, nobody's if it led alone.
            if self._flights.get(key) is flight:
                del self._flights[key]

    def _drop_abandoned(self, now: float) -> None:
        """Drop what no leader finished in time: each is dropped once, so it costs no one much."""
        while self._flights:
            key, flight = next(iter(self._flights.items()))
            if now < flight.until:
                return
            del self._flights[key]
