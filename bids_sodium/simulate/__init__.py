"""Truth: digital heads, acquisitions and cohorts."""
