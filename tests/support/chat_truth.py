"""What is right, worked out from a template and a tokenizer alone; and rows of every kind.

The generation prompt is what the model gets. Each answer is what the template writes of it behind
its own header, cut before its stop. Every such piece is tokenised apart.
"""

import copy
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from tests.support.chat_families import ChatFamily

Record = dict[str, Any]
Turn = dict[str, Any]
KINDS = (
    *("plain", "system", "turns", "korean"),
    *("reasoning", "inline", "one reasons", "call", "call as text", "two calls"),
    *("text and call", "thought and call", "result", "road"),
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


def user(content: str) -> Turn:
    return {"role": "user", "content": content}


def bot(content: str, **more: Any) -> Turn:
    return {"role": "assistant", "content": content, **more}


def call(*arguments: Any, **more: Any) -> Turn:
    """A turn that calls the tool, once for each of ``arguments``."""
    calls = [
        {"id": name, "type": "function", "function": {"name": "weather", "arguments": given}}
        for name, given in zip(("abc123def", "ghi456jkl"), arguments, strict=False)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


RESULT = {"role": "tool", "name": "weather", "tool_call_id": "abc123def", "content": "맑음 21"}
SYSTEM = {"role": "system", "content": "공손하게 답하세요."}
ASKED = user("What is Python?")
WEATHER = user("서울 날씨는?")


def records(family: ChatFamily) -> dict[str, Record]:
    """One row of every kind, as a user's file has it."""
    opening, closing = ("<think>", "</think>") if "|" in family.mark[0] else family.mark

    def inline(thought: str, said: str) -> Turn:
        return bot(f"{opening}\n{thought}\n{closing}\n\n{said}")

    def row(prompt: Sequence[Turn], chosen: Any, rejected: Any, **more: Any) -> Record:
        sides = {"chosen": chosen, "rejected": rejected}
        listed = {name: [v] if isinstance(v, dict) else v for name, v in sides.items()}
        return {"prompt": list(prompt), **listed, **more}

    good, bad = bot("A language, easy to learn."), bot("A snake.\n")
    thoughts = ("They ask of code.", "An animal, surely.")
    return {
        "plain": row([ASKED], good, bad),
        "system": row([SYSTEM, ASKED], good, bad),
        "turns": row([user("Hi"), bot("Hello."), ASKED], good, bad),
        "korean": row(
            [user("안녕?"), bot("안녕하세요!"), user("파이썬이 뭐야?")],
            bot("배우기 쉽고,\n\n- 강력한\n- **언어**입니다."),
            bot(" 뱀이지~"),
        ),
        "reasoning": row(
            [ASKED],
            {**good, "reasoning_content": thoughts[0]},
            {**bad, "reasoning_content": thoughts[1]},
        ),
        "inline": row(
            [ASKED], inline(thoughts[0], good["content"]), inline(thoughts[1], bad["content"])
        ),
        "one reasons": row([ASKED], {**good, "reasoning_content": thoughts[0]}, bad),
        "call": row([WEATHER], call({"city": "서울"}), bot("모릅니다."), tools=TOOLS),
        "call as text": row([WEATHER], call('{"city": "서울"}'), bot("모릅니다."), tools=TOOLS),
        "two calls": row(
            [WEATHER], call({"city": "서울"}, {"city": "부산"}), bot("모릅니다."), tools=TOOLS
        ),
        "text and call": row(
            [WEATHER], call({"city": "서울"}, content="찾아볼게요."), bot("모릅니다."), tools=TOOLS
        ),
        "thought and call": row(
            [WEATHER],
            call({"city": "서울"}, reasoning_content=thoughts[0]),
            {**bot("모릅니다."), "reasoning_content": thoughts[1]},
            tools=TOOLS,
        ),
        "result": row(
            [WEATHER, call({"city": "서울"}), RESULT], bot("맑아요."), bot("몰라."), tools=TOOLS
        ),
        "road": row(
            [WEATHER], [call({"city": "서울"}), RESULT, bot("맑아요.")], bot("몰라."), tools=TOOLS
        ),
    }


def forms_of(family: ChatFamily, row: Record) -> list[Record]:
    """The row, and with the inline reasoning of one side or both under a key, as some take it."""
    found = [row]
    for keys in itertools.product(("", "reasoning_content", "thinking"), repeat=2):
        form = copy.deepcopy(row)
        for key, side in zip(keys, (form["chosen"], form["rejected"]), strict=True):
            for turn in side if key else ():
                _under_key(family, turn, key)
        if form not in found:
            found.append(form)
    return found


def _under_key(family: ChatFamily, turn: Turn, key: str) -> None:
    for opening, closing in (family.mark, ("<think>", "</think>")):
        said = turn.get("content") or ""
        if said.startswith(opening) and closing in said:
            thought, _, rest = said.removeprefix(opening).partition(closing)
            turn[key] = thought.strip()
            turn["content"] = rest.lstrip("\n")


class NoTruth(Exception):
    """The template alone does not say what is right: the row has to be refused."""


@dataclass(frozen=True)
class Truth:
    """The ids of both sides from the first of the prompt on, each with whether it is scored."""

    chosen: tuple[tuple[int, bool], ...]
    rejected: tuple[tuple[int, bool], ...]


class Oracle:
    """A family's template and tokenizer, asked directly."""

    def __init__(
        self,
        family: ChatFamily,
        tokenizer: Any,
        state: Mapping[str, Any],
        today: str,
        turns: str = "all",
    ):
        self.family, self.tokenizer, self.state = family, tokenizer, state
        self.today, self.turns = today, turns

    def truth(self, record: Record) -> Truth:
        """Raises NoTruth where the template refuses the chat, or its turns do not join."""
        prompt, tools = record["prompt"], record.get("tools")
        sides = [record["chosen"], record["rejected"]]
        one_reasons = any(self._thought(turn) for side in sides for turn in side)
        if self.turns == "last":
            chats = [([*prompt, *side[:-1]], side[-1:]) for side in sides]
        else:
            chats = [(prompt, side) for side in sides]
        chosen, rejected = (self._side(*chat, tools, one_reasons) for chat in chats)
        return Truth(chosen, rejected)

    def boundary(self, record: Record) -> str:
        """``history`` where the generation prompt begins the chat that is written out."""
        prompt = self._render(record["prompt"], True, None)
        whole = self._render([*record["prompt"], *record["chosen"]], False, None)
        return "history" if whole.startswith(prompt) else "generation"

    def _render(self, chat: Sequence[Turn], generate: bool, tools: Any) -> str:
        given = dict(self.state)
        source = self.tokenizer.get_chat_template(tools=tools)
        if "strftime_now" in source:
            given["chat_template"] = _with_date(source, self.today)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    _decoded(chat, self.family),
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=generate,
                    **given,
                )
            )
        except Exception as error:
            raise NoTruth(f"the template refuses: {error}") from error

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _continued(self, text: str) -> tuple[int, ...]:
        """The ids of a text that continues another: without the space that some put before one."""
        begun = self._ids("\n")
        if not self.tokenizer.convert_ids_to_tokens(begun[0]).startswith("▁"):
            return self._ids(text)
        return self._ids("\n" + text)[len(begun) :]

    def _side(
        self, prompt: Sequence[Turn], answer: Sequence[Turn], tools: Any, one_reasons: bool
    ) -> tuple[tuple[int, bool], ...]:
        chat, done = list(prompt), ""
        found: list[tuple[int, bool]] = []
        for turn in answer:
            if turn["role"] == "assistant":
                before = self._render(chat, True, tools)
                if not before.startswith(done):
                    raise NoTruth("a later turn does not continue the tokens so far")
                found += [(token, False) for token in self._ids(before[len(done) :])]
                shut, said = self._answer(chat, turn, before, tools)
                if self._thought(turn) not in said:
                    raise NoTruth("the template has no place for the reasoning")
                found += [(token, one_reasons) for token in self._continued(shut)]
                stop = self.family.stop_of(turn)
                end = self.tokenizer.convert_tokens_to_ids(stop)
                found += [(token, True) for token in (*self._continued(said), end)]
                done = before + shut + said + stop
            chat.append(turn)
        return tuple(found)

    def _answer(self, chat: Sequence[Turn], turn: Turn, before: str, tools: Any) -> tuple[str, str]:
        """The text that closes a block of thinking at once, and the answer up to its stop."""
        family, thought = self.family, self._thought(turn)
        opening, closing = family.mark
        whole = self._render([*chat, turn], False, tools).removesuffix(family.trailing)
        if whole.startswith(before):
            opened, said = "", whole[len(before) :]
        else:
            header = family.header
            if turn.get("tool_calls"):
                header = family.call_header or header
            if chat[-1]["role"] == "tool":
                header = family.result_header or header
            behind = whole.find(header, whole.rfind(str(chat[-1]["content"])))
            at = behind if behind >= 0 else whole.rindex(header)
            said = whole[at + len(header) :]
            opened = before[before.rindex(header) + len(header) :]
        said = said.partition(family.stop_of(turn))[0]
        if not before.rstrip("\n").endswith(opening):
            if said.startswith(opened):
                return "", said.removeprefix(opened)
            if closing not in opened or thought:
                raise NoTruth("the answer does not continue the generation prompt")
            return "", said.removeprefix(closing)
        said = said.removeprefix(opened)
        if said.startswith(opening):  # once more, with the line break that the prompt has
            said = said.removeprefix(opening).removeprefix("\n" if before.endswith("\n") else "")
        empty = re.match(re.escape(family.shut), said)
        empty = empty or re.match(rf"\s*{re.escape(closing)}\n*", said)
        if not thought:
            own = self._own_block(turn, before)
            if empty:
                return empty[0], said[empty.end() :]
            return own or family.shut, said.lstrip("\n") if own else said
        if thought in said:
            return "", said.removeprefix("\n") if before.endswith("\n") else said
        said = said[empty.end() :] if empty else said
        own = self._own_block(turn, before)
        return "", own + said.lstrip("\n") if own else thought + family.shut + said

    def _own_block(self, turn: Turn, before: str) -> str:
        """The reasoning as the content has it, but for what the prompt has already."""
        opening, closing = self.family.mark
        said = turn.get("content") or ""
        own = re.match(rf"{re.escape(opening)}.*?{re.escape(closing)}\n*", said, re.DOTALL)
        if own is None:
            return ""
        inner = own[0].removeprefix(opening)
        return inner.removeprefix("\n") if before.endswith("\n") else inner

    def _thought(self, turn: Turn) -> str:
        """The reasoning of a turn, bare."""
        opening, closing = self.family.mark
        if turn.get("reasoning_content"):
            return str(turn["reasoning_content"])
        said = turn.get("content") or ""
        return said.partition(closing)[0].removeprefix(opening).strip() if closing in said else ""


def _with_date(source: str, today: str) -> str:
    """The template with a fixed date in place of today's."""
    day = date.fromisoformat(today)
    asked = r"""strftime_now\((['"])(.*?)\1\)"""
    return re.sub(asked, lambda found: repr(day.strftime(found[2])), source)


def _decoded(chat: Sequence[Turn], family: ChatFamily) -> list[Turn]:
    """The chat with arguments as the template takes them: an object, or JSON text."""
    turns = copy.deepcopy(list(chat))
    for turn in turns:
        for one in turn.get("tool_calls", ()):
            given = one["function"]["arguments"]
            if family.arguments == "text" and not isinstance(given, str):
                one["function"]["arguments"] = json.dumps(given, ensure_ascii=False)
            elif family.arguments == "object" and isinstance(given, str):
                one["function"]["arguments"] = json.loads(given)
    return turns
