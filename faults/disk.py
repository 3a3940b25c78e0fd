"""What a disk may hold after the power was lost, from a recording of the changes made to it.

The model is the weakest that POSIX allows:

- what is written to a file, and its size, is on disk once that file was synced (fsync, fdatasync);
- that a name is there, gone or given to another file is on disk once the *folder* that holds the
  name was synced: to sync a new file does not keep its name;
- changes that were not synced reach the disk in any order, each alone or not at all. Where a
  rename is kept and the write before it is not, the new name stands for an empty file; where a
  write is lost and a later one is not, zeros stand in its place;
- a rename within one folder is one change; across folders, it is two;
- a write that was not synced may be torn: half of its bytes are there, or its size with zeros;
- `syncfs` and `sync` keep everything, `sync_file_range` and closing a file nothing.

File systems of today promise more (ext4 writes data before the rename that replaces a file). Modes
and times are left out.
"""

import hashlib
import re
import struct
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = 0  # the node of the recorded folder itself
NEVER = 1 << 60
_HEAD = struct.Struct("<cQqIIQ")  # as in record.c


class IncompleteRecording(Exception):
    """Something was changed that the recording does not hold."""


class Event(NamedTuple):
    """A line of the log that record.c writes."""

    kind: str
    inode: int = 0
    number: int = 0
    first: str = ""
    second: str = ""
    data: bytes = b""


def read_events(log: Path) -> list[Event]:
    """The log of a recording."""
    data, at, events = log.read_bytes(), 0, []
    while at < len(data):
        kind, inode, number, *sizes = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        parts = []
        for size in sizes:
            parts.append(data[at : at + size])
            at += size
        first, second, content = parts
        events.append(Event(kind.decode(), inode, number, first.decode(), second.decode(), content))
    return events


def events_of(folder: Path) -> list[Event]:
    """A folder as it stands, as changes that were all synced: where a recording begins."""
    events = []
    for path in sorted(folder.rglob("*")):
        inode = path.lstat().st_ino
        if path.is_dir():
            events.append(Event("M", inode, first=str(path)))
        else:
            events.append(Event("C", inode, first=str(path)))
            events.append(Event("W", inode, data=path.read_bytes()))
    return [*events, Event("Y")]


@dataclass
class Change:
    """One change to a node: names of a folder, or bytes of a file, and when it was on disk."""

    node: int
    what: str
    made: int  # the number of the event
    durable: int = NEVER
    names: dict[str, int | None] = field(default_factory=dict)
    offset: int = 0
    data: bytes = b""
    size: int | None = None  # the file's new size

    @property
    def is_write(self) -> bool:
        return bool(self.data)


Kept = tuple[int, ...]  # numbers of changes, in order
Tear = tuple[int, str]  # the change that is torn, and how: TEARS
TEARS = ("half", "zeros")
Content = tuple[int, Kept, Tear | None]  # a file's node, what was written to it, how it is torn
Tree = dict[str, Content | None]  # by path; None is a folder


class State(NamedTuple):
    """What may be on disk; ``instant`` is the last event before the power was lost.

    ``change`` is the one that is lost, kept or torn, where it is one.
    """

    family: str
    what: str
    instant: int
    kept: Kept
    change: int | None = None
    torn: Tear | None = None


