"""Checkpoint formats: one module each, and the registry that finds the module for a file."""

from phema_cli.formats.registry import FORMATS, endings, format_of, read, writable, writer

__all__ = ["FORMATS", "endings", "format_of", "read", "writable", "writer"]
