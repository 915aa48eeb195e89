"""Callbacks that keep a PowerEMA for training libraries: one module for each library.

phema itself imports none of them, and only its module imports the library.
"""
