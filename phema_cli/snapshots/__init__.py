"""Snapshots: scanning directories, reading tags, checking that the files fit together."""

from phema_cli.request import Config
from phema_cli.snapshots.base import Finding, Snapshot, Tag
from phema_cli.snapshots.scan import Paths, Scan, scan

__all__ = ["Config", "Finding", "Paths", "Scan", "Snapshot", "Tag", "scan"]
