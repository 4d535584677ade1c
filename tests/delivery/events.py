"""Events, settings and log lines for the tests of delivery."""

import re

from django_moe_personalize.moengage.types import Action, Event

CONTEXT = {
    "cid": "65ea_F_T_WP_AB_2_P_0_AU_42D",
    "experience": "Home hero",
    "moe_locale_id": "0",
    "moe_variation_id": "2",
    "audience_name": "Everyone",
    "audience_id": "42D",
}


def make_event(customer="42", **attributes):
    return Event(Action.SHOWN, customer, {**CONTEXT, **attributes}, 1_760_000_000)


def make_events(count):
    return [make_event(str(number)) for number in range(count)]


def uuids(events):
    return [event.event_uuid for event in events]


def backend(name, **options):
    """Return a value of DELIVERY. ``name`` is one of our deliveries, or the dotted path of another one."""
    path = name if name.startswith("tests.") else f"django_moe_personalize.delivery.{name}"
    return {"BACKEND": path, "OPTIONS": options}


def messages(caplog):
    """Return the package's log lines as (level, text). A busy machine takes longer, so each "after N s" is 0 s."""
    ours = [record for record in caplog.records if record.name == "django_moe_personalize"]
    return [(record.levelname, re.sub(r"after \d+ s", "after 0 s", record.getMessage())) for record in ours]
