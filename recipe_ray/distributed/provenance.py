"""By what a measurement was made: the command, the commit, the hardware and the versions."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

PACKAGES = ("recipe-ray", "torch", "transformers", "ray", "numpy", "faiss-cpu", "faiss-gpu")


def command_line() -> str:
    """The command that started this process, as one would type it."""
    script, *flags = sys.argv
    path = Path(script)
    with_folder = path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
    return shlex.join(["python", str(with_folder), *flags])


def commit() -> str | None:
    """The commit of the package's files, with `+changes` where they differ from it; None where git does not know it."""
    folder = Path(__file__).parent
    try:
        asked = [
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return asked[0].strip() + ("+changes" if asked[1].strip() else "")


def hardware() -> str:
    """Processor, cores that this process may use, memory and GPUs of this machine, in words."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    parts = [_processor(), f"{len(os.sched_getaffinity(0))} cores", f"{memory_bytes / 2**30:.0f} GiB"]
    parts += [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())]
    return ", ".join(parts)


def versions() -> str:
    """Python and the packages that matter, in words."""
    found = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
