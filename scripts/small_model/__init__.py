"""The steps of `scripts/make_small.py`, which makes the model `small`."""
