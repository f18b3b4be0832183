"""Examples: real workers with real input."""
