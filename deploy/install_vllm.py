"""`install_vllm.py RECIPE TARGET LINKS`: vLLM for processors, into an environment of an image.

Packages, what is left out and what they stand for are those of configs/engines.yaml. Wheels in the
folder LINKS are taken before those of the index.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml


def main() -> None:
    """See the module."""
    recipe, target, links = (Path(each) for each in sys.argv[1:])
    flavour = yaml.safe_load(recipe.read_text())["engines"]["vllm"]["versions"][0]["flavours"][
        "cpu"
    ]
    overrides = links / "overrides.txt"
    overrides.write_text("".join(f'{x}; sys_platform == "never"\n' for x in flavour["without"]))
    uv, python = Path(sys.executable).with_name("uv"), target / "bin" / "python"
    argv = [str(uv), "pip", "install", "--no-cache", "--python", str(python)]
    argv += ["--find-links", str(links), "--override", str(overrides), *flavour["requirements"]]
    subprocess.run(argv, check=True, env={"UV_HTTP_TIMEOUT": "300", **os.environ})
    (site,) = target.glob("lib/python3*/site-packages")
    for name, version in flavour["stands_for"].items():
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (folder / "INSTALLER").write_text("engineroom\n")
        (folder / "RECORD").write_text("")


if __name__ == "__main__":
    main()
