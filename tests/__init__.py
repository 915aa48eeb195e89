"""The tests of phema."""
