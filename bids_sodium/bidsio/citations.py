"""Methods text of a run, with its references, made from the parameters that were used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bids_sodium import __version__
from bids_sodium.bidsio.files import write_text

__all__ = ["Boilerplate", "boilerplate", "write_boilerplate"]


class _Work(NamedTuple):
    authors: str
    title: str
    journal: str
    year: int
    doi: str


_WORKS = {
    "bids": _Work(
        "Gorgolewski K.J. and others",
        "The brain imaging data structure",
        "Scientific Data 3:160044",
        2016,
        "10.1038/sdata.2016.44",
    ),
    "bidsapps": _Work(
        "Gorgolewski K.J. and others",
        "BIDS Apps: improving ease of use, accessibility, and reproducibility of neuroimaging data analysis methods",
        "PLoS Computational Biology 13:e1005209",
        2017,
        "10.1371/journal.pcbi.1005209",
    ),
    "sklearn": _Work(
        "Pedregosa F. and others",
        "Scikit-learn: machine learning in Python",
        "Journal of Machine Learning Research 12:2825-2830",
        2011,
        "",
    ),
    "ismrmrd": _Work(
        "Inati S.J. and others",
        "ISMRM Raw data format: a proposed standard for MRI raw datasets",
        "Magnetic Resonance in Medicine 77:411-421",
        2017,
        "10.1002/mrm.26089",
    ),
    "finufft": _Work(
        "Barnett A.H. and Magland J. and af Klinteberg L.",
        "A parallel nonuniform fast Fourier transform library based on an exponential of semicircle kernel",
        "SIAM Journal on Scientific Computing 41:C479-C504",
        2019,
        "10.1137/18M120885X",
    ),
    "nagel": _Work(
        "Nagel A.M. and others",
        "Sodium MRI using a density-adapted 3D radial acquisition technique",
        "Magnetic Resonance in Medicine 62:1565-1573",
        2009,
        "10.1002/mrm.22157",
    ),
    "coupe": _Work(
        "Coupe P. and others",
        "An optimized blockwise nonlocal means denoising filter for 3-D magnetic resonance images",
        "IEEE Transactions on Medical Imaging 27:425-441",
        2008,
        "10.1109/TMI.2007.906087",
    ),
    "ehrhardt": _Work(
        "Ehrhardt M.J. and Betcke M.M.",
        "Multicontrast MRI reconstruction with structure-guided total variation",
        "SIAM Journal on Imaging Sciences 9:1084-1106",
        2016,
        "10.1137/15M1047325",
    ),
    "rudin": _Work(
        "Rudin L.I., Osher S. and Fatemi E.",
        "Nonlinear total variation based noise removal algorithms",
        "Physica D 60:259-268",
        1992,
        "10.1016/0167-2789(92)90242-F",
    ),
    "veraart": _Work(
        "Veraart J. and others",
        "Denoising of diffusion MRI using random matrix theory",
        "NeuroImage 142:394-406",
        2016,
        "10.1016/j.neuroimage.2016.08.016",
    ),
    "dipy": _Work(
        "Garyfallidis E. and others",
        "Dipy, a library for the analysis of diffusion MRI data",
        "Frontiers in Neuroinformatics 8:8",
        2014,
        "10.3389/fninf.2014.00008",
    ),
    "simpleitk": _Work(
        "Lowekamp B.C. and others",
        "The design of SimpleITK",
        "Frontiers in Neuroinformatics 7:45",
        2013,
        "10.3389/fninf.2013.00045",
    ),
    "n4": _Work(
        "Tustison N.J. and others",
        "N4ITK: improved N3 bias correction",
        "IEEE Transactions on Medical Imaging 29:1310-1320",
        2010,
        "10.1109/TMI.2010.2046908",
    ),
    "mni": _Work(
        "Fonov V. and others",
        "Unbiased average age-appropriate atlases for pediatric studies",
        "NeuroImage 54:313-327",
        2011,
        "10.1016/j.neuroimage.2010.07.033",
    ),
    "nilearn": _Work(
        "Abraham A. and others",
        "Machine learning for neuroimaging with scikit-learn",
        "Frontiers in Neuroinformatics 8:14",
        2014,
        "10.3389/fninf.2014.00014",
    ),
    "riemer": _Work(
        "Riemer F. and others",
        "Bi-exponential 23Na T2* component analysis in the human brain",
        "NMR in Biomedicine 31:e3899",
        2018,
        "10.1002/nbm.3899",
    ),
    "rousset": _Work(
        "Rousset O.G. and Ma Y. and Evans A.C.",
        "Correction for partial volume effects in PET: principle and validation",
        "Journal of Nuclear Medicine 39:904-911",
        1998,
        "",
    ),
    "numpy": _Work(
        "Harris C.R. and others",
        "Array programming with NumPy",
        "Nature 585:357-362",
        2020,
        "10.1038/s41586-020-2649-2",
    ),
    "scipy": _Work(
        "Virtanen P. and others",
        "SciPy 1.0: fundamental algorithms for scientific computing in Python",
        "Nature Methods 17:261-272",
        2020,
        "10.1038/s41592-019-0686-2",
    ),
    "statsmodels": _Work(
        "Seabold S. and Perktold J.",
        "statsmodels: econometric and statistical modeling with Python",
        "Proceedings of the 9th Python in Science Conference",
        2010,
        "10.25080/Majora-92bf1922-011",
    ),
}


class Boilerplate(NamedTuple):
    """Methods text and its references.

    Parameters
    ----------
    markdown : str
        Text with a list of references.
    bibtex : str
        The references as BibTeX.
    """

    markdown: str
    bibtex: str


def boilerplate(parameters: Mapping[str, Mapping[str, Any]], *, level: str = "participant") -> Boilerplate:
    """Return the methods text of a run, from the parameters that it used.

    Parameters
    ----------
    parameters : mapping
        Sections of the configuration as plain values: ``{"reconstruction": {"method": "cg", ...}, ...}``.
    level : str
        ``"participant"`` or ``"group"``.

    Returns
    -------
    Boilerplate
        Sentences for a paper, in the order of the processing.

    Examples
    --------
    >>> text = boilerplate({"denoising": {"method": "off"}})
    >>> "non-local means" in text.markdown
    False
    """
    sentences = _participant_text(parameters) if level == "participant" else _group_text(parameters)
    text = " ".join(sentences)
    cited = list(dict.fromkeys(re.findall(r"\[@(\w+)\]", text)))
    number = {key: position for position, key in enumerate(cited, start=1)}
    for key, position in number.items():
        text = text.replace(f"[@{key}]", f"[{position}]")
    lines = ["# Methods", "", text, "", "## References", ""]
    for key in cited:
        authors, title, journal, year, doi = _WORKS[key]
        link = f" doi:{doi}" if doi else ""
        lines.append(f"{number[key]}. {authors} ({year}). {title}. {journal}.{link}")
    return Boilerplate("\n".join(lines) + "\n", "\n".join(_bibtex(key) for key in cited))


_NLM = "Rician non-local means [@coupe] [@dipy]"
_DENOISERS = {
    "recommended": f"{_NLM}, series of echoes by their principal components [@veraart], with tissue means kept",
    "nlm": _NLM,
    "paper": _NLM,
    "tv": "total variation [@rudin]",
    "mppca": "the principal components of the series of echoes [@veraart]",
}


def _bibtex(key: str) -> str:
    authors, title, journal, year, doi = _WORKS[key]
    entries = {"author": authors, "title": title, "journal": journal, "year": year, "doi": doi}
    return f"@article{{{key},\n" + "".join(f"  {k} = {{{v}}},\n" for k, v in entries.items() if v) + "}\n"


def _opening() -> str:
    return f"Data in BIDS [@bids] were processed with the BIDS App [@bidsapps] bids_sodium {__version__}."


def _participant_text(parameters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    recon = parameters.get("reconstruction", {})
    sentences = [_opening()]
    paper = recon.get("mode") == "paper"
    chosen = "adjoint" if paper else recon.get("method", "adjoint")
    # Whatever is made beside it, registration, calibration and partial volume read a linear image.
    method = "weighted conjugate gradients" if chosen == "cg" else "the density-compensated adjoint"
    steps = f", {recon['iterations']} iterations" if chosen == "cg" and "iterations" in recon else ""
    name = "none" if paper else recon.get("filter", "none")
    window = (
        "no filter" if name == "none" else f"a {name} filter of relative width {recon.get('filter_width', 'default')}"
    )
    sentences.append(
        f"Sodium k-space, where given [@ismrmrd], was reconstructed by {method}{steps} with {window} on non-uniform "
        "fast Fourier transforms [@finufft] and analytic sample weights [@nagel]; the noise was measured in k-space."
    )
    if chosen in {"tv", "dtv"}:
        prior = " across what the proton image shows as uniform [@ehrhardt]" if chosen == "dtv" else ""
        sentences.append(
            f"Concentration maps rest on a second reconstruction with a penalty on its total variation{prior} of "
            f"{recon.get('tv_weight', 1.0):g} standard deviations of the noise."
        )
    denoising = parameters.get("denoising", {}).get("method", "recommended")
    if chosen not in {"tv", "dtv"} and denoising != "off":
        sentences.append(f"Magnitude images were denoised by {_DENOISERS[denoising]}.")
    sentences.append(_calibration_text(parameters.get("calibration", {})))
    sentences.append(
        "Images of one head were registered rigidly by minimising the share of variance that a smooth function of the "
        "other image's intensity leaves unexplained (correlation ratio, Gauss-Newton from several starts). The T1w "
        "image was bias-corrected [@n4] and placed in the symmetric MNI152 2009 template [@mni] that nilearn ships "
        "[@nilearn] by an affine transform and fast symmetric-forces demons [@simpleitk]. Transforms were composed, so "
        "that every image was resampled once."
    )
    methods = set(parameters.get("partialvolume", {}).get("methods", ("gtm", "glm", "local", "kspace-density")))
    ways = {
        "glm": "by least squares over the image",
        "local": "by least squares in a neighbourhood of every voxel",
        "kspace": "by least squares over the samples",
        "kspace-density": "by density-weighted least squares over the samples",
        "gtm": "with the geometric transfer matrix [@rousset]",
    }
    used = [words for method, words in ways.items() if method in methods]
    if used:
        sentences.append(
            f"Regional concentrations were corrected for partial volume {', '.join(used)}; each tissue's fraction map "
            "was put through the scan's own trajectory, T2* decay and reconstruction, or, without k-space, through the "
            "modulation of the stated protocol or a Gaussian. Standard errors hold noise, residual, calibration, and "
            "the uncertain place of the maps and of the boundaries between tissues."
        )
    sentences.append("Computations used NumPy [@numpy] and SciPy [@scipy].")
    return sentences


def _calibration_text(calibration: Mapping[str, Any]) -> str:
    fluids = {"csf": "ventricular cerebrospinal fluid", "vitreous": "the vitreous body of the eyes"}
    source = calibration.get("source", "vials")
    if source in fluids:
        return (
            "Without vials, signal was scaled to total sodium concentration by an internal reference, "
            f"{fluids[source]} of an assumed concentration, and corrected for the relaxation of fluid and tissue "
            "[@riemer]; an error of the assumed concentration is one of every concentration."
        )
    vials = calibration.get("vial_mmol_l", ())
    named = f" of {' and '.join(f'{value:g}' for value in vials)} mmol/L" if vials else ""
    line = "a line with an intercept" if calibration.get("line") == "intercept" else "a line through zero"
    return (
        f"Signal was scaled to total sodium concentration by vials{named} (the scan's sidecar goes before the "
        f"settings), with {line}, and corrected for the relaxation of vials and tissue [@riemer]. Vials of "
        "known diameter were measured with the scan's own acquisition as the model where k-space was given."
    )


def _group_text(parameters: Mapping[str, Mapping[str, Any]]) -> list[str]:
    study = parameters.get("run", {}).get("study") or "group"
    text = (
        f"Tables of all participants were joined and the analyses of the {study} study made with NumPy [@numpy], "
        "SciPy [@scipy] and statsmodels [@statsmodels]; each table names its method."
    )
    more = ["Elastic nets were fitted with scikit-learn [@sklearn]."] if study == "ms" else []
    return [_opening(), text, *more]


def write_boilerplate(logs: Path, text: Boilerplate) -> tuple[Path, Path]:
    """Write ``CITATION.md`` and ``CITATION.bib`` into the folder of logs."""
    return write_text(logs / "CITATION.md", text.markdown), write_text(logs / "CITATION.bib", text.bibtex)
