"""Which replica gets a request: one small pure policy a module. The simulation runs these too."""
