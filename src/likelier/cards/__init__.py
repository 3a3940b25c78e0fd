"""Every loss on a card: its name, paper, formula, hyper-parameters, use and trap. No torch here."""

from difflib import get_close_matches

from likelier.base.errors import ConfigError
from likelier.cards.anchored import ANCHORED
from likelier.cards.card import Card, Parameter
from likelier.cards.coupled import COUPLED
from likelier.cards.lengths import LENGTHS
from likelier.cards.margins import MARGINS

__all__ = ["ALIASES", "CARDS", "Card", "Parameter", "find_card"]

CARDS = {card.name: card for card in (*MARGINS, *ANCHORED, *LENGTHS, *COUPLED)}
ALIASES = {alias: card.name for card in CARDS.values() for alias in card.aliases}


def find_card(name: str, where: str = "loss.name") -> Card:
    """The card of a name or alias.

    Raises ConfigError where there is none, with the nearest one; also for a bare ``ipo``.
    """
    name = ALIASES.get(name, name)
    if name in CARDS:
        return CARDS[name]
    if name in ("ipo", "ipo_norm"):
        raise ConfigError(
            f"{name} is two losses",
            where=where,
            hint="write ipo_sum (summed log-probs, the paper's text; tau counts nats per answer) "
            "or ipo_mean (per-token means, as most trainers run it; tau counts nats per token)",
        )
    near = get_close_matches(name, [*CARDS, *ALIASES], n=1)
    known = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"no loss is called {name}", where=where, hint=f"{known}There are: {', '.join(CARDS)}"
    )
