"""Sites that look right and lose experiences or events. The doctor approves none of them."""

import io
import json
import time
from datetime import timedelta
from importlib.util import find_spec

import celery
import pytest
from celery import Celery
from django.core.cache.backends.locmem import LocMemCache
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from django_moe_personalize.doctor import report
from django_moe_personalize.testing import override_personalize
from tests.delivery.conftest import make_due
from tests.doctor.conftest import build_backend, record_events

urlpatterns = []
FRAMEWORK = "django.tasks" if find_spec("django.tasks") else "django_tasks"


def levels():
    """Return the level of each finding by its id."""
    return {finding.id: finding.state for finding in report.diagnose()}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"MIDDLEWARE": []}, {"moe_personalize.W001": "problem"}),
        ({"ROOT_URLCONF": __name__}, {"moe_personalize.W003": "warning"}),
        ({"CACHES": {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}}, {"W005": "warning"}),
    ],
    ids=["right", "no middleware", "no URLs", "no cache"],
)
def test_settings(settings, changes, expected):
    """A mistake of the settings is a problem if no page can work, else a warning. The right site has neither."""
    settings.DEBUG, settings.ROOT_URLCONF = True, "tests.site"
    for name, value in changes.items():
        setattr(settings, name, value)
    found = {key: level for key, level in levels().items() if level != "ok"}
    assert found == {f"moe_personalize.{key.rpartition('.')[2]}": level for key, level in expected.items()}


class ColdCache(LocMemCache):
    """A cache whose first use opens a slow connection."""

    is_cold = True

    def get(self, *args, **kwargs):
        return self._connect(super().get(*args, **kwargs))

    def set(self, *args, **kwargs):
        return self._connect(super().set(*args, **kwargs))

    def _connect(self, result):
        if self.is_cold:
            time.sleep(0.05)
        self.is_cold = False
        return result


def test_cold_cache_is_not_slow(settings, monkeypatch):
    """The first use of a cache may open a connection, so its time says nothing about pages."""
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.ColdCache"}}
    monkeypatch.setattr("django_moe_personalize.doctor.site.shared.has_shared_cache", lambda: True)
    monkeypatch.setattr("django_moe_personalize.doctor.site.shared.has_room", lambda: True)
    with override_personalize(DEADLINE=0.04):
        assert levels()["cache.works"] == "ok"


def test_sessions_without_a_table():
    """Without the table, visitors with a session see the fallbacks."""
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE django_session")
    assert levels()["sessions.no_table"] == "problem"


def test_sessions_elsewhere(settings):
    """Sessions in cookies need no table."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    assert not [key for key in levels() if key.startswith("sessions")]


@pytest.mark.parametrize(
    ("backend", "is_installed", "expected"),
    [
        (f"{FRAMEWORK}.backends.dummy.DummyBackend", False, {"queue.dummy": "problem"}),
        (f"{FRAMEWORK}.backends.immediate.ImmediateBackend", False, {}),
        ("django_tasks_db.DatabaseBackend", False, {"queue.backend": "problem"}),
        ("django_tasks_db.DatabaseBackend", True, {"queue.no_table": "problem"}),
    ],
    ids=["dummy", "immediate", "no app", "no table"],
)
def test_tasks_that_run_nowhere(settings, backend, is_installed, expected):
    """A backend that loses all events is a problem."""
    settings.TASKS = {"default": {"BACKEND": backend}}
    if is_installed:
        settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django_tasks_db"]
    with override_personalize(DELIVERY=build_backend("tasks.TasksDelivery")):
        assert {key: level for key, level in levels().items() if key.startswith("queue")} == expected


@pytest.mark.parametrize(
    ("broker", "is_eager", "workers", "expected"),
    [
        ("amqp://127.0.0.1:1//", False, [], {"queue.no_broker": "problem"}),
        ("memory://", False, [], {"queue.no_worker": "warning"}),
        ("memory://", False, [{"one": {"ok": "pong"}}], {}),
        ("amqp://127.0.0.1:1//", True, [], {}),
    ],
    ids=["no broker", "no worker", "right", "eager"],
)
def test_celery_without_its_servers(monkeypatch, broker, is_eager, workers, expected):
    """The doctor connects to the broker and asks for workers. A site that sends in its pages needs neither."""
    app = Celery("site", broker=broker, set_as_current=False)
    app.conf.task_always_eager = is_eager
    app.control.ping = lambda **options: workers
    monkeypatch.setattr(celery._state, "default_app", app)
    monkeypatch.setattr(celery._state._tls, "current_app", None)
    with override_personalize(DELIVERY=build_backend("celery.CeleryDelivery")):
        assert {key: level for key, level in levels().items() if key.startswith("queue")} == expected


def test_outbox_without_a_deliverer(outbox):
    """An outbox that has delivered nothing is a warning, and so are events that no deliverer has tried to send."""
    assert levels()["outbox.unproven"] == "warning"
    record_events(2)
    assert levels()["outbox.unproven"] == "warning"
    outbox.rows.update(created_at=timezone.now() - timedelta(minutes=2))
    assert levels()["outbox.no_deliverer"] == "warning"
    make_due()
    call_command("moe_deliver", stdout=io.StringIO())
    assert not {"outbox.unproven", "outbox.no_deliverer"} & levels().keys()


@pytest.mark.parametrize("status", [None, 403])
def test_json(vendor, status, capsys):
    """The output is one JSON object. With a problem, the exit code is 1 too."""
    if status:
        vendor.fail(status)
        with pytest.raises(CommandError) as raised:
            call_command("moe_doctor", "--json")
        assert raised.value.returncode == 1
    else:
        call_command("moe_doctor", "--json")
    told = json.loads(capsys.readouterr().out)
    by_id = {finding["id"]: finding for finding in told["findings"]}
    assert told["problems"] == len([f for f in told["findings"] if f["level"] == "problem"]) == bool(status)
    assert told["warnings"] == len([f for f in told["findings"] if f["level"] == "warning"])
    if status:
        assert "newer keys of another kind get a 403" in by_id["vendor.http_403"]["fix"]
    else:
        assert by_id["vendor.works"].keys() == {"id", "level", "message", "fix"}
