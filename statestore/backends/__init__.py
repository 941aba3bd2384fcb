"""Places that keep entries and blobs. `base` is the port; each other module is one place.

Nothing is imported here: a place's libraries are loaded by whoever opens that place.
"""
