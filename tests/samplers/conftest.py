"""Hypothesis draws the same examples in every run, and a slow machine is no failure."""

from hypothesis import settings

settings.register_profile("samplers", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("samplers")
