"""Which script a text is written in: the nearest thing to its language that needs no model."""

import numpy as np

# First code point of each block that matters, and the script from there on.
_BLOCKS = (
    (0x0000, "other"), (0x0041, "Latin"), (0x005B, "other"), (0x0061, "Latin"), (0x007B, "other"),
    (0x00C0, "Latin"), (0x0250, "other"), (0x0370, "Greek"), (0x0400, "Cyrillic"),
    (0x0530, "other"), (0x0590, "Hebrew"), (0x0600, "Arabic"), (0x0780, "other"),
    (0x0900, "Devanagari"), (0x0980, "other"), (0x0E00, "Thai"), (0x0E80, "other"),
    (0x1100, "Hangul"), (0x1200, "other"), (0x1E00, "Latin"), (0x1F00, "Greek"), (0x2000, "other"),
    (0x3040, "Kana"), (0x3130, "Hangul"), (0x3190, "other"), (0x3400, "Han"), (0x4DC0, "other"),
    (0x4E00, "Han"), (0xA000, "other"), (0xAC00, "Hangul"), (0xD7B0, "other"), (0xF900, "Han"),
    (0xFB00, "other"), (0x20000, "Han"), (0x30000, "other"),
)  # fmt: skip
SCRIPTS = tuple(dict.fromkeys(name for _, name in _BLOCKS))
_STARTS = np.array([start for start, _ in _BLOCKS], dtype=np.uint32)
_SCRIPT = np.array([SCRIPTS.index(name) for _, name in _BLOCKS])
FEWEST = 8  # letters; fewer say nothing
LONGEST = 4000  # characters that are looked at


def code_points(text: str) -> np.ndarray:
    """The characters of a text as numbers, (n,) uint32; half surrogates are allowed."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def script_of(text: str) -> str | None:
    """The script of most letters (Kana wins over Han, as in Japanese), or None of too few."""
    places = np.searchsorted(_STARTS, code_points(text[:LONGEST]), side="right") - 1
    counts = np.bincount(_SCRIPT[places], minlength=len(SCRIPTS))
    counts[SCRIPTS.index("other")] = 0
    if counts.sum() < FEWEST:
        return None
    kana, han = SCRIPTS.index("Kana"), SCRIPTS.index("Han")
    if counts[kana] * 5 > counts[han]:
        counts[kana] += counts[han]
    return SCRIPTS[int(counts.argmax())]
