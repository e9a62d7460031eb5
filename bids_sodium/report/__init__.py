"""Figures and pages, made from what is on disk."""
