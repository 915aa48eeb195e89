"""Tests of the commands, through the real console script."""
