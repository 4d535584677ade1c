"""The tenants of django-tenants. Each tenant has a schema with its own table of users."""

from django_tenants.models import DomainMixin, TenantMixin


class Shop(TenantMixin):
    """A tenant."""


class Domain(DomainMixin):
    """A host of a tenant."""
