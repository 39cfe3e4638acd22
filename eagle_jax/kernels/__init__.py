"""CPU kernels: matrix products of few tokens, and attention (DESIGN 9). Other platforms use XLA's."""
