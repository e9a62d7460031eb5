from pathlib import Path

import pytest

from bids_sodium.engine import resources
from bids_sodium.engine.resources import cpu_count, memory_gb


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    return tmp_path


def limits(root: Path, membership: str, **files: str) -> dict[str, Path]:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "self").write_text(membership)
    return {"root": root, "membership": root / "self"}


def test_tightest_limit_of_all_groups_above_counts(cgroups: Path) -> None:
    where = limits(
        cgroups,
        "0::/job/step\n",
        job__cpu_DOT_max="350000 100000\n",
        job__step__cpu_DOT_max="max 100000\n",
        job__memory_DOT_max=f"{3 * 2**30}\n",
        job__step__memory_DOT_max="max\n",
    )
    assert cpu_count(**where) == 4
    assert memory_gb(**where) == 3.0


def test_version_one_groups(cgroups: Path) -> None:
    where = limits(
        cgroups,
        "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n",
        memory__memory_DOT_limit_in_bytes=f"{2**31}\n",
    )
    assert memory_gb(**where) == 2.0
    (cgroups / "cpu,cpuacct").mkdir()
    (cgroups / "cpu").mkdir()
    (cgroups / "cpu" / "cpu.cfs_quota_us").write_text("200000")
    (cgroups / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cpu_count(**where) == 2


def test_no_limits_leave_the_affinity(cgroups: Path) -> None:
    where = limits(cgroups, "0::/\n", memory_DOT_max="max\n", cpu_DOT_max="max 100000\n")
    assert cpu_count(**where) == 16
    assert memory_gb(**where) == memory_gb(root=cgroups, membership=cgroups / "nowhere") > 0


def test_less_than_one_core_is_one(cgroups: Path) -> None:
    assert cpu_count(**limits(cgroups, "0::/\n", cpu_DOT_max="10000 100000\n")) == 1
