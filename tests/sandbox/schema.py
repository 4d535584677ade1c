"""The responses of MoEngage Personalize as JSON Schema, written from the vendor's contract."""

from typing import Any

import jsonschema

_TEXT = {"type": "string"}
_CONTEXT_FIELDS = [
    "cid",
    "experience",
    "moe_locale_id",
    "moe_variation_id",
    "audience_name",
    "audience_id",
    "type",
    "experience_type",
]


def _closed(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    required = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_VARIABLE = _closed({"value": {}, "data_type": {"enum": ["string", "number", "boolean", "json", "float"]}})
_VARIABLE["allOf"] = [
    {
        "if": {"properties": {"data_type": {"const": data_type}}},
        "then": {"properties": {"value": {"type": types}}},
    }
    for data_type, types in {
        "string": ["string"],
        "number": ["number", "string"],
        "float": ["number", "string"],
        "boolean": ["boolean", "string"],
        "json": ["object", "array", "string"],
    }.items()
]
_CONTEXT = {"type": "object", "required": _CONTEXT_FIELDS, "additionalProperties": _TEXT}
_EXPERIENCE = _closed(
    {"payload": {"type": "object", "additionalProperties": _VARIABLE}, "experience_context": _CONTEXT}
)

ERROR = _closed({"title": _TEXT, "description": _TEXT, "code": _TEXT}, ["title", "description"])
FETCH = _closed({"experiences": {"type": "object", "additionalProperties": _EXPERIENCE}})
METADATA = _closed(
    {
        "metadata": _closed(
            {
                "count": {"type": "integer", "minimum": 0},
                "experiences": {
                    "type": "array",
                    "items": _closed(
                        {
                            "experience_name": _TEXT,
                            "experience_key": _TEXT,
                            "status": {"enum": ["Active", "Paused", "Scheduled"]},
                        }
                    ),
                },
            }
        )
    }
)
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
            "offering_context": {
                "type": "object",
                "minProperties": 1,
                "required": ["moe_offering_id", "moe_offering_name"],
                "additionalProperties": _TEXT,
            },
        },
    },
}


def assert_valid(data: object, schema: dict[str, Any]) -> None:
    """Assert that ``data`` matches ``schema``."""
    jsonschema.Draft202012Validator(schema).validate(data)
