"""Column schemas of every table that the app writes or reads.

Writers, sidecars, the group reader and the documentation share these definitions, so that a column has one name,
one unit and one meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bids_sodium.core.errors import DataError

__all__ = [
    "GROUP_RESULT",
    "GROUP_TSC",
    "MS_DATA",
    "NORMS",
    "QC",
    "ROI_TSC",
    "STROKE_DATA",
    "TISSUE_TSC",
    "Column",
    "Table",
]


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

MS_DATA = Table(
    "ms_data",
    "Columns of the points, models and printed tables of the MS study",
    (
        Column("participant_id", "Participant"),
        Column("session_id", "Session"),
        Column("group", "Group"),
        Column("site", "Site"),
        Column("sexn", "Sex: 1 woman, 0 man"),
        Column("tiv_ml", "Total intracranial volume", "mL"),
        Column("t25fw_s", "Timed 25-foot walk", "s"),
        Column("dmt", "Disease-modifying therapy: 1 or 0"),
        Column("time_years", "Time after the participant's first session", "year"),
        Column("tissue", "Tissue, by the name of its concentration"),
        Column("tsc_mmol_l", "Total sodium concentration", "mmol/L"),
        Column("part", "What was left out"),
        Column("reason", "Why it was left out"),
        Column("variable", "Variable"),
        Column("label", "Variable in words, with its unit"),
        Column("n", "Participants, or readings of a site"),
        Column("mean", "Mean, in the unit of the variable"),
        Column("sd", "Standard deviation"),
        Column("median", "Median"),
        Column("minimum", "Smallest value"),
        Column("maximum", "Largest value"),
        Column("pair", "Groups that are compared"),
        Column("adjusted_mean", "Mean at the mean of the covariates, in the unit of the variable"),
        Column("kind", "Kind of model"),
        Column("subset", "Who entered: patients (all) or MS, or the groups of a comparison"),
        Column("outcome", "Outcome"),
        Column("term", "Term of the model"),
        Column("step", "Step of the elimination, from 1"),
        Column("removed", "Whether the term is taken out at this step: 1 or 0"),
        Column("entered", "Candidates that passed the univariable screen"),
        Column("retained", "Candidates in the final model"),
        Column("forced", "Covariates that every model holds"),
        Column("n_missing", "Participants left out as incomplete"),
        Column("omitted_significant", "Whether a candidate left out would stay if it were put back: 1 or 0"),
        Column("estimate", "Coefficient, or difference of a site, per unit of the term"),
        Column("se", "Its standard error"),
        Column("ci_low", "Lower limit of its interval"),
        Column("ci_high", "Upper limit of its interval"),
        Column("p", "Two-sided p value"),
        Column("se_hc3", "Standard error that does not take the spread as even (HC3)"),
        Column("ci_low_hc3", "Lower limit with that error"),
        Column("ci_high_hc3", "Upper limit with that error"),
        Column("p_hc3", "p value with that error"),
        Column("r2", "R2"),
        Column("adjusted_r2", "R2 adjusted for the number of terms"),
        Column("sigma", "Residual standard deviation, in the unit of the outcome"),
        Column("df", "Residual degrees of freedom"),
        Column("f_statistic", "F of the whole model"),
        Column("f_p", "Its p value"),
        Column("aic", "Akaike's information criterion"),
        Column("bic", "Bayesian information criterion"),
        Column("vif_max", "Largest variance inflation factor"),
        Column("cook_max", "Largest Cook's distance"),
        Column("cook_participant", "Participant with that distance"),
        Column("leverage_max", "Largest leverage"),
        Column("dffits_max", "Largest absolute DFFITS"),
        Column("shapiro_w", "Shapiro and Wilk's W of the residuals"),
        Column("shapiro_p", "p value of normal residuals"),
        Column("koenker", "Koenker's statistic of even spread"),
        Column("koenker_p", "p value of even spread"),
        Column("outlier_p", "Bonferroni's p value of the largest studentised residual"),
        Column("retained_share", "Share of resamples whose elimination retains the term", "1"),
        Column("x", "Term given the rest of the model, in the unit of the term"),
        Column("y", "Outcome given the rest of the model, in the unit of the outcome"),
        Column("added", "Covariates added to the final model"),
        Column("estimate_with_more", "Coefficient with them"),
        Column("change_percent", "Change of the coefficient", "%"),
        Column("material", "Whether that counts as material: 1 or 0"),
        Column("p_with_more", "p value with them"),
        Column("alpha", "Strength of the elastic net's penalty"),
        Column("l1_ratio", "Share of the lasso in it", "1"),
        Column("r2_forced", "Cross-validated R2 of the forced covariates alone"),
        Column("r2_cv", "R2 of nested cross-validation"),
        Column("r2_sd", "Its standard deviation over splits"),
        Column("n_folds", "Folds"),
        Column("n_repeats", "Splits into folds"),
        Column("r2_elimination", "R2 of the elimination's final model, in sample"),
        Column("kept", "Candidates whose coefficient is not zero"),
        Column("retained_by_elimination", "Candidates that the elimination retains"),
        Column("missing", "Values missing"),
        Column("of", "Participants"),
        Column("factor", "Factor that the site's concentrations are multiplied with", "1"),
        Column("source", "Where the factor comes from"),
        Column("region", "Region of an atlas"),
        Column("shift_mmol_l", "Shift of the site that ComBat takes out", "mmol/L"),
        Column("shift_raw_mmol_l", "The same before it is drawn to that of other regions", "mmol/L"),
        Column("variance_ratio", "Variance of the site over the pooled one that ComBat takes out", "1"),
    ),
)

STROKE_DATA = Table(
    "stroke_data",
    "Columns of the points, curves and lists behind the figures of the stroke study",
    (
        Column("participant_id", "Participant"),
        Column("session_id", "Session"),
        Column("t_h", "Time from onset", "h"),
        Column("log_h", "Natural logarithm of the hours from onset"),
        Column("window", "Time window of the scan; empty outside all", levels=("early", "late", "after")),
        Column("contrast", "Contrast: sodium signal, total sodium concentration or diffusion coefficient",
               levels=("na", "tsc", "adc")),
        Column("roi", "Region"),
        Column("percent", "Change of the region against the contralateral side", "%"),
        Column("volume_ml", "Volume of the region", "mL"),
        Column("reason", "Why it was left out"),
        Column("part", "What was left out"),
        Column("model", "Model that was fitted"),
        Column("subset", "Rows that entered"),
        Column("outcome", "Outcome, with its unit"),
        Column("term", "Term of the model"),
        Column("n", "Observations"),
        Column("note", "What a reader must know"),
        Column("value", "Fitted value", "%"),
        Column("estimate", "Estimated mean", "%"),
        Column("ci_low", "Lower limit of its interval", "%"),
        Column("ci_high", "Upper limit of its interval", "%"),
        Column("inside", "Whether the time lies between the participant's own scans: 1 or 0"),
        Column("asymptote_percent", "Empirical-Bayes asymptote of the participant, n/a where none is determined", "%"),
        Column("plateau_percent", "Empirical-Bayes plateau of the participant", "%"),
        Column("n_subjects", "Participants within a bandwidth"),
        Column("supported", "Whether enough participants lie within a bandwidth: 1 or 0"),
        Column("bandwidth_h", "Standard deviation of the kernel", "h"),
        Column("name", "Curve"),
        Column("formula", "Its formula, t in h"),
        Column("n_parameters", "Parameters, the residual variance among them"),
        Column("rss", "Residual sum of squares", "%^2"),
        Column("loglik", "Log-likelihood"),
        Column("aic", "Akaike's information criterion"),
        Column("aicc", "The same for small samples"),
        Column("bic", "Bayesian information criterion"),
        Column("delta_aicc", "AICc above the lowest"),
        Column("weight", "Akaike weight of a curve; in the prognosis the volume (cells) or number (regions) of units"),
        Column("converged", "Whether the search ended in a minimum"),
        Column("ionic", "Volume of ionic oedema", "mL"),
        Column("cytotoxic", "Volume of cytotoxic oedema", "mL"),
        Column("necrosis", "Volume of the final necrosis", "mL"),
        Column("na_rise", "Rise of the sodium signal in ionic oedema", "%"),
        Column("adc_drop", "Drop of the diffusion coefficient in cytotoxic oedema", "%"),
        Column("ionic_ml", "Volume of ionic oedema", "mL"),
        Column("cytotoxic_ml", "Volume of cytotoxic oedema", "mL"),
        Column("necrosis_ml", "Volume of the final necrosis", "mL"),
        Column("nihss_admission", "National Institutes of Health Stroke Scale at admission"),
        Column("nihss", "National Institutes of Health Stroke Scale at the scan"),
        Column("mrs", "Modified Rankin score; of a participant the last one"),
        Column("na", "Change of the sodium signal", "%"),
        Column("adc", "Change of the diffusion coefficient", "%"),
        Column("converted", "Share of the unit that was necrotic in the end; n/a where that is not known", "1"),
        Column("p: sodium", "Probability of conversion from sodium, the participant left out", "1"),
        Column("p: ADC", "The same from the diffusion coefficient", "1"),
        Column("p: sodium + ADC", "The same from both", "1"),
        Column("p: sodium + ADC + time", "The same from both and the time from onset", "1"),
        Column("predicted", "Mean prediction of the group of units", "1"),
        Column("observed", "Share of the group that was necrotic in the end", "1"),
        Column("auc", "Area under the curve of the participant", "1"),
        Column("predicted_ml", "Necrotic volume predicted from the other participants", "mL"),
        Column("observed_ml", "Necrotic volume observed", "mL"),
        Column("false_positive_rate", "Share of tissue without necrosis above the threshold", "1"),
        Column("true_positive_rate", "Share of necrotic tissue above the threshold", "1"),
        *(column for column in RATERS.columns if column.name not in ("participant_id", "session_id")),
    ),
)  # fmt: skip

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
