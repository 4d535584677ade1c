"""A site of several tenants, with django-tenants or with the sites framework. Run it as a script: see __main__.py."""
