"""The three calls of MoEngage Personalize, over any ``Transport`` (contract §1–§4)."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from operator import attrgetter
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urlencode

from django_moe_personalize import __version__
from django_moe_personalize.exceptions import APIError, InvalidResponseError
from django_moe_personalize.moengage.clock import VendorClock
from django_moe_personalize.moengage.errors import build_error
from django_moe_personalize.moengage.frames import FETCH_FIELDS, build_frame
from django_moe_personalize.moengage.http1 import MAX_BYTES, HTTPExchange, Request, Response, is_light
from django_moe_personalize.moengage.json_values import (
    Budget,
    FrozenDict,
    as_list,
    as_object,
    as_text,
    decode,
    freeze,
    is_number,
    parse_json,
    parse_or,
    split_object,
    write_text,
)
from django_moe_personalize.moengage.types import (
    MAX_ELEMENTS,
    DataSource,
    Event,
    Experience,
    ExperienceFailure,
    ExperienceMeta,
    ExperiencesMetadata,
    ExperiencesResult,
    ExperienceStatus,
    FailureReason,
    UnreadableExperience,
    find_offerings,
)
from django_moe_personalize.resilience import Deadline, monotonic

SYSTEM_FIELDS: Final = FETCH_FIELDS | {"DAY_OF_THE_WEEK", "TIME_OF_THE_DAY", "USER_IP_ADDRESS", "USER_AGENT"}
"""Fields of a fetch body that MoEngage defines. No custom attribute may have such a name."""

_CREDENTIAL: Final = re.compile(r"[!-9;-~]+")

_ACTIONS: Final = ',"actions":['
"""Separates the customer in an element from the actions. A JSON string can't contain these unescaped quotes."""

_MAX_KNOWN_BYTES = 16 * 1024

_MAX_METADATA_VALUES = 12_000
"""3,000 experiences. No page waits for the metadata. MAX_BYTES allows about 2,600 rows with names of usual length."""

T = TypeVar("T")


class Transport(Protocol):
    """Sends requests to MoEngage.

    A transport may also have the method ``start(request) -> HTTPExchange | None``. ``start`` sends the request on
    an open connection and returns immediately, so that a page can read the response later. Without an open connection,
    ``start`` returns ``None``. If a transport has no ``start``, every call uses ``send``. A transport may also have
    ``connect(deadline=…)``, which opens a connection for the next call.
    """

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """Return the response, even if its status is an error.

        Raises TransportError if no response arrives, and DeadlineExceeded if no response arrives in time.
        """
        ...

    def close(self) -> None:
        """Close the connections. The transport stays usable."""
        ...


