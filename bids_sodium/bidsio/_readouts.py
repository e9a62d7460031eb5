"""From readouts as they lie in a file to shots: the echo asked for, averages, Cartesian lines, what is unusable.

Formats differ in how they store readouts; what the scanner counted for each of them is the same everywhere. A shot is
the mean of the readouts that encode the same, its index the place of the first of them in the file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import KSpace, Trajectory
from bids_sodium.core.errors import DataError

__all__ = ["Line", "Plan", "cartesian_readouts", "common", "plan", "put", "rate_of", "single_slice", "usable"]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which readouts of a file make which shot.

    Parameters
    ----------
    rows : (m,) ndarray of int
        Readouts that are used, in the order of the file.
    shots : (m,) ndarray of int
        The shot of each.
    n_averages : int
        Readouts in each shot.
    n_echoes : int
        Echoes in the file.
    echo : int
        The scanner's number of the echo that was chosen.
    notes : tuple of str
        What was averaged.
    """

    rows: NDArray[np.int64]
    shots: NDArray[np.int64]
    n_averages: int
    n_echoes: int
    echo: int
    notes: tuple[str, ...] = ()

    @property
    def n_shots(self) -> int:
        """Number of shots."""
        return self.rows.size // self.n_averages

    @property
    def first(self) -> NDArray[np.int64]:
        """The first readout of each shot."""
        return self.rows[np.unique(self.shots, return_index=True)[1]]

    def apart(self, why: str) -> Plan:
        """Return a plan in which every readout is a shot of its own."""
        return replace(self, shots=np.arange(self.rows.size), n_averages=1, notes=(why,))


def plan(
    rows: NDArray[np.integer],
    *,
    encoding: NDArray[np.integer],
    average: NDArray[np.integer],
    repetition: NDArray[np.integer],
    echo: NDArray[np.integer],
    wanted_echo: int = 0,
    wanted_repetition: int | None = None,
) -> Plan:
    """Return which readouts make which shot.

    Parameters
    ----------
    rows : (n,) ndarray of int
        Readouts of image data, in the order of the file.
    encoding : (n, m) ndarray of int
        Counters that tell positions in k-space apart; all equal where the scanner set none.
    average, repetition, echo : (n,) ndarray of int
        Counters.
    wanted_echo : int
        Which of the echoes, from zero.
    wanted_repetition : int, optional
        Which of the repetitions, from zero; by default their mean.

    Raises
    ------
    DataError
        If there is no such echo or repetition, or averages hold different numbers of readouts.
    """
    echoes = np.unique(echo)
    chosen = np.flatnonzero(echo == _one(echoes, wanted_echo, "echo"))
    if wanted_repetition is not None:
        number = _one(np.unique(repetition[chosen]), wanted_repetition, "repetition")
        chosen = chosen[repetition[chosen] == number]
    rows, encoding = np.asarray(rows, dtype=np.int64)[chosen], encoding[chosen]
    scans, scan = np.unique(np.stack([repetition[chosen], average[chosen]]), axis=1, return_inverse=True)
    whole = Plan(rows, np.arange(rows.size), 1, int(echoes.size), int(echoes[wanted_echo]))
    if scans.shape[1] == 1:
        return whole
    members = [np.flatnonzero(scan == i) for i in range(scans.shape[1])]
    sizes = [len(member) for member in members]
    what = f"{len(set(scans[0].tolist()))} repetition(s) of {len(set(scans[1].tolist()))} average(s)"
    apart = f"{what} encode different positions and were all kept"
    if np.unique(encoding, axis=0).shape[0] == rows.size:
        return whole.apart(apart)
    if len(set(sizes)) > 1:
        odd = int(np.argmin(sizes))
        raise DataError(
            f"{what}: average {scans[1, odd]} of repetition {scans[0, odd]} holds {sizes[odd]} readouts, another "
            f"{max(sizes)}",
            hint="export whole averages, or choose one whole repetition",
        )
    shots = np.empty(rows.size, dtype=np.int64)
    first = encoding[members[0]]
    if np.unique(first, axis=0).shape[0] == sizes[0]:
        order = [np.lexsort(encoding[member].T) for member in members]
        sorted_keys = [encoding[member][by] for member, by in zip(members, order, strict=True)]
        if not all(np.array_equal(keys, sorted_keys[0]) for keys in sorted_keys):
            return whole.apart(apart)
        for member, by in zip(members, order, strict=True):
            shots[member[by]] = order[0]
    else:
        for member in members:
            shots[member] = np.arange(sizes[0])
    return replace(whole, shots=shots, n_averages=len(members), notes=(f"the mean of {what} was taken",))


