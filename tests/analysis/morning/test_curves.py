"""Curves of a long run: thinned and smoothed, and still true."""

from discord_lora.analysis.morning.curves import smoothed, thinned


def test_thinning_keeps_ends_and_spikes():
    points = [(n, 100.0 if n == 777 else -50.0 if n == 5_000 else n % 7) for n in range(10_000)]
    kept = thinned(points, 100)
    assert len(kept) <= 100
    assert {points[0], points[777], points[5_000], points[-1]} <= set(kept)
    assert kept == sorted(kept)
    assert thinned(points[:50], 100) == points[:50]


def test_smoothing_begins_at_the_first_value_and_calms():
    assert smoothed([(n, 2.5) for n in range(100)])[0] == (0, 2.5)
    noisy = [(n, float(n % 2)) for n in range(1000)]
    assert all(abs(y - 0.5) < 0.02 for _, y in smoothed(noisy)[300:])
    assert smoothed([]) == []
