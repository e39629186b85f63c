"""Routing policies compared by discrete events: `make sim-routing`."""
