"""The one kernel of the package: matrix products of few tokens on CPUs (DESIGN 9); everywhere else XLA's are used."""
