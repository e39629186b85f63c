"""A Python whose wall clock a test can move, and with it that of every process it starts."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from tests.harness import ROOT

SOURCE = Path(__file__).with_name("fakes") / "clock.c"


class MovedClock:
    """An environment like the one of the tests; its interpreter preloads `clock.c`.

    What it starts with `sys.executable` has the moved clock too: shims, gateways, engines.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        assert compiler, "the suite builds engines: it needs a C compiler"
        library, self._shift = folder / "clock.so", folder / "shift"
        (folder / "bin").mkdir(parents=True)
        self.move(0)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        own = Path(sys.prefix)
        shutil.copy(own / "pyvenv.cfg", folder)
        (folder / "lib").symlink_to(own / "lib")
        self.python = folder / "bin" / "python"
        base = getattr(sys, "_base_executable", sys.executable)  # below any venv
        self.python.write_text(
            "#!/bin/bash\n"
            f"export LD_PRELOAD='{library}' FAKE_CLOCK='{self._shift}' PYTHONPATH='{ROOT}'\n"
            f'exec -a "$0" \'{os.path.realpath(base)}\' "$@"\n'
        )
        self.python.chmod(0o700)

    def move(self, seconds: int) -> None:
        """Set the clock that far ahead of the real one, of everything that runs."""
        data = struct.pack("=q", seconds)
        if self._shift.exists():  # in place: it is mapped
            with self._shift.open("r+b") as file:
                file.write(data)
        else:
            self._shift.write_bytes(data)
