"""How close a reconstructed map of sodium comes to the truth: ``python tests/bench/fidelity.py``.

The phantom is the simulator's first person, every 1 mm voxel given to the tissue of its largest share (the smooth maps
of a template would hide the ringing that real edges cause), with true concentrations, relaxation and two vials,
scanned with the stroke protocol. What is compared: the real part of the image, scaled by the two vials (each measured
with its own image as the model, as the app does) and corrected for the relaxation of the voxel's true mixture, with
the truth, the concentration averaged over the 4 mm voxel. GM, WM, CSF and brain are the voxels of which at least 80 %
are grey matter, white matter, fluid, and grey or white matter. Contrast is what is left of a ball of 10 mm radius in
the deepest white matter with half as much sodium again: the image with it less the image without it, averaged over
the voxels wholly inside, over the true rise. The SNR is that of white matter in the density-weighted adjoint image.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.constants import AGAR, RELAXATION
from bids_sodium.core.data import Grid, KSpace, Trajectory, Volume
from bids_sodium.image.calibration import Cylinder, fit_scale, modelled_signal
from bids_sodium.recon.columns import cylinder_column
from bids_sodium.recon.density import WeightParams
from bids_sodium.recon.psf import point_spread
from bids_sodium.recon.solvers import Linear, ReconstructionParams, reconstruct
from bids_sodium.recon.trajectory import density_adapted_radial
from bids_sodium.simulate.acquire import (
    VIALS,
    contrast,
    noise_of_image,
    relaxation_in_head,
    simulate_kspace,
    to_scanner,
    white_noise,
)
from bids_sodium.simulate.brain import HEALTHY_MMOL_L, anatomy_of, draw_anatomy, healthy_head

TIMING = {"te_ms": 0.2, "tr_ms": 100.0, "flip_deg": 90.0}
SNR = 20.0
PURE = 0.8
LESION_RADIUS_MM, LESION_RISE = 10.0, 0.5
WHITE = RELAXATION["NAWM"]
WHITE_MMOL_L = HEALTHY_MMOL_L["NAWM"]


@dataclass(frozen=True)
class Phantom:
    """Samples of a head, of noise at the SNR and of a lesion's additional sodium, and what an image should say."""

    trajectory: Trajectory
    grid: Grid
    head: NDArray[np.complex64]
    noise: NDArray[np.complex64]
    lesion: NDArray[np.complex64]
    truth_mmol_l: NDArray[np.float32]
    factor: NDArray[np.float32]
    masks: Mapping[str, NDArray[np.bool_]]
    inside_lesion: NDArray[np.bool_]
    t1w: NDArray[np.float32]


class Errors(NamedTuple):
    """Errors of a map and its noise in white matter, in mmol/L; the share of the lesion's contrast that is left."""

    bias: dict[str, float]
    rmse: dict[str, float]
    rmse_at_half_snr: float
    noise: float
    contrast: float


def stroke_protocol() -> tuple[Trajectory, Grid]:
    """Return 6000 spokes of 384 samples in 20 ms at 4.6 mT/m, 4 mm, and its grid."""
    spokes = density_adapted_radial(6000, 384, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0)
    return spokes, Grid.centred((64, 64, 64), 4.0)


