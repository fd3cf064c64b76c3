"""A training that is killed again and again, for real; benchmarks/kill_nine.py does it 50 times."""

import random

import pytest

from kill_nine import Torment


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_adapter(tmp_path):
    torment = Torment(tmp_path, 3, random.Random(5))
    torment.run_to_the_end("calm")
    while torment.done < 3:
        torment.kill_once()
    torment.run_to_the_end("killed")
    said = []
    assert torment.verdict(said.append) == 0
    assert "went on after steps 0, " in " ".join(said)
