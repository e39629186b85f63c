"""The gateway beside its peers, on one machine, in turns: `make bench-gateway`."""