def scan(trajectory: Trajectory, grid: Grid, *, seed: int = 0) -> Phantom:
    """Scan the phantom once without noise; noise and lesion are samples of their own."""
    person = draw_anatomy(np.random.default_rng(seed))
    names = list(person.fractions)
    rest = 1.0 - sum(person.fractions.values())
    largest = np.argmax([rest, *person.fractions.values()], axis=0)
    head = healthy_head(anatomy_of({n: Volume(np.float32(largest == i + 1), person.grid) for i, n in enumerate(names)}))
    ball = _ball_in_white_matter(head.fractions["NAWM"])
    sequence: dict[str, Any] = {"trajectory": trajectory, "grid": grid, "snr": np.inf, **TIMING}
    rng = np.random.default_rng(seed + 1)
    lesion = simulate_kspace(
        {"lesion": Volume(ball, head.grid)},
        {"lesion": LESION_RISE * WHITE_MMOL_L},
        relaxation={"lesion": WHITE},
        vials=(),
        rng=rng,
        **sequence,
    )
    sigma = WHITE_MMOL_L * WHITE.signal_fraction(**TIMING) / SNR
    share = {name: to_scanner(np.asarray(volume.data), head.grid, grid) for name, volume in head.fractions.items()}
    truth = np.asarray(sum(HEALTHY_MMOL_L[name] * share[name] for name in names))
    gain = {name: relaxation_in_head(name).signal_fraction(**TIMING) for name in names}
    seen = np.asarray(sum(HEALTHY_MMOL_L[n] * gain[n] * share[n] for n in names)) / AGAR.signal_fraction(**TIMING)
    grey = share["CGM"] + share["DGM"]
    tissues = {"GM": grey, "WM": share["NAWM"], "CSF": share["CSF"], "brain": grey + share["NAWM"]}
    return Phantom(
        trajectory=trajectory,
        grid=grid,
        head=simulate_kspace(head.fractions, head.mmol_l, rng=rng, **sequence).samples[0],
        noise=white_noise(lesion.samples[0].shape, rng) * np.float32(sigma / noise_of_image(trajectory, grid, 1.0)),
        lesion=lesion.samples[0],
        truth_mmol_l=truth,
        factor=np.where(seen > 1.0, truth / np.maximum(seen, 1.0), 1.0).astype(np.float32),
        masks={name: share >= PURE for name, share in tissues.items()},
        inside_lesion=to_scanner(ball, head.grid, grid) > 0.999,
        t1w=to_scanner(contrast(head, "T1w"), head.grid, grid),
    )


def _ball_in_white_matter(white: Volume) -> NDArray[np.float32]:
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.asarray(white.data) > 0.5)
    centre = np.unravel_index(int(depth.argmax()), white.grid.shape)
    index = np.ogrid[tuple(slice(n) for n in white.grid.shape)]
    away = [(i - c) * step for i, c, step in zip(index, centre, white.grid.voxel_mm, strict=True)]
    return np.clip(LESION_RADIUS_MM + 0.5 - np.sqrt(sum(a**2 for a in away)), 0.0, 1.0).astype(np.float32)


def mmol_l_per_signal(phantom: Phantom, image: NDArray[np.complexfloating], operator: Linear) -> float:
    """Return the scale that the two vials give an image of the operator."""
    signals = []
    for vial in VIALS:
        place = {
            "centre_mm": np.array(vial.centre_mm),
            "axis": np.array([0.0, 0.0, 1.0]),
            "radius_mm": vial.radius_mm,
            "length_mm": vial.length_mm,
        }
        column = cylinder_column(
            phantom.grid,
            phantom.trajectory,
            vial.relaxation.decay,
            te_ms=TIMING["te_ms"],
            operator=operator,
            **place,  # type: ignore[arg-type]
        )
        rod = Cylinder(**place)  # type: ignore[arg-type]
        signals.append(modelled_signal(image.real, column, rod, phantom.grid, sigma=0.0, fwhm_mm=8.0)[0])
    return fit_scale(signals, [0.0, 0.0]).slope


def errors(phantom: Phantom, params: ReconstructionParams) -> Errors:
    """Return the errors of a reconstruction; three images of a linear one tell those at every SNR.

    One that is not linear is scaled by the vials of the linear image that is made beside it, as the app does.
    """
    operator = Linear(phantom.trajectory, phantom.grid, params.linear)
    head, noise, lesion = operator(np.stack([phantom.head, phantom.noise, phantom.lesion]))
    scale = mmol_l_per_signal(phantom, head + noise, operator)
    if not params.regularised:
        return _errors(phantom, scale, noisy=head + noise, noisier=head + 2.0 * noise, lesion=lesion, noise=noise)

    def image(samples: NDArray[np.complexfloating]) -> NDArray[np.complex64]:
        kspace = KSpace(samples[None].astype(np.complex64), phantom.trajectory, phantom.grid, **TIMING)
        return reconstruct(kspace, params=params, prior=phantom.t1w if params.needs_prior else None).image

    noisy = image(phantom.head + phantom.noise)
    noisier = image(phantom.head + 2.0 * phantom.noise)
    with_lesion = image(phantom.head + phantom.noise + phantom.lesion)
    return _errors(phantom, scale, noisy=noisy, noisier=noisier, lesion=with_lesion - noisy)


