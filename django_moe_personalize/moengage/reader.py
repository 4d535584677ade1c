"""Read what MoEngage answers: strict about JSON, tolerant about everything the contract leaves open.

One bad variable never costs an experience, one bad entry never costs the answer: what cannot be
understood is passed through as it came or skipped, never guessed at.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django_moe_personalize.exceptions import InvalidResponseError
from django_moe_personalize.moengage.frozen import freeze
from django_moe_personalize.moengage.types import (
    DataSource,
    Experience,
    ExperienceFailure,
    ExperienceMeta,
    ExperiencesMetadata,
    ExperiencesResult,
    ExperienceStatus,
    FailureReason,
    Offering,
)

MAX_DEPTH = 64
"""Arrays and objects inside one another; deeper JSON is refused before it is parsed."""

MAX_DIGITS = 300
"""Digits of an integer; beyond some 308 it is no float, and converting costs quadratic time."""

# A string is one token, so that brackets inside do not count. The closing quote is optional: a
# string cut short must not be tried again from each of its quotes.
_STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class _Refused(ValueError):
    """JSON that the standard library would take and the contract does not; the text is ours."""


def parse_json(body: bytes) -> object:
    """Return the JSON value in an answer's body.

    Raises InvalidResponseError for an empty body, another encoding than UTF-8, a byte order mark,
    broken JSON, NaN and Infinity, a name given twice in one object, integers of more than
    MAX_DIGITS digits and nesting deeper than MAX_DEPTH. Lone surrogates become U+FFFD, because
    no page could be encoded with them.
    """
    try:
        return _parse(body.decode("utf-8"))
    except UnicodeDecodeError:
        problem = "it is not UTF-8"
    except json.JSONDecodeError as error:
        problem = f"it is not JSON: {error.msg} at character {error.pos}"
    except _Refused as error:
        problem = str(error)
    # Outside the handler, without the text: the errors above hold the whole answer, and an error
    # report prints the locals of this frame.
    del body
    raise InvalidResponseError(f"MoEngage's answer cannot be read: {problem}")


def read_fetch(body: bytes) -> ExperiencesResult:
    """Return the experiences in the body of an answer to a fetch (contract §2); raises InvalidResponseError.

    Everything in it is unchangeable. What a body says depends on the body alone, and visitors share
    variations, so what was read lately is not read again.
    """
    try:
        return _read_known(body) if len(body) <= _MAX_KNOWN_BYTES else read_experiences(parse_json(body))
    except InvalidResponseError as error:
        problem = str(error)
    # See parse_json().
    del body
    raise InvalidResponseError(problem)


_MAX_KNOWN_BYTES = 16 * 1024


# Some ten megabytes at most: a parsed body takes about four times its text.
@functools.lru_cache(maxsize=128)
def _read_known(body: bytes) -> ExperiencesResult:
    return read_experiences(parse_json(body))


def read_experiences(data: object) -> ExperiencesResult:
    """Return the experiences in the parsed answer to a fetch (contract §2).

    Entries that are no objects are skipped. ``failures`` is an extension that a server may send:
    ``[{"reason": …, "experience_keys": […]}]``. Raises InvalidResponseError when there is no
    object of experiences.
    """
    experiences = data.get("experiences") if isinstance(data, dict) else None
    if not isinstance(experiences, dict):
        del data
        raise InvalidResponseError("MoEngage's answer has no object «experiences»")
    return ExperiencesResult(
        experiences=freeze(
            {key: read_experience(key, entry) for key, entry in experiences.items() if isinstance(entry, dict)}
        ),
        failures=tuple(_read_failures(data)),
    )


def read_experience(key: str, entry: Mapping[str, Any], *, source: DataSource = DataSource.NETWORK) -> Experience:
    """Return one experience from its wire form ``{"payload": …, "experience_context": …}``.

    A payload or a context that is no object counts as empty; the context is kept whole.
    """
    payload = freeze({name: _read_variable(variable) for name, variable in _object(entry.get("payload")).items()})
    return Experience(
        experience_key=key,
        payload=payload,
        experience_context=freeze(_object(entry.get("experience_context"))),
        source=source,
        offerings=tuple(find_offerings(payload)),
    )


def read_metadata(data: object) -> ExperiencesMetadata:
    """Return which experiences the parsed answer lists (contract §3).

    Rows without a key are skipped. Raises InvalidResponseError when there is no list of them.
    """
    metadata = data.get("metadata") if isinstance(data, dict) else None
    rows = metadata.get("experiences") if isinstance(metadata, dict) else None
    if not isinstance(rows, list):
        del data, metadata, rows
        raise InvalidResponseError("MoEngage's answer has no list «metadata.experiences»")
    return ExperiencesMetadata(
        source=DataSource.NETWORK,
        experiences=tuple(
            ExperienceMeta(
                experience_key=row["experience_key"],
                experience_name=_text(row.get("experience_name")),
                status=ExperienceStatus(row.get("status")),
            )
            for row in rows
            if isinstance(row, dict) and isinstance(row.get("experience_key"), str)
        ),
    )


def _parse(text: str) -> Any:
    if not text or text.isspace():
        raise _Refused("it is empty")
    if text.startswith("\ufeff"):
        raise _Refused("it starts with a byte order mark")
    _check_depth(text)
    value = json.loads(
        text,
        object_pairs_hook=_unique_names,
        parse_constant=_refuse_constant,
        parse_float=_finite,
        parse_int=_short_integer,
    )
    return _well_formed(value) if _SURROGATE.search(text) else value


def _check_depth(text: str) -> None:
    # Before parsing: the parser recurses, and how deep it may go depends on who called it.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _STRUCTURE.finditer(text):
        if token[0] in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise _Refused(f"it nests deeper than {MAX_DEPTH} levels")
        elif token[0] in ("]", "}"):
            depth -= 1


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise _Refused("an object gives a name twice")
    return names


def _refuse_constant(_name: str) -> object:
    raise _Refused("it holds NaN or Infinity")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _Refused("it holds a number too large")
    return number


def _short_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _Refused("it holds a number too large")
    return int(digits)


def _well_formed(value: Any) -> Any:
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


def _read_variable(variable: object) -> Any:
    """Return the value of one payload variable, as contract §2 wraps it or bare."""
    if not isinstance(variable, dict) or "value" not in variable:
        return variable
    value = variable["value"]
    convert = _CONVERTERS.get(_text(variable.get("data_type")).lower())
    return convert(value) if convert else value


def _read_number(value: Any) -> Any:
    # Through JSON's own grammar: int() would take "1_000" and "٣", float() would take "nan".
    number = _parse_or(None, value) if isinstance(value, str) else value
    return number if _is_number(number) else value


def _read_float(value: Any) -> Any:
    number = _read_number(value)
    return float(number) if _is_number(number) else value


def _read_boolean(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.strip().lower(), value) if isinstance(value, str) else value


def _read_json(value: Any) -> Any:
    return _parse_or(value, value) if isinstance(value, str) else value


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "number": _read_number,
    "float": _read_float,
    "boolean": _read_boolean,
    "json": _read_json,
}


def find_offerings(payload: Mapping[str, Any]) -> Iterator[Offering]:
    """Yield the offerings of a payload, in whichever variables the marketer put them (contract §5)."""
    for value in payload.values():
        entries = _container(value)
        if isinstance(entries, dict):
            entries = entries.get("offerings")
        for entry in entries if isinstance(entries, list) else ():
            context = _object(entry).get("offering_context")
            if isinstance(context, dict) and context:
                yield _read_offering(entry, context)


def _read_offering(entry: dict[str, Any], context: dict[str, Any]) -> Offering:
    content = _container(entry.get("offering_content"))
    if isinstance(content, dict) and content.get("type") == "json" and "payload" in content:
        content = _container(content["payload"])
    return Offering(
        offering_id=_text(entry.get("dp_offering_id")) or _text(context.get("moe_offering_id")),
        content=freeze(_object(content)),
        context=freeze(context),
        raw=freeze(entry),
    )


def _read_failures(data: object) -> Iterator[ExperienceFailure]:
    failures = _object(data).get("failures")
    for failure in failures if isinstance(failures, list) else ():
        keys = _object(failure).get("experience_keys")
        if isinstance(keys, list):
            yield ExperienceFailure(
                reason=FailureReason(failure.get("reason")),
                experience_keys=tuple(key for key in keys if isinstance(key, str)),
            )


def _parse_or(default: Any, text: str) -> Any:
    """Return the JSON in a string inside the answer, or a default when it is none we take."""
    try:
        return _parse(text)
    except ValueError:
        return default


def _container(value: object) -> object:
    """Return an object or array that a string holds; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return _parse_or(None, value)
    return value


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value) if _is_number(value) else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
