"""Recipes x seeds on the simulated world, and the tables made of them: `./bevcask ablate`."""
