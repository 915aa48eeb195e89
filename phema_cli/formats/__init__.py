"""Checkpoint formats: a module for each, and the registry that finds the module of a file."""

from phema_cli.formats.registry import FORMATS, endings, read, writable, writer

__all__ = ["FORMATS", "endings", "read", "writable", "writer"]
