"""WHETHER, WHERE and WHEN to run inference engines; and the door in front of them."""

__version__ = "0.1.0"
