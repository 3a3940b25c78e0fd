"""A conversation with one model: what was said so far, and the next answer to all of it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from likelier.base.child import in_child
from likelier.base.errors import ConfigError, DataError, RunFailed
from likelier.base.findings import Unfit
from likelier.base.model_files import first_line
from likelier.base.terminal import say
from likelier.chat.boundary import generated_turn
from likelier.chat.messages import Message, read_text
from likelier.chat.render import left_out, render_chat
from likelier.chat.tokenizer import BREAK, Encoder
from likelier.data.encode import encode_prompt
from likelier.generation.sample import Sample
from likelier.generation.sides import ModelSide
from likelier.generation.stream import UNFINISHED, stream

# Characters that a model may write and no turn may hold (`messages.odd_character`).
_REFUSED = dict.fromkeys((0, ord(BREAK)), UNFINISHED)


class Conversation:
    """What one side was asked and answered. A model without a chat template has no turns: each text
    is continued as it is, and what came before is no part of it.
    """

    def __init__(self, side: ModelSide, system: str = ""):
        self.side = side
        self.is_chat = bool(getattr(side.encoder.tokenizer, "chat_template", None))
        self.turns: list[Message] = []
        self.must_take_system(system)
        self.system = system

    def must_take_system(self, text: str) -> None:
        """Look whether ``text`` may stand before all turns as ``system``, where empty is none.

        Raises ConfigError where the model has no chat template or its template does not write it.
        """
        if text and not self.is_chat:
            what = "this model has no chat template that would write a system text"
            raise ConfigError(what, where=f"system, {self.side.name}", hint="leave it out")
        if text and (why := in_child(_why_not_system, self.side.encoder, text)):
            hint = "say it in your first message"
            raise ConfigError(why, where=f"system, {self.side.name}", hint=hint)

    def prompt(self, text: str) -> str | list[Message]:
        """What the model is given to answer ``text``."""
        if not self.is_chat:
            return text
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns, {"role": "user", "content": text}]

    def ask(
        self,
        text: str,
        show: Callable[[str], object],
        stop: Callable[[], bool],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> Sample:
        """The answer to ``text`` behind all that was said; both are then part of it. Parameters and
        answer are as in `stream`; at most as many tokens come as the model has positions for.

        What was shown is kept where it is interrupted, too. Nothing is kept where no text came: no
        turn is empty.

        Raises DataError where the text, or the conversation with it, cannot be encoded or is longer
        than the model can take, RunFailed where it is more than a GPU's memory holds.
        """
        encoder, prompt = self.side.encoder, self.prompt(text)
        ids = in_child(_encoded, encoder, text, prompt)
        room = encoder.at_most(len(ids) + max_new_tokens) - len(ids)
        if room < 1:
            what = (
                f"{len(ids)} tokens with all before it; the model has {encoder.positions} positions"
            )
            raise DataError(
                what, where=self.side.name, hint="shorten it, or begin anew with /reset"
            )
        made_for = getattr(
            self.side.policy.causal_lm.config.get_text_config(), "max_position_embeddings", None
        )
        if encoder.positions is None and isinstance(made_for, int) and len(ids) > made_for:
            say(f"{self.side.name}: {len(ids)} tokens, and it was made for {made_for} positions")
        pieces: list[str] = []
        ended = False

        def hear(piece: str) -> None:
            pieces.append(piece)
            show(piece)

        try:
            with self.side.answering() as policy:
                answer = stream(
                    policy, encoder, ids, hear, stop,
                    temperature=temperature, max_new_tokens=room, seed=seed,
                )  # fmt: skip
            ended = answer.stopped
        except torch.OutOfMemoryError as error:
            what = f"out of memory behind {len(ids)} tokens: {first_line(error)}"
            hint = "shorten it, or begin anew with /reset"
            raise RunFailed(what, where=self.side.name, hint=hint) from error
        finally:
            self._keep(text, prompt, "".join(pieces), ended)
        return answer

    def _keep(self, text: str, prompt: str | list[Message], answer: str, ended: bool) -> None:
        if not answer.strip():
            return
        answer = answer.translate(_REFUSED)
        turn: Message = {"role": "assistant", "content": answer}
        if not isinstance(prompt, str):
            turn = in_child(generated_turn, self.side.encoder, prompt, answer, ended)
        self.turns += [{"role": "user", "content": text}, turn]

    def rows(self) -> list[dict[str, Any]]:
        """The conversation as rows of a file: one of messages, or one for each continued text."""
        side = {"side": self.side.name, "model": self.side.path}
        if self.is_chat:
            system = [{"role": "system", "content": self.system}] if self.system else []
            return [{**side, "messages": [*system, *self.turns]}]
        contents = [turn["content"] for turn in self.turns]
        both = zip(contents[::2], contents[1::2], strict=True)
        return [{**side, "prompt": asked, "completion": answer} for asked, answer in both]


def _encoded(encoder: Encoder, text: str, prompt: str | Sequence[Message]) -> tuple[int, ...]:
    try:
        read_text(text, "text")
    except Unfit as unfit:
        raise DataError(unfit.message, where="text", hint="write it anew") from unfit
    return encode_prompt(encoder, prompt)


def _why_not_system(encoder: Encoder, text: str) -> str | None:
    """Why a template does not write a system text; None where it does."""
    chat = [{"role": "system", "content": text}, {"role": "user", "content": "?"}]
    try:
        read_text(text, "system")
        rendered = render_chat(encoder, chat, True)
    except Unfit as unfit:
        return unfit.message
    lost = left_out(chat[0], rendered.replace(BREAK, ""))
    return "the chat template leaves the system text out" if lost else None
