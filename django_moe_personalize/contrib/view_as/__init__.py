"""View as: staff open the site as another visitor, or with chosen experiences, and share this view with a link.

``view`` has the signed description of the other visitor. ``middleware`` gives a request with this description a
``PreviewPage``, which fetches without any cache and counts nothing. ``views`` are the form and the links.
"""
