"""Merge an adapter into its base: planned from headers, streamed, verified, published whole."""
