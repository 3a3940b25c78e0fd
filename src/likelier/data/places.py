"""Many places such as ``pairs.jsonl:7`` in little memory: a file's name once, then numbers."""

import re
from array import array

_PLACE = re.compile(
    r"(?P<name>.*[:\[])(?P<row>\d+)(?P<end>\]?)(?:#\d+)??(?:#(?P<part>\d+))?", re.DOTALL
)


class Places:
    """An append-only list of sources."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], int] = {}
        self._name, self._row, self._part = array("I"), array("Q"), array("I")

    def __len__(self) -> int:
        return len(self._row)

    def append(self, source: str) -> None:
        """Keep one more place."""
        found = _PLACE.fullmatch(source)
        name = (found["name"], found["end"]) if found else (source, "")
        self._name.append(self._names.setdefault(name, len(self._names)))
        self._row.append(int(found["row"]) if found else 0)
        self._part.append(int(found["part"] or 0) if found else 0)

    def same_row(self, one: int, other: int) -> bool:
        """Whether two places are of one row."""
        return (self._name[one], self._row[one]) == (self._name[other], self._row[other])

    def __getitem__(self, index: int) -> str:
        start, end = list(self._names)[self._name[index]]
        if not start.endswith((":", "[")):
            return start
        part = f"#{self._part[index]}" if self._part[index] else ""
        return f"{start}{self._row[index]}{end}{part}"
