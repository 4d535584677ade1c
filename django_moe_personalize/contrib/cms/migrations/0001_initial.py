import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [("cms", "0022_auto_20180620_1551")]

    operations = [
        migrations.CreateModel(
            name="ExperiencePluginModel",
            fields=[
                (
                    "cmsplugin_ptr",
                    models.OneToOneField(
                        auto_created=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        parent_link=True,
                        primary_key=True,
                        related_name="%(app_label)s_%(class)s",
                        serialize=False,
                        to="cms.cmsplugin",
                    ),
                ),
                (
                    "experience_key",
                    models.CharField(
                        help_text="Choose an experience, or type its key. Visitors without it see the plugins inside.",
                        max_length=255,
                        verbose_name="Experience",
                    ),
                ),
            ],
            options={"verbose_name": "Experience", "verbose_name_plural": "Experiences"},
            bases=("cms.cmsplugin",),
        ),
    ]
