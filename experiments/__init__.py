"""Launch scripts, one absl main each: `python -m experiments.NAME --help`."""

from eagle_jax import needed as needed  # says what is not installed, before a script imports it
