"""The ``loss`` section: one strict kind made of every loss, and what combines with any of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from likelier.base.errors import ConfigError
from likelier.config.strict_yaml import flow
from likelier.losses.declare import LOSSES, Hyper, Loss, find_loss


class Section(BaseModel):
    """What each section inherits: no unknown key, no guessed type, no NaN, no later change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Share = Annotated[float, Field(gt=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(gt=0, le=100)]
TUPLE_FROM_LIST = BeforeValidator(  # YAML and JSON have lists only
    lambda value: tuple(value) if isinstance(value, list) else value
)


class LengthTokens(Section):
    """LD-DPO: tokens beyond the length of the shorter answer count alpha."""

    kind: Literal["ld"] = "ld"
    alpha: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="weight of the tokens beyond the shorter answer; 1 is no change"
    )


class DrawnTokens(Section):
    """SamPO: as many tokens of the longer answer as the shorter one has, drawn once a pair."""

    kind: Literal["sampo"] = "sampo"


class DecayingTokens(Section):
    """D2PO: each token counts gamma times what the one before does."""

    kind: Literal["decay"] = "decay"
    gamma: Share = Field(0.98, description="weight relative to the token before; 1 is no change")


class DynamicBeta(Section):
    """beta-DPO: beta follows the margins of the step, and pairs with odd margins are left out."""

    alpha: Annotated[float, Field(ge=0, le=10)] = Field(0.6, description="how far beta follows")
    momentum: BelowOne = Field(0.9, description="how slowly the mean margin of the steps moves")
    keep: Share = Field(0.8, description="share of the pairs used")


Tokens = Annotated[LengthTokens | DrawnTokens | DecayingTokens, Field(discriminator="kind")]

# What any loss takes, and what any loss of pairs takes beside it.
_ANY: dict[str, Any] = {
    "stop_token": (bool, Field(True, description="whether the stop token is scored")),
    "pair_weights": (bool, Field(False, description="weigh pairs by the data's weight column")),
}
_PAIRED: dict[str, Any] = {
    "nll": (
        Annotated[float, Field(ge=0, le=100)],
        Field(0.0, description="weight of the chosen answer's negative log-likelihood"),
    ),
    "nll_per": (
        Literal["token", "answer", "sum"],
        Field("token", description="its mean: over all tokens of the step, per answer, or none"),
    ),
    "tokens": (Tokens | None, Field(None, description="how tokens count; null = all alike")),
    "wpo": (bool, Field(False, description="weigh pairs by how likely the policy writes them")),
    "dynamic_beta": (DynamicBeta | None, Field(None, description="let beta follow the margins")),
}


def _field(hyper: Hyper) -> tuple[Any, Any]:
    kind: Any = Annotated[float, Field(gt=hyper.gt, ge=hyper.ge, lt=hyper.lt, le=hyper.le)]
    if hyper.choices:
        kind = Literal[hyper.choices]
    elif isinstance(hyper.default, str):
        kind = Literal[hyper.default] | kind
    about = f"{hyper.meaning}; begin with {hyper.start}"
    return kind, Field(hyper.default, description=about)


def _kind(loss: Loss, suffix: str, beside: Mapping[str, Any]) -> Any:
    fields: dict[str, Any] = {"name": (Literal[loss.name], loss.name)}
    fields |= {hyper.name: _field(hyper) for hyper in loss.hypers}
    title = "".join(word.capitalize() for word in loss.name.split("_"))
    return create_model(
        f"{title}{suffix}", __base__=Section, __doc__=loss.title, **fields, **beside
    )


def named(value: Any, where: str = "loss") -> Any:
    """The section with its hyper-parameters checked, and the loss's name in place of an alias."""
    if not isinstance(value, Mapping):
        return value
    given = {"name": "sigmoid", **value}
    if given["name"] == "mixture" or not isinstance(given["name"], str):
        return given
    loss = find_loss(given["name"], f"{where}.name")
    every = {name for other in LOSSES.values() for name in other.defaults}
    loss.check({key: value for key, value in given.items() if key in every}, where, flow)
    return given | {"name": loss.name}


_WEIGHT = {"weight": (Weight, Field(1.0, description="weight in the sum"))}
_parts = tuple(_kind(loss, "Part", _WEIGHT) for loss in LOSSES.values() if loss.paired)
_Part: Any = Annotated[
    Annotated[Union[_parts], Field(discriminator="name")],  # noqa: UP007
    BeforeValidator(lambda value: named(value, "loss.parts")),
]
_mixture: dict[str, Any] = {
    "name": (Literal["mixture"], "mixture"),
    "parts": (
        Annotated[tuple[_Part, ...], Field(min_length=2), TUPLE_FROM_LIST],
        Field(description="losses, each with its weight"),
    ),
    **_ANY,
    **{key: field for key, field in _PAIRED.items() if key != "dynamic_beta"},
}
_kinds = {
    loss.name: _kind(loss, "Loss", _ANY | _PAIRED if loss.paired else _ANY)
    for loss in LOSSES.values()
}
_kinds["mixture"] = create_model("MixtureLoss", __base__=Section, **_mixture)
SigmoidLoss = _kinds["sigmoid"]
if TYPE_CHECKING:  # made from the losses, so that no type checker can know them
    LossConfig = Any
else:
    LossConfig = Annotated[
        Annotated[Union[tuple(_kinds.values())], Field(discriminator="name")],  # noqa: UP007
        BeforeValidator(named),
    ]


def live_loss(loss: Any) -> dict[str, Any]:
    """The keys of the section that the run reads: hyper-parameters, and options that are set."""
    tree: dict[str, Any] = loss.model_dump(mode="json")
    for key in {*_ANY, *_PAIRED} & tree.keys():
        is_default = tree[key] == type(loss).model_fields[key].default
        if is_default and not (key == "nll_per" and tree.get("nll")):
            del tree[key]
    for part in (tree, *tree.get("parts", ())):
        hypers = LOSSES[part["name"]].hypers if part["name"] != "mixture" else ()
        for hyper in hypers:
            if not hyper.is_read(part):
                del part[hyper.name]
    if tree.get("divergence") == "reverse_kl":
        del tree["divergence"]
    return tree


def needs(loss: Any, what: str) -> bool:
    """Whether the loss of a config reads an input."""
    names = [part.name for part in loss.parts] if loss.name == "mixture" else [loss.name]
    return any(LOSSES[name].reads(what) for name in names)


def check_options(loss: Any) -> None:
    """Raises ConfigError for an option that has no effect, or two that exclude each other."""
    given = loss.model_fields_set
    if "nll_per" in given and not loss.nll:
        raise ConfigError(
            "has no effect: loss.nll is 0",
            where="loss.nll_per",
            hint="remove it, or set loss.nll",
        )
    if getattr(loss, "tokens", None) and loss.nll:
        raise ConfigError(
            "loss.nll counts every token of an answer, loss.tokens only some of them",
            where="loss.nll and loss.tokens",
            hint="keep one of the two",
        )
