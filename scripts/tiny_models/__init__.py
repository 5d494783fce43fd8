"""The steps of `scripts/make_tiny.py`, which makes the embedded models."""
