"""Data: the sample set, published training sets and benchmarks as records, and stored encoder outputs."""
