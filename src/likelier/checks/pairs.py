"""What one pair shows by itself: as it was read, as tokens, and through the chat template."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, takewhile

import numpy as np

from likelier.base.findings import Finding, Unfit
from likelier.chat.boundary import scored_block
from likelier.chat.messages import ROLES, Chat, Message
from likelier.chat.render import SAID_KEYS, left_out, render_chat, texts_of
from likelier.chat.thinking import KEYS
from likelier.chat.tokenizer import BREAK, Encoder
from likelier.checks.rules import finding
from likelier.data.records import Pair, TokenPair, text_of
from likelier.data.split import code_points

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
MIN_LETTERS = 8  # with fewer the script is not known
MAX_SCRIPT_CHARACTERS = 4000  # of a text, from which its script is found
MIN_REPEATED_CHARACTERS = 20  # a shorter prompt may stand before an answer by chance
FOREIGN_TOKENS_PER_CHARACTER = 1.5  # Hangul that a byte tokenizer does not know takes 3
MIN_FOREIGN_TOKENS = 50  # a shorter text is never called foreign
LOOKED_FOR = (*SAID_KEYS, *KEYS)  # keys of messages, in the rendering of every row
MIN_ADDED_LETTERS = 15  # a header has about as many
DECOMPOSED = re.compile("[\u1100-\u1112][\u1161-\u1175]")
_WORD = re.compile(r"[^\W\d_]+")


def assistant_text(side: str | Chat) -> str:
    """What the assistant says in an answer, as one text."""
    if isinstance(side, str):
        return side
    turns = [turn.get("content") for turn in side if turn.get("role") == "assistant"]
    return "\n".join(turn for turn in turns if isinstance(turn, str))


def script_of(text: str) -> str | None:
    """The script of most letters, or None where there are too few. Some Kana makes Han Kana."""
    places = np.searchsorted(_STARTS, code_points(text[:MAX_SCRIPT_CHARACTERS]), side="right") - 1
    counts = np.bincount(_SCRIPT[places], minlength=len(SCRIPTS))
    counts[SCRIPTS.index("other")] = 0
    if counts.sum() < MIN_LETTERS:
        return None
    kana, han = SCRIPTS.index("Kana"), SCRIPTS.index("Han")
    if counts[kana] * 5 > counts[han]:
        counts[kana] += counts[han]
    return SCRIPTS[int(counts.argmax())]


def findings_as_read(pair: Pair) -> Iterator[Finding]:
    """Warnings about a pair that can be used."""
    for name, side in pair.sides.items():
        yield from _of_side(pair, name, side)
    if pair.label is not None:
        return
    if repeats_prompt(pair):
        message = "both answers begin with the whole prompt, which would be read twice"
        yield finding("doubled", pair.source, message)
    if pair.scores and pair.scores[0] < pair.scores[1]:
        message = f"rejected has the higher score: {pair.scores[1]:g}, chosen {pair.scores[0]:g}"
        yield finding("inverted", pair.source, message)
    chosen, rejected = (script_of(assistant_text(side)) for side in (pair.chosen, pair.rejected))
    if chosen and rejected and chosen != rejected:
        message = f"chosen is written in {chosen} letters, rejected in {rejected}"
        yield finding("language", pair.source, message)


def last_words(prompt: str | Chat) -> str:
    """A plain prompt, or the last turn of a chat, without the spaces around it."""
    return (prompt if isinstance(prompt, str) else text_of(prompt[-1:])).strip()


def repeats_prompt(pair: Pair) -> bool:
    """Whether both answers begin with the whole prompt, so that it would be read twice."""
    prompt = last_words(pair.prompt)
    if len(prompt) < MIN_REPEATED_CHARACTERS:
        return False
    return all(
        assistant_text(side).lstrip().startswith(prompt) for side in (pair.chosen, pair.rejected)
    )


def _of_side(pair: Pair, name: str, side: str | Chat) -> Iterator[Finding]:
    text = text_of(side)
    if DECOMPOSED.search(text):
        message = "the text holds Hangul in decomposed form (NFD)"
        yield finding("decomposed", pair.source, message, name)
    if "\ufffd" in text:
        message = "the text was damaged before it came here: it holds U+FFFD"
        yield finding("damaged", pair.source, message, name)
    if not isinstance(pair.prompt, str) and not isinstance(side, str):
        begun = pair.prompt[-1]["role"] == "assistant"  # a turn that the answer continues
        before = () if begun or name == "prompt" else pair.prompt[-1:]
        if odd := _odd_turns((*before, *side)):
            yield finding("turns", pair.source, odd, name)


def _odd_turns(chat: Chat) -> str | None:
    for before, after in pairwise(chat):
        if before["role"] == after["role"] and after["role"] in ("user", "assistant"):
            return f"two {after['role']} turns in a row"
        if after["role"] == "system":
            return "a system turn that is not the first"
    return None


def findings_as_tokens(
    encoder: Encoder, pair: Pair, texts: Sequence[str], tokens: TokenPair
) -> Iterator[Finding]:
    """Warnings about a pair as tokens; ``texts`` are its prompt and answers as encoded."""
    prompt, *answers = texts
    if any(BREAK in text for text in texts):
        message = "control tokens stand in the text; they are encoded as text"
        yield finding("control", pair.source, message)
    ids = (*tokens.chosen.tokens, *tokens.rejected.tokens)
    if encoder.unknown is not None and (count := ids.count(encoder.unknown)):
        message = f"the tokenizer turns parts of the text into {count} unknown tokens"
        yield finding("unknown", pair.source, message)
    if message := _wrong_bos(encoder, tokens.prompt):
        yield finding("bos", pair.source, message, "prompt")
    letters = sum(map(len, answers))
    if len(ids) >= max(MIN_FOREIGN_TOKENS, FOREIGN_TOKENS_PER_CHARACTER * letters):
        message = f"the answers take {len(ids) / max(letters, 1):.1f} tokens a character"
        yield finding("foreign", pair.source, message)
    if isinstance(pair.prompt, str):
        return
    rendered, whole = (text.replace(BREAK, "") for text in (prompt, "".join(texts)))
    for name, side in pair.sides.items():
        if isinstance(side, str):
            continue
        for number, turn in enumerate(side if name == "prompt" else side[:-1]):
            lost = left_out(turn, rendered if name == "prompt" else whole, LOOKED_FOR)
            if lost is not None:
                message = f"the template leaves out {lost[0]} of the {turn['role']}'s turn"
                yield finding("drops", pair.source, message, f"{name}[{number}]")


def findings_as_rendered(encoder: Encoder, pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Warnings about keys of messages that the chat template does not read, once a pair each.

    What is found in the first of the pairs that has a key is remembered for the others: once for
    each role, in the last turn and before it.
    """
    read: dict[tuple[str, str, bool], bool] = {}
    for pair in pairs:
        unread: dict[tuple[str, str], str] = {}  # by key and role: where it stands
        for name, side in [*pair.sides.items()][1:]:
            if isinstance(pair.prompt, str) or isinstance(side, str):
                continue
            chat = (*pair.prompt, *side)
            for number, message in enumerate(chat):
                for key in _other_keys(message):
                    place = (key, message["role"], number == len(chat) - 1)
                    if place not in read:
                        read[place] = _reads(encoder, pair, chat, number, key)
                    if not read[place]:
                        inside = number - len(pair.prompt)
                        at = f"prompt[{number}]" if inside < 0 else f"{name}[{inside}]"
                        unread.setdefault(place[:2], f"{at}.{key}")
        for (key, role), field in unread.items():
            said = f'the template does not read "{key}" of the {role}\'s turn'
            yield finding("lost", pair.source, said, field)


