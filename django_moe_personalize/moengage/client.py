"""The three calls of MoEngage Personalize, over any ``Transport`` (contract §1–§4)."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

from django_moe_personalize import __version__
from django_moe_personalize.exceptions import (
    AuthenticationError,
    InvalidResponseError,
    RateLimitedError,
    ResponseError,
    ServerError,
)
from django_moe_personalize.moengage.frozen import encode
from django_moe_personalize.moengage.messages import Exchange, Request, Response, Transport
from django_moe_personalize.moengage.reader import read_fetch, read_metadata
from django_moe_personalize.moengage.strict_json import parse_json
from django_moe_personalize.moengage.types import (
    MAX_ELEMENTS,
    MAX_KEYS,
    Event,
    ExperiencesMetadata,
    ExperiencesResult,
    ExperienceStatus,
)
from django_moe_personalize.resilience import Deadline

FETCH_PATH = "/experiences/fetch"

FETCH_FIELDS = frozenset({"identifiers", "experience_key"})
"""Fields of a fetch that say who asks for what; never the name of an attribute (contract §2)."""

SYSTEM_FIELDS = FETCH_FIELDS | {"DAY_OF_THE_WEEK", "TIME_OF_THE_DAY", "USER_IP_ADDRESS", "USER_AGENT"}
"""Every name of a fetch body with a meaning of its own; a custom attribute takes none of them."""

# The only words of an answer that may enter a message: anything else may quote what was sent.
_TITLES = frozenset({"Malformed JSON", "Invalid Field Value", "Request Error", "Authentication required"})

_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_CREDENTIAL = re.compile(r"[!-9;-~]+")
_MAX_TEXT = 1000


class PersonalizeClient:
    """Talk to one workspace.

    ``workspace_id`` and the *Personalize* ``api_key`` authenticate every call (contract §1). All
    calls raise the APIError tree and spend at most the deadline. Thread-safe when the transport
    is. Raises ValueError for credentials that no header can carry.
    """

    def __init__(self, *, workspace_id: str, api_key: str, transport: Transport) -> None:
        if not _CREDENTIAL.fullmatch(workspace_id):
            raise ValueError("workspace_id must be visible ASCII characters without a colon")
        if not api_key:
            raise ValueError("api_key must not be empty")
        self._transport = transport
        # What a site or a test has written itself may know one step only.
        self._reserve: Callable[[], Exchange | None] = getattr(transport, "reserve", _reserve_nothing)
        token = base64.b64encode(f"{workspace_id}:{api_key}".encode()).decode("ascii")
        self._headers = {
            "Authorization": f"Basic {token}",
            "MOE-APPKEY": workspace_id,
            "Accept": "application/json",
            "User-Agent": f"django-moe-personalize/{__version__}",
        }
        self._post_headers = self._headers | {"Content-Type": "application/json"}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._transport!r}>"

    def fetch_experiences(
        self,
        keys: Sequence[str] | None,
        *,
        customer_id: str | None = None,
        user_identifiers: Mapping[str, str] | None = None,
        attributes: Mapping[str, str] | None = None,
        deadline: Deadline,
    ) -> ExperiencesResult:
        """Return the experiences of a customer, or of everybody without one (contract §2).

        ``keys`` are at most 25; ``None`` asks for all, an empty sequence for nothing, without a
        call. ``attributes`` are the in-session attributes by their wire names. Raises ValueError
        for more keys, for a string as ``keys`` and for an attribute named like a fetch field.
        """
        if keys is not None and not keys:
            return ExperiencesResult()
        body = build_fetch(keys, customer_id=customer_id, user_identifiers=user_identifiers, attributes=attributes)
        request = self._post(FETCH_PATH, encode(body))
        # An error report prints the locals of every frame.
        del body, customer_id, user_identifiers, attributes
        return read_fetch(_check(self._transport.send(request, deadline=deadline)))

    def reserve(self) -> Exchange | None:
        """Return a connection to fetch on in two steps, or ``None`` when there is none at this moment.

        The steps are ``send_fetch`` and ``receive_fetch``, which waits as long as it is told.
        """
        return self._reserve()

    def send_fetch(
        self,
        exchange: Exchange,
        keys: Sequence[str],
        *,
        customer_id: str | None = None,
        user_identifiers: Mapping[str, str] | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> bool:
        """Ask as ``fetch_experiences`` does and return at once; False when the connection turned out to be dead."""
        body = build_fetch(keys, customer_id=customer_id, user_identifiers=user_identifiers, attributes=attributes)
        request = self._post(FETCH_PATH, encode(body))
        # See fetch_experiences().
        del body, customer_id, user_identifiers, attributes
        return exchange.send(request)

    def receive_fetch(self, exchange: Exchange, seconds: float) -> ExperiencesResult | None:
        """Return the answer, waiting at most ``seconds``; ``None`` when it is not there by then."""
        response = exchange.receive(seconds)
        return None if response is None else read_fetch(_check(response))

    def start_fetch(self, keys: Sequence[str], **who: Any) -> Exchange | None:
        exchange = self.reserve()
        if exchange is None:
            return None
        try:
            return exchange if self.send_fetch(exchange, keys, **who) else None
        except BaseException:
            exchange.release()
            raise

    finish_fetch = receive_fetch

    def fetch_metadata(self, statuses: Sequence[ExperienceStatus] = (), *, deadline: Deadline) -> ExperiencesMetadata:
        """Return which experiences exist, all or those with one of the statuses (contract §3).

        Raises ValueError for ``ExperienceStatus.UNKNOWN``, which the wire does not have.
        """
        if ExperienceStatus.UNKNOWN in statuses:
            raise ValueError("statuses may be ACTIVE, PAUSED and SCHEDULED")
        # An unknown or lower-case status filters to nothing, silently: the wire's are capitalised.
        query = urlencode({"status": ",".join(status.value.capitalize() for status in statuses)}) if statuses else ""
        request = Request("GET", "/experiences/metadata", query=query, headers=self._headers)
        return read_metadata(self._call(request, deadline))

    def send_events(self, events: Sequence[Event], *, deadline: Deadline) -> str:
        """Report impressions and clicks in one call; return the vendor's request id (contract §4).

        The id is ``""`` when the answer has none and, without a call, when there are no events.
        One bad event fails all of them with a ResponseError of status 400. Raises ValueError for
        more than 100 customers.
        """
        if not events:
            return ""
        elements = write_elements(events)
        if len(elements) > MAX_ELEMENTS:
            raise ValueError(f"events of {len(elements)} customers in one call; the most is {MAX_ELEMENTS}")
        request = self._post("/experiences/events", f'{{"elements":[{",".join(elements)}]}}')
        del elements
        data = self._call(request, deadline)
        if not isinstance(data, dict) or data.get("status", "success") != "success":
            raise InvalidResponseError("MoEngage's answer does not say that it accepted the events")
        req_id = data.get("req_id")
        return req_id if isinstance(req_id, str) else ""

    def close(self) -> None:
        """Release connections; the client may be used again."""
        self._transport.close()

    def _post(self, path: str, body: str) -> Request:
        return Request("POST", path, headers=self._post_headers, body=body.encode("ascii"))

    def _call(self, request: Request, deadline: Deadline) -> object:
        return parse_json(_check(self._transport.send(request, deadline=deadline)))


def _check(response: Response) -> bytes:
    """Return the body of an answer; raises what its status says."""
    if response.status != 200:
        raise build_error(response)
    return response.body


def _reserve_nothing() -> None:
    return None


def build_fetch(
    keys: Sequence[str] | None,
    *,
    customer_id: str | None,
    user_identifiers: Mapping[str, str] | None,
    attributes: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Return the body of a fetch: attributes flat beside the identifiers and the keys (contract §2).

    Raises ValueError for more than 25 keys, a string as keys, or an attribute named like a field.
    """
    if isinstance(keys, str):
        raise ValueError("keys must be a sequence of experience keys, not one string")
    unique = None if keys is None else list(dict.fromkeys(keys))
    if unique is not None and len(unique) > MAX_KEYS:
        raise ValueError(f"{len(unique)} experience keys in one call; the most is {MAX_KEYS}")
    if taken := FETCH_FIELDS.intersection(attributes or ()):
        raise ValueError(f"attributes may not be named {' or '.join(sorted(taken))}")
    identifiers = {"customer_id": customer_id, "user_identifiers": dict(user_identifiers or {})}
    fields = {"identifiers": {name: value for name, value in identifiers.items() if value}, "experience_key": unique}
    return {name: value for name, value in fields.items() if value} | dict(attributes or {})


