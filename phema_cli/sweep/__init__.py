"""Sweeps: the search for the averaging length whose checkpoint does best."""
