"""Launch scripts, one absl main each: `python -m experiments.NAME --help`."""

from eagle_jax import needed as needed  # reports missing packages before a script imports them
