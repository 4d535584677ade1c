"""``manage.py moe_record``: write real answers to a workspace file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser

from django_moe_personalize.checks.usages import find_usages
from django_moe_personalize.client import get_client
from django_moe_personalize.doctor.asking import SECONDS, ask, build_time, explain_failures, read_attributes
from django_moe_personalize.management import WorkspaceCommand
from django_moe_personalize.moengage.json_values import thaw
from django_moe_personalize.moengage.types import Experience, ExperiencesMetadata, ExperienceStatus
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.sandbox.workspace import parse_workspace

Answers = Sequence[Mapping[str, Experience]]
"""The experiences of each visitor by key. The first visitor is unknown."""

NOTE = "Recorded by manage.py moe_record. Customers have other ids here. Read the texts before you commit this file."
MARK = "recorded"
"""The attribute of a recorded customer that tells the customers apart."""


class Command(WorkspaceCommand):
    """Record experiences. The file has no credentials, no customer ids and no attributes of visitors."""

    help = "Writes the experiences that visitors get to a workspace file, which the sandbox and tests replay."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        super().add_arguments(parser)
        keys = "the experience keys (default: those that the site uses)"
        customer = "also record what this customer gets; may be repeated"
        parser.add_argument("file", metavar="FILE", help="the workspace file to write")
        parser.add_argument("key", nargs="*", metavar="KEY", help=keys)
        parser.add_argument("--customer", action="append", default=[], metavar="ID", help=customer)
        attribute = "an in-session attribute of all visitors; may be repeated"
        parser.add_argument("--attribute", action="append", default=[], metavar="NAME=VALUE", help=attribute)
        parser.add_argument("--force", action="store_true", help="write over a file that exists")

    def handle(self, *args: Any, **options: Any) -> None:
        """Fetch and write. Raises CommandError if the file exists, or if MoEngage doesn't answer."""
        file, customers = Path(options["file"]), options["customer"]
        given = read_attributes(options["attribute"])
        if file.exists() and not options["force"]:
            raise CommandError(f"{file} exists. Choose another file, or write over it with --force.")
        if "" in customers or "" in options["key"]:
            raise CommandError("A key or a customer id is empty. Give it, or leave it out.")

        metadata, answers = explain_failures(lambda: _record(options["key"], customers, given))
        workspace = build_workspace(metadata, answers, customers)
        # A file that the sandbox can't read must not be written.
        parse_workspace(workspace, name=file.name)
        try:
            file.write_text(json.dumps(workspace, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{file} can't be written: {error.strerror}. Choose another file.") from error
        recorded = len({key for answer in answers for key in answer})
        visitors = "1 visitor" if len(answers) == 1 else f"{len(answers)} visitors"
        self.stdout.write(f"Recorded {recorded} of {len(metadata.experiences)} experiences for {visitors} in {file}.")
        self.stdout.write("Read its texts before you commit it: MoEngage may call a customer by name.")
        missing = [key for key in options["key"] if key not in {meta.experience_key for meta in metadata.experiences}]
        if missing:
            self.stderr.write(f"The workspace has no experience {', '.join(missing)}.")


def _record(
    keys: Sequence[str], customers: Sequence[str], attributes: Mapping[str, str]
) -> tuple[ExperiencesMetadata, Answers]:
    """Return the metadata of the experiences that exist, and the answers of all visitors. Raises APIError."""
    metadata = get_client().fetch_metadata(deadline=Deadline(SECONDS))
    wanted = keys or [usage.experience_key for usage in find_usages()]
    chosen = tuple(meta for meta in metadata.experiences if meta.experience_key in wanted)
    known, sent = [meta.experience_key for meta in chosen], {**build_time(), **attributes}
    answers = [ask(get_runtime(), known, customer_id=each, attributes=sent) for each in (None, *customers)]
    return ExperiencesMetadata(metadata.source, chosen), [each.experiences for each in answers]


def build_workspace(metadata: ExperiencesMetadata, answers: Answers, customers: Sequence[str]) -> dict[str, Any]:
    """Return the content of a workspace file with these answers. ``customers`` are the ids of all but the first."""
    names = {customer_id: f"visitor-{number}" for number, customer_id in enumerate(customers, start=1)}
    experiences = []
    for meta in metadata.experiences:
        status = "Active" if meta.status is ExperienceStatus.UNKNOWN else meta.status.value.title()
        contents = []
        for number, answer in enumerate(answers):
            if (experience := answer.get(meta.experience_key)) is not None:
                audience = {f"customer.{MARK}": str(number) if number else {"exists": False}}
                contents.append({"audience": audience, "payload": _write_payload(experience, names)})
        if not contents:
            contents.append({"audience": {f"customer.{MARK}": "nobody"}, "payload": {}})
        elif not customers:
            del contents[0]["audience"]
        entry = {"key": meta.experience_key, "name": meta.experience_name or meta.experience_key, "status": status}
        experiences.append({**entry, "content": contents})
    return {
        "//": NOTE,
        "workspace_id": "RECORDED_DEBUG",
        "api_key": "recorded",
        "customers": {name: {MARK: str(number)} for number, name in enumerate(names.values(), start=1)},
        "experiences": experiences,
    }


def _write_payload(experience: Experience, names: Mapping[str, str]) -> dict[str, Any]:
    payload = {}
    for name, value in _rename(thaw(experience.payload), names).items():
        # A workspace file can't have null, and // is a note.
        if value is not None and name != "//":
            payload[name] = {"value": value, "data_type": "json"} if isinstance(value, dict) else value
    return payload


def _rename(value: Any, names: Mapping[str, str]) -> Any:
    """Return a JSON value without customer ids and email addresses in its texts.

    A number of up to three digits stays: it may as well be a price.
    """
    if isinstance(value, dict):
        return {name: _rename(part, names) for name, part in value.items()}
    if isinstance(value, list):
        return [_rename(part, names) for part in value]
    if isinstance(value, str):
        for customer_id, name in names.items():
            if len(customer_id) > 3 or not customer_id.isdigit():
                value = re.sub(rf"(?<!\w){re.escape(customer_id)}(?!\w)", name, value)
        return re.sub(r"[\w.+-]+@[\w-]+\.[\w.-]*\w", "visitor@example.com", value)
    return value
