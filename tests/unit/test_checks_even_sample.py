"""An even sample, whatever the number of rows and however they arrive."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from likelier.checks.across import EvenSample


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 25))
def test_the_sample_is_even_and_as_large_as_it_may_be(sizes: list[int], most: int) -> None:
    sample = EvenSample(most)
    total = 0
    for size in sizes:
        sample.add(np.arange(total, total + size) * 10)
        total += size
    numbers = sample.numbers
    assert numbers.tolist() == list(range(0, total, sample.step))
    if sizes:
        assert sample.rows.tolist() == (numbers * 10).tolist()
    assert len(sample) <= most
    assert sample.step == 1 or len(range(0, total, sample.step // 2)) > most
