"""The peak memory of a process that does one whole reconstruction, imports and data included."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import numpy as np
from bids_sodium.core.data import Grid, KSpace
from bids_sodium.recon.solvers import ReconstructionParams, reconstruct
from bids_sodium.recon.trajectory import density_adapted_radial

n, coils, voxel_mm, gradient, method = *map(int, sys.argv[1:3]), *map(float, sys.argv[3:5]), sys.argv[5]
spokes = density_adapted_radial(6000, 384, gradient_mt_m=gradient, readout_ms=20.0, voxel_mm=voxel_mm)
samples = np.random.default_rng(0).standard_normal((coils, 6000, 384, 2), dtype=np.float32).view(np.complex64)[..., 0]
params = ReconstructionParams(method=method, iterations=1, tv_iterations=1)
reconstruct(KSpace(samples, spokes, Grid.centred((n, n, n), voxel_mm)), params=params)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024)
"""


def peak_mb(*words: object) -> float:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a program of its own is told by /proc alone")
def test_one_channel_of_the_stroke_study_fits_in_half_a_gigabyte() -> None:
    assert peak_mb(64, 1, 4.0, 4.6, "adjoint") < 500.0
