"""MERV's side: its published models, their checkpoints, and the calls of its quick start.

Source: github.com/princetonvisualai/merv.
"""
