"""Runs a plan: processes that live and die together, and the run directory they leave."""
