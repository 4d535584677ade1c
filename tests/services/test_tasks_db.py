"""TasksDelivery on django_tasks_db: the table of tasks keeps no customer id of a finished task."""

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils.module_loading import import_string

from django_moe_personalize.delivery.tasks import TasksDelivery
from tests.delivery.events import make_events


@pytest.mark.django_db(transaction=True)
def test_finished_tasks_leave_no_customer_id(upstream, settings):
    """After the delivery, and after a failed attempt, no finished row is left. The events of the failure wait."""
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django_tasks_db"]
    settings.TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
    model = import_string("django_tasks_db.models.DBTaskResult")
    rows = model.objects
    with connection.schema_editor() as editor:
        editor.create_model(model)
    try:
        delivery = TasksDelivery(backoff=100.0)
        delivery.record(make_events(1))
        assert rows.count() == 1
        work()
        assert (len(upstream.engine.ledger.entries()), rows.count()) == (1, 0)
        upstream.respond(500)
        delivery.record(make_events(1))
        work()
        assert (rows.finished().count(), rows.count()) == (0, 1)
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(model)


def work():
    call_command("db_worker", batch=True, backend_name="default", queue_name="*", interval=0, verbosity=0)
