"""What stands beside an output: sidecar, dataset description, ignore file.

Sources are BIDS URIs: ``bids::`` for the output dataset itself, ``bids:raw:`` for the input and ``bids:NAME:`` for a
derivative dataset given by name. No output names a folder of the machine it was made on.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from bids_sodium import __version__
from bids_sodium.bidsio.files import read_json, write_json, write_text

__all__ = [
    "BIDSIGNORE",
    "BIDS_VERSION",
    "Roots",
    "sidecar",
    "software_versions",
    "write_description",
    "write_sidecar",
]

BIDS_VERSION = "1.10.0"
"""Version of BIDS that the output follows."""

CODE_URL = "https://github.com/bids-sodium/bids_sodium"

BIDSIGNORE = "*.html\nfigures\nlogs\nlog\n*_xfm.*\n*_TSCmap.*\n*_tsc.*\ngroup*\ndseg.tsv\n"
"""What the validator does not know. A pattern with a trailing slash would not match."""

_PACKAGES = ("numpy", "scipy", "nibabel", "SimpleITK", "finufft", "dipy", "statsmodels", "pybids")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Where the datasets lie, so that a file can be named relative to its own.

    Parameters
    ----------
    output : Path
        Output dataset.
    raw : Path, optional
        Input dataset.
    derivatives : tuple of (str, Path)
        Named derivative datasets that are read.
    """

    output: Path
    raw: Path | None = None
    derivatives: tuple[tuple[str, Path], ...] = ()

    def uri(self, path: Path) -> str:
        """Return the BIDS URI of a file; a file in none of the datasets is given by its bare name.

        Examples
        --------
        >>> roots = Roots(output=Path("/data/out"), raw=Path("/data"))
        >>> roots.uri(Path("/data/sub-01/anat/sub-01_T1w.nii.gz"))
        'bids:raw:sub-01/anat/sub-01_T1w.nii.gz'
        >>> roots.uri(Path("/data/out/sub-01/anat/sub-01_desc-brain_mask.nii.gz"))
        'bids::sub-01/anat/sub-01_desc-brain_mask.nii.gz'
        """
        holder = self._holder(path)
        return path.name if holder is None else f"bids:{holder[0]}:{path.relative_to(holder[1]).as_posix()}"

    def holding(self, paths: Iterable[Path]) -> Roots:
        """Return the same without the derivative datasets that hold none of the files; their URIs stay.

        A step that gets only the datasets it reads from does not change when another one is added.

        Examples
        --------
        >>> roots = Roots(output=Path("/out"), derivatives=(("fast", Path("/fast")), ("rois", Path("/rois"))))
        >>> roots.holding([Path("/rois/sub-01/anat/sub-01_label-T2lesion_mask.nii.gz")]).derivatives
        (('rois', PosixPath('/rois')),)
        """
        used = {self._holder(path) for path in paths}
        return dataclasses.replace(self, derivatives=tuple(entry for entry in self.derivatives if entry in used))

    def _holder(self, path: Path) -> tuple[str, Path] | None:
        """Return name and root of the deepest dataset that holds a file: outputs often lie inside the input."""
        named = [("", self.output), *([] if self.raw is None else [("raw", self.raw)]), *self.derivatives]
        holders = [entry for entry in named if path.is_relative_to(entry[1])]
        return max(holders, key=lambda entry: len(entry[1].parts), default=None)


@lru_cache(maxsize=1)
def software_versions() -> dict[str, str]:
    """Return the versions of the app and of the packages that make its numbers."""
    return {"bids_sodium": __version__, **{name: metadata.version(name) for name in _PACKAGES}}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def sidecar(
    *,
    description: str,
    roots: Roots,
    sources: Iterable[Path] = (),
    units: str | None = None,
    skull_stripped: bool | None = None,
    spatial_reference: Path | str | None = None,
    resolution: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of a sidecar.

    Parameters
    ----------
    description : str
        What the file is, for a reader.
    roots : Roots
        Datasets that sources are named in.
    sources : iterable of Path
        Files it was made from.
    units : str, optional
        Unit of its values; ``"a.u."`` is written as BIDS's ``arbitrary``.
    skull_stripped : bool, optional
        Required on every image but masks, label images and probabilities.
    spatial_reference : Path or str, optional
        Image that defines the space, where it is no standard template; or a name of it.
    resolution : str, optional
        Meaning of the ``res-`` entity.
    extra : mapping, optional
        Parameters and findings of the step; dataclasses become objects.

    Returns
    -------
    dict
        Keys in a stable order, software versions last.
    """
    content: dict[str, Any] = {"Description": description}
    uris = [roots.uri(path) for path in sources]
    if uris:
        content["Sources"] = uris
    if units is not None:
        content["Units"] = "arbitrary" if units == "a.u." else units
    if skull_stripped is not None:
        content["SkullStripped"] = skull_stripped
    if spatial_reference is not None:
        reference = spatial_reference
        content["SpatialReference"] = roots.uri(reference) if isinstance(reference, Path) else reference
    if resolution is not None:
        content["Resolution"] = resolution
    content |= _plain(extra or {})
    # BIDS defines this key as one text.
    content["SoftwareVersions"] = "; ".join(f"{name} {version}" for name, version in software_versions().items())
    return content


def write_sidecar(image: Path, content: Mapping[str, Any]) -> Path:
    """Write a sidecar beside its file, under the same stem with the extension ``.json``."""
    return write_json(image.with_name(image.name.partition(".")[0] + ".json"), content)


def write_description(roots: Roots, *, container: Mapping[str, str] | None = None) -> Path:
    """Write ``dataset_description.json`` and ``.bidsignore`` of the output.

    Parameters
    ----------
    roots : Roots
        Datasets; links to the others are relative to the output, never absolute.
    container : mapping, optional
        ``Type``, ``Tag`` and ``URI`` of the container image the app runs in.

    Returns
    -------
    Path
        The description.
    """
    made: dict[str, Any] = {"Name": "bids_sodium", "Version": __version__, "CodeURL": CODE_URL}
    image = {key: value for key, value in (container or {}).items() if value}
    if image:
        made["Container"] = image
    raw = {}
    if roots.raw is not None and (roots.raw / "dataset_description.json").is_file():
        raw = read_json(roots.raw / "dataset_description.json")
    links = {} if roots.raw is None else {"raw": _relative(roots.raw, roots.output)}
    links |= {name: _relative(path, roots.output) for name, path in roots.derivatives}
    source = {"DOI": str(raw["DatasetDOI"])} if raw.get("DatasetDOI") else {"URL": links.get("raw", ".")}
    content: dict[str, Any] = {
        "Name": f"bids_sodium: {raw.get('Name', 'sodium MRI')}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [made],
        "HowToAcknowledge": "Cite the works listed in logs/CITATION.md",
        "License": str(raw.get("License", "") or "as the source dataset"),
        "SourceDatasets": [source],
        "DatasetLinks": links,
    }
    write_text(roots.output / ".bidsignore", BIDSIGNORE)
    return write_json(roots.output / "dataset_description.json", content)


def _relative(path: Path, start: Path) -> str:
    return Path(os.path.relpath(path, start)).as_posix()
