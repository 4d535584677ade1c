"""Create the users."""

from tests.sites.settings import create_users

create_users()
