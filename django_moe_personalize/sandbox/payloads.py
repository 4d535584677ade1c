"""Turn the payloads and offerings of the workspace file into the JSON of a response (contract §2, §5)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from django_moe_personalize.sandbox.audiences import as_number
from django_moe_personalize.sandbox.reading import Problems, Section, is_number, member, nearest, read_object, shown

Payload = dict[str, dict[str, Any]]
"""Variable → ``{"value": …, "data_type": …}``."""

DATA_TYPES = {
    "string": "a string",
    "number": "a number or a string that contains one",
    "boolean": 'true, false, "true" or "false"',
    "json": "an object, an array or a string that contains JSON",
    "float": "a number or a string that contains one",
}
"""The data types, each with its allowed values."""

OFFERINGS = "$offerings"
"""The member of a variable that lists the ids of offerings."""

_SHAPES = ("string", "array", "object")


def read_offerings(root: Section) -> dict[str, Mapping[str, Any]]:
    """Return the workspace's offerings by id, as they appear in a response."""
    return {
        name: _offering(name, read_object(value, place, root.problems))
        for name, place, value in root.members("offerings")
    }


def read_payload(data: object, place: str, problems: Problems, offerings: Mapping[str, Mapping[str, Any]]) -> Payload:
    """Return the payload that an object describes.

    A variable is a scalar, an array or an object. The value determines its data type. To set another data type, write
    ``{"value": …, "data_type": …}``. For offerings, write ``{"$offerings": [id, …]}``. With ``"as": "string"`` the
    offerings are one JSON string.
    """
    return {
        name: _read_value(value, member(place, name), problems, offerings)
        for name, value in read_object(data, place, problems).items()
    }


def _offering(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    context_id = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:24]
    return {
        "dp_offering_id": name,
        "offering_content": {"type": "json", "payload": dict(content)},
        "offering_context": {"moe_offering_id": context_id, "moe_offering_name": str(content.get("title", name))},
    }


def _read_value(
    value: object, place: str, problems: Problems, offerings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    if isinstance(value, Mapping) and OFFERINGS in value:
        return _read_offered(Section(value, place, problems, fields=(OFFERINGS, "as")), offerings)
    if isinstance(value, Mapping) and "value" in value:
        return _read_typed(Section(value, place, problems, fields=("value", "data_type")))
    return {"value": value, "data_type": _inferred(value, place, problems)}


def _inferred(value: object, place: str, problems: Problems) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int):
        return "number"
    if isinstance(value, float):
        return "float"
    if value is None:
        problems.add(place, "must not be null. Remove the variable.")
    return "json"


def _read_typed(section: Section) -> dict[str, Any]:
    value = section.data["value"]
    data_type = section.choice("data_type", DATA_TYPES, _inferred(value, section.at("value"), section.problems))
    if not _fits(value, data_type):
        section.wrong("value", f'must be {DATA_TYPES[data_type]} for the data_type "{data_type}"')
    return {"value": value, "data_type": data_type}


def _fits(value: object, data_type: str) -> bool:
    """Whether ``data_type`` allows ``value``. MoEngage may send a value of any data type as a string."""
    if data_type == "string":
        return isinstance(value, str)
    if data_type == "boolean":
        return isinstance(value, bool) or value in ("true", "false")
    if data_type == "json":
        return isinstance(value, (dict, list)) or (isinstance(value, str) and _is_json(value))
    number = as_number(value) if isinstance(value, str) else value
    return is_number(number)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read_offered(section: Section, offerings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    entries = []
    for index, name in enumerate(section.texts(OFFERINGS)):
        if name in offerings:
            entries.append(offerings[name])
        else:
            place = f"{section.at(OFFERINGS)}[{index}]"
            section.problems.add(place, f"unknown offering {shown(name)}{nearest(name, offerings)}")
    shape = section.choice("as", _SHAPES, "array")
    forms = {"string": json.dumps(entries, ensure_ascii=False), "array": entries, "object": {"offerings": entries}}
    return {"value": forms[shape], "data_type": "json"}
