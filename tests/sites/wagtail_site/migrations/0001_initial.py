"""Create the tables of the pages."""

import django.db.models.deletion
import wagtail.fields
from django.db import migrations, models


def _parent():
    options = {"auto_created": True, "parent_link": True, "primary_key": True, "serialize": False}
    return models.OneToOneField("wagtailcore.page", on_delete=django.db.models.deletion.CASCADE, **options)


BLOCKS = {
    0: ("wagtail.blocks.CharBlock", (), {}),
    1: ("wagtail.blocks.StructBlock", [[("fallback", 0)]], {}),
}


class Migration(migrations.Migration):
    initial = True
    dependencies = [("wagtailcore", "__first__")]
    operations = [
        migrations.CreateModel(
            name="ArticlePage",
            fields=[("page_ptr", _parent()), ("intro", models.TextField())],
            bases=("wagtailcore.page",),
        ),
        migrations.CreateModel(
            name="HomePage",
            fields=[
                ("page_ptr", _parent()),
                ("body", wagtail.fields.StreamField([("banner", 1), ("text", 0)], block_lookup=BLOCKS)),
            ],
            bases=("wagtailcore.page",),
        ),
    ]
