"""Compiles llama.cpp's server for an image: `build_llama.py RECIPE fetch|compile WORK TARGET`.

Package, tools and definitions are those of configs/engines.yaml. Unlike an installation, which is
for the very processor that it runs on, this is for all of the platform's that llama.cpp's own
defaults name: on x86-64 those with AVX2, FMA and F16C (2013 and later).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import yaml

_ANY_PROCESSOR = {"GGML_NATIVE": "OFF"}


def recipe(path: Path, engine: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first version of `engine`, and its source."""
    table = yaml.safe_load(path.read_text())
    version = table["engines"][engine]["versions"][0]
    return version, table["sources"][version["source"]]


def fetch(source: dict[str, Any], work: Path) -> None:
    """The tools into this interpreter's environment, the unpacked source package into `work`."""
    python, (name, _, _) = sys.executable, source["package"].partition("==")
    _run(python, "-m", "pip", "install", "--no-cache-dir", *source["tools"])
    download = ("download", "--no-deps", "--no-binary", name, "--no-build-isolation", "--dest")
    _run(python, "-m", "pip", *download, str(work), source["package"])
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    archive.unlink()


def compile_(version: dict[str, Any], source: dict[str, Any], work: Path, target: Path) -> None:
    """Configure and build under `work`, copy what the engine takes and its licence to `target`."""
    (code,) = work.glob(f"*/{source['folder']}")
    tree, tools = work / "build", Path(sys.executable).parent
    define = {**source["define"], **source["flavours"]["cpu"]["define"], **_ANY_PROCESSOR}
    define |= {"CMAKE_BUILD_WITH_INSTALL_RPATH": "ON", "CMAKE_INSTALL_RPATH": "$ORIGIN"}
    flags = [f"-D{key}={value}" for key, value in define.items()]
    _run(str(tools / "cmake"), "-S", str(code), "-B", str(tree), "-G", "Ninja", *flags)
    jobs = str(os.cpu_count() or 1)
    _run(str(tools / "cmake"), "--build", str(tree), "--target", version["target"], "-j", jobs)
    target.mkdir(parents=True)
    for pattern in version["take"]:
        for file in sorted((tree / "bin").glob(pattern)):
            shutil.copy2(file, target / file.name, follow_symlinks=False)
    shutil.copy2(code / "LICENSE", target / "LICENSE.llama.cpp")


def _run(*argv: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(argv, check=True, env={**os.environ, "PATH": path})


def main() -> None:
    """See the module."""
    file, step, work, target = sys.argv[1:]
    version, source = recipe(Path(file), "llama_server")
    if step == "fetch":
        fetch(source, Path(work))
    else:
        compile_(version, source, Path(work), Path(target))


if __name__ == "__main__":
    main()
