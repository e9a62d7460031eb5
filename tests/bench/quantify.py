"""From image to millimolar beside its peers: ``python tests/bench/quantify.py [--only SECTION]``.

Every section is one function that prints one Markdown table; a peer that is not installed is left out with the reason.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.files import write_volume
from bids_sodium.core.constants import Decay, relaxation_of
from bids_sodium.core.data import KSpace, Volume
from bids_sodium.recon.columns import mtf_columns, operator_columns
from bids_sodium.recon.psf import gaussian_point_spread, point_spread
from bids_sodium.recon.solvers import Linear, phase_corrected_real, reconstruct
from bids_sodium.simulate.acquire import simulate_kspace
from bids_sodium.simulate.brain import HEALTHY_MMOL_L, AnatomyParams, draw_anatomy, ms_head, rigid
from bids_sodium.simulate.dataset import PROTOCOLS
from bids_sodium.tissue.partialvolume import Method, moments, regional

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1"
)
TISSUES = ("CGM", "DGM", "NAWM", "CSF", "T1iso", "T1hypo", "soft")
REPORTED = TISSUES[:-1]
TRUE = {**HEALTHY_MMOL_L, "T1iso": 45.0, "T1hypo": 52.0}
DRAWS = 8
POSE = rigid(np.array([3.0, -4.0, 5.0]), np.array([2.3, -3.1, 4.7]))

Section = Callable[[], None]


def beside(name: str) -> Any:
    """Return the script of another section, which lies beside this one."""
    sys.path.insert(0, str(Path(__file__).parent))
    return importlib.import_module(name)


def row(name: str, error: Sequence[float], seconds: float | None) -> str:
    """Return a line of the table of errors."""
    took = "" if seconds is None else f"{seconds:.2f}"
    return f"| {name} | " + " | ".join(f"{e:+.2f}" for e in error) + f" | {took} |"


def partial_volume() -> None:
    """Print the errors of every method and kind of column through one acquisition of each protocol, maps given."""
    for protocol in ("stroke", "ms"):
        print(
            f"\n### Partial volume, {protocol} protocol, SNR 20, tissue maps given: error in mmol/L, mean of {DRAWS} "
            "draws of the noise\n"
        )
        print("| columns, method | " + " | ".join(REPORTED) + " | s |\n|" + "---|" * (len(REPORTED) + 2))
        _partial_volume(protocol)


def _partial_volume(protocol: str) -> None:
    chosen = PROTOCOLS[protocol]
    rng = np.random.default_rng(1)
    anatomy = draw_anatomy(rng, AnatomyParams(voxel_mm=1.0))
    head = ms_head(anatomy, rng, {name: TRUE[name] for name in ("CGM", "DGM", "NAWM", "T1iso", "T1hypo")})
    maps = {name: head.fractions[name] for name in TISSUES}
    truth = np.array([head.true_mmol_l(name) for name in TISSUES])
    timing = {"te_ms": chosen.te_ms, "tr_ms": chosen.tr_ms, "flip_deg": chosen.flip_deg}
    grid, trajectory = chosen.grid, chosen.acquired()

    def scanned(snr: float) -> KSpace:
        return simulate_kspace(
            maps,
            {name: head.mmol_l[name] for name in TISSUES},
            trajectory=trajectory,
            grid=grid,
            snr=snr,
            rng=np.random.default_rng(2),
            na_from_fractions=POSE,
            vials=(),
            phase_rad=0.7,
            **timing,
        )

    kspace, clean = scanned(20.0), scanned(1e9)
    sigma = float(np.std((kspace.samples - clean.samples).real))
    operator = Linear(trajectory, grid)
    draws = [kspace.samples]
    for _ in range(DRAWS - 1):
        noise = rng.standard_normal((2, *clean.samples.shape), dtype=np.float32) * np.float32(sigma)
        draws.append((clean.samples + noise[0] + 1j * noise[1]).astype(np.complex64))
    solutions = [reconstruct(replace(kspace, samples=one), grid, operator=operator).image for one in draws]
    reals = [phase_corrected_real(image, grid).astype(np.float64) for image in solutions]
    gain = np.array([relaxation_of(name).signal_fraction(**timing) for name in TISSUES])
    decays = {name: relaxation_of(name).decay for name in TISSUES}
    start = time.perf_counter()
    made = operator_columns(
        maps, grid, trajectory, decays, na_from_maps=POSE, te_ms=chosen.te_ms, operator=operator, keep_samples=True
    )
    took = time.perf_counter() - start
    assert made.samples is not None
    rows = made.samples * gain[:, None, None].astype(np.float32)
    sums = [moments(one[0], rows, TISSUES, operator.weights) for one in draws]
    spreads = {
        name: point_spread(trajectory, decay=decays[name], te_ms=chosen.te_ms, filter="gaussian") for name in maps
    }
    mean = gaussian_point_spread(spreads["NAWM"].fwhm_mm)
    sharp = mtf_columns(maps, grid, dict.fromkeys(maps, gaussian_point_spread(chosen.voxel_mm)), na_from_maps=POSE)
    shares = np.clip(sharp.images, 0.0, 1.0) * gain[:, None, None, None]
    mask = made.images[:-1].sum(axis=0) > 0.3

    def fit(
        columns: NDArray[np.floating], method: Method, images: Sequence[NDArray[np.floating]] = reals
    ) -> tuple[list[float], float]:
        """Return the mean error over the draws and the seconds of one fit."""
        began = time.perf_counter()
        found = [
            regional(
                image,
                columns * gain[:, None, None, None],
                TISSUES,
                method=method,
                mask=mask,
                voxel_mm=grid.voxel_mm,
                fractions=shares,
                fwhm_mm=mean.fwhm_mm,
                samples=of_draw,
            ).mmol_l
            for image, of_draw in zip(images, sums, strict=True)
        ]
        errors = np.array(found) - truth
        if method == "glm" and columns is made.images and images is reals:
            sd = errors.std(axis=0, ddof=1)
            print(row("*SD of one draw, glm*", list(sd[:-1]), None))
        return list(errors.mean(axis=0)[:-1]), (time.perf_counter() - began) / len(images)

    methods: tuple[Method, ...] = (
        "raw", "csf", "gtm", "glm", "local", "kspace", "kspace-density", "mg", "rbv", "iy", "labbe", "stc", "estc",
        "mlts",
    )  # fmt: skip
    print(f"| *operator columns, {len(TISSUES)} tissues at 1 mm* |" + " |" * len(REPORTED) + f" {took:.1f} |")
    for method in methods:
        print(row(f"operator, {method}", *fit(made.images, method)), flush=True)
    print(
        row(
            "operator, glm, magnitude instead of the real part",
            *fit(made.images, "glm", [np.abs(image) for image in solutions]),
        )
    )
    start = time.perf_counter()
    analytic = mtf_columns(maps, grid, spreads, na_from_maps=POSE).images
    took = time.perf_counter() - start
    print("| *modulation by tissue, columns* |" + " |" * len(REPORTED) + f" {took:.1f} |")
    for method in ("glm", "local"):
        print(row(f"modulation by tissue, {method}", *fit(analytic, method)))
    for factor in (0.75, 1.25):
        wrong = {
            name: Decay(own.t2_fast_ms * factor, own.t2_slow_ms * factor, own.fraction_fast)
            for name, own in decays.items()
        }
        stretched = operator_columns(
            maps, grid, trajectory, wrong, na_from_maps=POSE, te_ms=chosen.te_ms, operator=operator
        )
        print(row(f"operator, glm, T2* x {factor:g}", *fit(stretched.images, "glm")))
    one = mtf_columns(maps, grid, dict.fromkeys(maps, mean), na_from_maps=POSE).images
    for method in ("glm", "gtm", "rbv"):
        print(row(f"Gaussian of {mean.fwhm_mm:.1f} mm, {method}", *fit(one, method)))
    real = reals[0]
    _petpvc(real, np.clip(sharp.images, 0.0, 1.0), gain, truth, mean.fwhm_mm, Volume(real, grid))


def _petpvc(
    image: NDArray[np.floating],
    shares: NDArray[np.floating],
    gain: NDArray[np.floating],
    truth: NDArray[np.floating],
    fwhm_mm: float,
    volume: Volume,
) -> None:
    """Print what PETPVC makes of the same image and the shares of its voxels; it knows no relaxation, so gains are put
    into the result."""
    program = shutil.which("petpvc")
    if program is None:
        print("\nPETPVC is left out: its program petpvc is not on PATH.")
        return
    rest = np.clip(1.0 - shares.sum(axis=0, keepdims=True), 0.0, 1.0)
    regions = np.concatenate([shares, rest])
    regions /= np.maximum(regions.sum(axis=0), 1.0)
    with tempfile.TemporaryDirectory() as folder:
        pet, mask = Path(folder) / "pet.nii.gz", Path(folder) / "mask.nii.gz"
        write_volume(pet, volume.with_data(image.astype(np.float32)))
        write_volume(mask, volume.with_data(np.moveaxis(regions, 0, -1).astype(np.float32)))
        for method in ("GTM", "LABBE", "RBV", "IY"):
            out = Path(folder) / ("out.csv" if method in {"GTM", "LABBE"} else "out.nii.gz")
            width = [word for axis in "xyz" for word in (f"-{axis}", f"{fwhm_mm:.3f}")]
            began = time.perf_counter()
            command = [program, "-i", str(pet), "-m", str(mask), "-o", str(out), "--pvc", method, *width]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            took = time.perf_counter() - began
            if done.returncode:
                print(f"| PETPVC {method} ended with {done.returncode}: {done.stderr.strip()[:80]} |")
                continue
            if out.suffix == ".csv":
                numbers = [line.replace(",", " ").split()[-1] for line in out.read_text().splitlines() if line.strip()]
                values = np.array([float(n) for n in numbers[-len(regions) :]])[: len(truth)]
            else:
                from bids_sodium.bidsio.files import read_volume

                corrected = np.asarray(read_volume(out).data)
                values = np.array([(share * corrected).sum() / share.sum() for share in shares])
            print(row(f"PETPVC {method}, the same Gaussian", list((values / gain - truth)[:-1]), took))


SECTIONS: dict[str, Section] = {
    "calibration": lambda: beside("placing").calibration(),
    "registration": lambda: beside("placing").registration(),
    "segmentation": lambda: beside("anatomy").segmentation(),
    "filling": lambda: beside("anatomy").filling(),
    "partial-volume": partial_volume,
}


def main() -> None:
    """Print Markdown tables, those of ``docs/``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--only", choices=tuple(SECTIONS), help="one of the sections")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        # Libraries read the number of threads when they are loaded.
        sys.exit(subprocess.run([sys.executable, *sys.argv], env={**os.environ, **ONE_THREAD}, check=False).returncode)
    for name, section in SECTIONS.items():
        if options.only in (None, name):
            section()


if __name__ == "__main__":
    main()
