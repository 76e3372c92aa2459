"""From YAML files to a `Recipe`, with every error where it was made."""
