"""What a model can take: the ids that it embeds, the positions that it knows, weights as floats.

Read from its modules, which hold for a model without weights (on torch's meta device) as well, so
that `check` and `train` say the same before anything is computed.

Two kinds of rotary tables depend on the length of a forward: ``longrope`` has one up to the
original length and one beyond; ``dynamic`` is constant up to the original length, and beyond it
grows with the longest sequence that was ever computed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file, has_file

from likelier.base.errors import DataError
from likelier.base.terminal import say
from likelier.data.records import TokenPair
from likelier.model.quantise import LIBRARIES, method_of

# A table that is looked up by position, learned or computed once; others grow when they have to.
_TABLES = re.compile(r"(^|\.)(wpe\.weight|\w*position\w*\.weight|embed_positions|pos_encoding)$")


def sizes(model: PreTrainedModel) -> dict[str, int | None]:
    """``vocabulary``, how many ids it embeds, and ``positions``, how many its tables hold.

    ``positions`` is None where there is no such table, as in most rotary models.
    """
    inputs = model.get_input_embeddings()
    offsets = {name: getattr(module, "offset", 0) for name, module in model.named_modules()}
    tables = [
        len(tensor)
        - offsets.get(name.rpartition(".")[0], 0)  # OPT's first two rows are no position
        for name, tensor in chain(model.named_parameters(), model.named_buffers())
        if _TABLES.search(name)
    ]
    return {
        "vocabulary": getattr(inputs, "num_embeddings", None),
        "positions": min(tables, default=None),
    }


def sizes_of_folder(
    where: str, revision: str | None, adapter: tuple[str, str | None] | None = None
) -> dict[str, int | None]:
    """The same of a model folder or Hub id, without reading its weights; with those of an adapter.

    Nothing is known (an empty dict) where its config.json describes no model that can be built.
    """
    try:
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # loading the model will say what is wrong, in its own words
        return {}
    found = sizes(model)
    rows = rows_of_adapter(model, *adapter)[0] if adapter else None
    return found | ({"vocabulary": rows} if rows else {})


def shapes_in_adapter(where: str, revision: str | None) -> dict[str, list[int]]:
    """The name and shape of every weight that an adapter brings, without reading them; empty where
    it has no safetensors file.
    """
    if not has_file(where, "adapter_model.safetensors", revision):
        return {}
    file = cached_file(where, "adapter_model.safetensors", revision=revision)
    with safe_open(file, "pt") as tensors:
        return {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118


def rows_of_adapter(
    model: PreTrainedModel, where: str, revision: str | None
) -> tuple[int | None, int | None]:
    """The rows of the embedding and of the head that an adapter brings; None where it has none.

    An adapter that was trained after tokens were added to its model holds both.
    """
    wanted = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = {id(module): name for name, module in model.named_modules()}
    shapes = shapes_in_adapter(where, revision)
    keys = [f"base_model.model.{names.get(id(module))}.weight" for module in wanted]
    inputs, outputs = (shapes[key][0] if key in shapes else None for key in keys)
    return inputs, outputs


def resize_for(model: PreTrainedModel, where: str, revision: str | None) -> None:
    """Give the base of an adapter as many rows as the embedding that the adapter brings.

    Raises DataError where the adapter brings no head of that size for a base that has its own.
    """
    inputs, outputs = rows_of_adapter(model, where, revision)
    present = sizes(model)["vocabulary"]
    if inputs in (None, present) and outputs in (None, present):
        return
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    if inputs is None or (outputs is None and not tied) or outputs not in (None, inputs):
        brought = f"an embedding of {inputs} rows" if inputs else f"a head of {outputs} rows"
        what = f"the adapter brings {brought} and not the other, its base has {present}"
        hint = "resize the base with model.resize_token_embeddings, save it, and name that folder"
        raise DataError(what, where=where, hint=f"{hint} in adapter_config.json")
    model.resize_token_embeddings(inputs, mean_resizing=False)
    say(f"{where}: its base is resized from {present} to {inputs} ids, as the adapter was trained")


def say_limits(model: PreTrainedModel, max_length: int | None, pairs: Sequence[TokenPair]) -> None:
    """Say that the model's positions rule, or how many pairs are longer than it was made for.

    ``max_length`` is what the user allows; None is any length.
    """
    positions = sizes(model)["positions"]
    made_for = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        if max_length is not None and positions < max_length:
            say(f"sequences have at most {positions} tokens: the model has no more positions")
    elif isinstance(made_for, int) and (beyond := sum(pair.length > made_for for pair in pairs)):
        say(
            f"{beyond} of {len(pairs)} pairs are longer than the {made_for} positions that the "
            "model was made for"
        )


def must_be_floats(model: nn.Module, where: str) -> None:
    """Raise DataError where weights are stored as numbers that no adapter is trained on."""
    method = method_of(getattr(model, "config", None))
    if method is None or method in LIBRARIES:
        return
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.element_size() == 1:
            what = f"its weights are quantised ({method}), the first {name} as {tensor.dtype}"
            hint = "give the model that it was made from, with weights in bfloat16 or float32"
            raise DataError(what, where=where, hint=hint)


@dataclass(frozen=True)
class RotaryTables:
    """``longrope``: the lengths up to which a forward uses the short table. ``max_length``:
    how long a sequence may be, None for any length.
    """

    longrope: tuple[int, ...] = ()
    max_length: int | None = None


def rotary_tables(config: object) -> RotaryTables:
    """Read from a model's text configuration, where layers of each kind may have a table."""
    given = getattr(config, "rope_parameters", None) or {}
    nested = given and all(isinstance(value, Mapping) for value in given.values())
    tables = list(given.values()) if nested else [given]
    kinds = {table.get("rope_type") for table in tables}
    original = [
        int(table["original_max_position_embeddings"])
        for table in tables
        if table.get("rope_type") == "longrope"
    ]
    max_length = getattr(config, "max_position_embeddings", None) if "dynamic" in kinds else None
    return RotaryTables(tuple(sorted(set(original))), max_length)


def check_length(tables: RotaryTables, longest: int) -> None:
    """Raise DataError where the longest sequence, in tokens, is longer than ``max_length``.

    Its log-probs would depend on what the model computed before.
    """
    if tables.max_length is not None and longest > tables.max_length:
        raise DataError(
            f"a sequence of {longest} tokens: beyond {tables.max_length} this model's rotary table "
            "depends on what was computed before",
            hint=f"set data.max_length: {tables.max_length}, or shorten the text",
        )


def rows_by_table(tables: RotaryTables, keep_BL: Tensor) -> list[tuple[Tensor, int]]:
    """Padded rows that may go through a ``longrope`` model together, with the longest's length."""
    length_B = keep_BL.sum(1)
    limits = torch.tensor(tables.longrope, device=keep_BL.device)
    side_B = (length_B[:, None] > limits).sum(1)
    groups = [torch.nonzero(side_B == side).flatten() for side in side_B.unique()]
    return [(rows, int(length_B[rows].max())) for rows in groups]