def _other_keys(message: Message) -> Iterator[str]:
    """The keys that hold something and that are not looked for in the rendering of every row."""
    for key, value in message.items():
        if key in ("weight", "train"):  # these likelier reads, where a turn may be learned
            if message["role"] != "assistant" and value:
                yield key
        elif key not in ("role", *LOOKED_FOR) and value not in ("", [], {}, False):
            yield key


def _reads(encoder: Encoder, pair: Pair, chat: Chat, number: int, key: str) -> bool:
    """Whether the rendered chat changes where a key of one of its messages is taken away."""
    bare = {name: value for name, value in chat[number].items() if name != key}
    without = [*chat[:number], bare, *chat[number + 1 :]]
    try:
        whole = render_chat(encoder, chat, False, pair.tools)
        return whole != render_chat(encoder, without, False, pair.tools)
    except Unfit:  # the template needs the key
        return True


def _wrong_bos(encoder: Encoder, prompt: Sequence[int]) -> str:
    bos = encoder.tokenizer.bos_token_id
    if bos is None or bos in encoder.end_ids.values():
        return ""
    # Some templates begin every turn with it: only a beginning that is repeated is wrong.
    if (count := len(list(takewhile(bos.__eq__, prompt)))) > 1:
        return f"the prompt begins with {count} beginning-of-sequence tokens (BOS)"
    if bos not in prompt and bos in encoder.leading:
        return "the template writes no BOS token, which the tokenizer puts before plain texts"
    return ""


def template_finding(encoder: Encoder, pair: Pair) -> Finding | None:
    """A finding where the template of this pair's file is not used, or adds words of its own."""
    if isinstance(pair.prompt, str):
        message = "the rows are plain texts, so the model's chat template is not used for them"
        return finding("plain", pair.source, message) if encoder.reads else None
    if pair.tools:
        return None
    try:
        rendered = render_chat(encoder, pair.prompt, True)
    except Unfit:
        return None
    added = encoder.control_text.sub("\n", rendered)
    for text in (text for turn in pair.prompt for text in texts_of(turn)):
        added = added.replace(text.strip(), "\n", 1)
    words = [word for word in _WORD.findall(added) if word.lower() not in (*ROLES, "think")]
    if sum(map(len, words)) <= MIN_ADDED_LETTERS:
        return None
    return finding("adds", pair.source, f"the template adds {' '.join(added.split())[:80]!r}")


def thinking_finding(encoder: Encoder, pair: Pair) -> Finding | None:
    """A finding where an answer that does not reason begins with an empty thinking block."""
    if isinstance(pair.prompt, str) or isinstance(pair.chosen, str):
        return None
    block, switch = scored_block(encoder, pair.prompt, pair.chosen, pair.tools)
    found = finding("block", pair.source, f"an answer begins with {block!r}, which is scored")
    return replace(found, hint=switch or found.hint) if block else None