def _one(numbers: NDArray[np.integer], wanted: int, what: str) -> int:
    if not 0 <= wanted < numbers.size:
        raise DataError(
            f"{what} {wanted} of a file with {numbers.size}", hint=f"choose 0 to {numbers.size - 1}, they count from 0"
        )
    return int(numbers[wanted])


def put(
    target: NDArray[np.complexfloating],
    shots: NDArray[np.integer],
    values: NDArray[np.complexfloating],
    n_averages: int,
) -> None:
    """Add the share of readouts (m, n_coils, n) to the shots of ``target`` (n_coils, n_shots, n)."""
    moved = np.moveaxis(values, 1, 0)
    if n_averages == 1:
        # Shots in the order of the file, so that they are neighbours.
        target[:, shots[0] : shots[-1] + 1] = moved
        return
    left = np.arange(shots.size)
    while left.size:
        once = np.unique(shots[left], return_index=True)[1]
        target[:, shots[left[once]]] += moved[:, left[once]] / np.float32(n_averages)
        left = np.delete(left, once)


def common(values: NDArray[np.integer] | NDArray[np.floating], rows: NDArray[np.integer], what: str) -> float:
    """Return the value that all readouts share; ``rows`` are their numbers in the file."""
    kinds, counts = np.unique(values, return_counts=True)
    if kinds.size > 1:
        usual = kinds[counts.argmax()]
        odd = np.flatnonzero(values != usual)
        raise DataError(
            f"readout {int(rows[odd[0]])} has {values[odd[0]]:g} {what}, most have {usual:g} "
            f"({odd.size} of {values.size} differ)",
            hint="export the measurement again, all readouts of one kind",
        )
    return float(kinds[0])


def rate_of(times_us: NDArray[np.floating], rows: NDArray[np.integer]) -> float:
    """Return the dwell time that all readouts share, in us; rounding aside."""
    times = np.asarray(times_us, dtype=np.float64)
    usual = float(np.median(times))
    odd = np.flatnonzero(np.abs(times - usual) > 1e-3 * abs(usual))
    if odd.size:
        raise DataError(
            f"readout {int(rows[odd[0]])} has a dwell time of {times[odd[0]]:g} us, most have {usual:g} us "
            f"({odd.size} of {times.size} differ)",
            hint="export readouts of one bandwidth a file",
        )
    return usual


