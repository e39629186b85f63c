"""Supervision: the lifecycle machine, its owner tasks, and everything they keep."""
