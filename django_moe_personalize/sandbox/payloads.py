"""Turn the payloads and offerings of the workspace file into the JSON of a response (contract §2, §5)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from django_moe_personalize.sandbox.audiences import as_number
from django_moe_personalize.sandbox.reading import Section, Value, is_number, nearest, shown

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

_DATA_TYPES_BY_CLASS = {bool: "boolean", str: "string", int: "number", float: "float"}


def read_offerings(value: Value) -> dict[str, Mapping[str, Any]]:
    """Return the workspace's offerings by id, as they appear in a response."""
    return {
        name: _offering(name, {field: each.data for field, each in offering.members().items()})
        for name, offering in value.members().items()
    }


def read_payload(value: Value, offerings: Mapping[str, Mapping[str, Any]]) -> Payload:
    """Return the payload that an object describes.

    A variable is a scalar, an array or an object. The value determines its data type. To set another data type, write
    ``{"value": …, "data_type": …}``. For offerings, write ``{"$offerings": [id, …]}``. With ``"as": "string"`` the
    offerings are one JSON string.
    """
    return {name: _read_variable(each, offerings) for name, each in value.members().items()}


def _offering(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    context_id = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:24]
    return {
        "dp_offering_id": name,
        "offering_content": {"type": "json", "payload": dict(content)},
        "offering_context": {"moe_offering_id": context_id, "moe_offering_name": str(content.get("title", name))},
    }


def _read_variable(value: Value, offerings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if isinstance(value.data, Mapping) and OFFERINGS in value.data:
        return _read_offered(Section(value, (OFFERINGS, "as")), offerings)
    if isinstance(value.data, Mapping) and "value" in value.data:
        return _read_typed(Section(value, ("value", "data_type")))
    return {"value": value.data, "data_type": _infer(value)}


def _infer(value: Value) -> str:
    if value.data is None:
        value.add("must not be null. Remove the variable.")
    return _DATA_TYPES_BY_CLASS.get(type(value.data), "json")


def _read_typed(section: Section) -> dict[str, Any]:
    value = section.members["value"]
    data_type = section.get("data_type", _infer(value)).choice(DATA_TYPES)
    if not _fits(value.data, data_type):
        value.wrong(f'must be {DATA_TYPES[data_type]} for the data_type "{data_type}"')
    return {"value": value.data, "data_type": data_type}


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
    listed = section.members[OFFERINGS]
    names = listed.texts()
    for value in listed.entries() if names else ():
        if value.data not in offerings:
            value.add(f"unknown offering {shown(value.data)}{nearest(value.data, offerings)}")
    entries = [offerings[name] for name in names or () if name in offerings]
    forms = {"array": entries, "string": json.dumps(entries, ensure_ascii=False), "object": {"offerings": entries}}
    return {"value": forms[section.get("as", "array").choice(forms)], "data_type": "json"}
