"""Launch scripts, one absl main each: `python -m experiments.NAME --help`."""

import os

# Without PyTorch, which nothing here needs to run, transformers would say so on every start.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from eagle_jax import needed as needed  # says what is not installed, before a script imports it
