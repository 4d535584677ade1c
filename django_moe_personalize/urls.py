"""The endpoints for browsers: add ``path("moe/", include("django_moe_personalize.urls"))`` to your URLs."""

from __future__ import annotations

from django.urls import path

from django_moe_personalize import views

app_name = "moe_personalize"

urlpatterns = [
    path("click/<str:token>/", views.click, name="click"),
    path("beacon/", views.beacon, name="beacon"),
    path("islands/", views.islands, name="islands"),
    path("islands/<str:token>/", views.island, name="island"),
]
