"""The shim's life: take the engine, serve whoever holds its lease, end it, leave nothing.

On standard input, one JSON object:

    argv, env, cwd      the engine's command, its complete environment, its folder
    log, log_max_bytes, log_files     where its output goes, and the rotation
    folder, socket      where `leaf.json`, `pid.json` and `exit.json` are written; where to listen
    tmp                 private TMPDIR, removed at the end
    vital               words with which the command lines of vital descendants begin
    leaf, memory_max    name for its control groups; bytes they are limited to, or null
    lease_s, grace_s    seconds without a renewal before the engine is stopped; TERM to KILL
    until               monotonic seconds after which nobody waits for the engine any more
    attach              null, or the identity of an engine that lost its shim: it is taken over
                        as it is, and how it ends stays unknown

The shim leaves its starter's session and becomes a child subreaper, so that whatever the engine
forks comes back to it. Where a vital descendant ends that nobody asked to, the whole tree is
killed: the rest may take seconds to notice. The engine writes to the log file itself: no pipe can
block it. Once the engine runs (or could not be started) one line of JSON goes to standard output
and the starter is free to die. On the socket, lines of JSON: `{"op": "renew"}` and `{"op": "stop",
"grace_s": 10}` come in; `{"event": "hello", …}` and `{"event": "exit", …}` go out.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import shutil
import signal
import sys
import time
from typing import Any

from .clients import Clients
from .kernel import ending, identity, lives, write_json
from .leaf import Leaf, MemoryKills
from .output import Output
from .spawn import spawn
from .tree import Tree
from .vital import Vital

PR_SET_CHILD_SUBREAPER = 36
TICK_S = 1.0
LAST_WORDS_S = 5.0  # for an engine that ends its own vital descendants: it has to log why
DOUBT_S = 1.5  # the same where nobody knows how a descendant ended
KILL_AGAIN_S = 0.1  # a process that waits for a device dies when that answers
UNHEARD_S = 3.0  # lease of an engine whose starter is gone before it could hear of it
UNKNOWN = "how it ended is not known: its first shim was lost"


class Shim:
    """One engine, its log and its lease."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec, self.mark = spec, f"TMPDIR={spec['tmp']}"
        self.selector = selectors.DefaultSelector()
        self.lease_ends = time.monotonic() + spec["lease_s"]
        self.kill_at: float | None = None
        self.term_at: float | None = None
        self.exit: dict[str, Any] | None = None
        self.lost: dict[str, Any] | None = None
        self.vital, self.leaf = Vital(spec["vital"]), Leaf()
        self.log = Output(spec["log"], spec["log_max_bytes"], spec["log_files"])
        self.clients = Clients(self.selector, spec["socket"], self.obey)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.begin_stop(spec["grace_s"]))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.selector.register(wake_read, selectors.EVENT_READ, lambda fd: os.read(fd, 4096))

    # --- how it begins ---

    def start(self) -> dict[str, Any]:
        """Start the engine, or take it over: the line for the starter. Raises OSError."""
        self.take_over() if self.spec["attach"] else self.launch()
        self.clients.hello = {"event": "hello", **self.pids}
        self.tree = Tree(self.pids["child"], self.leaf, self.mark, (os.getpid(),))
        return {**self.pids, "leaf": self.leaf.folders}

    def launch(self) -> None:
        spec = self.spec
        if time.monotonic() > spec["until"]:
            raise TimeoutError(0, "its starter waits no more", spec["argv"][0])
        os.makedirs(spec["tmp"], mode=0o700, exist_ok=True)
        self.leaf = Leaf.below_us(f"{spec['leaf']}.{os.getpid()}")
        write_json(self.at("leaf.json"), {"leaf": self.leaf.folders, "mark": self.mark})
        try:
            self.leaf.make()
            if spec["memory_max"] is not None:
                self.leaf.limit(spec["memory_max"])
            self.memory = MemoryKills(self.leaf)
            self.pids = spawn(spec, self.leaf, self.log.fd)
        except OSError:
            self.leaf.remove()
            raise

    def take_over(self) -> None:
        """Hold an engine by a pidfd whose parent we are not."""
        child = self.spec["attach"]
        pidfd = os.pidfd_open(child["pid"])
        if not lives(child):
            raise ProcessLookupError(0, "it has ended meanwhile", self.spec["argv"][0])
        with contextlib.suppress(OSError, ValueError), open(self.at("leaf.json")) as file:
            self.leaf = Leaf(json.load(file)["leaf"])
        self.memory = MemoryKills(self.leaf)
        self.pids = {"shim": identity(os.getpid()), "child": child}
        write_json(self.at("pid.json"), self.pids)
        self.selector.register(pidfd, selectors.EVENT_READ, self.stranger_ended)

    def at(self, name: str) -> str:
        """A file in the instance's folder."""
        return os.path.join(self.spec["folder"], name)

    def unheard(self) -> None:
        """The starter is gone. Whoever comes next finds what was taken over, by its record."""
        if not self.spec["attach"]:
            self.lease_ends = time.monotonic() + min(UNHEARD_S, self.spec["lease_s"])

    # --- while it runs ---

    def run(self) -> None:
        """Serve until the engine and everything it started is gone."""
        while self.exit is None:
            for key, _ in self.selector.select(self.timeout()):
                key.data(key.fileobj)
            self.reap()
            self.check_deadlines()
            self.memory.look()
            for pidfd in self.vital.found(self.pids["child"]["pid"], self.tree.members):
                self.selector.register(pidfd, selectors.EVENT_READ, self.part_ended)
            self.log.keep_small(TICK_S)
        self.end()
        self.clients.tell({"event": "exit", **self.exit})  # last: nothing of us is left now

    def end(self) -> None:
        """Kill what is left of the tree, write down how it ended, and clear up."""
        self.tree.kill()
        self.reap()
        self.leaf.remove()
        with contextlib.suppress(OSError):  # a full disk: whoever is connected is told
            write_json(self.at("exit.json"), self.exit or {"error": "its shim failed"})
        self.clear()

    def clear(self) -> None:
        """Remove what only a running engine needs."""
        shutil.rmtree(self.spec["tmp"], ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.spec["socket"])

    def timeout(self) -> float:
        """Seconds until something is due."""
        due = [self.lease_ends if self.kill_at is None else self.kill_at, self.log.look_at]
        due += [self.term_at] if self.term_at is not None else []
        return max(0.0, min(TICK_S, min(due) - time.monotonic()))

    def obey(self, order: dict[str, Any]) -> None:
        """An order from the socket. Any of them renews the lease."""
        self.lease_ends = time.monotonic() + self.spec["lease_s"]
        if order.get("op") == "stop":
            self.begin_stop(float(order.get("grace_s", self.spec["grace_s"])))

    def begin_stop(self, grace_s: float) -> None:
        """TERM now, TERM again half-way, KILL at the end of the grace.

        The second one is for engines that lose the first, as vLLM does while it starts, and for
        those that wait for open requests until they are asked twice.
        """
        now = time.monotonic()
        if self.kill_at is None:
            self.tree.signal_group(signal.SIGTERM)
        # A second request may shorten the grace, never lengthen it.
        self.kill_at = now + grace_s if self.kill_at is None else min(self.kill_at, now + grace_s)
        self.term_at = now + (self.kill_at - now) / 2

    def part_ended(self, pidfd: int) -> None:
        """A vital descendant is gone: unless that was asked for, the rest goes too."""
        self.selector.unregister(pidfd)
        how = self.vital.ended(pidfd)
        if self.kill_at is None:
            self.lost = how
            soft = how["signal"] in (None, signal.SIGTERM, signal.SIGINT)
            in_doubt = how["signal"] is how["code"] is None
            pause = DOUBT_S if in_doubt else LAST_WORDS_S if soft else 0.0
            self.kill_at = time.monotonic() + pause

    def check_deadlines(self) -> None:
        """Whatever is due: KILL, the second TERM, the end of the lease."""
        now = time.monotonic()
        if self.exit is not None:
            return
        if self.kill_at is None and now >= self.lease_ends:
            self.begin_stop(self.spec["grace_s"])
        if self.kill_at is not None and now >= self.kill_at:
            self.leaf.kill()
            self.tree.signal_group(signal.SIGKILL)
            self.kill_at = now + KILL_AGAIN_S
        elif self.term_at is not None and now >= self.term_at:
            self.term_at = None
            self.tree.signal_group(signal.SIGTERM)

    # --- how it ends ---

    def reap(self) -> None:
        """Collect every child that ended; the engine's own status is kept."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.pids["child"]["pid"] and not self.spec["attach"]:
                code = os.waitstatus_to_exitcode(status)
                self.conclude(
                    {"code": code if code >= 0 else None, "signal": -code if code < 0 else None}
                )

    def stranger_ended(self, pidfd: int) -> None:
        """An engine that was taken over is gone; its parent may not have taken its status yet."""
        self.selector.unregister(pidfd)
        os.close(pidfd)
        how: dict[str, Any] = ending(self.pids["child"]["pid"], self.pids["child"]["started"])
        if how["code"] is how["signal"] is None:
            how["error"] = UNKNOWN
        self.conclude(how)

    def conclude(self, own: dict[str, Any]) -> None:
        """Say how the engine ended: by itself, or because of a part that it lost."""
        by_us = own["signal"] == signal.SIGKILL or "error" in own
        how = self.lost if self.lost and by_us else own
        self.exit = {**how, "oom_killed": self.memory.ended(how)}


def main() -> None:
    """Detach, take the engine, report, serve."""
    spec = json.load(sys.stdin)
    if os.fork() > 0:  # the starter waits for this one only; the shim belongs to nobody
        os._exit(0)
    os.setsid()
    os.umask(0o077)
    os.chdir(spec["folder"])  # by which it is found, as its engine is
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        shim = Shim(spec)
    except OSError as error:
        _report({"error": f"{error.filename or spec['socket']}: {error}"})
        return
    try:
        line = shim.start()
    except OSError as error:
        _report({"error": f"{error.filename}: {error.strerror}"})
        if not spec["attach"]:
            shim.clear()
        return
    if not _report(line):
        shim.unheard()
    try:
        shim.run()
    finally:  # whatever happens here, nothing goes on without a lease
        if shim.exit is None:
            shim.end()
    os._exit(0)  # at once: who was told of the end may look for us


def _report(line: dict[str, Any]) -> bool:
    """Tell the starter and let go of its files; whether it could still hear us."""
    heard = True
    try:
        os.write(1, json.dumps(line).encode() + b"\n")
    except OSError:
        heard = False
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    return heard
