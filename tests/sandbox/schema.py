"""The responses of MoEngage Personalize as JSON Schema, written from the vendor's contract."""

from typing import Any

import jsonschema

_TEXT = {"type": "string"}


def _closed(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    required = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _texts(required: str) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "additionalProperties": _TEXT}


_TYPES = {
    "string": ["string"],
    "number": ["number", "string"],
    "float": ["number", "string"],
    "boolean": ["boolean", "string"],
    "json": ["object", "array", "string"],
}
_VARIABLE = _closed({"value": {}, "data_type": {"enum": list(_TYPES)}})
_VARIABLE["allOf"] = [
    {"if": {"properties": {"data_type": {"const": kind}}}, "then": {"properties": {"value": {"type": types}}}}
    for kind, types in _TYPES.items()
]
_PAYLOAD = {"type": "object", "additionalProperties": _VARIABLE}
_CONTEXT = _texts("cid experience moe_locale_id moe_variation_id audience_name audience_id type experience_type")
_EXPERIENCE = _closed({"payload": _PAYLOAD, "experience_context": _CONTEXT})

ERROR = _closed({"title": _TEXT, "description": _TEXT, "code": _TEXT}, ["title", "description"])
FETCH = _closed({"experiences": {"type": "object", "additionalProperties": _EXPERIENCE}})
_STATUS = {"enum": ["Active", "Paused", "Scheduled"]}
_ROWS = {"type": "array", "items": _closed({"experience_name": _TEXT, "experience_key": _TEXT, "status": _STATUS})}
METADATA = _closed({"metadata": _closed({"count": {"type": "integer", "minimum": 0}, "experiences": _ROWS})})
EVENTS = _closed(
    {
        "status": {"const": "success"},
        "message": {"const": "Your request has been accepted and will be processed soon."},
        "req_id": {"type": "string", "pattern": "^[A-Za-z0-9]{8}$"},
    }
)
OFFERINGS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["dp_offering_id", "offering_content", "offering_context"],
        "properties": {
            "dp_offering_id": _TEXT,
            "offering_content": _closed({"type": {"const": "json"}, "payload": {"type": "object"}}),
            "offering_context": _texts("moe_offering_id moe_offering_name"),
        },
    },
}


def assert_valid(data: object, schema: dict[str, Any]) -> None:
    """Assert that ``data`` matches ``schema``."""
    jsonschema.Draft202012Validator(schema).validate(data)
