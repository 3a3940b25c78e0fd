"""A template gets little processor time: for one chat, and for all chats of a file together."""

import os
import signal
import threading
import time

import pytest
from tests.support.tiny import TEMPLATE, tiny_tokenizer

from likelier.base import limits
from likelier.base.errors import DataError
from likelier.base.limits import TOKENIZER, Spent, bounded
from likelier.chat.apply import apply_template
from likelier.chat.tokenizer import Encoder, build_encoder

CHAT = [{"role": "user", "content": "가"}]


def encoder(template: str) -> Encoder:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return build_encoder(tokenizer)


def burn(seconds: float) -> None:
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


def test_an_endless_template_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.2)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    began = time.process_time()
    with pytest.raises(DataError, match=r"chat template: it takes longer than 0\.2 seconds"):
        apply_template(encoder(endless), CHAT, False)
    assert time.process_time() - began < 2


def test_time_in_which_the_process_sleeps_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a laptop is closed, or the process stopped, in the middle of a chat."""
    spent = Spent()
    with bounded(TOKENIZER, spent, seconds=0.1):
        time.sleep(0.3)
    resume = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGCONT))
    with bounded(TOKENIZER, spent, seconds=0.1):
        resume.start()
        resume.join()
    assert spent.times == 2 and spent.seconds < 0.1
    with pytest.raises(DataError), bounded(TOKENIZER, seconds=0.1):
        burn(1.0)


def test_all_chats_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each within its own limit, and yet the file would take days."""
    monkeypatch.setattr(limits, "FREE_SECONDS", 0.1)
    monkeypatch.setattr(limits, "MAX_MEAN_SECONDS", 0.005)
    slow = "{% for i in range(9999) %}{% for j in range(40) %}{% endfor %}{% endfor %}" + TEMPLATE
    ours = encoder(slow)
    with pytest.raises(DataError, match=r"chat template: it took \d seconds for \d+ texts"):
        for _ in range(1000):
            apply_template(ours, CHAT, False)
    assert ours.spent.times < 1000
    quick = encoder(TEMPLATE)
    for _ in range(200):
        apply_template(quick, CHAT, False)
    assert quick.spent.times >= 200


def test_handlers_and_timers_come_back() -> None:
    before = signal.getsignal(signal.SIGPROF)
    with bounded(TOKENIZER):
        assert signal.getitimer(signal.ITIMER_PROF)[0] > 0
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGPROF) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
