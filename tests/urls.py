"""Routes of the test site."""

from django.urls import include, path

urlpatterns = [path("moe/", include("django_moe_personalize.urls"))]
