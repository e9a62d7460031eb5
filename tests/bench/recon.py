"""Time, accuracy and memory of the reconstruction beside its peers: ``python tests/bench/recon.py``.

The stroke protocol, 6000 spokes of 384 samples to 64 x 64 x 64 voxels, on one thread. Whatever is compared is measured
in turns, so that other load on the machine strikes all alike, and the best of the turns counts. A peer that is not
installed is left out, with the reason; ``pip install sigpy mri-nufft`` and the package ``bart`` bring them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.bidsio.kspace import read_kspace, write_ismrmrd
from bids_sodium.core.constants import relaxation_of
from bids_sodium.core.data import Grid, KSpace, Trajectory, Volume
from bids_sodium.recon.coils import noise_sigma
from bids_sodium.recon.columns import operator_columns
from bids_sodium.recon.density import WeightParams, gain, sample_weights, solid_angles
from bids_sodium.recon.nufft import Nufft
from bids_sodium.recon.solvers import Linear, ReconstructionParams, reconstruct
from bids_sodium.recon.trajectory import density_adapted_radial

SHAPE, VOXEL_MM, ITERATIONS = (64, 64, 64), 4.0, 20
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
OURS = "bids_sodium"

Call = Callable[[], Any]


class MissingError(Exception):
    """A peer is not installed; the message says what is missing."""


def seconds(call: Call) -> float:
    """Return the time that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turns(calls: dict[str, Call], repeats: int) -> dict[str, float]:
    """Return the best time of each call, all of them having had their turn in every round."""
    rounds = [{name: seconds(call) for name, call in calls.items()} for _ in range(repeats)]
    return {name: min(times[name] for times in rounds) for name in calls}


def protocol(n_spokes: int = 6000, *, voxel_mm: float = VOXEL_MM, gradient_mt_m: float = 4.6) -> Trajectory:
    """Return the spokes of the stroke protocol."""
    return density_adapted_radial(n_spokes, 384, gradient_mt_m=gradient_mt_m, readout_ms=20.0, voxel_mm=voxel_mm)


def head_samples(spokes: Trajectory, sigma_k: float, rng: np.random.Generator) -> NDArray[np.complex64]:
    """Return the samples of a ball of 190 mm with two bright balls in it, and noise."""
    signal = np.zeros((spokes.n_shots, spokes.n_samples), dtype=np.complex128)
    for value, radius, centre in ((40.0, 95.0, (0, 0, 0)), (100.0, 12.0, (15, 10, 5)), (100.0, 9.0, (-40, 60, -20))):
        x = np.maximum(2 * np.pi * radius * np.linalg.norm(spokes.k_per_mm.astype(float), axis=-1), 1e-2)
        ball = 4 * np.pi * radius**3 * (np.sin(x) - x * np.cos(x)) / x**3
        signal += value * ball * np.exp(-2j * np.pi * (spokes.k_per_mm @ np.array(centre, dtype=float)))
    noise = rng.standard_normal((2, *signal.shape))
    return (signal + sigma_k * (noise[0] + 1j * noise[1])).astype(np.complex64)


class Exact:
    """The adjoint at some voxels, summed in double precision as it is defined."""

    def __init__(self, k_per_voxel: NDArray[np.floating], samples: NDArray[np.complexfloating], n_voxels: int) -> None:
        at = np.random.default_rng(5).integers(-24, 24, (n_voxels, 3))
        self.index = tuple((at + 32).T)
        waves = (np.exp(2j * np.pi * (k_per_voxel.astype(np.float64) @ voxel)) for voxel in at)
        self.values = np.array([np.dot(wave, samples.ravel().astype(np.complex128)) for wave in waves])

    def error(self, image: NDArray[np.complexfloating]) -> float:
        """Return the relative error of an image whose scale is free, as every program has its own."""
        found = image.reshape(SHAPE)[self.index].astype(np.complex128)
        found *= np.vdot(found, self.values) / np.vdot(found, found)
        return float(np.linalg.norm(found - self.values) / np.linalg.norm(self.values))


