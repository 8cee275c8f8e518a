"""What is recorded of how a run was computed: on which hardware, with which versions, of which commit, and when."""

import importlib.metadata
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

import prefmoe
from prefmoe.system import distributed
from prefmoe.system.places import PACKAGE


def circumstances(device: torch.device) -> dict[str, Any]:
    """Memory that was used so far, hardware, versions, commit and time, in JSON types."""
    return {
        "peak_memory_bytes": peak_memory(device),
        "hardware": hardware(device),
        "versions": versions(),
        **git_commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the accelerator when ``device`` is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def git_commit() -> dict[str, Any]:
    """The commit that this package's sources are of, and whether they were edited since; None outside git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": bool(git("status", "--porcelain", "--", ".", "../config")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}


def versions() -> dict[str, str]:
    """Versions of what numbers depend on."""
    names = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "pandas", "pillow")
    found = {"python": platform.python_version(), "prefmoe": prefmoe.__version__}
    return found | {name: importlib.metadata.version(name) for name in names}


def processor() -> str:
    """The processor's name, as its maker gives it where the system says that."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def hardware(device: torch.device) -> dict[str, Any]:
    """What a run was computed on."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": processor(),
        "cpu_cores": psutil.cpu_count(),
        "cpu_threads_used": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": device.type,
        "processes": distributed.state().num_processes,
    }
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found
