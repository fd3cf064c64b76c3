"""When people write: by hour, weekday and month of one time zone."""

import numpy as np
import polars as pl

from discord_lora.analysis.report.data_report import Activity, Month
from discord_lora.console import UserError


def check_timezone(name: str) -> None:
    """Raise UserError unless `name` is a zone of the IANA database (polars brings its own)."""
    try:
        pl.Series([0]).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(name)
    except pl.exceptions.PolarsError:
        raise UserError(
            f"--timezone: {name} is no time zone; write one such as Europe/Berlin, "
            "America/New_York or UTC."
        ) from None


def measure_activity(frame: pl.DataFrame, timezone: str) -> Activity | None:
    """Messages by the local hour, weekday and month; None when no message has a time."""
    times = frame.filter("has_time")["timestamp"]
    if not len(times):
        return None
    local = times.dt.convert_time_zone(timezone)
    # Months since year 0, so that a quiet month in between is seen as one.
    months = (local.dt.year().cast(pl.Int64) * 12 + local.dt.month().cast(pl.Int64) - 1).to_numpy()
    first = int(months.min())
    by_month = np.bincount(months - first)
    return Activity(
        timezone=timezone,
        hours=np.bincount(local.dt.hour().to_numpy(), minlength=24).tolist(),
        weekdays=np.bincount(local.dt.weekday().to_numpy() - 1, minlength=7).tolist(),
        months=[
            Month(f"{(first + n) // 12:04}-{(first + n) % 12 + 1:02}", int(count))
            for n, count in enumerate(by_month)
        ],
    )
