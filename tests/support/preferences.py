"""Pairs that prefer something known: a word, a length, or nothing; for runs to be judged by."""

import random
from typing import Any

TOPICS = ("서울", "한강", "바다", "파이썬", "tea", "rain", "달", "봄")
WORDS = ("좋은", "오래된", "large", "easy", "유명한", "강력한", "the", "city", "한", "is")
LIKED, DISLIKED = "입니다", "글쎄"


def preferring(
    count: int,
    *,
    sure: float = 0.75,
    seed: int = 0,
    words: tuple[int, int] = (3, 6),
    longer: float = 0.5,
    first: int = 0,
) -> list[dict[str, Any]]:
    """Rows whose chosen answer has ``LIKED`` where the rejected has ``DISLIKED``, in a share
    ``sure`` of the pairs, and the reverse in the others. Answers have so many other ``words``; the
    chosen one has three more in a share ``longer`` of the pairs, three fewer in the rest. Prompts
    differ, and are numbered from ``first`` on.
    """
    draw, rows = random.Random(seed), []
    for number in range(first, first + count):
        sides = [LIKED, DISLIKED] if draw.random() < sure else [DISLIKED, LIKED]
        size = draw.randint(*words)
        sizes = [size + 3, size] if draw.random() < longer else [size, size + 3]
        chosen, rejected = (
            " ".join([*draw.choices(WORDS, k=size), side, *draw.choices(WORDS, k=2)])
            for side, size in zip(sides, sizes, strict=True)
        )
        prompt = f"{draw.choice(TOPICS)} {number}?"
        rows.append({"prompt": prompt, "chosen": " " + chosen, "rejected": " " + rejected})
    return rows
