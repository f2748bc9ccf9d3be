"""Benchmarks: one module each, with ABOUT (one line) and run(work, console, **options) -> plain JSON values."""
