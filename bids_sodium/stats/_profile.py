"""Profile-likelihood intervals of the sigmoid's parameters: ProfileInterval, which says where it is unbounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_sodium.stats._sigmoid_surface import Surface

__all__ = ["ANYWHERE", "ProfileInterval", "least_asymptote", "profiles", "trace"]

Float = NDArray[np.float64]
ANYWHERE = (-np.inf, np.inf)
"""Edges of a parameter that may have any value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileInterval:
    """Profile-likelihood interval of one parameter."""

    low: float
    """Lower limit; the edge of the parameter's range where it is unbounded."""
    high: float
    """Upper limit; the edge of the parameter's range where it is unbounded."""
    unbounded_low: bool
    """Whether no lower value is refuted by the data."""
    unbounded_high: bool
    """Whether no higher value is refuted by the data."""

    @property
    def text(self) -> str:
        """The interval in words, such as ``[68.7, unbounded]``."""
        low = "unbounded" if self.unbounded_low else f"{self.low:.4g}"
        high = "unbounded" if self.unbounded_high else f"{self.high:.4g}"
        return f"[{low}, {high}]"


def trace(
    rss: Callable[[float], float],
    estimate: float,
    se: float,
    *,
    threshold: float,
    edges: tuple[float, float],
    rss_at_edges: tuple[float, float],
) -> ProfileInterval:
    """Walk from the estimate to where the profiled sum of squares passes the threshold, on either side."""
    from scipy.optimize import brentq

    ends: list[float] = []
    open_ends: list[bool] = []
    for sign, edge, rss_edge in zip((-1.0, 1.0), edges, rss_at_edges, strict=True):
        found, unbounded = edge, rss_edge <= threshold
        if not unbounded:
            inside, step = estimate, max(se, 1e-12 * abs(estimate), 1e-300)
            for _ in range(80):
                outside = inside + sign * step
                if sign * (outside - edge) >= 0:
                    outside = (inside + edge) / 2
                if rss(outside) > threshold:
                    low, high = sorted((inside, outside))
                    excess = {estimate: -1.0}
                    found = float(
                        brentq(
                            lambda v, excess=excess: excess.get(v, rss(v) - threshold),
                            low,
                            high,
                            xtol=1e-7 * abs(high - low) + 1e-300,
                            rtol=1e-10,
                        )
                    )
                    break
                inside, step = outside, step * 1.6
            else:
                unbounded = True
        ends.append(found)
        open_ends.append(bool(unbounded))
    return ProfileInterval(low=ends[0], high=ends[1], unbounded_low=open_ends[0], unbounded_high=open_ends[1])


def profiles(
    surface: Surface, theta: Float, se: Float, *, lt50_se: float, threshold: float, limits: Mapping[str, float]
) -> dict[str, ProfileInterval]:
    """Return the profile intervals of the sigmoid's parameters."""
    alpha, delta, gamma = (float(b) for b in theta)
    sign = 1.0 if alpha > 0 else -1.0
    upright = surface if alpha > 0 else Surface(surface.x, -surface.y)
    power, step, constant = limits["power"], limits["step"], limits["constant"]
    nothing = float(surface.y @ surface.y)
    a = trace(
        upright.given_alpha,
        abs(alpha),
        float(se[0]),
        threshold=threshold,
        edges=ANYWHERE,
        rss_at_edges=(nothing, power),
    )
    if sign < 0:
        a = ProfileInterval(low=-a.high, high=-a.low, unbounded_low=a.unbounded_high, unbounded_high=a.unbounded_low)
    lt50 = trace(
        surface.given_log_t50,
        gamma / delta,
        lt50_se,
        threshold=threshold,
        edges=ANYWHERE,
        rss_at_edges=(constant, power),
    )
    return {
        "alpha": a,
        "delta": trace(
            surface.given_delta,
            delta,
            float(se[1]),
            threshold=threshold,
            edges=(0.0, np.inf),
            rss_at_edges=(constant, step),
        ),
        "gamma": trace(
            surface.given_gamma,
            gamma,
            float(se[2]),
            threshold=threshold,
            edges=ANYWHERE,
            rss_at_edges=(constant, min(power, step)),
        ),
        "log_t50": lt50,
        "t50_h": ProfileInterval(
            low=float(np.exp(lt50.low)),
            high=float(np.exp(lt50.high)),
            unbounded_low=lt50.unbounded_low,
            unbounded_high=lt50.unbounded_high,
        ),
    }


def least_asymptote(x: Float, y: Float, scale: float, threshold: float) -> ProfileInterval:
    """Return the profile interval of an asymptote that may be infinite: the smallest one the data do not refute."""
    sign = 1.0 if scale > 0 else -1.0
    surface = Surface(x, sign * y)
    start = float(np.abs(y).max())
    while surface.given_alpha(start) > threshold and start < 1e12:
        start *= 2
    nothing = float(y @ y)
    inner = trace(
        surface.given_alpha, start, 0.05 * start, threshold=threshold, edges=ANYWHERE, rss_at_edges=(nothing, -np.inf)
    )
    if sign > 0:
        return inner
    return ProfileInterval(low=-np.inf, high=-inner.low, unbounded_low=True, unbounded_high=inner.unbounded_low)
