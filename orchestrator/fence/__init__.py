"""The fence before a Docker socket: what the runtime for containers needs passes, nothing else."""
