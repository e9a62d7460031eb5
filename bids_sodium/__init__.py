"""Sodium (23Na) MRI from raw k-space to group tables, as a BIDS App."""

__version__ = "0.1.0"
