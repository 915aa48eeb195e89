"""Callbacks that keep a PowerEMA for training libraries: one module a library.

None is imported by phema itself, and none but its module imports the library.
"""