def adjoints(spokes: Trajectory, weighted: NDArray[np.complex64], work: Path) -> dict[str, Call]:
    """Return calls that grid the samples, from coordinates and samples to the image; reasons are printed."""
    grid = Grid.centred(SHAPE, VOXEL_MM)
    k = spokes.k_per_mm.reshape(-1, 3) * np.float32(VOXEL_MM)
    flat = weighted.ravel()

    def finufft() -> Call:
        import finufft

        points = [np.ascontiguousarray(2 * np.pi * k[:, i]) for i in range(3)]
        return lambda: finufft.nufft3d1(*points, flat, SHAPE, eps=1e-5, isign=1, nthreads=1, upsampfac=2.0)

    def mri_nufft() -> Call:
        angles = np.ascontiguousarray(2 * np.pi * k)
        return lambda: _mri_nufft(angles).adj_op(flat)

    def sigpy() -> Call:
        import sigpy

        return lambda: sigpy.nufft_adjoint(flat, k * SHAPE[0], SHAPE)

    def bart() -> Call:
        _bart_files(work, spokes, weighted)
        size = ":".join(map(str, SHAPE))
        return lambda: _bart(work, "nufft", "-a", f"-d{size}", "traj", "ksp", "img") and _read_cfl(work / "img")

    calls: dict[str, Call] = {OURS: lambda: Nufft(spokes, grid).gridded(weighted)}
    return calls | _present({"finufft, raw": finufft, "mri-nufft": mri_nufft, "sigpy": sigpy, "BART": bart})


def solvers(spokes: Trajectory, samples: NDArray[np.complex64], work: Path) -> dict[str, Call]:
    """Return calls that do twenty iterations of conjugate gradients, set-up included."""
    grid = Grid.centred(SHAPE, VOXEL_MM)
    k = spokes.k_per_mm.reshape(-1, 3) * np.float32(VOXEL_MM)
    params = ReconstructionParams(method="cg", iterations=ITERATIONS, filter="none")

    def direct() -> None:
        operator = Nufft(spokes, grid)
        weights = sample_weights(spokes, grid).astype(np.float32)
        image = residual = direction = operator.gridded(weights * samples)
        image = np.zeros_like(image)
        power = np.vdot(residual, residual).real
        for _ in range(ITERATIONS):
            mapped = operator.gridded(weights * operator.forward(direction))
            step = np.float32(power / np.vdot(direction, mapped).real)
            image, residual = image + step * direction, residual - step * mapped
            power, before = np.vdot(residual, residual).real, power
            direction = residual + np.float32(power / before) * direction

    def mri_nufft() -> Call:
        angles = np.ascontiguousarray(2 * np.pi * k)
        options = {"optim": "cg", "max_iter": ITERATIONS, "tol": 0.0, "progressbar": False}
        return lambda: _mri_nufft(angles).pinv_solver(samples.ravel(), **options)

    def bart() -> Call:
        _bart_files(work, spokes, samples)
        _write_cfl(work / "sens", np.ones((*SHAPE, 1)))
        return lambda: _bart(work, "pics", f"-i{ITERATIONS}", "-t", "traj", "ksp", "sens", "rec")

    calls: dict[str, Call] = {
        OURS: lambda: Linear(spokes, grid, params)(samples),
        "the same by two transforms an iteration": direct,
    }
    return calls | _present({"mri-nufft": mri_nufft, "BART": bart})


def sigpy_iterations(spokes: Trajectory, samples: NDArray[np.complex64]) -> float:
    """Return the time of twenty iterations of sigpy, extrapolated from one and three."""
    import sigpy

    k = spokes.k_per_mm.reshape(-1, 3) * np.float32(VOXEL_MM * SHAPE[0])

    def run(iterations: int) -> None:
        operator = sigpy.linop.NUFFT(SHAPE, k)
        sigpy.app.LinearLeastSquares(operator, samples.ravel(), max_iter=iterations, show_pbar=False).run()

    one, three = seconds(lambda: run(1)), seconds(lambda: run(3))
    return one + (ITERATIONS - 1) * (three - one) / 2


def _present(makers: dict[str, Callable[[], Call]]) -> dict[str, Call]:
    calls = {}
    for name, maker in makers.items():
        try:
            calls[name] = maker()
        except (ImportError, MissingError) as error:
            print(f"*{name} left out: {error}*\n")
    return calls


def _mri_nufft(angles: NDArray[np.float32]) -> Any:
    import mrinufft

    return mrinufft.get_operator("finufft")(angles, SHAPE, density=False, n_coils=1, squeeze_dims=True, nthreads=1)


def _bart_files(work: Path, spokes: Trajectory, samples: NDArray[np.complex64]) -> None:
    if shutil.which("bart") is None:
        raise MissingError("no program bart on the path")
    _write_cfl(work / "traj", (spokes.k_per_mm * (SHAPE[0] * VOXEL_MM)).transpose(2, 1, 0))
    _write_cfl(work / "ksp", samples.T[None])


def _bart(work: Path, *words: str) -> str:
    done = subprocess.run(["bart", *words], cwd=work, capture_output=True, text=True, check=True)
    return done.stdout


