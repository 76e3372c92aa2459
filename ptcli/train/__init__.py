"""What `accelerate launch` runs: from the resolved recipe to a TRL trainer. Heavy imports live here."""
