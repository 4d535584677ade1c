"""Read the doctor's findings in a test."""

import time

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.doctor import report
from django_moe_personalize.moengage.types import Action, Event

KEY = "canary-of-the-key"
SHORT = 0.3


def build_backend(name, **options):
    return {"BACKEND": f"django_moe_personalize.delivery.{name}", "OPTIONS": options}


def record_events(count):
    now = int(time.time() * 1000)
    get_delivery().record([Event(Action.SHOWN, f"canary-{number}", {"cid": "canary"}, now) for number in range(count)])


def as_pairs(findings):
    return [(state, f"{what} {fix}".rstrip()) for state, what, fix in findings]


def diagnose(seconds=5.0):
    """Return the doctor's findings as (state, text) pairs."""
    return as_pairs(report.diagnose(seconds=seconds))


def find(words, found=None):
    """Return the one finding that contains the words."""
    found = diagnose() if found is None else found
    matches = [finding for finding in found if words in finding[1]]
    assert len(matches) == 1, (words, found)
    return matches[0]
