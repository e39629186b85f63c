"""The PyTorch engine's server: OpenAI's completions and chats over the transformers library.

A program of its own: it runs inside the engine's environment (torch, transformers, accelerate,
peft, bitsandbytes, fastapi, uvicorn, prometheus-client), is started as a file, and imports nothing
but the modules beside it. `pytorch_flags` has the flags, `pytorch_sampling` says how seeds work.

Exit codes: 0 after SIGTERM, 1 what could not be loaded, 2 wrong flags, 3 the port is taken, 70 the
batching loop died. The last line of the log (stderr) tells why; no text of a request is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import time
from types import FrameType
from typing import NoReturn

from pytorch_flags import Options, parse

log = logging.getLogger("pytorch_server")
LOOP_DIED = 70
_PORT_TAKEN = 3


def main(argv: list[str]) -> NoReturn:
    """Serve until told to stop; ends the process."""
    options = parse(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s: %(message)s")
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    listener = bound(options)
    if (lacking := absent(options)) is not None:
        _end(1, lacking)
    log.info("importing torch and transformers")
    _quiet(options)
    began = time.monotonic()
    # Not at the top: the port is checked before seconds go into importing torch.
    from pytorch_model import LoadFailed, first_line, load

    try:
        log.info("loading weights")
        loaded = load(options)
        log.info("making the cache")
        from pytorch_loop import Loop

        loop = Loop(loaded, options.max_num_seqs)
        loop.start()
    except LoadFailed as error:
        _end(1, str(error))
    except Exception as error:
        log.exception("while loading")
        _end(1, f"model: {first_line(error)}")
    log.info("loaded in %.1f s: %d KV blocks of %d tokens, %d tokens a sequence, %s",
             time.monotonic() - began, loaded.num_blocks, loaded.block_size,
             loaded.max_model_len, loaded.model.device)  # fmt: skip
    from pytorch_service import Service

    try:
        listener.listen(2048)
    except OSError as error:
        _end(_PORT_TAKEN, f"port: {error}")
    key = os.environ.pop("ENGINE_API_KEY", "")
    died = asyncio.run(Service(loaded, options, loop, key).run(listener))
    if options.uds:
        with contextlib.suppress(OSError):
            os.unlink(options.uds)
    if died is not None:
        _end(LOOP_DIED, f"loop: the batching loop died: {died}")
    loop.stop(2.0)
    _end(0, "stopped")


def absent(options: Options) -> str | None:
    """What is not there at all; told before seconds go into importing torch."""
    if not os.path.isdir(options.model):
        return f"model: {options.model} is no folder"
    for adapter in options.adapters:
        if not os.path.isfile(os.path.join(adapter.path, "adapter_config.json")):
            return f"adapter {adapter.name}: {adapter.path} holds no adapter_config.json"
    return None


def bound(options: Options) -> socket.socket:
    """The socket, bound and not yet listening, so that clients are refused while loading."""
    try:
        if options.uds:
            return _unix(options.uds)
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        found = socket.socket(family)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((options.host, options.port))
        return found
    except OSError as error:
        where = options.uds or f"{options.host}:{options.port}"
        _end(_PORT_TAKEN, f"port: cannot listen on {where}: {error}")


def _unix(path: str) -> socket.socket:
    """A Unix socket; what an ended server left there is replaced, a living one's is not."""
    found = socket.socket(socket.AF_UNIX)
    gone = (FileNotFoundError, ConnectionRefusedError)
    with socket.socket(socket.AF_UNIX) as other, contextlib.suppress(*gone):
        other.connect(path)
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    found.bind(path)
    return found


def _quiet(options: Options) -> None:
    """Before torch and transformers are imported: threads, no network, no bars, no advice."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of compiler processes beside us
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)  # it would log token ids
    import torch
    from transformers.utils import logging as library

    library.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)


def _leave(_: int, __: FrameType | None) -> NoReturn:
    """SIGTERM while loading: nothing is open, nothing is to be saved."""
    _end(0, "stopped while loading")


def _end(code: int, why: str) -> NoReturn:
    """End at once, the reason as the last line; threads of the library do not hold it up."""
    log.log(logging.INFO if code == 0 else logging.ERROR, "%s", why)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
