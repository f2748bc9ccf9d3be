"""Whatever uses several rooms at once: the demo, the slow proofs, the benchmarks, the ablations."""
