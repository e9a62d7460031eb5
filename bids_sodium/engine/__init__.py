"""Runs tasks; knows no science and no BIDS."""