class Disk:
    """A recorded folder: its changes, and every state that a loss of power may leave.

    Raises IncompleteRecording for events that cannot be replayed.
    """

    def __init__(self, folder: Path, events: Sequence[Event]):
        self.folder, self.events = folder, events
        self.changes: list[Change] = []
        self.notes: list[tuple[int, str]] = []
        self._synced: dict[int, str] = {}  # by the number of the event
        self._names: list[dict[str, int] | None] = [{}]  # as they are now; None: a file
        self._inodes = {folder.stat().st_ino: ROOT}
        self._contents: dict[Content, bytes] = {}
        self._pending: dict[int, list[Change]] = defaultdict(list)
        for self._now, event in enumerate(events):
            self._replay(event)

    # ---- replaying ---------------------------------------------------------------------------

    def _replay(self, event: Event) -> None:
        match event.kind:
            case "C" | "M":
                parent, name = self._parent(event.first)
                self._names.append({} if event.kind == "M" else None)
                self._inodes[event.inode] = len(self._names) - 1
                self._name("make", event.first, {name: len(self._names) - 1}, parent)
            case "L":
                parent, name = self._parent(event.first)
                self._name("link", event.first, {name: self._node(event.inode)}, parent)
            case "U":
                parent, name = self._parent(event.first)
                self._name("delete", event.first, {name: None}, parent)
            case "R":
                self._rename(event.first, event.second)
            case "W":
                self._write(event, "write", offset=event.number, data=event.data)
            case "T":
                self._write(event, "truncate", size=event.number)
            case "F":
                node = self._node(event.inode)
                self._synced[self._now] = self.path_of(node)
                self._sync([node])
            case "Y":
                self._synced[self._now] = "everything"
                self._sync(list(self._pending))
            case "N":
                self.notes.append((self._now, event.first))
            case _:
                raise IncompleteRecording(f"cannot replay: {event.first or event.kind}")

    def _rename(self, old: str, new: str) -> None:
        (source, name), (target, renamed) = self._parent(old), self._parent(new)
        names = self._names[source]
        assert names is not None
        moved: dict[str, int | None] = {renamed: names[name]}
        if source == target:
            self._name("rename", new, {name: None} | moved, source)
        else:
            self._name("rename", new, moved, target)
            self._name("rename", old, {name: None}, source)

    def _parent(self, path: str) -> tuple[int, str]:
        """The folder that holds the name of a path."""
        *folders, name = Path(path).relative_to(self.folder).parts
        node = ROOT
        for part in folders:
            names = self._names[node]
            if names is None or part not in names:
                raise IncompleteRecording(f"{part} was made unseen: {self._short(path)}")
            node = names[part]
        return node, name

    def _node(self, inode: int) -> int:
        if inode not in self._inodes:
            raise IncompleteRecording("a file was made unseen")
        return self._inodes[inode]

    def _name(self, what: str, path: str, names: dict[str, int | None], parent: int) -> None:
        now = self._names[parent]
        assert now is not None
        for name, node in names.items():
            if node is None:
                if now.pop(name, None) is None:
                    raise IncompleteRecording(f"{name} was made unseen: {self._short(path)}")
            else:
                now[name] = node
        self._add(Change(parent, f"{what} {self._short(path)}", self._now, names=names))

    def _write(self, event: Event, what: str, **how: object) -> None:
        node = self._node(event.inode)
        self._add(Change(node, f"{what} {self.path_of(node)}", self._now, **how))  # type: ignore[arg-type]

    def _add(self, change: Change) -> None:
        self.changes.append(change)
        self._pending[change.node].append(change)

    def _sync(self, nodes: Sequence[int]) -> None:
        for node in nodes:
            for change in self._pending.pop(node, ()):
                change.durable = self._now

    def path_of(self, node: int) -> str:
        """Where a node stands now."""

        def search(at: int, path: str) -> Iterator[str]:
            if at == node:
                yield path
            for name, child in (self._names[at] or {}).items():
                yield from search(child, f"{path}/{name}")

        return self._short(next(search(ROOT, str(self.folder)), f"{self.folder}/a deleted file"))

    def _short(self, path: str) -> str:
        """A path below the folder, without the numbers of processes."""
        below = Path(path).relative_to(self.folder)
        return re.sub(r"\.\d+(?=\.)", "", str(below)) if below.parts else "the disk"

    # ---- states ------------------------------------------------------------------------------

    @property
    def instants(self) -> list[int]:
        """Before and after each sync, and the end: the last event before the power was lost."""
        before = {number - 1 for number in self._synced}
        return sorted({-1, len(self.events) - 1} | before | self._synced.keys())

    def states(self, begin: int = 0) -> Iterator[State]:
        """What may be on disk at each instant from an event on; the same tree may come again."""
        made = [change.made for change in self.changes]
        for instant in self.instants:
            if instant < begin:
                continue
            issued = range(bisect_right(made, instant))
            loose = [n for n in issued if self.changes[n].durable > instant]
            yield from self._states(instant, tuple(issued), loose)

    def _states(self, instant: int, issued: Kept, loose: list[int]) -> Iterator[State]:
        where = self._where(instant)
        safe = tuple(sorted(set(issued) - set(loose)))
        yield State("all or nothing", f"{where}, nothing that was not synced kept", instant, safe)
        yield State("all or nothing", f"{where}, everything kept", instant, issued)
        for number in loose:
            change = self.changes[number].what
            lost = tuple(n for n in issued if n != number)
            yield State("one change", f"{where}, alone lost: {change}", instant, lost, number)
            kept = tuple(sorted((*safe, number)))
            yield State("one change", f"{where}, alone kept: {change}", instant, kept, number)
        writes = [number for number in loose if self.changes[number].is_write]
        for how in TEARS if writes else ():
            torn = self.changes[writes[-1]].what
            what = f"{where}, last write torn ({how}): {torn}"
            yield State("torn write", what, instant, issued, writes[-1], (writes[-1], how))

    def _where(self, instant: int) -> str:
        if instant in self._synced:
            return f"after the sync of {self._synced[instant]}"
        if instant + 1 in self._synced:
            return f"before the sync of {self._synced[instant + 1]}"
        return "before anything" if instant < 0 else "at the end"

    def tree(self, state: State) -> Tree:
        """The files of a state by path, each with the changes that made it; None is a folder."""
        names: dict[int, dict[str, int]] = defaultdict(dict)
        writes: dict[int, list[int]] = defaultdict(list)
        for number in state.kept:
            change = self.changes[number]
            for name, node in change.names.items():
                if node is None:
                    names[change.node].pop(name, None)
                else:
                    names[change.node][name] = node
            if not change.names:
                writes[change.node].append(number)

        def walk(folder: int, path: str) -> Iterator[tuple[str, Content | None]]:
            for name, node in names[folder].items():
                if self._names[node] is None:
                    torn = state.torn if state.torn and state.torn[0] in writes[node] else None
                    yield path + name, (node, tuple(writes[node]), torn)
                else:
                    yield path + name, None
                    yield from walk(node, f"{path}{name}/")

        return dict(sorted(walk(ROOT, "")))

    def content(self, file: Content) -> bytes:
        """The bytes of a file of a tree."""
        if file not in self._contents:
            _, writes, torn = file
            data = bytearray()
            for number in writes:
                change = self.changes[number]
                if change.size is not None:
                    del data[change.size :]
                    data.extend(bytes(change.size - len(data)))
                    continue
                new = change.data
                if torn and torn[0] == number:
                    new = bytes(len(new)) if torn[1] == "zeros" else new[: len(new) // 2]
                data.extend(bytes(max(0, change.offset - len(data))))
                data[change.offset : change.offset + len(new)] = new
            self._contents[file] = bytes(data)
        return self._contents[file]

    def digest(self, tree: Tree) -> bytes:
        """A hash of all names and bytes."""
        digest = hashlib.blake2b(digest_size=16)
        for path, file in tree.items():
            content = b"folder" if file is None else hashlib.blake2b(self.content(file)).digest()
            digest.update(path.encode() + b"\0" + content)
        return digest.digest()

    def lay_out(self, tree: Tree, folder: Path) -> None:
        """Write a tree into a folder that is not there."""
        folder.mkdir()
        for path, file in tree.items():
            if file is None:
                (folder / path).mkdir()
            else:
                (folder / path).write_bytes(self.content(file))

    def must_be_whole(self) -> None:
        """Compare what was replayed with the folder itself, byte for byte.

        Raises IncompleteRecording where they differ: something wrote past the recording.
        """
        end = State("", "", NEVER, tuple(range(len(self.changes))))
        ours = {
            path: None if file is None else self.content(file)
            for path, file in self.tree(end).items()
        }
        theirs = {
            str(path.relative_to(self.folder)): None if path.is_dir() else path.read_bytes()
            for path in self.folder.rglob("*")
        }
        wrong = sorted(p for p in ours.keys() | theirs.keys() if ours.get(p, 0) != theirs.get(p, 0))
        if wrong:
            raise IncompleteRecording(f"{len(wrong)} files were changed unseen: {wrong[0]}")
