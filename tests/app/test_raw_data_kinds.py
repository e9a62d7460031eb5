"""Raw data of other kinds through the whole command: receive channels, a field map, an exported array, 1H twix data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_sodium.bidsio.kspace import write_ismrmrd
from bids_sodium.core.constants import FREQUENCY_RATIO_NA_TO_H
from bids_sodium.core.data import Grid, KSpace
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.trajectory import density_adapted_radial

GRID = Grid.centred((40, 40, 40), 6.0)
SPOKES = density_adapted_radial(5000, 160, gradient_mt_m=2.0, readout_ms=20.0, voxel_mm=6.0)
SIDECAR = {
    "ResonantNucleus": "23Na",
    "ImagingFrequency": 33.786,
    "MagneticFieldStrength": 3.0,
    "EchoTime": 0.0003,
    "RepetitionTime": 0.12,
    "FlipAngle": 90,
    "SodiumCalibration": {
        "Phantoms": [
            {"Label": "phantom40", "Concentration": 40, "Units": "mmol/L", "InnerDiameter": 30},
            {"Label": "phantom80", "Concentration": 80, "Units": "mmol/L", "InnerDiameter": 30},
        ]
    },
}
SIGNALS = (160.0, 320.0)
STEM = "sub-01_acq-23Na_PDw"


def places() -> Any:
    return np.moveaxis(GRID.world(np.indices(GRID.shape).reshape(3, -1).T), -1, 0).reshape(3, *GRID.shape)


def phantom() -> np.ndarray[Any, Any]:
    """Return a uniform head and two upright vials, soft at their edges as voxels are."""
    fine = 3
    x, y, z = places()
    steps = (np.arange(fine) - 1.0) * 6.0 / fine
    data = np.zeros(GRID.shape)
    for dx in steps:
        for dy in steps:
            for dz in steps:
                a, b, c = x + dx, y + dy, z + dz
                data += 200.0 * ((a / 60) ** 2 + (b / 75) ** 2 + (c / 75) ** 2 < 1)
                for centre_mm, signal in zip((-92.0, 92.0), SIGNALS, strict=True):
                    data += signal * (((a - centre_mm) ** 2 + b**2 < 15.0**2) & (np.abs(c) < 50))
    return data / fine**3


def samples_of(image: np.ndarray[Any, Any], field_hz: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
    """Return exact samples; a field is cut into thin levels, each with its own phase over the readout."""
    transform = Nufft(SPOKES, GRID, 1e-4)
    if field_hz is None:
        return transform.forward(image)
    total = np.zeros((SPOKES.n_shots, SPOKES.n_samples), np.complex128)
    t_s = SPOKES.t_ms.astype(np.float64) / 1e3
    levels = 2 * np.rint(field_hz / 2.0).astype(int)
    for level in np.unique(levels[image != 0]):
        total += transform.forward(np.where(levels == level, image, 0.0)) * np.exp(2j * np.pi * level * t_s)
    return total


def noisy(samples: np.ndarray[Any, Any], seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    sigma = 2e-4 * float(np.abs(samples).max())
    return (samples + sigma * (rng.standard_normal(samples.shape) + 1j * rng.standard_normal(samples.shape))).astype(
        np.complex64
    )


class Dataset:
    """A dataset of one participant without anatomy, and the command that runs on it."""

    def __init__(self, root: Path, command: Callable[..., Any]) -> None:
        self.bids, self.out, self.command = root / "bids", root / "out", command
        self.raw = self.bids / "sourcedata" / "sub-01" / "anat"
        self.raw.mkdir(parents=True)
        (self.bids / "sub-01" / "anat").mkdir(parents=True)
        (self.bids / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')

    def sidecar(self, **more: Any) -> None:
        (self.raw / f"{STEM}.json").write_text(json.dumps({**SIDECAR, **more}))

    def run(self, *words: object) -> Any:
        return self.command(self.bids, self.out, "participant", "--n-procs", "1", *words)

    def quality(self) -> pd.DataFrame:
        table = pd.read_csv(self.out / "sub-01" / "anat" / "sub-01_acq-23Na_desc-qc_tsc.tsv", sep="\t", na_values="n/a")
        return table.set_index("measure")

    def tsc(self) -> np.ndarray[Any, Any]:
        return np.asarray(nib.load(self.out / "sub-01" / "anat" / "sub-01_acq-23Na_TSCmap.nii.gz").dataobj)


@pytest.fixture
def dataset(tmp_path: Path, command: Callable[..., Any]) -> Dataset:
    return Dataset(tmp_path, command)


def head_mmol_l(dataset: Dataset) -> tuple[float, float]:
    """Return mean and spread of the concentration within the head, relative to that of the 40 mmol/L vial's signal."""
    x, y, z = places()
    inside = (x / 45) ** 2 + (y / 58) ** 2 + (z / 58) ** 2 < 1
    values = dataset.tsc()[inside]
    return float(values.mean()), float(values.std())


