"""Rows as they are in files: which files an entry means, cut into blocks, and read without any library's coercion."""
