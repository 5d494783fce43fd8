"""A run of 1.1B parameters from published formats, for benchmarks and tests at size."""
