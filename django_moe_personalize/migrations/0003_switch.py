"""The table of the kill switch. ``manage.py moe_switch`` and the admin change it."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Create the table."""

    dependencies = [("moe_personalize", "0002_preview_permission")]

    operations = [
        migrations.CreateModel(
            name="Switch",
            fields=[
                (
                    "switch_id",
                    models.CharField(
                        editable=False, max_length=32, primary_key=True, serialize=False, verbose_name="id"
                    ),
                ),
                ("workspace", models.CharField(default="default", max_length=100, verbose_name="workspace")),
                ("experience_key", models.TextField(blank=True, verbose_name="experience key")),
                ("is_off", models.BooleanField(default=True, verbose_name="switched off")),
                ("until", models.DateTimeField(blank=True, null=True, verbose_name="off until")),
                ("changed_by", models.CharField(blank=True, max_length=150, verbose_name="changed by")),
                ("changed_at", models.DateTimeField(verbose_name="changed at")),
            ],
            options={"verbose_name": "kill switch", "verbose_name_plural": "kill switches"},
        ),
    ]
