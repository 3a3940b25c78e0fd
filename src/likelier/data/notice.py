"""What is noticed of a pair once it is tokens: control texts, unknown text, a BOS too many."""

from collections.abc import Sequence

from likelier.data.chat import stands_in, texts_of
from likelier.data.encoder import BREAK, Encoder
from likelier.data.records import Finding, Preference, TokenPair

FOREIGN = 1.5  # tokens a character; Hangul that a byte tokenizer does not know takes 3
MANY = 50  # tokens; fewer say nothing


def notice(
    encoder: Encoder, pair: Preference, prompt: str, answers: Sequence[str], tokens: TokenPair
) -> list[Finding]:
    """Warnings about one pair: ``prompt`` and ``answers`` are its texts as they were tokenised."""
    findings = []
    texts = [prompt, *answers]
    if any(BREAK in text for text in texts):
        message = "control tokens stand in the text; they are encoded as text"
        hint = "delete them, unless the text is about them"
        findings.append(Finding("control", "warning", pair.source, None, message, hint))
    if encoder.unknown is not None:
        count = sum(s.tokens.count(encoder.unknown) for s in (tokens.chosen, tokens.rejected))
        if count:
            message = f"{count} unknown tokens: the tokenizer does not know this text"
            hint = "check that the tokenizer is the model's own"
            findings.append(Finding("unknown", "warning", pair.source, None, message, hint))
    others = (_bos(encoder, tokens), _foreign(answers, tokens))
    findings += [found for found in others if found]
    return findings + _of_prompt(prompt, pair)


def _of_prompt(prompt: str, pair: Preference) -> list[Finding]:
    """What the template made of the prompt: text left out, a BOS too many."""
    if isinstance(pair.prompt, str):
        return []
    rendered = prompt.replace(BREAK, "")
    return [
        Finding("drops", "warning", pair.source, f"prompt[{number}]",
                f"the template leaves out text of the {turn['role']}'s turn",
                "look at it with `likelier show`; change the template or the roles")
        for number, turn in enumerate(pair.prompt)
        if not all(stands_in(text, rendered) for text in texts_of(turn))
    ]  # fmt: skip


def _bos(encoder: Encoder, pair: TokenPair) -> Finding | None:
    bos = encoder.tokenizer.bos_token_id
    if bos is None or bos in encoder.end_ids.values():
        return None
    count = pair.prompt.count(bos)
    if count > 1:
        message = f"the prompt begins with {count} first tokens (BOS)"
    elif count == 0 and bos in encoder.leading:
        message = "the template writes no first token (BOS), which the tokenizer puts before texts"
    else:
        return None
    hint = "let either the template or the tokenizer write it"
    return Finding("bos", "warning", pair.source, "prompt", message, hint)


def _foreign(answers: Sequence[str], pair: TokenPair) -> Finding | None:
    tokens = len(pair.chosen.tokens) + len(pair.rejected.tokens)
    letters = sum(map(len, answers))
    if tokens < MANY or tokens < FOREIGN * letters:
        return None
    message = f"{tokens / max(letters, 1):.1f} tokens a character"
    hint = "check that the tokenizer is the model's own and knows this language"
    return Finding("foreign", "warning", pair.source, None, message, hint)


def clock(encoder: Encoder) -> Finding:
    """What is to be said of a template that asks for today's date."""
    if encoder.frozen is not None:
        message = "it asks for today's date and is told a fixed one"
        hint = "set data.today to the date that it should be told"
        return Finding("clock", "note", "chat template", None, message, hint)
    message = "it writes today's date, so another day gives other tokens"
    hint = "set data.template.date_string, where the template reads it"
    return Finding("clock", "warning", "chat template", None, message, hint)
