"""From a recipe and a machine to a plan: pure decisions, nothing started, nothing written."""
