"""From a plan to the files by which Compose, Podman with systemd, or Kubernetes runs it."""
