"""Ratios of the reconstruction to bare finufft in the same run: ``python tests/bench/recon.py``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import finufft
import numpy as np

from bids_sodium.bidsio.kspace import read_kspace, write_ismrmrd
from bids_sodium.core.constants import relaxation_of
from bids_sodium.core.data import Grid, KSpace, Volume
from bids_sodium.recon.columns import operator_columns
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.solvers import Linear, ReconstructionParams, reconstruct
from bids_sodium.recon.trajectory import density_adapted_radial


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Best of several runs."""
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return float(best)


def main() -> None:
    """Measure the stroke protocol, 6000 x 384 samples to 64 voxels cubed, on one thread."""
    spokes = density_adapted_radial(6000, 384, gradient_mt_m=4.6, readout_ms=20.0, voxel_mm=4.0)
    grid = Grid.centred((64, 64, 64), 4.0)
    rng = np.random.default_rng(0)
    samples = (rng.standard_normal((6000, 384)) + 1j * rng.standard_normal((6000, 384))).astype(np.complex64)
    points = [np.ascontiguousarray((2 * np.pi * 4.0 * spokes.k_per_mm[..., i]).ravel()) for i in range(3)]

    def bare() -> None:
        finufft.nufft3d1(*points, samples.ravel(), grid.shape, eps=1e-5, isign=1, nthreads=1, upsampfac=2.0)

    def ours() -> None:
        Nufft(spokes, grid).gridded(samples)

    operator = Linear(spokes, grid, ReconstructionParams(iterations=20))
    weights = operator.weights.astype(np.float32)

    def direct() -> None:
        image = operator.nufft.gridded(weights * samples)
        for _ in range(20):
            image = operator.nufft.gridded(weights * operator.nufft.forward(image)) / 64.0

    # In turns, so that other load on the machine strikes both alike.
    pairs = [(seconds(ours, 1), seconds(bare, 1)) for _ in range(8)]
    our, raw = (min(times) for times in zip(*pairs, strict=True))
    print(f"adjoint             {our:7.3f} s   {our / raw:5.2f} x finufft ({raw:.3f} s)")
    setup = seconds(lambda: operator.steps, 1)
    twenty = seconds(lambda: operator(samples), 3)
    slow = seconds(direct, 1)
    print(
        f"20 CG iterations    {twenty:7.3f} s   {slow / twenty:5.1f} x faster than by transforms; set-up {setup:.2f} s"
    )
    kspace = KSpace(samples[None], spokes, grid)
    print(f"reconstruct         {seconds(lambda: reconstruct(kspace), 2):7.3f} s   from nothing, noise included")
    fine = grid.with_voxel(2.0)
    names = ("CGM", "DGM", "NAWM", "CSF", "L")
    maps = {name: Volume(rng.random(fine.shape, dtype=np.float32), fine) for name in names}
    decays = {name: relaxation_of(name).decay for name in names}
    columns = seconds(lambda: operator_columns(maps, grid, spokes, decays), 1)
    print(f"five columns        {columns:7.3f} s   from nothing")
    with tempfile.TemporaryDirectory() as folder:
        path = write_ismrmrd(Path(folder) / "scan.h5", kspace)
        print(f"ISMRMRD read        {seconds(lambda: read_kspace(path), 3):7.3f} s")


if __name__ == "__main__":
    main()