def single_slice(numbers: NDArray[np.integer]) -> None:
    """Refuse slices that were excited one by one, which are no volume."""
    found = np.unique(numbers).size
    if found > 1:
        raise DataError(
            f"{found} slices of a 2-D acquisition", hint="reconstruct them on the scanner, or export one slice a file"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """The readout of a Cartesian acquisition.

    Parameters
    ----------
    shape : tuple of int
        Encoded matrix, oversampling included.
    fov_mm : tuple of float
        Its extent.
    oversampling : float
        By how much the readout's extent exceeds that of the image.
    centre : int
        Sample at the centre of k-space.
    dwell_ms : float
        Time between samples.
    backwards : bool
        Whether samples run towards negative k.
    """

    shape: tuple[int, int, int]
    fov_mm: tuple[float, float, float]
    oversampling: float
    centre: int
    dwell_ms: float
    backwards: bool = False


def cartesian_readouts(
    samples: NDArray[np.complexfloating],
    line: Line,
    phase: NDArray[np.integer],
    partition: NDArray[np.integer],
) -> tuple[NDArray[np.complex64], Trajectory, tuple[int, int, int], tuple[float, float, float]]:
    """Return Cartesian readouts without oversampling and where they lie.

    The extent of the object lies within the image, so that the outer part of a line's Fourier transform holds noise
    alone and is cut off; positions that were measured keep their values.

    Parameters
    ----------
    samples : (n_coils, n_shots, n) complex ndarray
        Readouts.
    line : Line
        Their matrix, extent, centre and times.
    phase, partition : (n_shots,) ndarray of int
        Steps from the centre of k-space along the second and third axis.

    Returns
    -------
    samples : (n_coils, n_shots, m) ndarray
        Readouts.
    trajectory : Trajectory
        Lattice points; times count from the centre of k-space.
    shape, fov_mm : three numbers
        Matrix and extent of the image.
    """
    n, full = samples.shape[-1], line.shape[0]
    centre = n - 1 - line.centre if line.backwards else line.centre
    if line.backwards:
        samples = samples[..., ::-1]
    if not 0 <= centre < n or max(centre, n - centre) > full // 2 + 1:
        raise DataError(
            f"{n} samples with the centre of k-space at {centre} in a line of {full}",
            hint="correct the encoded matrix or the centre of the echo",
        )
    for what, steps, size in (("phase", phase, line.shape[1]), ("partition", partition, line.shape[2])):
        if 2 * np.abs(steps).max(initial=0) > size + 1:
            raise DataError(
                f"{what} encoding steps from {steps.min()} to {steps.max()} in a matrix of {size}",
                hint="the data are not Cartesian, or the header's matrix is not theirs: state the trajectory in the "
                "sidecar (NonCartesianTrajectory or TrajectoryFile)",
            )
    kept = round(full / line.oversampling)
    steps = np.arange(n) - centre
    if kept < full:
        samples, steps = _cropped(samples, steps, full, kept)
    if line.backwards:
        samples, steps = samples[..., ::-1], steps[::-1]
    ratio = full / kept
    fov_mm = (line.fov_mm[0] / ratio, line.fov_mm[1], line.fov_mm[2])
    k_per_mm = np.empty((samples.shape[1], steps.size, 3), dtype=np.float32)
    k_per_mm[..., 0] = steps / fov_mm[0]
    k_per_mm[..., 1] = phase[:, None] / fov_mm[1]
    k_per_mm[..., 2] = partition[:, None] / fov_mm[2]
    # Where samples lie within their dwells does not matter: the one at the centre has the echo time.
    t_ms = (-1.0 if line.backwards else 1.0) * steps * (ratio * line.dwell_ms)
    trajectory = Trajectory(k_per_mm, np.asarray(t_ms, dtype=np.float64), None, "cartesian")
    return np.ascontiguousarray(samples, dtype=np.complex64), trajectory, (kept, *line.shape[1:]), fov_mm


def _cropped(
    samples: NDArray[np.complexfloating], steps: NDArray[np.integer], full: int, kept: int
) -> tuple[NDArray[np.complex64], NDArray[np.int64]]:
    """Return lines of ``kept`` points over the same range of k, of lines within ``full`` points, and their steps."""
    from scipy import fft

    place = (steps % full).astype(np.int64)
    inner = np.arange(kept) - kept // 2
    new = inner[(inner * full / kept >= steps.min()) & (inner * full / kept <= steps.max())]
    out = np.empty((*samples.shape[:2], new.size), dtype=np.complex64)
    for coil, channel in enumerate(samples):
        line = np.zeros((channel.shape[0], full), dtype=np.complex64)
        line[:, place] = channel
        image = fft.ifft(line, axis=1, overwrite_x=True)[:, inner % full]
        ordered = np.empty_like(image)
        ordered[:, inner % kept] = image
        out[coil] = fft.fft(ordered, axis=1, overwrite_x=True)[:, new % kept]
    return out, new


def usable(kspace: KSpace) -> KSpace:
    """Return the data without dead channels.

    Raises
    ------
    DataError
        If every sample is zero, there is one readout only, or some readouts are empty or cut short.
    """
    samples = kspace.samples
    alive = np.array([bool(channel.any()) for channel in samples])
    if not alive.any():
        raise DataError("every k-space sample is zero", hint="check the receiver and the export")
    n_shots, n = samples.shape[1:]
    if n_shots < 2:
        raise DataError(f"a single readout of {n} samples", hint="export all readouts of the acquisition")
    cut = np.flatnonzero(~samples[:, :, -2:].any(axis=(0, 2)))
    if cut.size:
        shot = samples[:, cut[0]].any(axis=0)
        length = int(np.flatnonzero(shot)[-1]) + 1 if shot.any() else 0
        raise DataError(
            f"{cut.size} of {n_shots} readouts end in zeros: readout {int(cut[0])} holds {length} of {n} samples",
            hint="samples are missing or padded: export the measurement again without zero filling",
        )
    if alive.all():
        return kspace
    dead = [str(i) for i in np.flatnonzero(~alive)]
    note = f"channel(s) {', '.join(dead)} of {alive.size} hold zeros only and were left out"
    noise = None if kspace.noise is None else kspace.noise[alive]
    return replace(kspace, samples=samples[alive], noise=noise, notes=(*kspace.notes, note))
