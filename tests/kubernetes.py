"""Objects of Kubernetes held to its own schemas, strictly: no field that it does not know."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import kubernetes_validate
from kubernetes_validate import utils

VERSIONS = tuple(f"1.{minor}" for minor in range(28, 38))
_read = cache(utils.schema_contents)  # 4 MB of definitions, otherwise read for every object
utils.schema_contents = _read


@cache
def _check(text: str, version: str) -> None:
    told = kubernetes_validate.validate(json.loads(text), version, strict=True)
    assert told == version, f"there is no schema of {version}, only of {told}"


def check(manifest: dict[str, Any], version: str) -> None:
    """Raises kubernetes_validate.ValidationError."""
    _check(json.dumps(manifest, sort_keys=True), version)
