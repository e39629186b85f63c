"""The door: the only thing that a client talks to. Knows nothing of GPUs, plans or processes."""
