"""What engines' containers are found by, and what they belong to. Pure."""

from __future__ import annotations

INSTALLATION = "engineroom.installation"
NAME = "engineroom.name"
GENERATION = "engineroom.generation"
PLAN = "engineroom.plan"
