"""The tenants of django-tenants. Each tenant has a schema with its own table of users."""

from django.db import models
from django_tenants.models import DomainMixin, TenantMixin


class Shop(TenantMixin):
    """A tenant."""

    name = models.CharField(max_length=20)


class Domain(DomainMixin):
    """A host of a tenant."""