_ACTIONS = ',"actions":['
"""What parts an element's customer from its actions: in a text of JSON its quotes would be escaped."""


def write_elements(events: Sequence[Event]) -> list[str]:
    """Return the elements of an events body as JSON: one a customer, in order of appearance (contract §4)."""
    if len({event.customer_id for event in events}) == len(events):
        return [event.element for event in events]
    elements: dict[str, list[str]] = {}
    for event in events:
        elements.setdefault(event.customer_id, []).append(event.element)
    return [_join_actions(*texts) for texts in elements.values()]


def _join_actions(first: str, *others: str) -> str:
    """Return elements of one customer as one."""
    actions = [text[text.index(_ACTIONS) + len(_ACTIONS) : -2] for text in others]
    return ",".join([first[:-2], *actions]) + "]}"


def build_error(response: Response, *, clock: Callable[[], float] = time.time) -> ResponseError:
    """Return the error of an answer whose status is not 200.

    Its message is the status and, where it is one of the documented four, the vendor's title.
    ``title`` and ``description`` are empty where the body has none: a gateway answers as it likes.
    """
    title, description = _read_envelope(response.body)
    message = f"MoEngage answered {response.status}" + (f": {title}" if title in _TITLES else "")
    if response.status == 429:
        wait = read_retry_after(response.headers, clock=clock)
        return RateLimitedError(message, title=title, description=description, retry_after=wait)
    kind = ResponseError
    if response.status in (401, 403):
        kind = AuthenticationError
    elif 500 <= response.status <= 599:
        kind = ServerError
    return kind(message, status=response.status, title=title, description=description)


def read_retry_after(headers: Mapping[str, str], *, clock: Callable[[], float] = time.time) -> float | None:
    """Return the seconds to wait that an answer names, ``None`` when it names none.

    From ``retry-after``, in seconds or an HTTP date (RFC 9110 §10.2.3), else from
    ``x-ratelimit-reset``, in seconds or, from a thousand million on, Unix time. What has passed
    is 0.0.
    """
    wait = _read_wait(headers.get("retry-after", ""), clock)
    return _read_wait(headers.get("x-ratelimit-reset", ""), clock) if wait is None else wait


def _read_wait(value: str, clock: Callable[[], float]) -> float | None:
    value = value.strip()
    if _SECONDS.fullmatch(value):
        seconds = float(value)
        return seconds if seconds < 1e9 else max(0.0, seconds - clock())
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - clock())
    except (ValueError, OverflowError, OSError):
        return None


def _read_envelope(body: bytes) -> tuple[str, str]:
    """Return title and description of an error body, ``""`` for what is missing or no text."""
    try:
        data = parse_json(body)
    except InvalidResponseError:
        return "", ""
    words = [data.get(name) if isinstance(data, dict) else None for name in ("title", "description")]
    title, description = (word[:_MAX_TEXT] if isinstance(word, str) else "" for word in words)
    return title, description
