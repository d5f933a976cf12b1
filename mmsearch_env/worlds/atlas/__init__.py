"""The atlas: sovereign states with real facts and flags drawn by this package."""
