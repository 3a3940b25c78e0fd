"""Hostile chat templates: without end, out of the sandbox, or of another text each time."""

from functools import partial

from tests.support.tiny import TEMPLATE

from faults.hostile.case import Room, hostile

templates = partial(hostile, "templates")
PAYLOAD = "touch $MARKER"


def with_template(source: str | bytes, words: list[str] | None = None) -> object:
    def build(room: Room) -> list[str]:
        text = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
        (room.base() / "chat_template.jinja").write_bytes(text)
        return room.train() if words is None else (room.lay_out_the_rest() or words)

    return build


for _name, _source in {
    "a syntax error": "{% for m in messages %}{{ m.content }",
    "an unknown tag": "{% evil %}" + TEMPLATE,
    "an unknown filter": "{{ 'a' | evil }}" + TEMPLATE,
    "not UTF-8": b"\xb0\xa1{{ messages }}",
    "nothing": "",
    "one text for everything": "evil",
    "an endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}" + TEMPLATE,
    "a loop in a macro": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}" + TEMPLATE,
    "1 GB of text": "{{ 'x' * 10**9 }}" + TEMPLATE,
    "64 GB of text": "{{ 'x' * 2**36 }}" + TEMPLATE,
    "1 GB by a filter": "{{ 'x' | center(10**9) }}" + TEMPLATE,
    "1 GB by a format": "{{ '%1000000000d' | format(1) }}" + TEMPLATE,
    "1 GB in a list": "{{ (range(10**5) | list) * 10**3 }}" + TEMPLATE,
    "a text that doubles": "{% set ns = namespace(t='ab') %}{% for i in range(40) %}"
    "{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t | length }}" + TEMPLATE,
    "a power of minutes": "{% if 3**(3*10**7) %}{% endif %}" + TEMPLATE,
    "a power of minutes in an expression": "{{ 3**(3*10**7) }}" + TEMPLATE,
    "a product of minutes": "{% set a = 10**(10**6) %}{{ (a * a * a * a) // 7 > 1 }}"
    "{% set b = 7**(10**7) %}{{ b % 3 }}" + TEMPLATE,
    "a shift of minutes": "{{ (2**(10**8))|string|length }}" + TEMPLATE,
    "a constant to be folded": "{% if false %}{{ 'x' * 10**10 }}{% endif %}"
    "{{ 9**9**9 if false else '' }}" + TEMPLATE + "{{ 7**(7**9) }}",
    "100,000 nested blocks": "{% if 1 %}" * 100_000 + "{% endif %}" * 100_000 + TEMPLATE,
    "100,000 brackets": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}" + TEMPLATE,
    "100,000 minus signs": "{{ " + "-" * 100_000 + "1 }}" + TEMPLATE,
    "100,000 additions": "{{ " + "1+" * 100_000 + "1 }}" + TEMPLATE,
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}" + TEMPLATE,
    "a class by a filter": "{{ ('' | attr('__class__')).mro() }}" + TEMPLATE,
    "a class by a format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}" + TEMPLATE,
    "a class by a mapped format": "{{ ['{0.__class__}'] | map('format', messages) | list }}"
    "{{ ''.format_map(messages[0].__class__) }}" + TEMPLATE,
    "globals of a function": "{{ raise_exception.__globals__['os'].system('"
    + PAYLOAD
    + "') }}"
    + TEMPLATE,
    "globals of a cycler": "{{ cycler.__init__.__globals__.os.popen('"
    + PAYLOAD
    + "').read() }}"
    + TEMPLATE,
    "globals of a namespace": "{{ namespace.__init__.__globals__ }}" + TEMPLATE,
    "itself": "{{ self.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}" + TEMPLATE,
    "a list that is changed": "{{ messages.append(1) }}" + TEMPLATE,
    "a message that is changed": "{{ messages[0].update({'content': 'evil'}) }}" + TEMPLATE,
    "an inclusion": "{% include '/etc/passwd' %}" + TEMPLATE,
    "an import": "{% import 'os' as os %}{{ os.system('" + PAYLOAD + "') }}" + TEMPLATE,
    "another that it extends": "{% extends '/etc/passwd' %}" + TEMPLATE,
    "a refusal": "{{ raise_exception('evil') }}",
    "a refusal with control bytes": "{{ raise_exception('\x1b]0;evil\x07\r\x9b31m\u202e') }}",
    "a refusal of 100 MB": "{{ raise_exception('evil ' * 2 * 10**7) }}",
    "no answer of the assistant": "{% for m in messages %}{% if m.role == 'user' %}<|user|>"
    "{{ m.content }}<|end|>{% endif %}{% endfor %}",
    "words left out": "{% for m in messages %}<|{{ m.role }}|>{{ m.content[:3] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "a comment without an end": "{# evil" + TEMPLATE,
    "a class in a syntax error": "{{ \x1b[31m }}" + TEMPLATE,
    "lorem ipsum of 10^9 words": "{{ lipsum(n=10**9) }}" + TEMPLATE,
}.items():
    templates(_name, 65)(with_template(_source))

# What does no harm may as well be used.
for _name, _source in {
    "the clock": "{{ strftime_now('%Y') }}" + TEMPLATE,
    "control bytes in its text": TEMPLATE.replace("\n", "\x1b[31m\x07"),
    "bytes of 0 in its text": TEMPLATE.replace("\n", "\0"),
    "5 MB of comment": "{# " + "x" * 5_000_000 + " #}" + TEMPLATE,
    "another text each time": "{{ ['a', 'b', 'c', 'd'] | random }}" + TEMPLATE,
    "memory addresses": "{{ messages | string }}{{ raise_exception }}" + TEMPLATE,
    "undefined names": "{{ evil }}{{ evil2.more if evil2 is defined }}" + TEMPLATE,
}.items():
    templates(_name, (0, 65))(with_template(_source))

SHOW = ["show", "pairs.jsonl", "--model", "base"]
CHECK = ["check", "pairs.jsonl", "--model", "base"]
ENDLESS = "{% if 3**(3*10**7) %}{% endif %}" + TEMPLATE
templates("control bytes in its text, shown", (0, 65))(
    with_template(TEMPLATE.replace("\n", "\x1b]0;evil\x07\x9b31m"), SHOW)
)
templates("a refusal with control bytes, shown", 65)(
    with_template("{{ raise_exception('\x1b]0;evil\x07\r\x9b31m') }}", SHOW)
)
templates("a refusal with control bytes, checked", 65)(
    with_template("{{ raise_exception('\x1b]0;evil\x07\r\x9b31m') }}", CHECK)
)
templates("a power of minutes, shown", 65)(with_template(ENDLESS, SHOW))
templates("a power of minutes, checked", 65)(with_template(ENDLESS, CHECK))
templates("a power of minutes, scored", 65)(
    with_template(ENDLESS, ["score", "pairs.jsonl", "--model", "base"])
)
templates("a power of minutes, planned", 65)(
    lambda room: ["plan", *with_template(ENDLESS)(room)[1:]]  # type: ignore[operator]
)
