"""JSON as rows: one object a line, or one array of objects, each with its line."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from likelier.data.records import Finding, Row

LONGEST_LINE = 32 * 2**20  # bytes; a longer line is a mistake, and is not kept in memory
DEEPEST = 100  # levels of nesting; real rows have a handful
ONE_OBJECT = "write one JSON object on each line"
CHUNK = 2**20


def read_lines(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """JSON Lines; blank lines are skipped but counted."""
    for number, line in enumerate(_lines(file), start=1):
        source = f"{name}:{number}"
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > LONGEST_LINE:
            message = f"a line longer than {LONGEST_LINE // 2**20} MiB"
            yield Finding("json", "error", source, None, message, ONE_OBJECT)
        elif line.strip():
            yield parse_line(line, source)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines ended by ``\\n``; of a line that is too long only the beginning."""
    while line := file.readline(LONGEST_LINE + 1):
        rest = line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
        yield line


def parse_line(line: bytes, source: str) -> Row | Finding:
    """One line of JSON Lines as a row, or what is wrong with it."""
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        message = f"byte {error.start + 1} of the line is not UTF-8"
        return Finding("utf8", "error", source, None, message, guess_encoding(line))
    if "\0" in text:
        message, hint = "the line holds NUL bytes", "save the file as UTF-8, not UTF-16"
        return Finding("utf8", "error", source, None, message, hint)
    try:
        record = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return _refused(error, text, source)
    return _row(record, source)


def _row(record: Any, source: str) -> Row | Finding:
    try:
        _inspect(record)
    except (ValueError, RecursionError) as error:
        return _refused(error, "", source)
    if not isinstance(record, dict):
        kind = "an array" if isinstance(record, list) else "a bare value"
        message = f"the line is {kind}, not an object"
        return Finding("json", "error", source, None, message, ONE_OBJECT)
    return Row(source, record)


def _refused(error: Exception, text: str, source: str) -> Finding:
    if isinstance(error, json.JSONDecodeError):
        message, hint = _explain(error, text)
    elif isinstance(error, RecursionError):
        message, hint = "nested too deeply", ONE_OBJECT
    else:  # ours, or a number of too many digits
        message, hint = str(error)[:120], "fix or delete this line"
    return Finding("json", "error", source, None, message, hint)


def _explain(error: json.JSONDecodeError, text: str) -> tuple[str, str]:
    if "\r" in text:
        return "the lines end in CR alone", "save the file with LF line ends"
    if error.msg == "Extra data":
        return f"something follows the object, at column {error.colno}", ONE_OBJECT
    return f"broken JSON at column {error.colno}: {error.msg}", ONE_OBJECT


def guess_encoding(line: bytes) -> str:
    """What to do about text that is not UTF-8."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "this looks like UTF-16; save the file as UTF-8"
    try:
        line.decode("cp949")
    except UnicodeDecodeError:
        return "save the file as UTF-8"
    return "this looks like CP949 (Korean); convert it: iconv -f cp949 -t utf-8 FILE"


def read_array(file: BinaryIO, name: str) -> Iterator[Row | Finding]:
    """The objects of one JSON array, a few in memory at a time.

    Behind broken JSON nothing can be told apart any more: one finding, and the end.
    """
    text = _Text(file)
    try:
        yield from _elements(text, name)
    except UnicodeDecodeError as error:
        message = "not UTF-8; the rest of the file is not read"
        hint = guess_encoding(error.object[error.start : error.start + 2])
        yield Finding("utf8", "error", f"{name}:{text.line}", None, message, hint)


def _elements(text: "_Text", name: str) -> Iterator[Row | Finding]:
    text.skip_space()
    text.take("[")
    text.skip_space()
    while not text.take("]"):
        source = f"{name}:{text.line}"
        try:
            record = text.value()
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            found = _refused(error, "", source)
            if isinstance(error, json.JSONDecodeError):
                message = f"broken JSON: {error.msg}; the rest of the file is not read"
                hint = "fix this element of the array"
                found = Finding("json", "error", source, None, message, hint)
            yield found
            return
        yield _row(record, source)
        text.skip_space()
        if not text.take(",") and text.peek() != "]":
            message = "a comma or ] is missing; the rest of the file is not read"
            yield Finding("json", "error", source, None, message, "fix the array here")
            return
        text.skip_space()
    text.skip_space()
    if text.peek():
        message, hint = "something follows the array", "keep one array in the file"
        yield Finding("json", "error", f"{name}:{text.line}", None, message, hint)


class _Text:
    """A file as text, decoded and parsed from the front; ``line`` is where the front is."""

    def __init__(self, file: BinaryIO):
        self.file, self.buffer, self.at, self.line, self.ended = file, "", 0, 1, False
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def value(self) -> Any:
        """The next JSON value. Raises ValueError or RecursionError."""
        need = CHUNK
        while True:
            try:
                record, end = _DECODER.raw_decode(self.buffer, self.at)
                if end == len(self.buffer) and not self.ended and not self.buffer.endswith("}"):
                    self._more(CHUNK)  # a number may go on
                    continue
                self._go_to(end)
                return record
            except json.JSONDecodeError:
                if self.ended or len(self.buffer) - self.at > LONGEST_LINE:
                    raise
                self._more(need)
                need *= 2  # so that a long element is not parsed again and again

    def skip_space(self) -> None:
        while True:
            end = self.at
            while end < len(self.buffer) and self.buffer[end] in " \t\r\n":
                end += 1
            found = end < len(self.buffer)
            self._go_to(end)
            if found or self.ended:
                return
            self._more(CHUNK)

    def peek(self) -> str:
        return self.buffer[self.at : self.at + 1]

    def take(self, mark: str) -> bool:
        found = self.peek() == mark
        self.at += found
        return found

    def _go_to(self, end: int) -> None:
        self.line += self.buffer.count("\n", self.at, end)
        self.at = end

    def _more(self, size: int) -> None:
        raw = self.file.read(size)
        self.ended = not raw
        self.buffer = self.buffer[self.at :] + self.decoder.decode(raw, final=not raw)
        self.at = 0


def odd_character(text: str) -> str | None:
    """The name of a character that no tokenizer or template can take, if ``text`` holds one."""
    if "\0" in text:
        return "a NUL character"
    if "\ufdd0" in text:
        return "the noncharacter U+FDD0"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a surrogate pair, U+{ord(text[error.start]):04X}"
    return None


def _inspect(record: Any) -> None:
    """Refuse what is JSON but would only fail later: odd characters and deep nesting."""
    level = [record]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and (odd := odd_character(value)):
                raise ValueError(f"the text holds {odd}")
        if not inner:
            return
        level = inner
    raise RecursionError


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(items)
    if len(record) < len(items):
        keys = [key for key, _ in items]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'the key "{twice[:40]}" stands twice')
    return record


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_no_constant
)
