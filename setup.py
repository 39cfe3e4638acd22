"""Package metadata; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

RUNTIME = [
    "absl-py>=2.1",
    "flax>=0.12",
    "gguf>=0.19",
    "grain>=0.2.18",
    "huggingface-hub>=1.0",
    "jax>=0.10.2",
    "jinja2>=3.1.6",  # chat templates, rendered by transformers, which refuses older ones
    "matplotlib>=3.9",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12",
    "safetensors>=0.6",
    "tensorboardX>=2.6",
    "tokenizers>=0.22",
    "tqdm>=4.66",
    "transformers>=5.0",  # tested with 5.0.0 and later ones: it renders chat templates and no more
]

TEST = [
    "hypothesis>=6.100",
    "mypy>=2.0",
    "pre-commit>=4.0",
    "pytest>=9.0",
    "pytest-xdist>=3.6",
    "ruff>=0.15",
    "scipy>=1.14",  # critical values of the chi-square tests
]

# The TPU compiler, which needs no TPU (experiments/scaling/compile.py), in the version that fits the installed jax.
TPU = ["jax[tpu]>=0.10.2"]

# The compiler for GPUs, which needs none (the same script): the plugin without the libraries that running needs. Newer
# plugins need Python 3.12.
GPU_COMPILE = ["jax[cuda13-local]>=0.11"]

# Live parity tests and the comparison with PyTorch. Never imported by the package.
TORCH = ["torch==2.13.0"]

# What `experiments.bench.measure --what=peers` compares with.
PEERS = ["openvino-genai>=2026.4", *TORCH]

setup(
    name="eagle_jax",
    version="0.1.0",
    description="Exact draft-tree speculative decoding (EAGLE, EAGLE-2, EAGLE-3 and their peers) in JAX",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["eagle_jax", "eagle_jax.*"]),
    package_data={"eagle_jax": ["py.typed", "pretrained/*/*", "kernels/*.cc", "kernels/*.h"]},
    install_requires=RUNTIME,
    extras_require={"test": TEST, "torch": TORCH, "peers": PEERS, "tpu": TPU, "gpu_compile": GPU_COMPILE},
)
