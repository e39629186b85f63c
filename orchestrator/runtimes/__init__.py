"""WHERE engines run: one file per runtime, each with a Runtime and a Handle."""