def _write_cfl(path: Path, array: NDArray[Any]) -> None:
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    array.astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def _read_cfl(path: Path) -> NDArray[np.complex64]:
    shape = [int(n) for n in path.with_suffix(".hdr").read_text().splitlines()[1].split()]
    return np.fromfile(path.with_suffix(".cfl"), np.complex64).reshape(shape, order="F").squeeze()


def peak_gib(scene: str) -> float:
    """Return the peak memory of a process that does nothing but one whole reconstruction."""
    words = [sys.executable, __file__, "--peak", scene]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(done.stdout) / 2**20


def peak(scene: str) -> None:
    """Reconstruct noise and print the peak memory of the process in KiB."""
    large = scene != "small"
    spokes = protocol(voxel_mm=2.0, gradient_mt_m=10.0) if large else protocol()
    grid = Grid.centred((128, 128, 128), 2.0) if large else Grid.centred(SHAPE, VOXEL_MM)
    params = ReconstructionParams(method="cg" if scene == "large-cg" else ReconstructionParams().method)
    rng = np.random.default_rng(0)
    shape = (8 if large else 1, spokes.n_shots, spokes.n_samples, 2)
    samples = rng.standard_normal(shape, dtype=np.float32).view(np.complex64)[..., 0]
    reconstruct(KSpace(samples, spokes, grid), params=params)
    status = Path("/proc/self/status").read_text().splitlines()
    # Of this program alone: the resource usage of a child starts at what its parent had.
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))


def by_acquisition(path: Path) -> int:
    """Read an ISMRMRD file as its Python API does, acquisition by acquisition."""
    import ismrmrd

    dataset = ismrmrd.Dataset(str(path), create_if_needed=False)
    n = int(dataset.number_of_acquisitions())
    data = [(a.data, a.traj) for a in map(dataset.read_acquisition, range(n))]
    dataset.close()
    return len(data)


