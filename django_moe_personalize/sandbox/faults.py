"""Inject faults into the sandbox's responses: delays, errors, lost responses and broken JSON."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.sandbox.reading import is_number, nearest
from django_moe_personalize.sandbox.responses import RefusedError

RATE_LIMIT = 10_000
"""Requests per minute that MoEngage allows a workspace (contract §1)."""

_TITLES = {429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The faults to inject. Durations are seconds. Rates are 0.0 (never) to 1.0, or ``True`` (always).

    - ``latency`` is the time before the response. ``drip`` is the time that the body takes to arrive.
    - ``error_rate`` is the share of requests that the engine doesn't handle. Their responses have ``error_status``, and
      a ``Retry-After`` header if ``retry_after`` is set.
    - ``reset`` is the share of requests whose response is lost. ``malformed`` is the share whose response is cut in
      half. The engine handles these requests, so a client can test that a retried event doesn't count twice.
    - ``seed`` makes the random choices repeatable.

    Raises ValueError for a value out of range.
    """

    latency: float = 0.0
    drip: float = 0.0
    error_rate: float = 0.0
    error_status: int = 500
    retry_after: int | None = None
    reset: float = 0.0
    malformed: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("latency", "drip"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
        for name in ("error_rate", "reset", "malformed"):
            value = getattr(self, name)
            if not (isinstance(value, bool) or (is_number(value) and 0 <= value <= 1)):
                raise ValueError(f"{name} must be a rate from 0 to 1, not {value!r}")
        if type(self.error_status) is not int or not 400 <= self.error_status <= 599:
            raise ValueError(f"error_status must be an integer from 400 to 599, not {self.error_status!r}")
        if self.retry_after is not None and (type(self.retry_after) is not int or self.retry_after < 0):
            raise ValueError(f"retry_after must be a whole number of seconds, 0 or more, not {self.retry_after!r}")
        if self.seed is not None and type(self.seed) is not int:
            raise ValueError(f"seed must be an integer, not {self.seed!r}")


def parse_faults(data: Mapping[str, Any]) -> Faults:
    """Return the faults that a JSON object describes. Raises ValueError for the first mistake."""
    names = [each.name for each in dataclasses.fields(Faults)]
    for name in data:
        if name not in names:
            raise ValueError(f"unknown fault {name!r}{nearest(name, names)}")
    return Faults(**data)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response with its faults. With ``reset`` the connection breaks, and the response is lost."""

    response: Response
    latency: float = 0.0
    drip: float = 0.0
    reset: bool = False


class FaultInjector:
    """Inject faults into responses. Threads may share an injector."""

    def __init__(self, faults: Faults | None = None) -> None:
        self._lock = threading.Lock()
        self.faults = faults or Faults()

    @property
    def faults(self) -> Faults:
        """The current faults. New faults restart the random choices from their seed."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        with self._lock:
            self._faults = faults
            self._random = random.Random(faults.seed)  # noqa: S311 - faults, not secrets

    def answer(self, handle: Callable[[Request], Response], request: Request) -> Answer:
        """Return an error, or the response of ``handle`` to ``request``, with the current faults."""
        with self._lock:
            faults = self._faults
            failed, reset, cut = (
                self._random.random() < rate for rate in (faults.error_rate, faults.reset, faults.malformed)
            )
        response = _failure(faults) if failed else handle(request)
        if cut:
            # Half of a JSON object is never valid JSON.
            response = Response(response.status, response.headers, response.body[: len(response.body) // 2])
        return Answer(response, faults.latency, faults.drip, reset)


def _failure(faults: Faults) -> Response:
    headers = {}
    if faults.error_status == 429:
        headers = {"x-ratelimit-limit": str(RATE_LIMIT), "x-ratelimit-remaining": "0"}
        headers["x-ratelimit-reset"] = str(faults.retry_after or 0)
    if faults.retry_after is not None:
        headers["retry-after"] = str(faults.retry_after)
    title = _TITLES.get(faults.error_status, "Request Error")
    description = "This is a fault that was set in the sandbox."
    return RefusedError(faults.error_status, title, description, headers=headers).response
