"""The origin of a result: versions, commit, hardware, date."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import jax

PACKAGES = ("gflow-jax", "jax", "jaxlib", "equinox", "diffrax", "optax", "numpy")


def provenance(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the installed packages, the commit of gflow's source if it is a git
    checkout ("+" if changed), the hardware, and the date in UTC."""
    now = datetime.datetime.now(datetime.UTC)
    facts = {"date": now.isoformat(timespec="seconds"), "python": platform.python_version()}
    for package in packages:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return facts | {
        "commit": _commit(),
        "device": f"{device.platform}: {device.device_kind}, {jax.device_count()} in all",
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(_cores()),
        "memory": _memory(),
    }


def _processor() -> str:
    """The model of the processor, as the operating system names it."""
    try:
        if platform.system() == "Linux":
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
            return names[0] if names else platform.machine()
        if platform.system() == "Darwin":
            words = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return platform.processor() or platform.machine()


def _cores() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> str:
    """The main memory of the machine."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return "unknown"
    return f"{size / 2**30:.1f} GiB"


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "none (installed package)"
    git = lambda *words: subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
