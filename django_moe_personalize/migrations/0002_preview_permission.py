"""The permission to view pages as another visitor."""

from django.db import migrations


class Migration(migrations.Migration):
    """Add the permission."""

    dependencies = [("moe_personalize", "0001_initial")]

    operations = [
        migrations.AlterModelOptions(
            name="outboxevent",
            options={
                "permissions": (("preview", "Can view pages as another visitor"),),
                "verbose_name": "event in the outbox",
                "verbose_name_plural": "events in the outbox",
            },
        ),
    ]