def print_adjoint(spokes: Trajectory, weighted: NDArray[np.complex64], repeats: int) -> None:
    """Print the adjoint beside its peers, and every one's error."""
    print(f"### Adjoint, {weighted.size / 1e6:.3f} M samples to 64 x 64 x 64\n")
    exact = Exact(spokes.k_per_mm.reshape(-1, 3) * VOXEL_MM, weighted, 300)
    with tempfile.TemporaryDirectory() as folder:
        calls = adjoints(spokes, weighted, Path(folder))
        errors = {name: exact.error(call()) for name, call in calls.items()}
        slow = {"sigpy", "BART"}
        times = in_turns({name: call for name, call in calls.items() if name not in slow}, repeats)
        few = {name: call for name, call in calls.items() if name in slow}
        times |= {n: t for n, t in in_turns({OURS: calls[OURS], **few}, max(1, repeats // 3)).items() if n != OURS}
    print("| | s | times ours | relative error |\n|---|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value:.2f} | {value / times[OURS]:.2f} | {errors[name]:.1e} |")
    print(
        "\nTime from coordinates and samples to the image. Error of the density-weighted samples of a head against the"
    )
    print(
        "defining sum in double precision at 300 voxels, scale free. BART starts a process and reads and writes files."
    )


def print_solvers(spokes: Trajectory, samples: NDArray[np.complex64], repeats: int) -> None:
    """Print twenty iterations of conjugate gradients beside the peers."""
    print(f"\n### {ITERATIONS} iterations of conjugate gradients, set-up included\n")
    with tempfile.TemporaryDirectory() as folder:
        calls = solvers(spokes, samples, Path(folder))
        times = in_turns(calls, max(1, repeats // 3))
    try:
        times["sigpy, extrapolated from 3 iterations"] = sigpy_iterations(spokes, samples)
    except ImportError as error:
        print(f"*sigpy left out: {error}*\n")
    print("| | s | times ours |\n|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value:.1f} | {value / times[OURS]:.1f} |")
    operator = Linear(spokes, Grid.centred(SHAPE, VOXEL_MM), ReconstructionParams(method="cg", iterations=ITERATIONS))
    again = (seconds(lambda: operator(samples)), seconds(lambda: operator(samples)))[1]
    image = operator.nufft.gridded(operator.weights * samples)
    direct = operator.nufft.gridded(operator.weights * operator.nufft.forward(image))
    difference = np.linalg.norm(operator.normal(image) - direct) / np.linalg.norm(direct)
    print(
        f"\nOurs: weights, kernel of the normal operator, fixed steps, iterations; one more channel: {again:.1f} s. The"
    )
    print(f"kernel differs from the two transforms by {difference:.1e}. BART iterates with a kernel too.")


def print_rest(spokes: Trajectory, samples: NDArray[np.complex64], sigma_k: float) -> None:
    """Print what has no peer, or a peer for one number."""
    grid = Grid.centred(SHAPE, VOXEL_MM)
    kspace = KSpace(samples[None], spokes, grid)
    whole = min(seconds(lambda: reconstruct(kspace)) for _ in range(2))
    rows: list[tuple[str, str]] = [
        ("density weights", f"{seconds(lambda: sample_weights(spokes, grid)):.2f} s"),
        (
            "whole reconstruction from nothing, noise included",
            f"{whole:.1f} s",
        ),
    ]
    fine = grid.with_voxel(2.0)
    rng = np.random.default_rng(1)
    names = ("CGM", "DGM", "NAWM", "CSF", "L")
    maps = {name: Volume(rng.random(fine.shape, dtype=np.float32), fine) for name in names}
    decays = {name: relaxation_of(name).decay for name in names}
    columns = seconds(lambda: operator_columns(maps, grid, spokes, decays))
    rows.append(("five operator columns at 2 mm, from nothing", f"{columns:.1f} s"))
    with tempfile.TemporaryDirectory() as folder:
        path = write_ismrmrd(Path(folder) / "scan.h5", kspace)
        ours = min(seconds(lambda: read_kspace(path)) for _ in range(3))
        theirs = seconds(lambda: by_acquisition(path))
    rows.append(("ISMRMRD read, 6000 spokes", f"{ours:.2f} s; one by one with the Python API {theirs:.1f} s"))
    weights = sample_weights(spokes, grid)
    seen = Nufft(spokes, grid).gridded(weights * samples)[:8, :8, :8]
    corner = np.sqrt(np.mean(np.abs(seen) ** 2) / 2) / (sigma_k * np.sqrt((weights**2).sum()))
    off = float(noise_sigma(samples[None])[0]) / sigma_k - 1
    rows.append(("noise from k-space", f"{100 * off:+.2f} % off; image corner {corner:.1f} times too high"))
    radius = np.linalg.norm(spokes.k_per_mm.astype(float), axis=-1)
    edges = np.concatenate([0 * radius[:, :1], (radius[:, 1:] + radius[:, :-1]) / 2, radius[:, -1:]], axis=1)
    shells = solid_angles(spokes)[:, None] * np.diff(edges**3, axis=1) / 3
    plain = sample_weights(spokes, grid, WeightParams(refine=False))
    gains = [100 * (gain(spokes, w) - 1) for w in (weights, plain, shells)]
    text = f"{gains[0]:+.2f} %; without refinement {gains[1]:+.1f} %, shell volumes {gains[2]:+.1f} %"
    rows.append(("gain of a 190 mm ball, error", text))
    for scene, what in (("small", "64³, one channel"), ("large", "128³, eight channels"), ("large-cg", "the same, CG")):
        rows.append((f"peak memory, {what}", f"{peak_gib(scene):.2f} GiB"))
    print("\n### The rest\n\n| | |\n|---|---|")
    for name, text in rows:
        print(f"| {name} | {text} |", flush=True)


def versions() -> str:
    """Return machine and versions in one line."""
    found = []
    for name in ("finufft", "numpy", "scipy", "mri-nufft", "sigpy"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if shutil.which("bart"):
        bart = subprocess.run(["bart", "version"], capture_output=True, text=True, check=True)
        found.append(f"BART {bart.stdout.strip()}")
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, one thread; Python {platform.python_version()}, {', '.join(found)}"


def main() -> None:
    """Print Markdown tables, those of ``docs/reconstruction.md``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--repeats", type=int, default=6, help="turns of the quick calls; slow peers have a third")
    parser.add_argument("--only", choices=("adjoint", "cg", "rest"), help="one of the tables")
    parser.add_argument("--peak", choices=("small", "large", "large-cg"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        # Libraries read the number of threads when they are loaded.
        sys.exit(subprocess.run([sys.executable, *sys.argv], env={**os.environ, **ONE_THREAD}, check=False).returncode)
    if options.peak:
        peak(options.peak)
        return
    warnings.filterwarnings("ignore", category=UserWarning, module="mrinufft")
    spokes = protocol()
    weights = sample_weights(spokes, Grid.centred(SHAPE, VOXEL_MM)).astype(np.float32)
    sigma_k = 40.0 / 20.0 / float(np.sqrt((weights.astype(float) ** 2).sum()))
    samples = head_samples(spokes, sigma_k, np.random.default_rng(0))
    print(f"`python tests/bench/recon.py`: {versions()}.\n")
    if options.only in (None, "adjoint"):
        print_adjoint(spokes, weights * samples, options.repeats)
    if options.only in (None, "cg"):
        print_solvers(spokes, samples, options.repeats)
    if options.only in (None, "rest"):
        print_rest(spokes, samples, sigma_k)


if __name__ == "__main__":
    main()
