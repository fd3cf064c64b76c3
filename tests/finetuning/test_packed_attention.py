"""A packed row is cut into batches of like lengths, and attention goes over each of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from discord_lora.finetuning import packed_attention as packed
from discord_lora.finetuning.packed_attention import Segments


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_padded_batches_cover_the_row_once_and_waste_little(lengths):
    lengths = sorted(lengths, reverse=True)
    batches = Segments.of(lengths, torch.device("cpu")).batches
    assert [batch.start for batch in batches] == [0, *(batch.end for batch in batches[:-1])]
    assert batches[-1].end == sum(lengths)
    for batch in batches:
        assert batch.end - batch.start >= 0.75 * batch.count * batch.length


@pytest.mark.parametrize("fast_kernel", [True, False])
def test_heads_are_repeated_where_no_fast_kernel_takes_groups(monkeypatch, fast_kernel):
    asked = []
    query, key = torch.randn(4, 4, 8), torch.randn(4, 2, 8)
    batch = Segments.of((4,), torch.device("cpu")).batches[0]
    expected = packed._attend((query, key, key), batch, None, 0.0, 2)

    def attend(query, key, *args, **options):
        asked.append((key.shape[1], options["enable_gqa"]))
        return sdpa(query, key, *args, **options)

    sdpa = functional.scaled_dot_product_attention
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(packed, "_groups_are_fast", lambda *_: fast_kernel)
    found = packed._attend((query, key, key), batch, None, 0.0, 2)
    assert asked == [(2, True) if fast_kernel else (4, False)]
    assert torch.allclose(found, expected, atol=1e-6)


def test_what_goes_to_the_card_is_pinned_first(monkeypatch):
    """Or the copy would be waited for."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda it: calls.append("pinned") or it)
    monkeypatch.setattr(torch.Tensor, "to", lambda it, *_, **__: calls.append("copied") or it)
    Segments.of((9, 8), torch.device("cuda"))
    assert calls == ["pinned", "copied"]
