"""The walk-through notebook: read it, run its cells, store what they print.

``python -m tests.support.notebook`` runs it on the demo's base model and stores the outputs, which
is to be done whenever its text or that model changes.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

WALKTHROUGH = Path(__file__).parents[2] / "examples" / "walkthrough.ipynb"
PATIENCE = 1200  # seconds a cell, on a machine that is busy with other work


def read(path: Path = WALKTHROUGH) -> NotebookNode:
    """The notebook as it is stored."""
    return nbformat.read(path, as_version=4)


def run(notebook: NotebookNode, folder: Path, settings: Mapping[str, str]) -> None:
    """Run every cell with ``folder`` as its place, offline; outputs are put into the notebook.

    ``settings`` join the kernel's environment. A cell that fails raises CellExecutionError.
    """
    NotebookClient(
        notebook,
        timeout=PATIENCE,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute(
        env=os.environ
        | {
            "HF_HUB_OFFLINE": "1",
            "IPYTHONDIR": str(folder / "ipython"),
            "TMPDIR": str(folder),
        }
        | dict(settings)
    )


def printed(notebook: NotebookNode) -> list[str]:
    """What each code cell wrote on standard output."""
    return [
        "".join(o.text for o in cell.outputs if o.get("name") == "stdout")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def store(path: Path = WALKTHROUGH) -> None:
    """Run the notebook and write it back with its outputs, without what names the machine.

    Progress goes to standard error and is left out: it names folders.
    """
    notebook = read(path)
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, Path(folder), {})
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    language = NotebookNode(name="python")
    notebook.metadata = NotebookNode(
        kernelspec=notebook.metadata.kernelspec, language_info=language
    )
    nbformat.write(notebook, path)


if __name__ == "__main__":
    store(*map(Path, sys.argv[1:]))
