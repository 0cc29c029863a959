"""Talking to a model about a video or an image: on the command line, and on a page."""
