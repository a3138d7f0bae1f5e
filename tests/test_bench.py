"""What implicit attention may cost; the same measurements as `python tests/bench/implicit_attention.py` prints."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import implicit_attention as bench

pytestmark = pytest.mark.slow


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
def test_a_map_of_four_channels_takes_no_memory_for_the_other_8188():
    """All of them would be 8.6 GB; the layer's operands for 512 tokens, which every map needs, are about 0.1 GB."""
    assert bench.four_channels() < 0.3e9


def test_maps_of_all_mamba2_heads_take_at_most_three_times_their_products():
    ours, least = bench.all_heads()
    assert ours <= 3 * least
