"""The schemas of ``--json``, and whether a document fits its own."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.pages import ROOT

SCHEMAS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((ROOT / "docs" / "schemas").glob("*.json"))
}
REGISTRY = Registry().with_resources(
    (f"{name}.json", Resource.from_contents(schema)) for name, schema in SCHEMAS.items()
)


def assert_fits(document: Any) -> None:
    """A document has the fields and types that the schema of its name and version asks for."""
    name, version = document["schema"].removeprefix("phema/").split("/")
    assert version == "1"
    validator = Draft202012Validator(SCHEMAS[name], registry=REGISTRY)
    faults = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    assert not faults
