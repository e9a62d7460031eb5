"""Recipes: tidy tables in, frozen results out."""
