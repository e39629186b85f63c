"""What this machine is: one small parser per source, composed by `probe`."""

from orchestrator.hardware.probe import probe

__all__ = ["probe"]
