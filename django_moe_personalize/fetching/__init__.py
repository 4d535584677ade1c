"""Fetching: experiences from memory, from the site's cache, or from MoEngage in one call under one deadline."""
