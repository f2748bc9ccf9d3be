"""What must hold and takes too long for the test suite: one module of claims a part, run by `./bevcask prove`."""
