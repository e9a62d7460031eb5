import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_sodium.core.errors import DataError, InternalError
from bids_sodium.engine.tasks import Stamps, Task, in_order


@dataclass(frozen=True)
class Params:
    x: float = 1.0
    names: tuple[str, ...] = ("a",)
    table: Any = None


def nothing(files: Any, params: Any) -> None:
    """Do nothing."""


def task(name: str = "a", **changes: Any) -> Task:
    return Task(**{"name": name, "unit": "u", "function": nothing, **changes})


def settled(path: Path, text: str) -> Path:
    """Write a file whose modification time lies safely in the past."""
    path.write_text(text)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_order_keeps_dependencies_and_else_the_given_order() -> None:
    tasks = [task("c", after=("u.a", "u.b")), task("b"), task("a"), task("d")]
    assert [entry.name for entry in in_order(tasks)] == ["b", "a", "d", "c"]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task("a"), task("a")], "planned twice: u.a"),
        ([task("a", after=("u.z",))], "u.a waits for u.z"),
        ([task("a", after=("u.b",)), task("b", after=("u.a",))], "wait for each other"),
        ([task("a", outputs=(Path("x"),)), task("b", outputs=(Path("x"),))], "both write x"),
    ],
)
def test_impossible_plans_are_bugs(tasks: list[Task], message: str) -> None:
    with pytest.raises(InternalError, match=message):
        in_order(tasks)


def test_key_changes_with_all_that_the_result_depends_on_and_nothing_else(tmp_path: Path) -> None:
    one, two, copy = (settled(tmp_path / name, text) for name, text in (("1", "x"), ("2", "y"), ("3", "x")))
    (tmp_path / "moved").mkdir()
    moved = settled(tmp_path / "moved" / "1", "x")
    stamps = Stamps(tmp_path / "stamps")

    def key(**changes: Any) -> str:
        return stamps.key(task(**{"params": Params(), "inputs": (one,), **changes}))

    assert key() == key(unit="other", memory_gb=9.0, threads=3) == key(inputs=(moved,))
    others = [
        key(name="b"),
        key(version="2"),
        key(params=Params(x=2.0)),
        key(params=Params(names=("a", "b"))),
        key(params=Params(table={"k": 1})),
        key(params=Params(table=np.arange(3))),
        key(params=Params(table=np.arange(3.0))),
        key(inputs=(two,)),
        key(inputs=(copy,)),
        key(inputs=(one, two)),
        key(files=(one,)),
        key(outputs=(two,)),
    ]
    assert len({key(), *others}) == len(others) + 1


def test_a_parameter_that_has_no_stable_form_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="object"):
        Stamps(tmp_path).key(task(params=object()))


def test_contents_are_hashed_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    path = settled(tmp_path / "x", "old")
    stamps = Stamps(tmp_path / "stamps")
    first = stamps.content(path)
    stamps.save()
    path.write_text("new")
    os.utime(path, ns=(10**18, 10**18))
    assert Stamps(tmp_path / "stamps").content(path) == first, "size and time are unchanged, so it is not read again"
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert Stamps(tmp_path / "stamps").content(path) != first


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="an input cannot be read"):
        Stamps(tmp_path).key(task(inputs=(tmp_path / "gone",)))


def test_stamp_holds_until_key_or_output_change(tmp_path: Path) -> None:
    made = settled(tmp_path / "out", "1")
    one = task(outputs=(made,))
    stamps = Stamps(tmp_path / "stamps")
    stamps.mark(one, "k", seconds=1.25)
    assert stamps.is_done(one, "k")
    assert stamps.seconds(one) == 1.25
    assert not stamps.is_done(one, "other")
    settled(made, "22")
    assert not stamps.is_done(one, "k")
    settled(made, "1")
    assert stamps.is_done(one, "k")
    made.unlink()
    assert not stamps.is_done(one, "k")


def test_tables_that_a_step_no_longer_writes_are_told(tmp_path: Path) -> None:
    stamps, folder = Stamps(tmp_path / "stamps"), tmp_path / "out"
    folder.mkdir()
    places = [settled(folder / name, "x") for name in ("image.nii.gz", "kept.tsv", "raters.tsv", "raters.json")]
    before = task(outputs=tuple(places))
    assert stamps.forget(before) == ()
    stamps.mark(before, "key", seconds=1.0)
    assert stamps.forget(before) == ()
    stamps.mark(before, "key", seconds=1.0)
    after = task(outputs=(folder / "kept.tsv",))
    # an image is left, since nothing gathers images
    assert stamps.forget(after) == (folder / "raters.tsv", folder / "raters.json")
    assert not stamps.is_done(before, "key")


def test_a_step_that_did_not_write_its_output_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=r"u\.a did not write out"):
        Stamps(tmp_path).mark(task(outputs=(tmp_path / "out",)), "k", seconds=0.0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "k"}'])
def test_a_damaged_stamp_is_none(tmp_path: Path, text: str) -> None:
    one = task(outputs=(settled(tmp_path / "out", "1"),))
    stamps = Stamps(tmp_path / "stamps")
    stamps.mark(one, "k", seconds=0.0)
    (tmp_path / "stamps" / "u" / "a.json").write_text(text)
    assert not stamps.is_done(one, "k")
