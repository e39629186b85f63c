"""The parent of one engine: a program of its own, standard library only.

Run as `python -I -S …/shim/__main__.py`, with one JSON object on standard input; `main` says which.
Its modules import each other relatively, so that they need no package above them; the runtime uses
the same knowledge of processes as `orchestrator.runtimes.shim.kernel` and its like.
"""
