"""Checks of data sets: rows as they are in the files, before any library coerces them, against what a method trains on."""
