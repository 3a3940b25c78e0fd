"""Every finding there is: its code, how grave it is, why it matters, what to do."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Rule:
    """What a code means: ``why`` it matters and the ``cure``, one sentence each."""

    code: str
    severity: Severity
    why: str
    cure: str


_ALL = (
    # reading
    Rule("json", "error", "A line that is no JSON object holds no preference.",
         "Mend or delete the line; one JSON object stands on each line."),
    Rule("utf8", "error", "Text in another encoding reads as other words.",
         "Convert the file to UTF-8."),
    Rule("csv", "error", "Cells in the wrong column train on the wrong text.",
         'Write the table again, with "…" around cells that hold commas or line breaks.'),
    Rule("parquet", "error", "Rows behind the damage are lost.", "Write the file again."),
    Rule("gzip", "error", "Rows behind the damage are lost.", "Download or pack the file again."),
    Rule("column", "error", "Without the column there is no preference in the row.",
         "Rename the column, or name it under data.columns."),
    Rule("type", "error", "Null or a number where text belongs has nothing to train on.",
         "Write text, or messages with a role and a content."),
    Rule("text", "error", "No tokenizer can take this character as it stands.",
         "Delete the character."),
    Rule("mixed", "error", "Text has no template and messages have one: they cannot be compared.",
         "Write prompt and answers all as text or all as messages."),
    Rule("role", "error", "The template needs to know who speaks, and the answer must be last.",
         "Use system, user, assistant and tool; end each answer with the assistant."),
    Rule("prompt", "error", "DPO compares two answers to one prompt; here there are two prompts.",
         "Let both conversations begin with the same messages."),
    Rule("tools", "error", "Tools that the model is not shown cannot be learned to be used.",
         "Write tools as a list of objects, and use a template that reads them."),
    Rule("score", "error", "Without a score nothing says which answer is better.",
         "Give each completion a finite number."),
    Rule("label", "error", "Without a label nothing says whether the answer is good.",
         "Write true or false."),
    Rule("tie", "note", "Answers of the same score hold no preference; the row is left out.",
         "Nothing, or lower data.ranked.min_gap."),
    Rule("weight", "note", "The mixture takes only a part of this source.",
         "Raise the weight under data.train to use more."),
    # one pair
    Rule("empty", "error", "An answer without text has a log-prob of its stop token only.",
         "Add text, delete the row, or set data.on_bad_row: drop."),
    Rule("identical", "error", "Two equal answers have a gradient of exactly zero.",
         "Delete the row or set data.on_bad_row: drop."),
    Rule("huge", "error", "No model reads so long a text, and to tokenise it takes gigabytes.",
         "Split the text, or delete the row."),
    Rule("doubled", "warning", "Answers that repeat the prompt make the model read it twice.",
         "Take the prompt off both answers; check --fix does it."),
    Rule("turns", "warning", "A lost turn shifts who says what, and templates may refuse it.",
         "Check that no turn was lost."),
    Rule("decomposed", "warning",
         "Decomposed Hangul (NFD) takes several times as many tokens as models learned.",
         "Convert the text to NFC; check --fix does it."),
    Rule("damaged", "warning", "U+FFFD marks text that was lost before; it would be trained on.",
         "Decode the original again, or delete the row."),
    Rule("inverted", "warning", "The scores say that the rejected answer is the better one.",
         "Swap the sides, or check what the scores mean."),
    Rule("language", "note", "A pair whose answers differ in language teaches the language first.",
         "Keep such pairs only where the language is meant to be learned."),
    # between rows
    Rule("duplicate", "warning", "A pair that stands twice counts twice and may leak into eval.",
         "Delete one, unless it should count twice; check --fix does it."),
    Rule("near", "warning", "Near copies count several times and make held-out figures too good.",
         "Keep one of each group."),
    Rule("conflict", "warning", "The same two answers are preferred both ways: one label is wrong.",
         "Keep the right one; with many of them use a loss for noisy labels."),
    Rule("cycle", "warning", "A beats B beats C beats A: no reward can satisfy all of them.",
         "Delete the weakest of the judgements."),
    Rule("leak", "warning", "A held-out prompt that is trained on measures memory.",
         "Delete it from one of the two."),
    # with a model
    Rule("template", "error", "What the template refuses or drops, the model never sees.",
         "Change the roles or turns of the row, or the template."),
    Rule("prefix", "error", "The model would be trained behind a prompt that it never meets.",
         "Set data.template so that the template writes both alike."),
    Rule("stop", "error", "Without a stop token the model never learns to end.",
         "Add the template's end marker to eos_token_id in generation_config.json."),
    Rule("merged", "error", "Answers that the template makes equal have a gradient of zero.",
         "Delete the row, or put the difference into the content."),
    Rule("control", "warning", "Control tokens in the text are usually a template applied before.",
         "Delete them, unless the text is about them; they are encoded as text."),
    Rule("unknown", "warning", "Unknown tokens hide the text from the model.",
         "Check that the tokenizer is the model's own."),
    Rule("foreign", "warning", "So many tokens a character mean a tokenizer of another language.",
         "Check that the tokenizer is the model's own and knows this language."),
    Rule("bos", "warning", "A doubled or missing first token shifts every log-prob.",
         "Let either the template or the tokenizer write the BOS, not both."),
    Rule("drops", "warning", "What the template leaves out of the prompt, the model never sees.",
         "Look at it with `likelier show`; change the template or the roles."),
    Rule("adds", "note", "The template adds words that are not in the data.",
         "Look at them with `likelier show`; a system turn of your own often replaces them."),
    Rule("plain", "warning", "Plain texts do not go through the model's chat template.",
         "Set data.chat: true to make a user's and an assistant's turn of them."),
    Rule("clock", "warning", "A template that writes today's date gives other tokens every day.",
         "Set data.template.date_string, where the template reads it."),
    Rule("overlong", "warning", "A pair over max_length does not fit and is left out.",
         "Raise data.max_length, or set data.overlong: trim."),
    Rule("trimmed", "warning", "What is cut off is not learned, and a cut answer has no stop.",
         "Raise data.max_length to keep all of it."),
    Rule("truncated", "error", "Equal answers after the cut have a gradient of exactly zero.",
         "Raise data.max_length or delete the row."),
    Rule("noise", "note", "The reference much prefers the rejected answer: perhaps a wrong label.",
         "Read these rows; hard is not the same as wrong."),
    # of the whole file
    Rule("shortcut", "warning",
         "Something trivial tells chosen from rejected, and will be learned first.",
         "Balance the data in the features named, or filter by them."),
    Rule("length", "warning", "Answers of one side are longer, so length is what is learned.",
         "Match lengths, or use a length-normalised loss."),
)  # fmt: skip
RULES: dict[str, Rule] = {rule.code: rule for rule in _ALL}


def why(code: str) -> str:
    """Why a kind of finding matters; empty for a code that is none of ours."""
    return RULES[code].why if code in RULES else ""


def cure(code: str) -> str:
    """What to do about a kind of finding; empty for a code that is none of ours."""
    return RULES[code].cure if code in RULES else ""
