"""Sections of the benchmark on anatomy: segmentation against truth, filling against the lesion-free image."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from bids_sodium.bidsio.files import read_volume, write_volume
from bids_sodium.bidsio.templates import load_head_template
from bids_sodium.core.data import HeadTemplate, Volume
from bids_sodium.core.errors import EstimationError
from bids_sodium.simulate.acquire import contrast, scan_1h
from bids_sodium.simulate.brain import Head, draw_anatomy, healthy_head, ms_head
from bids_sodium.spatial.registration import register_deformable
from bids_sodium.spatial.resampling import resample
from bids_sodium.tissue.filling import FillingParams, fill
from bids_sodium.tissue.segmentation import Segmentation, SegmentationParams, segment

Array = NDArray[np.float32]

TISSUES = ("CSF", "GM", "WM")
SNR, BIAS = 30.0, 0.1
CSF_LEVEL, WM_LEVEL = 180.0, 1000.0


def image_of(head: Head, kind: str, seed: int, *, snr: float = SNR) -> Array:
    """Return a scanned T1w image; a ``kind`` of ``"g0.8"`` bends the line between fluid and white matter."""
    if kind.startswith("g"):
        clean = contrast(head, "T1w")
        span = WM_LEVEL - CSF_LEVEL
        bent = CSF_LEVEL + span * (np.maximum(clean - CSF_LEVEL, 0.0) / span) ** float(kind[1:])
        clean = np.where(clean > CSF_LEVEL, bent, clean).astype(np.float32)
    else:
        clean = contrast(head, "T1w" if kind == "stripped" else kind)
    image = scan_1h(clean, np.random.default_rng(seed), snr=snr, bias=BIAS)
    return np.where(brain_of(head), image, np.float32(0.0)) if kind == "stripped" else image


def brain_of(head: Head) -> NDArray[np.bool_]:
    """Return where tissue and fluid fill more than half of a voxel."""
    names = [name for name in head.fractions if name not in {"soft", "vitreous"}]
    return np.asarray(np.sum([head.fractions[name].data for name in names], axis=0) > 0.5)


def prior_for(t1w: Volume) -> HeadTemplate:
    """Return the template on an image, by the app's registration."""
    head = load_head_template()
    whole = Volume(np.asarray(head.t1), head.grid)
    found = register_deformable(whole, t1w, fixed_name="MNI", moving_name="T1w", fixed_mask=head.brain)

    def here(data: NDArray[np.generic]) -> Array:
        moved = resample(Volume(np.asarray(data, np.float32), head.grid), t1w.grid, found.transform, kind="intensity")
        return np.asarray(moved.data, np.float32)

    maps = {name: here(getattr(head, name)) for name in ("t1", "gm", "wm", "csf", "deep")}
    return HeadTemplate(t1w.grid, **maps, brain=here(head.brain) >= 0.5)


def compared(found: Segmentation, head: Head) -> list[float]:
    """Return Dice of CSF, GM, WM, DGM; error of their fractions in the brain; error of GM and WM volume in percent."""
    truth = {name: np.asarray(head.fractions[name].data) for name in ("CSF", "CGM", "DGM", "NAWM")}
    brain, mine = brain_of(head), found.fractions
    whole = [
        {"CSF": f["CSF"], "GM": f["CGM"] + f["DGM"], "WM": f["NAWM"], "CGM": f["CGM"], "DGM": f["DGM"]}
        for f in (mine, truth)
    ]

    def dice(names: tuple[str, ...], wanted: str) -> float:
        a, b = (
            np.where(mask, np.stack([maps[name] for name in names]).argmax(0), -1) == names.index(wanted)
            for maps, mask in zip(whole, (found.brain, brain), strict=True)
        )
        return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())

    first, second = whole
    return [
        *(dice(TISSUES, name) for name in TISSUES),
        dice(("CSF", "CGM", "DGM", "WM"), "DGM"),
        *(float(np.abs(first[name] - second[name])[brain].mean()) for name in TISSUES),
        *(100.0 * (float(first[name].sum()) / float(second[name].sum()) - 1.0) for name in ("GM", "WM")),
    ]


