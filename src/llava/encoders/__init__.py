"""Encoders of a video language model: which there are, how each is loaded, what it is fed.

`registry` is the way in; `frames` (which frames of a video) needs no torch.
"""
