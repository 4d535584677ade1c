"""Routes of the example: the shop, the workbench beside it, and the package's own."""

from django.urls import include, path

urlpatterns = [
    path("", include("shop.urls")),
    path("", include("workbench.urls")),
    path("moe/", include("django_moe_personalize.urls")),
]
