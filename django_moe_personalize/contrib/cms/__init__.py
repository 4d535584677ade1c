"""Experiences in django CMS: editors choose an experience in a plugin, and put the fallback inside the plugin."""
