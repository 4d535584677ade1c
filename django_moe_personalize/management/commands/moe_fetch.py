"""``manage.py moe_fetch``: make one real fetch, and show what a visitor gets."""

from __future__ import annotations

import json
import time
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser

from django_moe_personalize.client import get_client, get_engine
from django_moe_personalize.doctor.asking import SECONDS, ask, build_time, explain_failures, read_attributes
from django_moe_personalize.fetching.metadata import find_reason
from django_moe_personalize.management import WorkspaceCommand
from django_moe_personalize.moengage.types import Experience, ExperiencesResult
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.schemas import find_schema


class Command(WorkspaceCommand):
    """Fetch experiences as a page does, but without the cache. Report no impression."""

    help = "Fetches experiences for one visitor, from MoEngage or from the sandbox, and prints them."
    # The fetch needs only the settings of the package.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """See BaseCommand.add_arguments()."""
        super().add_arguments(parser)
        as_of = "send the day and the hour of this moment, such as 2026-12-24T18:00 (default: now)"
        parser.add_argument("key", nargs="+", metavar="KEY", help="an experience key")
        parser.add_argument("--customer", metavar="ID", help="the customer id (default: an unknown visitor)")
        attribute = "an in-session attribute; may be repeated"
        parser.add_argument("--attribute", action="append", default=[], metavar="NAME=VALUE", help=attribute)
        parser.add_argument("--as-of", type=_read_moment, metavar="MOMENT", help=as_of)
        parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
        explain = "also print the sent attributes, why the visitor gets an experience or not, and breaches of schemas"
        parser.add_argument("--explain", action="store_true", help=explain)

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the experiences and the reasons for absent keys. Raises CommandError if MoEngage doesn't answer."""
        keys, customer_id = list(dict.fromkeys(options["key"])), options["customer"]
        given = read_attributes(options["attribute"])
        if customer_id == "" or "" in keys:
            raise CommandError("A key or the customer id is empty. Give it, or leave out --customer.")

        def fetch() -> tuple[ExperiencesResult, float, dict[str, str], dict[str, str]]:
            attributes = build_time(options["as_of"]) | given
            # The first call loads the CA bundle or the workspace file, which a page doesn't wait for.
            get_client()
            started = time.perf_counter()
            result = ask(get_runtime(), keys, customer_id=customer_id, attributes=attributes)
            took = time.perf_counter() - started
            return result, took, attributes, _find_reasons(result, keys, customer_id, attributes)

        result, took, attributes, reasons = explain_failures(fetch)
        if options["json"]:
            data = {
                "experiences": {key: each.to_dict() for key, each in result.experiences.items()},
                "absent": {key: reasons[key].partition(":")[0] for key in keys if key not in result.experiences},
                "milliseconds": round(took * 1000, 1),
            }
            more = {"attributes": attributes, "explanations": _explain(result, reasons)} if options["explain"] else {}
            self.stdout.write(json.dumps({**data, **more}, indent=2, ensure_ascii=False))
        else:
            self._print(keys, result, reasons, attributes if options["explain"] else None)
            waits = get_runtime().settings.deadline * 1000
            count = f"{len(result.experiences)} of {len(keys)} experiences"
            self.stdout.write(f"{count} in {took * 1000:.0f} ms. A page waits up to {waits:.0f} ms.")

    def _print(
        self, keys: Sequence[str], result: ExperiencesResult, reasons: Mapping[str, str], sent: Mapping[str, str] | None
    ) -> None:
        explanations = {} if sent is None else _explain(result, reasons)
        if sent is not None:
            self.stdout.write("Sent: " + ", ".join(f"{name}={value}" for name, value in sent.items()))
        for key in keys:
            experience = result.experiences.get(key)
            if experience is None:
                self.stdout.write(f"{key}: absent ({reasons[key].partition(':')[0]})")
            else:
                self.stdout.write(f"{key}: {_describe(experience)}")
                for name, value in experience.to_dict()["payload"].items():
                    self.stdout.write(f"  {name} = {json.dumps(value, ensure_ascii=False)}")
                if experience.offerings:
                    ids = ", ".join(offering.offering_id for offering in experience.offerings)
                    self.stdout.write(f"  offerings: {ids}")
            for line in explanations.get(key, []):
                self.stdout.write(f"  {line}")


def _read_moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a moment. Write it as 2026-12-24T18:00.") from None


def _describe(experience: Experience) -> str:
    context = experience.experience_context
    parts = {"variation": context.get("moe_variation_id"), "audience": context.get("audience_name")}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value) or "served"


def _find_reasons(
    result: ExperiencesResult, keys: Sequence[str], customer_id: str | None, attributes: Mapping[str, str]
) -> dict[str, str]:
    """Return a text for each key: the sandbox's decision, or the reason why a key is absent."""
    if (engine := get_engine()) is not None:
        identifiers = {"identifiers": {"customer_id": customer_id}} if customer_id else {}
        decisions = engine.explain({"experience_key": list(keys), **identifiers, **attributes})
        return {
            each.experience_key: f"{each.reason.value}: {each.sentence}" if each.reason else each.sentence
            for each in decisions
        }
    reasons = {key: failure.reason.value for failure in result.failures for key in failure.experience_keys}
    absent = [key for key in keys if key not in result.experiences and key not in reasons]
    metadata = get_client().fetch_metadata(deadline=Deadline(SECONDS)) if absent else None
    return reasons | {key: find_reason(metadata, key).value for key in absent if metadata}


def _explain(result: ExperiencesResult, reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the lines of ``--explain`` by key."""
    lines = {key: [reason] for key, reason in reasons.items()}
    for key, experience in result.experiences.items():
        if schema := find_schema(key):
            for name, problem in schema.find_problems(experience):
                line = f"The variable {name!r} {problem}, so pages don't show it: see the schema {schema.__name__}."
                lines.setdefault(key, []).append(line)
    return lines
