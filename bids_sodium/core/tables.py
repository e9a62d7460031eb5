"""Column schemas of every table that the app writes or reads.

Writers, sidecars, the group reader and the documentation share these definitions, so that a column has one name,
one unit and one meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bids_sodium.core.errors import DataError

__all__ = ["GROUP_RESULT", "GROUP_TSC", "NORMS", "QC", "ROI_TSC", "TISSUE_TSC", "Column", "Table"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Parameters
    ----------
    name : str
        Header of the column.
    description : str
        Its meaning.
    unit : str
        Unit of the values, empty for names and counts.
    levels : tuple of str
        The values it may take, empty where any value may stand.
    """

    name: str
    description: str
    unit: str = ""
    levels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its name and columns, in order.

    Parameters
    ----------
    name : str
        Short name.
    description : str
        What one row is.
    columns : tuple of Column
        The columns in the order they are written.
    """

    name: str
    description: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    def sidecar(self) -> dict[str, dict[str, object]]:
        """Return the BIDS data dictionary of the columns."""
        entries: dict[str, dict[str, object]] = {}
        for column in self.columns:
            entry: dict[str, object] = {"Description": column.description}
            if column.unit:
                entry["Units"] = column.unit
            if column.levels:
                entry["Levels"] = {level: level for level in column.levels}
            entries[column.name] = entry
        return entries

    def require(self, header: Iterable[str], *, where: str, columns: Iterable[str] | None = None) -> None:
        """Raise `DataError` where a needed column is missing.

        Parameters
        ----------
        header : iterable of str
            Columns found.
        where : str
            The file, for the message.
        columns : iterable of str, optional
            Columns needed, by default all of them.
        """
        found = set(header)
        missing = [name for name in (self.names if columns is None else columns) if name not in found]
        if missing:
            raise DataError(
                f"missing column(s) {', '.join(missing)}; found {', '.join(sorted(found))}",
                where=where,
                hint=f"write the table with the columns of {self.name}",
            )


_IDS = (
    Column("participant_id", "Participant, as in participants.tsv"),
    Column("session_id", "Session, n/a where the dataset has no sessions"),
)
_TISSUES = ("CGM", "DGM", "GM", "NAWM", "WM", "CSF", "T2lesion", "T1iso", "T1hypo")

TISSUE_TSC = Table(
    "tissue_tsc",
    "One row a tissue and method: its total sodium concentration",
    (
        *_IDS,
        Column("tissue", "Tissue class", levels=_TISSUES),
        Column("method", "Partial-volume correction: raw (fraction-weighted mean), csf (CSF partition), gtm, glm, ..."),
        Column("tsc_mmol_l", "Total sodium concentration", "mmol/L"),
        Column("tsc_se", "Standard error of tsc_mmol_l, calibration included", "mmol/L"),
        Column("sd_mmol_l", "Standard deviation of the voxels of the tissue", "mmol/L"),
        Column("n_voxels", "Sodium voxels that contribute"),
        Column("volume_ml", "Volume of the tissue", "mL"),
        Column("csf_excluded_fraction", "Share of the tissue left out because CSF dominates its voxels", "1"),
    ),
)

ROI_TSC = Table(
    "roi_tsc",
    "One row a region and contrast: its mean against the contralateral side",
    (
        *_IDS,
        Column("onset_to_scan_h", "Time from stroke onset to the scan", "h"),
        Column(
            "roi",
            "Region: a delineated one, an expression of them (ionic, necrosis-ionic, ionic&necrosis, ...) or one of an "
            "atlas (ATLAS:name)",
        ),
        Column("contrast", "Image the values are read from", levels=("na", "tsc", "adc")),
        Column("method", "Partial-volume correction: raw (mean of the image) or gtm (fit of the scan's own model)"),
        Column("ipsi", "Mean over the region (na: a.u., tsc: mmol/L, adc: mm2/s)", "a.u., mmol/L or mm2/s"),
        Column("contra", "Mean over the mirrored region", "a.u., mmol/L or mm2/s"),
        Column("percent_change", "(ipsi - contra) / contra x 100", "%"),
        Column("percent_se", "Standard error of percent_change; errors of drawing and mirroring are not in it", "%"),
        Column("ipsi_sd", "Standard deviation over the region", "a.u., mmol/L or mm2/s"),
        Column("contra_sd", "Standard deviation over the mirrored region", "a.u., mmol/L or mm2/s"),
        Column("n_voxels", "Voxels in the region"),
        Column("volume_ml", "Volume of the region", "mL"),
        Column("kept", "1 where the region enters the analyses, 0 where it does not"),
        Column("reason", "Why a region was left out"),
    ),
)

FATE = Table(
    "fate_tsc",
    "One row a small cell of tissue in and around early lesions: what it showed and whether it was necrotic in the end",
    (
        *_IDS,
        Column("onset_to_scan_h", "Time from stroke onset to the scan", "h"),
        Column("cell", "Number of the cell within the scan"),
        Column("x_mm", "Left to right place of its centre, in the frame of the anatomical image", "mm"),
        Column("y_mm", "Back to front place of its centre", "mm"),
        Column("z_mm", "Bottom to top place of its centre", "mm"),
        Column("volume_ml", "Volume of brain tissue in the cell", "mL"),
        Column("lesion_share", "Share of the cell inside an early lesion (ionic or cytotoxic)", "1"),
        Column("na_percent", "Sodium signal against the mirrored place, (ipsi - contra) / contra x 100", "%"),
        Column("adc_percent", "ADC against the mirrored place, (ipsi - contra) / contra x 100", "%"),
        Column("necrosis_share", "Share of the cell inside the final necrosis, n/a where no mask of it is known", "1"),
    ),
)

RATERS = Table(
    "raters",
    "One row a region, scan and pair of raters: how far their masks agree",
    (
        *_IDS,
        Column("label", "Region"),
        Column("rater_a", "First rater: desc- of the mask, else its place in the order of names"),
        Column("rater_b", "Second rater"),
        Column("dice", "Dice overlap, 2 |A and B| / (|A| + |B|)", "1"),
        Column("hausdorff95_mm", "95th percentile of the distances between the outlines", "mm"),
        Column("volume_a_ml", "Volume drawn by the first rater", "mL"),
        Column("volume_b_ml", "Volume drawn by the second rater", "mL"),
        Column("volume_difference_ml", "Second volume minus the first", "mL"),
    ),
)

QC = Table(
    "qc_tsc",
    "One row a quality measure",
    (
        *_IDS,
        Column("measure", "Name of the measure"),
        Column("value", "Its value; unit in the column unit"),
        Column("unit", "Unit of the value"),
        Column("se", "Standard error of the value, n/a where it has none"),
        Column("note", "How it was made, or what it warns of"),
    ),
)

GROUP_TSC = Table(
    "group_tsc",
    "Every row of the participants' tissue and region tables, with the participants', sessions' and phenotype columns",
    (
        *TISSUE_TSC.columns,
        *(column for column in ROI_TSC.columns if column.name not in TISSUE_TSC.names),
        Column("bpf", "Brain parenchymal fraction", "1"),
        Column("gmf", "Grey matter fraction", "1"),
        Column("wmf", "White matter fraction", "1"),
        Column("tiv_ml", "Total intracranial volume", "mL"),
        Column("t2lv_ml", "T2 lesion volume", "mL"),
        Column("t1lv_ml", "T1-hypointense lesion volume", "mL"),
        Column("scanner_factor", "Factor of a travelling phantom that is in the concentrations, n/a for none", "1"),
    ),
)

GROUP_RESULT = Table(
    "group_result",
    "One row an estimate of a group analysis",
    (
        Column("analysis", "Name of the analysis"),
        Column("model", "Model that was fitted"),
        Column("subset", "Rows that entered"),
        Column("outcome", "Outcome, with its unit"),
        Column("term", "Term of the model, group or region"),
        Column("estimate", "Estimate"),
        Column("se", "Standard error"),
        Column("ci_low", "Lower limit of the confidence interval"),
        Column("ci_high", "Upper limit of the confidence interval"),
        Column("statistic", "Test statistic"),
        Column("df", "Degrees of freedom"),
        Column("p", "p value"),
        Column("p_adjusted", "p value after adjustment for multiple tests"),
        Column("n", "Observations"),
        Column("r2", "Coefficient of determination", "1"),
        Column("method", "How estimate, interval and p value were made"),
        Column("note", "What a reader must know"),
    ),
)

NORMS = Table(
    "norms",
    "One row a stratum of the people that a raw clinical score is compared with",
    (
        Column("score", "Column of the raw score in the participants' or phenotype tables"),
        Column("mean", "Mean of the score in the stratum"),
        Column("sd", "Standard deviation of the score in the stratum"),
        Column("age_low", "Youngest age of the stratum, in whole years; n/a for none", "year"),
        Column("age_high", "Oldest age of the stratum, in whole years; n/a for none", "year"),
        Column("sex", "Sex of the stratum: F, M, or n/a for both"),
        Column("education_low", "Fewest years of education; n/a for none", "year"),
        Column("education_high", "Most years of education; n/a for none", "year"),
        Column("better", "Whether a higher or a lower score is better", levels=("higher", "lower")),
        Column("z", "Column that the z score becomes, by default z_ and the score"),
    ),
)
