"""`python -m orchestrator` is the `engineroom` command."""

from orchestrator.cli.main import run

run()
