"""An even sample of rows whose number nobody knows beforehand."""

import numpy as np


class EvenSample:
    """Every so many rows, at most ``most``: when there are more, every second goes.

    ``step`` is how far apart the rows of the sample stand.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.step = 1
        self._seen = 0
        self._numbers: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._numbers))

    def add(self, rows: np.ndarray) -> None:
        """Take the next rows, (n, …)."""
        numbers = np.arange(self._seen, self._seen + len(rows))
        self._seen += len(rows)
        kept = numbers % self.step == 0
        self._numbers.append(numbers[kept])
        self._rows.append(rows[kept])
        while len(self) > self.most:
            self.step *= 2
            for place, before in enumerate(self._numbers):  # one by one: they are large together
                kept = before % self.step == 0
                self._numbers[place] = before[kept]
                self._rows[place] = self._rows[place][kept]

    @property
    def numbers(self) -> np.ndarray:
        """(n,) int64: which rows the sample holds, counted from 0 over all that were added."""
        return np.concatenate([np.zeros(0, np.int64), *self._numbers])

    @property
    def rows(self) -> np.ndarray:
        """(n, …): the rows of the sample; raises ValueError where nothing was ever added."""
        return np.concatenate(self._rows)
