"""Checks of data sets: rows as their files have them, before any library coerces them, against what a method trains."""
