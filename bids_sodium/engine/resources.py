"""How much of the machine this process may use: affinity and cgroup limits, not the machine's own numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpu_count", "memory_gb"]

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60


def _folders(controller: str, root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders whose limits hold for this process: its own cgroup and all above it, version 2 and 1."""
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        # Inside a container the path may be the host's; the limits of the container then stand at the top.
        folder = top / path.lstrip("/")
        yield top
        while folder != top and folder.is_relative_to(top):
            yield folder
            folder = folder.parent


def _numbers(path: Path) -> list[float]:
    """Return the numbers in a limit file, ``max`` as infinity; none where there is no such file."""
    try:
        words = path.read_text(encoding="utf-8").split()
        return [math.inf if word == "max" else float(word) for word in words]
    except (OSError, ValueError):
        return []


def cpu_count(*, root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the number of cores this process may use, at least 1.

    Parameters
    ----------
    root, membership : Path
        Where the kernel keeps cgroups and this process's place in them.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity is not None else os.cpu_count() or 1)
    for folder in _folders("cpu", root, membership):
        limit = _numbers(folder / "cpu.max")
        if len(limit) == 2:
            cores = min(cores, limit[0] / limit[1])
        quota, period = _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us")
        if quota and period and quota[0] > 0:
            cores = min(cores, quota[0] / period[0])
    return max(1, math.ceil(cores - 1e-6))


def memory_gb(*, root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float:
    """Return the memory this process may use, in GiB.

    Parameters
    ----------
    root, membership : Path
        Where the kernel keeps cgroups and this process's place in them.
    """
    total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder in _folders("memory", root, membership):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _numbers(folder / name)
            if limit and limit[0] < _UNLIMITED:
                total = min(total, limit[0])
    return total / 2**30
