"""`python -m orchestrator.fence`: the proxy before a Docker socket.

It listens on a socket of its own, which only those reach who share its folder.

| variable | |
| --- | --- |
| `FENCE_SOCKET` | where it listens |
| `FENCE_DOCKER` | the Docker socket |
| `FENCE_NETWORK` | the network of engines' containers |
| `FENCE_USER` | who they run as, uid:gid |
| `FENCE_PROJECT` | Compose's name of the containers around |
"""

from __future__ import annotations

import logging
import os
import socket
import sys

import uvicorn

from orchestrator.fence.relay import Fence

LISTENS = "/run/docker-api/docker.sock"
USER = "65532:65532"
_DRAIN_S = 2  # for answers under way; events and logs never end by themselves


def main() -> None:
    """See the module."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        network, project = os.environ["FENCE_NETWORK"], os.environ["FENCE_PROJECT"]
    except KeyError as error:
        where = "see `pydoc orchestrator.fence.__main__`"
        sys.stderr.write(f"error: {error.args[0]} is not set, {where}\n")
        raise SystemExit(78) from None
    docker = os.environ.get("FENCE_DOCKER", "/var/run/docker.sock")
    user = os.environ.get("FENCE_USER", USER)
    # A container's host name is the beginning of its id unless it was told another.
    fence = Fence(docker, network, user, project, socket.gethostname())
    listens = os.environ.get("FENCE_SOCKET", LISTENS)
    logging.getLogger("engineroom.fence").info("%s before %s, for %s", listens, docker, network)
    uvicorn.run(
        fence.application(),
        uds=listens,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )


if __name__ == "__main__":
    main()
