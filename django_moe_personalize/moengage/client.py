"""The three calls of MoEngage Personalize, over any ``Transport`` (contract §1–§4)."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from urllib.parse import urlencode

from django_moe_personalize import __version__
from django_moe_personalize.exceptions import APIError, InvalidResponseError
from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.moengage.json_values import parse_json, write_json
from django_moe_personalize.moengage.reader import build_error, read_fetch, read_metadata
from django_moe_personalize.moengage.types import (
    MAX_ELEMENTS,
    MAX_KEYS,
    Event,
    ExperiencesMetadata,
    ExperiencesResult,
    ExperienceStatus,
)

if TYPE_CHECKING:
    from django_moe_personalize.moengage.http1 import HTTPExchange
    from django_moe_personalize.resilience import Deadline

FETCH_FIELDS: Final = frozenset({"identifiers", "experience_key"})
"""Fields of a fetch body that name the visitor and the keys; no attribute may have their names (contract §2)."""

SYSTEM_FIELDS: Final = FETCH_FIELDS | {"DAY_OF_THE_WEEK", "TIME_OF_THE_DAY", "USER_IP_ADDRESS", "USER_AGENT"}
"""Every field of a fetch body that has a meaning of its own; no custom attribute may have their names."""

_CREDENTIAL: Final = re.compile(r"[!-9;-~]+")

_ACTIONS: Final = ',"actions":['
"""Separates the customer of an element from its actions: inside a JSON string its quotes would be escaped."""

T = TypeVar("T")


class Transport(Protocol):
    """Carries requests to MoEngage.

    A transport may also have the method ``start(request) -> HTTPExchange | None``. It sends the request
    on a connection that is open already and returns at once, so that a page can read the response
    later; it returns ``None`` when it has no such connection. Without ``start`` every call uses ``send``.
    """

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """Return the response, whatever its status.

        Raises TransportError when no response comes, DeadlineExceeded when it doesn't come in time.
        """
        ...

    def close(self) -> None:
        """Close the connections. The transport may be used again."""
        ...


class PersonalizeClient:
    """Talk to one workspace.

    ``workspace_id`` and the *Personalize* ``api_key`` authenticate every call (contract §1). All
    calls raise the APIError tree and take at most the deadline. Thread-safe when the transport is.
    Raises ValueError for credentials that a header can't carry.
    """

    def __init__(self, *, workspace_id: str, api_key: str, transport: Transport) -> None:
        if not _CREDENTIAL.fullmatch(workspace_id):
            raise ValueError("workspace_id must be visible ASCII characters without a colon")
        if not api_key:
            raise ValueError("api_key must not be empty")
        self._transport = transport
        self._start: Callable[[Request], HTTPExchange | None] = getattr(transport, "start", lambda request: None)
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
        """Return the experiences of a customer; those for all users where no customer is given (contract §2).

        ``keys`` are at most 25. ``None`` asks for all keys; an empty sequence makes no call.
        ``attributes`` are the in-session attributes under their wire names. Raises ValueError for
        more keys, for a string as ``keys`` and for an attribute named like a fetch field.
        """
        if keys is not None and not keys:
            return ExperiencesResult()
        request = self._build_fetch(keys, customer_id, user_identifiers, attributes)
        # An error report prints the locals of every frame.
        del customer_id, user_identifiers, attributes
        return _read(self._transport.send(request, deadline=deadline), read_fetch)

    def start_fetch(
        self,
        keys: Sequence[str],
        *,
        customer_id: str | None = None,
        user_identifiers: Mapping[str, str] | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> HTTPExchange | None:
        """Ask as fetch_experiences() does, but return at once; finish_fetch() reads the response.

        ``None`` when the request can't be sent without waiting: no connection is open and idle.
        """
        request = self._build_fetch(keys, customer_id, user_identifiers, attributes)
        # See fetch_experiences().
        del customer_id, user_identifiers, attributes
        return self._start(request)

    def finish_fetch(self, exchange: HTTPExchange, seconds: float) -> ExperiencesResult | None:
        """Return the experiences; ``None`` when the response isn't whole after ``seconds``, then call again.

        Raises NotTakenError when the request never reached MoEngage: fetch_experiences() may ask again.
        """
        response = exchange.receive(seconds)
        return None if response is None else _read(response, read_fetch)

    def fetch_metadata(self, statuses: Sequence[ExperienceStatus] = (), *, deadline: Deadline) -> ExperiencesMetadata:
        """Return which experiences exist, all or those with one of the statuses (contract §3).

        Raises ValueError for ``ExperienceStatus.UNKNOWN``, which is not a status of the API.
        """
        if ExperienceStatus.UNKNOWN in statuses:
            raise ValueError("statuses may be ACTIVE, PAUSED and SCHEDULED")
        # The API silently returns nothing for an unknown or lower-case status.
        query = urlencode({"status": ",".join(status.value.capitalize() for status in statuses)}) if statuses else ""
        request = Request("GET", "/experiences/metadata", query=query, headers=self._headers)
        return _read(self._transport.send(request, deadline=deadline), read_metadata)

    def send_events(self, events: Sequence[Event], *, deadline: Deadline) -> str:
        """Report impressions and clicks in one call; return the vendor's request id (contract §4).

        The id is ``""`` when the response has none and, without a call, when there are no events.
        One bad event fails all of them with a ResponseError of status 400. Raises ValueError for
        events of more than 100 customers.
        """
        if not events:
            return ""
        elements = write_elements(events)
        if len(elements) > MAX_ELEMENTS:
            raise ValueError(f"events of {len(elements)} customers in one call; the most is {MAX_ELEMENTS}")
        body = f'{{"elements":[{",".join(elements)}]}}'.encode("ascii")
        request = Request("POST", "/experiences/events", headers=self._post_headers, body=body)
        del elements, body
        return _read(self._transport.send(request, deadline=deadline), _read_acceptance)

    def close(self) -> None:
        """Close the connections. The client may be used again."""
        self._transport.close()

    def _build_fetch(
        self,
        keys: Sequence[str] | None,
        customer_id: str | None,
        user_identifiers: Mapping[str, str] | None,
        attributes: Mapping[str, str] | None,
    ) -> Request:
        """Return a fetch. Its body has identifiers and keys, and the attributes flat next to them (contract §2)."""
        if isinstance(keys, str):
            raise ValueError("keys must be a sequence of experience keys, not one string")
        unique = list(dict.fromkeys(keys or ()))
        if len(unique) > MAX_KEYS:
            raise ValueError(f"{len(unique)} experience keys in one call; the most is {MAX_KEYS}")
        attributes = attributes or {}
        if taken := FETCH_FIELDS & attributes.keys():
            raise ValueError(f"attributes may not be named {' or '.join(sorted(taken))}")
        identifiers: dict[str, Any] = {"customer_id": customer_id} if customer_id else {}
        if user_identifiers:
            identifiers["user_identifiers"] = dict(user_identifiers)
        body: dict[str, Any] = {"identifiers": identifiers} if identifiers else {}
        if unique:
            body["experience_key"] = unique
        text = write_json(body | dict(attributes))
        return Request("POST", "/experiences/fetch", headers=self._post_headers, body=text.encode("ascii"))


def write_elements(events: Sequence[Event]) -> list[str]:
    """Return the elements of an events body as JSON: one for each customer, in order of appearance (contract §4)."""
    elements: dict[str, list[str]] = {}
    for event in events:
        if event.customer_id in elements:
            elements[event.customer_id].append(event.element.partition(_ACTIONS)[2][:-2])
        else:
            elements[event.customer_id] = [event.element[:-2]]
    return [",".join(parts) + "]}" for parts in elements.values()]


def _read(response: Response, read: Callable[[bytes], T]) -> T:
    """Return the content of a 200, as ``read`` reads it. Raises the error that another status stands for."""
    try:
        if response.status == 200:
            return read(response.body)
        failure: APIError = build_error(response)
    except APIError as error:
        # An error report prints the causes and the locals of every frame, which hold a visitor's content.
        failure = error.with_traceback(None)
        failure.__cause__ = failure.__context__ = None
    raise failure


def _read_acceptance(body: bytes) -> str:
    """Return the vendor's id of a request that reported events. Raises InvalidResponseError if it wasn't accepted."""
    data = parse_json(body)
    if not isinstance(data, dict) or data.get("status", "success") != "success":
        raise InvalidResponseError("MoEngage's response does not say that it accepted the events")
    req_id = data.get("req_id")
    return req_id if isinstance(req_id, str) else ""
