"""The parent of one engine: a program of its own, standard library only.

Run as `python shim.py`, with one JSON object on standard input:

    argv, env, cwd      the engine's command, its complete environment, its folder
    log, log_max_bytes, log_files     where its output goes, and the rotation
    folder, socket      where `pid.json` and `exit.json` are written; the Unix socket to listen on
    tmp                 private TMPDIR, removed at the end
    vital               words with which the command lines of vital descendants begin
    lease_s, grace_s    seconds without a renewal before the engine is stopped; TERM to KILL

It leaves its starter's session and becomes a child subreaper, so that whatever the engine forks
comes back to it. Where a vital descendant ends that nobody asked to, the whole tree is killed: the
rest may take seconds to notice. The engine writes to the log file itself: no pipe can block it.
Once the engine runs (or could not be started) one line of JSON goes to standard output and the
starter is free to die. On the socket, lines of JSON: `{"op": "renew"}` and `{"op": "stop",
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
import socket
import subprocess
import sys
import time
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
TICK_S = 1.0
SCAN_MAX_S = 16.0  # between two looks for vital descendants, once one of each kind is there
LAST_WORDS_S = 5.0  # for an engine that ends its own vital descendants: it has to log why
DOUBT_S = 1.5  # the same where nobody knows how a descendant ended


def identity(pid: int) -> dict[str, Any]:
    """(boot id, pid, start time) of a live process; OSError when there is none."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return {"boot_id": file.read().strip(), "pid": pid, "started": int(stat(pid)[19])}


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third, its state, on; OSError when there is none."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write so that a reader sees the old file or the whole new one."""
    with open(path + ".new", "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def descendants_of(pid: int) -> dict[int, int]:
    """Live descendants and their start times, from /proc: the kernel's own list is optional."""
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = stat(int(name))
                if fields[0] != "Z":
                    children.setdefault(int(fields[1]), []).append((int(name), int(fields[19])))
    found: dict[int, int] = {}
    parents = [pid]
    while parents:
        below = children.get(parents.pop(), [])
        found.update(below)
        parents += [child for child, _ in below]
    return found


class Vital:
    """The descendants that the engine cannot live without, each held by a pidfd."""

    def __init__(self, words: list[str]) -> None:
        self.words = tuple(words)
        self.held: dict[int, tuple[int, int, str]] = {}  # pidfd -> pid, start time, title
        self.look_at, self.pause = 0.0, TICK_S

    def found(self, leader: int) -> list[int]:
        """Pidfds of those that were not known; looks less often once each kind is there."""
        if not self.words or time.monotonic() < self.look_at:
            return []
        fresh, known = [], {who[:2] for who in self.held.values()}
        for pid, started in descendants_of(os.getpid()).items():
            if pid == leader or (pid, started) in known:
                continue
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
                title = file.read(256).split(b"\0", 1)[0].decode(errors="replace")
                if not title.startswith(self.words):
                    continue
                pidfd = os.pidfd_open(pid)
                if int(stat(pid)[19]) != started:  # its pid was used again while we looked
                    os.close(pidfd)
                    continue
                self.held[pidfd] = (pid, started, title)
                fresh.append(pidfd)
        seen = [title for _, _, title in self.held.values()]
        whole = all(any(title.startswith(word) for title in seen) for word in self.words)
        self.pause = TICK_S if fresh or not whole else min(2 * self.pause, SCAN_MAX_S)
        self.look_at = time.monotonic() + self.pause
        return fresh

    def ended(self, pidfd: int) -> dict[str, Any]:
        """Let go of one that ended: its name, and its status while its parent has not taken it."""
        pid, started, title = self.held.pop(pidfd)
        os.close(pidfd)
        how: dict[str, Any] = {"code": None, "signal": None, "part": f"{title} ({pid})"}
        with contextlib.suppress(OSError):
            if (fields := stat(pid))[0] == "Z" and int(fields[19]) == started:
                code = os.waitstatus_to_exitcode(int(fields[49]))
                how["code" if code >= 0 else "signal"] = abs(code)
        return how


class Shim:
    """One engine, its log and its lease."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.selector = selectors.DefaultSelector()
        self.clients: dict[socket.socket, bytes] = {}
        self.lease_ends = time.monotonic() + spec["lease_s"]
        self.kill_at: float | None = None
        self.exit: dict[str, Any] | None = None
        self.vital = Vital(spec["vital"])
        self.lost: dict[str, Any] | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self.log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(spec["socket"])
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(spec["socket"])
        self.listener.listen(16)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.begin_stop(spec["grace_s"]))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.selector.register(wake_read, selectors.EVENT_READ, lambda fd: os.read(fd, 4096))

    def start(self) -> dict[str, Any]:
        """Start the engine; the line for the starter. `error` is set where that failed."""
        spec = self.spec
        os.makedirs(spec["tmp"], mode=0o700, exist_ok=True)
        try:
            self.child = subprocess.Popen(
                spec["argv"],
                env=spec["env"],
                cwd=spec["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                start_new_session=True,
            )
            self.pids = {"shim": identity(os.getpid()), "child": identity(self.child.pid)}
        except OSError as error:
            return {"error": f"{spec['argv'][0]}: {error.strerror}"}
        try:
            write_json(os.path.join(spec["folder"], "pid.json"), self.pids)
        except OSError as error:  # nobody could find it again: it must not run
            self.sweep()
            return {"error": f"{error.filename}: {error.strerror}"}
        return self.pids

    def run(self) -> None:
        """Serve until the engine and everything it started is gone."""
        while self.exit is None:
            for key, _ in self.selector.select(self.timeout()):
                key.data(key.fileobj)
            self.reap()
            self.check_deadlines()
            for pidfd in self.vital.found(self.pids["child"]["pid"]):
                self.selector.register(pidfd, selectors.EVENT_READ, self.part_ended)
            self.rotate()
        self.sweep()
        with contextlib.suppress(OSError):  # a full disk: whoever is connected is told below
            write_json(os.path.join(self.spec["folder"], "exit.json"), self.exit)
        shutil.rmtree(self.spec["tmp"], ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.spec["socket"])
        for client in list(self.clients):  # last: whoever hears it finds nothing of us left
            self.send(client, {"event": "exit", **self.exit})

    def timeout(self) -> float:
        ends = [self.lease_ends] if self.kill_at is None else [self.kill_at]
        return max(0.0, min(TICK_S, min(ends) - time.monotonic()))

    # --- the engine ---

    def begin_stop(self, grace_s: float) -> None:
        if self.kill_at is None:
            self.signal_group(signal.SIGTERM)
        # A second request may shorten the grace, never lengthen it.
        wanted = time.monotonic() + grace_s
        self.kill_at = wanted if self.kill_at is None else min(self.kill_at, wanted)

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

    def signal_group(self, number: signal.Signals) -> None:
        if self.child is not None and self.exit is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, number)

    def check_deadlines(self) -> None:
        now = time.monotonic()
        if self.kill_at is not None and now >= self.kill_at:
            self.signal_group(signal.SIGKILL)
        elif self.kill_at is None and now >= self.lease_ends:
            self.begin_stop(self.spec["grace_s"])

    def reap(self) -> None:
        """Collect every child that ended; the engine's own status is kept."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.child is not None and pid == self.child.pid:
                code = os.waitstatus_to_exitcode(status)
                self.child.returncode = code
                own = {"code": code if code >= 0 else None, "signal": -code if code < 0 else None}
                self.exit = self.lost if self.lost and code == -signal.SIGKILL else own

    def sweep(self) -> None:
        """KILL what the engine left behind: its group, then whatever was re-parented to us."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
        while left := descendants_of(os.getpid()):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)
        self.reap()

    def rotate(self) -> None:
        """Copy and truncate: the engine appends to an open file that must stay the same one."""
        if os.fstat(self.log).st_size <= self.spec["log_max_bytes"]:
            return
        path = self.spec["log"]
        for number in range(self.spec["log_files"], 1, -1):
            with contextlib.suppress(OSError):
                os.replace(f"{path}.{number - 1}", f"{path}.{number}")
        with contextlib.suppress(OSError):
            shutil.copyfile(path, f"{path}.1")
        os.ftruncate(self.log, 0)

    # --- the socket ---

    def accept(self, _: object) -> None:
        try:
            client, _address = self.listener.accept()
        except BlockingIOError:
            return
        client.setblocking(False)
        self.clients[client] = b""
        self.selector.register(client, selectors.EVENT_READ, self.read)
        self.send(client, {"event": "hello", **self.pids})

    def read(self, client: socket.socket) -> None:
        try:
            data = client.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or len(self.clients[client]) > 65536:
            self.drop(client)
            return
        *lines, self.clients[client] = (self.clients[client] + data).split(b"\n")
        for line in lines:
            self.obey(line)

    def obey(self, line: bytes) -> None:
        try:
            order = json.loads(line)
            operation = order["op"]
        except (ValueError, KeyError, TypeError):
            return
        self.lease_ends = time.monotonic() + self.spec["lease_s"]
        if operation == "stop":
            self.begin_stop(float(order.get("grace_s", self.spec["grace_s"])))

    def send(self, client: socket.socket, message: dict[str, Any]) -> None:
        try:
            client.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.drop(client)

    def drop(self, client: socket.socket) -> None:
        if self.clients.pop(client, None) is not None:
            self.selector.unregister(client)
            client.close()


def main() -> None:
    """Detach, start the engine, report, serve."""
    spec = json.load(sys.stdin)
    if os.fork() > 0:  # the starter waits for this one only; the shim belongs to nobody
        os._exit(0)
    os.setsid()
    os.umask(0o077)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        shim = Shim(spec)
    except OSError as error:
        print(json.dumps({"error": f"{error.filename or spec['socket']}: {error}"}), flush=True)
        return
    line = shim.start()
    print(json.dumps(line), flush=True)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if "error" in line:
        os.unlink(spec["socket"])
        shutil.rmtree(spec["tmp"], ignore_errors=True)
        return
    try:
        shim.run()
    finally:  # whatever happens here, nothing goes on without a lease
        shim.sweep()


if __name__ == "__main__":
    main()
