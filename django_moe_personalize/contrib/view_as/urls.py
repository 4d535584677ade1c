"""The form and the links: add ``path("view-as/", include("django_moe_personalize.contrib.view_as.urls"))``."""

from django.urls import path

from django_moe_personalize.contrib.view_as import views

app_name = "moe_personalize_view_as"

urlpatterns = [
    path("", views.control, name="control"),
    path("leave/", views.leave, name="leave"),
    path("<str:token>/", views.open_link, name="open"),
]
