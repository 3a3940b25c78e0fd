"""A process that works on batches of rows: a task first, then batches, until the pipe closes."""

import pickle
import sys
from typing import IO, Any


def send(pipe: IO[bytes], item: Any) -> None:
    """Write one item with its length before it."""
    content = pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(len(content).to_bytes(8, "little") + content)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read one item. Raises EOFError where the other side has gone."""
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    return pickle.loads(pipe.read(int.from_bytes(head, "little")))


def main() -> None:
    """Serve the process that started this one; what fails is handed back, not shown."""
    inbox, outbox = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing but answers goes through the pipe
    from likelier.data.part import work

    try:
        task = receive(inbox)
        while True:
            batch = receive(inbox)
            try:
                answer: Any = work(task, batch)
            except Exception as error:
                answer = error
            send(outbox, answer)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


if __name__ == "__main__":
    main()
