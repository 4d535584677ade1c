"""The routes of the shop, of the workbench and of the package."""

from django.conf import settings
from django.urls import include, path

urlpatterns = [
    path("", include("shop.urls")),
    path("", include("workbench.urls")),
    path("view-as/", include("django_moe_personalize.contrib.view_as.urls")),
    path("moe/", include("django_moe_personalize.urls")),
    path("moe/", include("django_moe_personalize.contrib.json")),
]

if "debug_toolbar" in settings.INSTALLED_APPS:
    urlpatterns.append(path("__debug__/", include("debug_toolbar.urls")))

if "django_moe_personalize.contrib.otel" in settings.INSTALLED_APPS:
    from telemetry import show_metrics

    urlpatterns.append(path("metrics", show_metrics))
