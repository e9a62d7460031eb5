"""Transforms of FSL and FreeSurfer against files of lta_convert and numbers of nitransforms 25.1.0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bids_sodium.bidsio.linear_transforms import read_flirt, read_lta, write_flirt
from bids_sodium.core.data import Grid
from bids_sodium.spatial.transforms import Affine

# A functional image to its T1w, by bbregister; both matrices by lta_convert (test data of nitransforms, MIT).
VOXEL_TO_VOXEL = """type      = 0 # LINEAR_VOX_TO_VOX
nxforms   = 1
mean      = 0.0000 0.0000 0.0000
sigma     = 10000.0000
1 4 4
2.999451637268066e+00 1.401854865252972e-02 -7.407368719577789e-02 3.591539764404297e+01
-2.879538573324680e-02 -2.145972728729248e+00 -2.794905662536621e+00 2.451114654541016e+02
-4.953517019748688e-02 2.096330165863037e+00 -2.860595941543579e+00 9.669815826416016e+01
0.000000000000000e+00 0.000000000000000e+00 0.000000000000000e+00 1.000000000000000e+00
src volume info
valid = 1  # volume info valid
filename = uni_xform_masked.nii.gz
volume = 64 64 34
voxelsize = 3.000000000000000e+00 3.000000000000000e+00 4.000000000000000e+00
xras   = -1.000000000000000e+00 -0.000000000000000e+00 0.000000000000000e+00
yras   = 0.000000000000000e+00 6.858183145523071e-01 7.277727723121643e-01
zras   = -0.000000000000000e+00 -7.277727723121643e-01 6.858183741569519e-01
cras   = -4.697326660156250e+00 -9.175056457519531e+00 1.141981506347656e+01
dst volume info
valid = 1  # volume info valid
filename = orig.mgz
volume = 256 256 256
voxelsize = 1.000000000000000e+00 1.000000000000000e+00 1.000000000000000e+00
xras   = -1.000000000000000e+00 0.000000000000000e+00 0.000000000000000e+00
yras   = 0.000000000000000e+00 0.000000000000000e+00 -1.000000000000000e+00
zras   = 0.000000000000000e+00 1.000000000000000e+00 0.000000000000000e+00
cras   = -1.008934020996094e+00 4.937973022460938e+00 1.715942382812500e+00
subject sub-10316
fscale 0.100000
"""
RAS_TO_RAS = np.array(
    [
        [0.9998173117637634, -0.01668193005025387, 0.009299500845372677, 0.3410797119140625],
        [0.01651172526180744, 0.9996999502182007, 0.01808840036392212, -0.4532470703125],
        [-0.009598462842404842, -0.01793161034584045, 0.9997929334640503, -9.916595458984375],
        [0.0, 0.0, 0.0, 1.0],
    ]
)

# The FLIRT matrix is what nitransforms writes for the inverse of WORLD, with both images as reference and moving.
WORLD = np.array(
    [
        [1.0068510575702294, -0.12783898428586968, -0.09366024244332839, 4.0],
        [0.12362576499838573, 0.967905773917682, -0.10018840157752733, -5.0],
        [0.10661903253300654, 0.08494472858023804, 1.0006448136950479, 6.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
TARGET = np.array(
    [
        [0.9889109407697048, 0.16066418285538642, 0.03224652965395108, -80.0],
        [-0.13898236906210149, 1.0713547465187425, -0.21495761546463527, -100.0],
        [-0.052335956242943835, 0.19075121876195683, 1.1801497298559342, -60.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
SOURCE = np.array(
    [
        [-2.932655218932307, -0.6293594858841802, 0.07820206756805366, 90.0],
        [-0.6233551098998972, 2.925776185301836, 0.30188186205077566, -95.0],
        [0.1046984901075029, -0.20914193995523167, 3.987825444774738, -70.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
FLIRT = """0.90051410 0.45379198 0.13167585 -29.36083162
-0.47242214 0.85120273 0.13851238 48.43547446
-0.05303766 -0.18367834 0.99158636 -1.07816963
0.00000000 0.00000000 0.00000000 1.00000000
"""
GRIDS = {"target_grid": Grid((160, 180, 130), TARGET), "source_grid": Grid((60, 64, 40), SOURCE)}


def test_voxel_lta_is_the_world_lta_of_lta_convert(tmp_path: Path) -> None:
    path = tmp_path / "bold-to-t1w.lta"
    path.write_text(VOXEL_TO_VOXEL, encoding="ascii")
    # single precision on both sides
    np.testing.assert_allclose(read_lta(path, "T1w", "bold").matrix, RAS_TO_RAS, atol=3e-5)


def test_flirt_matrix_is_that_of_nitransforms(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    path.write_text(FLIRT, encoding="ascii")
    # nitransforms has the geometry from headers in single precision
    np.testing.assert_allclose(read_flirt(path, "T1w", "23Na", **GRIDS).matrix, WORLD, atol=1e-5)
    write_flirt(path, Affine(WORLD, "T1w", "23Na"), **GRIDS)
    np.testing.assert_allclose(np.loadtxt(path), np.loadtxt(FLIRT.splitlines()), atol=1e-5)
