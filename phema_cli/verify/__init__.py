"""Verification: an output against its sources, and one checkpoint against another."""