class PersonalizeClient:
    """Call MoEngage for one workspace.

    ``workspace_id`` and the *Personalize* ``api_key`` authenticate every call (contract §1). A call never
    takes longer than its deadline. A failed call raises an APIError or a subclass. The client is thread-safe if the
    transport is.
    The constructor raises ValueError for a malformed workspace id and for an empty key.
    """

    def __init__(self, *, workspace_id: str, api_key: str, transport: Transport) -> None:
        if not _CREDENTIAL.fullmatch(workspace_id):
            raise ValueError("workspace_id must be visible ASCII characters without a colon")
        if not api_key:
            raise ValueError("api_key must not be empty")
        self.clock = VendorClock()
        """MoEngage's clock, by the last response. Events never get a time in MoEngage's future (contract §4)."""
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
        """Return the experiences of a customer, or without a customer the experiences for all users (contract §2).

        ``keys`` are at most 25. ``None`` requests all keys. An empty sequence makes no call. ``attributes`` are the
        in-session attributes under MoEngage's names. Raises ValueError for more than 25 keys, for a string as
        ``keys`` and for an attribute with a name in FETCH_FIELDS.
        """
        if keys is not None and not keys:
            return ExperiencesResult()
        request = self._build_fetch(keys, customer_id, user_identifiers, attributes)
        # Error reports print local variables.
        del customer_id, user_identifiers, attributes
        return read_answer(self._send(request, deadline), keys)

    def start_fetch(
        self,
        keys: Sequence[str],
        *,
        customer_id: str | None = None,
        user_identifiers: Mapping[str, str] | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> HTTPExchange | None:
        """Send the request of fetch_experiences() and return immediately. read_answer() reads the response.

        Returns ``None``, without sending, if no connection is open and idle.
        """
        request = self._build_fetch(keys, customer_id, user_identifiers, attributes)
        # See fetch_experiences().
        del customer_id, user_identifiers, attributes
        return self._start(request)

    def fetch_metadata(self, statuses: Sequence[ExperienceStatus] = (), *, deadline: Deadline) -> ExperiencesMetadata:
        """Return the list of all experiences, or of the experiences with one of ``statuses`` (contract §3).

        Raises ValueError for ``ExperienceStatus.UNKNOWN``, because the API has no such status.
        """
        if ExperienceStatus.UNKNOWN in statuses:
            raise ValueError("statuses may be ACTIVE, PAUSED and SCHEDULED")
        # The API silently returns nothing for an unknown or lower-case status.
        query = urlencode({"status": ",".join(status.value.capitalize() for status in statuses)}) if statuses else ""
        request = Request("GET", "/experiences/metadata", query=query, headers=self._headers)
        return _read(self._send(request, deadline), read_metadata)

    def send_events(self, events: Sequence[Event], *, deadline: Deadline) -> str:
        """Report impressions and clicks in one call and return MoEngage's id of the request (contract §4).

        An event from the future gets the present time of ``clock``: MoEngage refuses such events (contract §7).
        Returns ``""`` if the response contains no id. Without events, makes no call and returns ``""``. If one event
        is invalid, MoEngage refuses all events of the call, and the method raises a ResponseError with status 400.
        Raises ValueError for events of more than 100 customers.
        """
        if not events:
            return ""
        now = self.clock.now()
        if max(map(attrgetter("event_time"), events)) > now:
            events = [event if event.event_time <= now else event.move(now) for event in events]
        request = self._build_report(write_elements(events))
        return _read(self._send(request, deadline), _read_acceptance)

    def _build_report(self, elements: Sequence[str]) -> Request:
        if len(elements) > MAX_ELEMENTS:
            raise ValueError(f"events of {len(elements)} customers in one call; the most is {MAX_ELEMENTS}")
        body = f'{{"elements":[{",".join(elements)}]}}'.encode("ascii")
        return Request("POST", "/experiences/events", headers=self._post_headers, body=body)

    def _send(self, request: Request, deadline: Deadline) -> Response:
        sent_at = monotonic()
        response = self._transport.send(request, deadline=deadline)
        self.clock.learn(response.headers, sent_at)
        return response

    def connect(self, *, deadline: Deadline) -> None:
        """Open a connection for the next call, unless one is idle. Raises TransportError if that fails."""
        if (connect := getattr(self._transport, "connect", None)) is not None:
            connect(deadline=deadline)

    def close(self) -> None:
        """Close the connections. The client stays usable."""
        self._transport.close()

    def _build_fetch(
        self,
        keys: Sequence[str] | None,
        customer_id: str | None,
        user_identifiers: Mapping[str, str] | None,
        attributes: Mapping[str, str] | None,
    ) -> Request:
        """Return the request of a fetch. Its body has attributes, identifiers and keys on one level (contract §2)."""
        if isinstance(keys, str):
            raise ValueError("keys must be a sequence of experience keys, not one string")
        customer = (customer_id,) if customer_id else ()
        identifiers, attributes = user_identifiers or {}, attributes or {}
        frame = build_frame(tuple(keys or ()), bool(customer), tuple(identifiers), tuple(attributes))
        values = tuple(map(write_text, chain(customer, identifiers.values(), attributes.values())))
        return Request("POST", "/experiences/fetch", "", self._post_headers, (frame % values).encode("ascii"))


def write_elements(events: Sequence[Event]) -> list[str]:
    """Return the events as JSON: one text for each customer, ordered by the customer's first event (contract §4)."""
    if len({event.customer_id for event in events}) == len(events):
        # An event takes 15 bytecodes instead of 33.
        return [event.element for event in events]
    elements: dict[str, list[str]] = {}
    for event in events:
        if event.customer_id in elements:
            elements[event.customer_id].append(event.element.partition(_ACTIONS)[2][:-2])
        else:
            elements[event.customer_id] = [event.element[:-2]]
    return [",".join(parts) + "]}" for parts in elements.values()]


def _read(response: Response, read: Callable[..., T], *more: object) -> T:
    """Return ``read(body, *more)`` for a response with status 200. Raises the error for any other status."""
    try:
        if response.status == 200:
            return read(response.body, *more)
        failure: APIError = build_error(response)
    except APIError as error:
        # Error reports print an error's causes and the tracebacks' local variables. Here both have a visitor's content.
        failure = error.with_traceback(None)
        failure.__cause__ = failure.__context__ = None
    raise failure


def read_answer(response: Response, keys: Sequence[str] | None) -> ExperiencesResult:
    """Return the experiences of ``keys`` in the response to a fetch. ``None`` means all experiences.

    Raises the error for a status other than 200, and InvalidResponseError for an invalid body.
    """
    return _read(response, read_fetch, None if keys is None else tuple(keys))


def _read_acceptance(body: bytes) -> str:
    """Return MoEngage's id of the request, or ``""``. Raises InvalidResponseError if MoEngage didn't accept it."""
    data = parse_json(body)
    if not isinstance(data, dict) or data.get("status", "success") != "success":
        raise InvalidResponseError("MoEngage's response does not say that it accepted the events")
    req_id = data.get("req_id")
    return req_id if isinstance(req_id, str) else ""


def read_fetch(body: bytes, keys: tuple[str, ...] | None = None) -> ExperiencesResult:
    """Return the experiences of ``keys`` in the body of a fetch response (contract §2).

    Equal bodies may share one result. Without ``keys``, returns all experiences. Skips entries that aren't objects. A
    server may also send ``failures``, as an extension of the contract: ``[{"reason": …, "experience_keys": […]}]``.
    If an experience has a mistake, or more values than are left of MAX_VALUES, an UnreadableExperience is among the
    failures. Raises InvalidResponseError if the body is too large, or has no object ``experiences``.
    """
    return (_read_known if len(body) <= _MAX_KNOWN_BYTES else _read_fetch)(body, keys)


def _read_fetch(body: bytes, keys: tuple[str, ...] | None) -> ExperiencesResult:
    if len(body) > MAX_BYTES:
        # A transport of the site may have another limit.
        raise InvalidResponseError(f"the response is larger than {MAX_BYTES} bytes")
    budget = Budget()
    data, build = _open_fetch(body, budget)
    entries, failures = data.get("experiences"), data.get("failures")
    if not isinstance(entries, dict):
        raise InvalidResponseError("MoEngage's response has no object «experiences»")
    found = list(_read_failures(parse_or(None, failures) if isinstance(failures, str) else failures))
    experiences: dict[str, Experience] = {}
    for key in entries if keys is None else [key for key in keys if key in entries]:
        try:
            if isinstance(entry := build(entries[key]), dict):
                experiences[key] = read_experience(key, entry, budget=budget)
        except InvalidResponseError as error:
            problem = str(error).partition(": ")[2]
            found.append(UnreadableExperience(FailureReason.PERSONALIZATION_FAILED, (key,), problem))
    result = ExperiencesResult(FrozenDict(experiences), tuple(found))
    result.experiences._answers = FrozenDict(dict.fromkeys(keys or ()) | experiences)  # type: ignore[attr-defined]
    return result


def get_answers(result: ExperiencesResult) -> Mapping[str, Experience | None]:
    """Return the experiences of a fetch, and ``None`` for each other key. Equal responses share this mapping."""
    answers: Mapping[str, Experience | None] = getattr(result.experiences, "_answers", {})
    return answers


def _open_fetch(body: bytes, budget: Budget) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """Return the members of a response, and a function that builds a member of its ``experiences``.

    If the response is large or has a mistake, nothing is built yet: an experience that is too large or wrong, or that
    the caller didn't ask for, costs no other experience.
    """
    text, failure = decode(body), None
    if is_light(body):
        try:
            return as_object(parse_json(text)), lambda entry: entry
        except InvalidResponseError as error:
            failure = error
    try:
        return split_object(text, "experiences"), partial(parse_json, budget=budget)
    except InvalidResponseError as error:
        raise failure or error from None


# To parse 2 KB takes 3,400 bytecodes and 53 µs. To find the result here takes 16 bytecodes and 0.15 µs. Bodies repeat,
# because many visitors get the same variation. A result takes four times the memory of its body: at most 10 MB in all.
_read_known = lru_cache(maxsize=128)(_read_fetch)


def read_experience(
    key: str, entry: Mapping[str, Any], *, source: DataSource = DataSource.NETWORK, budget: Budget | None = None
) -> Experience:
    """Return one experience from its JSON ``{"payload": …, "experience_context": …}``.

    A payload or a context that isn't an object counts as empty. Raises OversizeError if the JSON in texts has more
    values than ``budget``, by default a new one.
    """
    budget = budget or Budget()
    variables = as_object(entry.get("payload"))
    payload = freeze({name: _read_variable(variable, budget) for name, variable in variables.items()})
    return Experience(
        experience_key=key,
        payload=payload,
        experience_context=freeze(as_object(entry.get("experience_context"))),
        source=source,
        offerings=tuple(find_offerings(payload, budget)),
    )


def read_metadata(body: bytes) -> ExperiencesMetadata:
    """Return the experiences in the body of a metadata response (contract §3).

    Skips rows without a key. Raises InvalidResponseError if the body has no list of experiences.
    """
    rows = as_object(as_object(parse_json(body, Budget(_MAX_METADATA_VALUES))).get("metadata")).get("experiences")
    if not isinstance(rows, list):
        raise InvalidResponseError("MoEngage's response has no list «metadata.experiences»")
    experiences = tuple(
        ExperienceMeta(row["experience_key"], as_text(row.get("experience_name")), ExperienceStatus(row.get("status")))
        for row in map(as_object, rows)
        if isinstance(row.get("experience_key"), str)
    )
    return ExperiencesMetadata(DataSource.NETWORK, experiences)


def _read_variable(variable: object, budget: Budget) -> Any:
    """Return the value of a payload variable: ``{"value": …, "data_type": …}`` (contract §2) or the bare value."""
    if not isinstance(variable, dict) or "value" not in variable:
        return variable
    value, data_type = variable["value"], as_text(variable.get("data_type")).lower()
    if data_type == "boolean" and isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    if data_type not in ("number", "float", "json"):
        return value
    # Not with int() or float(): int() accepts "1_000" and "٣", and float() accepts "nan".
    parsed = parse_or(value, value, budget) if isinstance(value, str) else value
    if data_type == "json":
        return parsed
    if not is_number(parsed):
        return value
    return float(parsed) if data_type == "float" else parsed


def _read_failures(failures: object) -> Iterator[ExperienceFailure]:
    for failure in map(as_object, as_list(failures)):
        keys = failure.get("experience_keys")
        if isinstance(keys, list):
            texts = tuple(key for key in keys if isinstance(key, str))
            yield ExperienceFailure(FailureReason(failure.get("reason")), texts)
