"""Choosing by measuring: variants on equal seeds and splits, and what may be said of their differences."""