def _errors(
    phantom: Phantom,
    scale: float,
    *,
    noisy: NDArray[np.complexfloating],
    noisier: NDArray[np.complexfloating],
    lesion: NDArray[np.complexfloating],
    noise: NDArray[np.complexfloating] | None = None,
) -> Errors:
    difference, worse = (scale * phantom.factor * image.real - phantom.truth_mmol_l for image in (noisy, noisier))
    alone = np.nan if noise is None else float((scale * phantom.factor * noise.real)[phantom.masks["WM"]].std())
    relaxed = AGAR.signal_fraction(**TIMING) / WHITE.signal_fraction(**TIMING)
    return Errors(
        bias={name: float(difference[mask].mean()) for name, mask in phantom.masks.items()},
        rmse={name: _rms(difference[mask]) for name, mask in phantom.masks.items()},
        rmse_at_half_snr=_rms(worse[phantom.masks["brain"]]),
        noise=alone,
        contrast=float(scale * relaxed * lesion.real[phantom.inside_lesion].mean() / (LESION_RISE * WHITE_MMOL_L)),
    )


def _rms(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def settings() -> dict[str, ReconstructionParams]:
    """Return the reconstructions of the table."""
    # The phantom is on resonance.
    default = ReconstructionParams(centre_frequency="off")
    bare, cg = replace(default, method="adjoint", filter="none"), replace(default, method="cg")
    table = {
        "adjoint, analytic weights": replace(bare, weights=WeightParams(refine=False)),
        "adjoint (`--recon-mode paper`)": bare,
        "CG 5": replace(cg, filter="none"),
    }
    for width in (0.6, 0.7, 0.8, 0.9):
        table[f"adjoint, Gaussian {width}"] = replace(bare, filter="gaussian", filter_width=width)
    for name, width in (("hamming", 1.0), ("hann", 1.7), ("fermi", 0.9)):
        table[f"adjoint, {name.capitalize()} {width}"] = replace(bare, filter=name, filter_width=width)
    for width in (0.6, 0.7, 0.8, 0.9):
        table[f"CG 5, Gaussian {width}"] = replace(cg, filter_width=width)
    for iterations in (3, 10):
        table[f"CG {iterations}, Gaussian 0.7"] = replace(cg, iterations=iterations)
    table["TV, 1 sigma"] = replace(default, method="tv")
    table["directional TV, 1 sigma"] = replace(default, method="dtv")
    return table


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0, help="person")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    options = parser.parse_args()
    phantom = scan(*stroke_protocol(), seed=options.seed)
    print("| reconstruction | GM | WM | CSF | brain RMSE, SNR 20 / 10 | noise | contrast | FWHM |")
    print("|---|---|---|---|---|---|---|---|")
    default = replace(ReconstructionParams(), centre_frequency="off")
    for name, params in settings().items():
        if options.only not in name:
            continue
        found = errors(phantom, params)
        shown = {"filter": params.apodisation, "filter_width": params.filter_width}
        spread = point_spread(phantom.trajectory, decay=WHITE.decay, te_ms=TIMING["te_ms"], **shown)
        cells = [f"**{name}**" if params == default else name]
        cells += [f"{found.bias[t]:+.1f} / {found.rmse[t]:.1f}" for t in ("GM", "WM", "CSF")]
        cells += [f"{found.rmse['brain']:.2f} / {found.rmse_at_half_snr:.2f}"]
        cells += ["-" if params.regularised else f"{found.noise:.2f}", f"{100 * found.contrast:.0f} %"]
        cells += ["-" if params.regularised else f"{spread.fwhm_mm:.1f} mm"]
        print(f"| {' | '.join(cells)} |", flush=True)
    counts = ", ".join(f"{name} {int(mask.sum())}" for name, mask in phantom.masks.items())
    print(f"\nVoxels: {counts}, wholly inside the lesion {int(phantom.inside_lesion.sum())}.")


if __name__ == "__main__":
    main()
