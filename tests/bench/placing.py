"""Vials and registration, sections of ``quantify.py``: scenes and heads of ``tests/science``, beside the peers."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_sodium.core.data import Volume
from bids_sodium.image.calibration import CalibrationParams, find_vials, fit_scale, measure_vials
from bids_sodium.spatial.registration import register
from bids_sodium.spatial.resampling import to_itk_image
from bids_sodium.spatial.transforms import Affine

sys.path.insert(0, str(Path(__file__).parents[1] / "science"))
import test_calibration_truth as scenes
import test_registration_truth as heads

__all__ = ["calibration", "registration"]

N_SCENES = 40
N_STARTS = 10
FAR_MM, FAR_DEG = 35.0, 25.0
FAILED_MM = 4.0

Placed = Callable[[Volume, Volume, NDArray[np.bool_]], Affine]


def calibration() -> None:
    """Print how many vials are found and how far the slope is off."""
    print("\n| vials | scenes with all found | slope error, median / largest | s a scene |\n|---|---|---|---|")
    params = CalibrationParams()
    for name, with_head, cylinder in (
        ("head mask given, cylinder", True, True),
        ("head found in the image, cylinder", False, True),
        ("head mask given, core median", True, False),
    ):
        found, errors, began = 0, [], time.perf_counter()
        for seed in range(N_SCENES):
            scene = scenes.scene(seed)
            vials = find_vials(scene.image, scene.head if with_head else None, params)
            apart = [
                np.linalg.norm(np.array(vial.centre_mm)[:2] - centre[:2])
                for vial, centre in zip(vials, scene.centres, strict=True)
            ]
            found += bool(max(apart) < 6.0)
            signals = measure_vials(
                scene.image,
                [vial.mask for vial in vials],
                params,
                sigma=scene.sigma,
                inner_radius_mm=scene.radius_mm if cylinder else None,
                fwhm_mm=float(np.hypot(scenes.FWHM_MM, 2.3548 * 5.0 / np.sqrt(12))) if cylinder else None,
            )
            errors.append(abs(fit_scale(signals.signal, signals.se, params).slope * scenes.GAIN - 1.0))
        took = (time.perf_counter() - began) / N_SCENES
        middle, largest = 100 * np.median(errors), 100 * np.max(errors)
        print(f"| {name} | {found} of {N_SCENES} | {middle:.1f} % / {largest:.1f} % | {took:.2f} |")


def registration() -> None:
    """Print the target error of starts within 35 mm and 25 degrees at SNR 10."""
    print(f"\nSodium to T1w, {N_STARTS} starts within {FAR_MM:g} mm and {FAR_DEG:g} degrees, SNR 10, one thread.")
    print("\n| method | target error, median / largest, mm | beyond 4 mm | s |\n|---|---|---|---|")
    peers: list[tuple[str, Placed]] = [
        ("bids_sodium", _ours),
        ("SimpleITK, Mattes mutual information from the headers", lambda f, m, _: _mutual_information(f, m)),
        ("the same from image moments", lambda f, m, _: _mutual_information(f, m, moments=True)),
    ]
    if importlib.util.find_spec("ants") is not None:
        peers.append(("antspyx, rigid", lambda f, m, _: _ants(f, m)))
    for name, place in peers:
        rng = np.random.default_rng(3)
        fixed = heads.t1w(rng)
        errors, stated, took = [], [], 0.0
        for _ in range(N_STARTS):
            truth = heads.pose(rng, FAR_MM, FAR_DEG)
            moving = heads.sodium(rng, truth, fwhm_mm=float(rng.choice([5.0, 7.3, 9.0])), snr=10.0)
            began = time.perf_counter()
            found: Any = place(fixed, moving, heads.head().brain)
            took += time.perf_counter() - began
            if isinstance(found, tuple):
                found, error_mm = found
                stated.append(error_mm)
            errors.append(heads.error_mm(found.inverse(), truth))
        failed = int((np.array(errors) > FAILED_MM).sum())
        told = f" (stated {np.median(stated):.2f})" if stated else ""
        print(
            f"| {name} | {np.median(errors):.2f}{told} / {max(errors):.2f} | {failed} of {N_STARTS} | "
            f"{took / N_STARTS:.1f} |",
            flush=True,
        )
    if importlib.util.find_spec("ants") is None:
        print("\nantspyx is left out: it is not installed.")


def _ours(fixed: Volume, moving: Volume, brain: NDArray[np.bool_]) -> Any:
    found = register(fixed, moving, fixed_name="t1w", moving_name="na", fixed_mask=brain)
    return found.transform, found.target_error_mm


def _mutual_information(fixed: Volume, moving: Volume, *, moments: bool = False) -> Affine:
    """Return what SimpleITK's usual recipe finds: 40 bins, three tenths of the voxels, three levels, descent."""
    import SimpleITK as sitk  # noqa: N813

    one, two = (
        sitk.Cast(to_itk_image(np.asarray(v.data, dtype=np.float32), v.grid), sitk.sitkFloat32) for v in (fixed, moving)
    )
    start = sitk.Euler3DTransform()
    centre = [one.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in one.GetSize()])]
    start.SetCenter(centre[0])
    if moments:
        start = sitk.Euler3DTransform(
            sitk.CenteredTransformInitializer(one, two, start, sitk.CenteredTransformInitializerFilter.MOMENTS)
        )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(40)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.3, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 100, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2, 2])
    method.SetSmoothingSigmasPerLevel([8, 4, 2])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetInitialTransform(start, True)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    method.Execute(one, two)
    rotation, shift = np.array(start.GetMatrix()).reshape(3, 3), np.array(start.GetTranslation())
    middle = np.array(start.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, shift + middle - rotation @ middle
    return Affine(matrix, "na", "t1w").inverse()


def _ants(fixed: Volume, moving: Volume) -> Affine:
    import ants  # type: ignore[import-not-found]

    def image(volume: Volume) -> Any:
        voxel = np.array(volume.grid.voxel_mm)
        direction = volume.grid.affine[:3, :3] / voxel
        origin = volume.grid.affine[:3, 3]
        data = np.asarray(volume.data, dtype=np.float32)
        return ants.from_numpy(data, origin=list(origin), spacing=list(voxel), direction=direction)

    done = ants.registration(image(fixed), image(moving), type_of_transform="Rigid")
    found = ants.read_transform(done["fwdtransforms"][0])
    rotation = np.array(found.parameters[:9]).reshape(3, 3)
    middle, shift = np.array(found.fixed_parameters), np.array(found.parameters[9:])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, shift + middle - rotation @ middle
    return Affine(matrix, "na", "t1w").inverse()
