"""The tables of the outbox. Only ``DatabaseDelivery`` uses them."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Create the tables."""

    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="OutboxCounter",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("workspace", models.CharField(default="default", max_length=32, verbose_name="workspace")),
                ("outcome", models.CharField(max_length=20, verbose_name="outcome")),
                ("count", models.PositiveBigIntegerField(default=0, verbose_name="count")),
            ],
            options={
                "verbose_name": "counter of the outbox",
                "verbose_name_plural": "counters of the outbox",
                "constraints": [
                    models.UniqueConstraint(fields=("workspace", "outcome"), name="moe_outbox_counter"),
                ],
            },
        ),
        migrations.CreateModel(
            name="OutboxEvent",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("workspace", models.CharField(default="default", max_length=32, verbose_name="workspace")),
                ("event_uuid", models.UUIDField(unique=True, verbose_name="event UUID")),
                ("customer_hash", models.CharField(max_length=32, verbose_name="hash of the customer id")),
                ("body", models.TextField(verbose_name="JSON for MoEngage")),
                ("is_conversion", models.BooleanField(db_default=False, default=False, verbose_name="conversion")),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "pending"),
                            ("refused", "refused by MoEngage"),
                            ("attempts", "given up after too many attempts"),
                        ],
                        default="pending",
                        max_length=8,
                        verbose_name="state",
                    ),
                ),
                (
                    "is_pending",
                    models.GeneratedField(
                        db_persist=True,
                        expression=models.Case(models.When(state="pending", then=True), default=False),
                        output_field=models.BooleanField(),
                        verbose_name="pending",
                    ),
                ),
                ("attempts", models.PositiveIntegerField(default=0, verbose_name="attempts")),
                ("due_at", models.DateTimeField(verbose_name="due at")),
                ("lease", models.UUIDField(null=True, verbose_name="lease")),
                ("reason", models.TextField(blank=True, verbose_name="reason")),
                ("created_at", models.DateTimeField(verbose_name="created at")),
            ],
            options={
                "verbose_name": "event in the outbox",
                "verbose_name_plural": "events in the outbox",
                "indexes": [models.Index(fields=["workspace", "is_pending", "due_at"], name="moe_outbox_due")],
            },
        ),
    ]