@pytest.mark.parametrize("coils", ["adaptive", "sense"])
def test_receive_channels_become_one_calibrated_image(dataset: Dataset, coils: str) -> None:
    image = phantom()
    x, y, z = places()
    angles = np.arange(4) * np.pi / 2
    sensitivity = [
        np.exp(-((x - 140 * np.cos(a)) ** 2 + (y - 140 * np.sin(a)) ** 2 + z**2) / (2 * 260.0**2) + 1j * a)
        for a in angles
    ]
    channels = np.stack([noisy(samples_of(image * s), seed) for seed, s in enumerate(sensitivity)])
    dataset.sidecar()
    write_ismrmrd(dataset.raw / f"{STEM}.h5", KSpace(channels, SPOKES, GRID, 0.3, 120.0, 90.0, 33.786))
    done = dataset.run("--recon-coils", coils)
    assert done.code == 0, done.err
    quality = dataset.quality()
    assert quality.loc["vial_signal_phantom80", "value"] == pytest.approx(
        2 * quality.loc["vial_signal_phantom40", "value"], rel=0.05
    )
    assert (dataset.out / "sub-01.html").is_file()


def test_a_field_map_of_1h_takes_off_resonance_out(dataset: Dataset) -> None:
    image = phantom()
    x, _, z = places()
    field_hz = 25.0 * np.sin(2 * np.pi * z / 300.0) + 15.0 * (x / 100.0)
    samples = noisy(samples_of(image, field_hz))
    dataset.sidecar()
    write_ismrmrd(dataset.raw / f"{STEM}.h5", KSpace(samples[None], SPOKES, GRID, 0.3, 120.0, 90.0, 33.786))
    assert dataset.run().code == 0
    _, rough = head_mmol_l(dataset)
    fmap = dataset.bids / "sub-01" / "fmap"
    fmap.mkdir()
    coarse = nib.Nifti1Image((field_hz / FREQUENCY_RATIO_NA_TO_H).astype(np.float32), GRID.affine)
    nib.save(coarse, fmap / "sub-01_fieldmap.nii.gz")
    (fmap / "sub-01_fieldmap.json").write_text('{"Units": "Hz"}')
    done = dataset.run("--recon-method", "cg")
    assert done.code == 0, done.err
    mean, flat = head_mmol_l(dataset)
    written = nib.load(dataset.out / "sub-01" / "anat" / "sub-01_acq-23Na_desc-recon_fieldmap.nii.gz")
    np.testing.assert_allclose(np.asarray(written.dataobj), field_hz, atol=0.2)
    assert flat < 0.6 * rough
    assert flat < 0.06 * mean
    done = dataset.run("--field-map", "off")
    assert done.code == 0, done.err
    assert head_mmol_l(dataset)[1] == pytest.approx(rough, rel=1e-3)


def test_an_exported_array_gives_what_ismrmrd_gives(dataset: Dataset) -> None:
    samples = noisy(samples_of(phantom()))
    dataset.sidecar()
    place = write_ismrmrd(dataset.raw / f"{STEM}.h5", KSpace(samples[None], SPOKES, GRID, 0.3, 120.0, 90.0, 33.786))
    assert dataset.run().code == 0
    first = dataset.tsc()
    place.unlink()
    np.savez(
        dataset.raw / f"{STEM}.npz",
        samples=samples,
        k_per_mm=SPOKES.k_per_mm,
        t_ms=SPOKES.t_ms,
        shape=GRID.shape,
        affine=GRID.affine,
    )
    done = dataset.run()
    assert done.code == 0, done.err
    np.testing.assert_allclose(dataset.tsc(), first, atol=0.02 * float(first.max()))


def test_twix_data_of_1h_are_refused(dataset: Dataset, test_data: Path) -> None:
    raw = test_data / "data" / "twix" / "gre.dat"
    if not raw.is_file():
        pytest.skip(f"no {raw}")
    dataset.sidecar()
    (dataset.raw / f"{STEM}.dat").write_bytes(raw.read_bytes())
    done = dataset.run()
    assert done.code != 0
    assert "1H" in done.err
    assert not list(dataset.out.rglob("*TSCmap*"))
