"""Snapshots: scanning directories, reading tags, checking that the files fit together."""

from phema_cli.request import Config
from phema_cli.snapshots.consistency import Finding, Snapshot
from phema_cli.snapshots.scan import Scan, scan
from phema_cli.snapshots.tags import Tag

__all__ = ["Config", "Finding", "Scan", "Snapshot", "Tag", "scan"]
