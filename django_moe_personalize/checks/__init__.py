"""System checks: report mistakes in the settings and the templates of a site before its first visitor comes.

``settings`` has the checks with their ids and hints. ``template_leaks`` searches templates for cached personal content.
``foreign_code`` tells whether a tag of another library may render a template. ``pasted_text`` finds quotes and
placeholders in credentials. ``usages`` finds the places of experience keys, for the commands. ``finders`` has the
finders of other libraries.
"""