def segmentation(heads: int = 1) -> None:
    """Print how well heads are segmented whose contrast mixes linearly, does not, or that came skull-stripped."""
    print(f"\n### Segmentation, registration estimated, mean of {heads} head{'s' if heads > 1 else ''} of 1 mm\n")
    columns = ("Dice CSF", "GM", "WM", "DGM", "error of fraction CSF", "GM", "WM", "volume GM %", "WM %")
    print("| image | " + " | ".join(columns) + " | s |\n|" + "---|" * (len(columns) + 2))
    for kind, name in (
        ("T1w", "whole head"),
        ("stripped", "skull-stripped"),
        ("g0.8", "exponent 0.8"),
        ("g1.25", "exponent 1.25"),
        ("UNIT1", "two inversion times (UNIT1)"),
    ):
        rows, seconds = [], []
        for seed in range(1, heads + 1):
            head = healthy_head(draw_anatomy(np.random.default_rng(seed)))
            t1w = Volume(image_of(head, kind, 100 + seed), head.grid)
            try:
                prior = prior_for(t1w)
            except EstimationError as error:
                print(f"| {name} | head {seed} not registered: {error.what} |", flush=True)
                continue
            start = time.process_time()
            found = segment(t1w, prior, SegmentationParams(brain_mask="template"))
            seconds.append(time.process_time() - start)
            rows.append(compared(found, head))
        if rows:
            mean = np.mean(rows, axis=0)
            text = [f"{v:.3f}" for v in mean[:7]] + [f"{v:+.1f}" for v in mean[7:]]
            print(f"| {name} | " + " | ".join(text) + f" | {np.mean(seconds):.0f} |", flush=True)


def filling(lesion_ml: float = 10.0, seed: int = 1) -> None:
    """Print what each filling leaves of lesions, in a head whose lesion-free image is known.

    The mask is drawn at half of a lesion's edge. Volumes are those within 3 mm of the mask and those of the head, whose
    field and modes are read anew from each image.
    """
    print(f"\n### Lesion filling, {lesion_ml:g} mL in a head of 1 mm, SNR {SNR:g}\n")
    columns = ("bias, % of WM", "SD / that of noise", "RMSE", "GM within 3 mm, mL", "WM", "GM of the head", "WM", "s")
    print("| method | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    anatomy = draw_anatomy(np.random.default_rng(seed))
    healthy, ill = healthy_head(anatomy), ms_head(anatomy, np.random.default_rng(6 + seed), lesion_ml=lesion_ml)
    free, seen = (Volume(image_of(head, "T1w", 100 + seed), anatomy.grid) for head in (healthy, ill))
    clean = image_of(healthy, "T1w", 100 + seed, snr=np.inf)
    mask = np.asarray(ill.masks["T2lesion"], dtype=bool)
    near = distance_transform_edt(~mask, sampling=seen.grid.voxel_mm) <= 3.0
    prior = prior_for(seen)
    white = np.asarray(healthy.fractions["NAWM"].data) > 0.95
    level = float(np.median(clean[white]))
    noise = float((free.data - clean)[mask & white].std())
    params = SegmentationParams(brain_mask="template")
    unharmed = segment(free, prior, params).fractions

    def told(name: str, filled: Volume, seconds: float) -> None:
        error = (np.asarray(filled.data) - clean)[mask & white]
        found = segment(filled, prior, params).fractions
        more = {tissue: (found[tissue] - share) * filled.grid.voxel_ml for tissue, share in unharmed.items()}
        changes = [more["CGM"] + more["DGM"], more["NAWM"]]
        volumes = [float(change[where].sum()) for where in (near, np.ones_like(mask)) for change in changes]
        print(
            f"| {name} | {100 * error.mean() / level:+.2f} | {error.std() / noise:.2f} "
            f"| {np.sqrt((error**2).mean()):.0f} | " + " | ".join(f"{v:+.2f}" for v in volumes) + " "
            f"| {seconds:.1f} |",
            flush=True,
        )

    told("none", seen, 0.0)
    for method in ("convolution", "patch"):
        start = time.process_time()
        filled = fill(seen, mask, prior.wm, FillingParams(method=method), np.random.default_rng(0))
        told(method, filled, time.process_time() - start)
    _niftyseg(seen, mask, told)


def _niftyseg(seen: Volume, mask: NDArray[np.bool_], told: object) -> None:
    program = shutil.which("seg_FillLesions")
    if program is None:
        print("\nNiftySeg's seg_FillLesions is not on PATH: left out")
        return
    with tempfile.TemporaryDirectory() as folder:
        image, lesions, out = (Path(folder) / f"{name}.nii.gz" for name in ("image", "mask", "out"))
        write_volume(image, seen)
        write_volume(lesions, Volume(mask, seen.grid), dtype=np.uint8)
        start = time.perf_counter()
        subprocess.run([program, "-i", image, "-l", lesions, "-o", out], check=True, capture_output=True)
        assert callable(told)
        told("NiftySeg seg_FillLesions", read_volume(out), time.perf_counter() - start)
