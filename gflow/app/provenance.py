"""The origin of a result: versions, commit, device, date."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import jax

PACKAGES = ("gflow-jax", "jax", "jaxlib", "equinox", "diffrax", "optax", "numpy")


def provenance(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the installed packages, the commit of gflow's source if it is a git
    checkout ("+" if changed), the device, and the date in UTC."""
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
    }


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
