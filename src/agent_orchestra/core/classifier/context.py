"""Whose a request is in the middle of a conversation: it stays where it is, unless something else is clearly meant.

Most turns answer what the assistant has just asked, and say nothing of whose they are: "four, please". So the question
comes first whether the conversation leaves its agent at all, and only then where it goes. The cues of language are
those of English; where they are missing, similarities decide alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np

from agent_orchestra.core.agent import Agent
from agent_orchestra.core.classifier.arrays import Floats, log_softmax

__all__ = [
    "BY_MEANING",
    "BY_WORDS",
    "SIGNALS",
    "Placed",
    "agreed",
    "asked_for",
    "divided",
    "leaving",
    "placed",
    "signals",
    "switched",
]

#: What :func:`signals` tells, in its order; the weights of the gate have the same.
SIGNALS: Final = ("one", "peak", "lead", "odds", "offers", "done", "asks", "begins")

#: The weights of the signals, as ``python -m benchmarks.routing_context`` fits them on the dialogues of SGD.
BY_MEANING: Final = (-8.25, 4.32, 4.41, 2.87, 3.73, 2.88, -2.53, 1.94)
BY_WORDS: Final = (-7.41, 2.13, 2.31, 2.32, 4.28, 3.98, -2.39, 2.73)
#: How sure a conversation is of an agent that was asked for by name.
_BY_NAME: Final = 0.98

#: Similarities of words at which a request says just what a line says, or nothing of it; and how sure that makes.
_SAID: Final = 0.6
_UNSAID: Final = 0.3
_BY_LINE: Final = 0.9

#: Cues stand at the beginning of a request and at the end of an answer; no more is read.
_READ_CHARS: Final = 300
_FAR: Final = 4.0
#: Log-odds that no number of signals goes beyond.
_SUREST: Final = 7.0
#: A log-probability below which an agent may not be chosen at all.
_NEVER: Final = -500.0

_OFFERS: Final = re.compile(
    r"""
    \b(?:any|some)\ ?thing\ ?(?:else|more|further)\b | \bwhat\ (?:else|more)\b | \b(?:any|some)\ more\ help\b
    | \b(?:further|more|other)\ (?:questions|requests)\b
    | \b(?:can|could|may|might|shall|should)\ (?:i|we)\ (?:\w+\ )?(?:help|assist|do\ for)\b
    | \b(?:i|we)\ (?:can|could|may|might)\ (?:\w+\ )?(?:help|assist|do\ for)\b
    | \b(?:need|want|require|needing)\b[^.?!]{0,20}\b(?:help|assistance)\b
    | \bwhat\ (?:can|could|may|shall|should)\ (?:i|we)\ do\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ACHIEVED: Final = (
    r"(?:added|arranged|booked|bought|cancell?ed|changed|completed?|confirmed|created|done|finished|initiated|made|"
    r"ordered|paid|placed|processed|purchased|rented|reserved|resolved|saved|scheduled|sent|set|solved|started|"
    r"submitted|successful|transferred|updated)"
)
_DONE: Final = re.compile(
    rf"""
    (?:\b(?:i|is|are|was|were|been|has|have|now)|['\u2019](?:s|ve))\b[^.?!]{{0,40}}\b{_ACHIEVED}\b(?![^.!]*\?)
    | (?:^|[.!?]\s+){_ACHIEVED}\b(?![^.!]*\?) | \bsuccessfully\b | \benjoy\b | \bhave\ an?\ (?:good|great|nice)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_BEGINS: Final = re.compile(
    r"""
    ^\W*+(?:(?:
        actually|alright|also|and|another|awesome|cool|excellent|first|fine|good|great|hello|hey|hi|i\ see|next|nice|no
        |now|oh|ok|okay|one\ more\ thing|perfect|please|right|so|sure|thanks?|then|um|well|wonderful|yeah|yep|yes|you
    )\b\W*+)*+
    (?:
        (?:i|we)\b[^.?!]{0,25}\b(?:have\ to|interested|like|looking|love|need|require|searching|want|wish|wonder)
        | (?:can|could|will|would)\ you\b | (?:is|are)\ there\b | (?:how|what|when|where|which|who|why)\b
        | (?:book|buy|call|cancel|change|check|compare|create|explain|fetch|find|get|give|help|let|list|look|make|open
            |order|pay|plan|play|provide|recommend|remind|rent|reserve|schedule|search|send|set|show|start|stop|suggest
            |summarize|switch|tell|translate|turn|update|write)\b
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SWITCH: Final = re.compile(
    r"""
    (?:
        \b(?:chat|speak|talk)(?:ing)?(?:\ directly)?\ (?:to|with)
        | \b(?:connect|escalate|forward|go|hand|move|pass|put|redirect|refer|return|route|send|switch|transfer)
            (?:\ (?:it|me|that|this|us))?(?:\ (?:back|on|over|through))*\ (?:to|with)
        | \bback\ to
    )\s+(?:(?:an?|my|our|the|your)\s+)?
    | (?<!\S)@
    """,
    re.IGNORECASE | re.VERBOSE,
)
_NEGATED: Final = re.compile(r"\b(?:never|not|without)\b|n['\u2019]t\b|\binstead\ of\b", re.IGNORECASE)
_SENTENCE_END: Final = re.compile(r"[.!?\n]")
_WORD: Final = re.compile(r"[^\W_]+")
_NAME_WORDS: Final = 6


class Placed(NamedTuple):
    """``total``: log-probabilities of the agents, the conversation considered; they are calibrated, so that the highest
    is the log of the probability of being right. ``stayed``: the agent that has the conversation keeps it.
    """

    total: Floats
    best: int
    stayed: bool


def placed(total: Floats, peak: Floats, present: int, *, text: str, last: str, meaning: bool) -> Placed:
    """Where a request goes while the agent ``present`` has the conversation.

    ``total``: (agents,) log-probabilities by the request alone. ``peak``: (agents,) its similarity to the nearest line
    of each, in [-1, 1]; those of the present agent and of the likeliest of the others must be known. ``last``: what the
    assistant said last. ``meaning``: whether similarities are those of embeddings, or of words alone.
    """
    away = leaving(signals(total, peak, present, text=text, last=last), BY_MEANING if meaning else BY_WORDS)
    best = int(_without(total, present).argmax())
    if not meaning and peak[best] >= _SAID and peak[present] < _UNSAID:
        # It is a line of the other agent, word for word, or nearly.
        away = max(away, _BY_LINE)
    return divided(total, present, 1 - away, present)


def switched(total: Floats, asked: Sequence[int], present: int | None = None) -> Placed:
    """Where a request goes that asks for one of these agents by name: to the likeliest of them."""
    return divided(total, max(asked, key=lambda number: total[number]), _BY_NAME, present)


def agreed(total: Floats, last_total: Floats) -> Floats:
    """Log-probabilities by a request and by what the assistant said before it, where no agent has the conversation."""
    return log_softmax(total + last_total)


def asked_for(text: str, agents: Sequence[Agent]) -> tuple[int, ...]:
    """The numbers of the agents that a text asks for by name or id: "let me talk to billing", "@billing".

    Of several names that fit, the longest; several agents where they share it.
    """
    text = text[:_READ_CHARS]
    for words in _SWITCH.finditer(text):
        sentence = _SENTENCE_END.split(text[: words.start()])[-1]
        if _NEGATED.search(sentence):
            continue
        spoken = list(accumulate(_WORD.findall(text[words.end() :].casefold())[:_NAME_WORDS]))
        fits = [max(_fit(agent.name, spoken), _fit(agent.id, spoken)) for agent in agents]
        if (longest := max(fits, default=0)) > 0:
            return tuple(number for number, fit in enumerate(fits) if fit == longest)
    return ()


def _fit(name: str, spoken: Sequence[str]) -> int:
    """The number of words, counted from the first, that make up a name however it is spelt; 0: it is not that name."""
    sought = "".join(_WORD.findall(name.casefold()))
    return spoken.index(sought) + 1 if sought in spoken else 0


def leaving(values: Floats, weights: Sequence[float]) -> float:
    """The probability that a request leaves the agent that has the conversation, by the SIGNALS and their weights."""
    z = float(np.dot(weights, values))
    return 1 / (1 + math.exp(-min(max(z, -_SUREST), _SUREST)))


def signals(total: Floats, peak: Floats, present: int, *, text: str, last: str) -> Floats:
    """What tells whether a request leaves its conversation's agent: the SIGNALS; arguments as of :func:`placed`.

    ``peak``, ``lead``, ``odds``: how near the likeliest of the other agents is, and how far ahead of the present one by
    similarity and by probability. ``offers``, ``done``, ``asks``: the assistant's last turn offers more, reports what
    was achieved, or asks for something. ``begins``: the request begins as one of its own.
    """
    best = int(_without(total, present).argmax())
    end = last[-_READ_CHARS:]
    offers = _OFFERS.search(end) is not None
    return np.array(
        (
            1.0,
            float(peak[best]),
            float(peak[best] - peak[present]),
            min(max(float(total[best] - total[present]) / _FAR, -1.0), 1.0),
            offers,
            _DONE.search(end) is not None,
            "?" in end and not offers,
            _BEGINS.search(text[:_READ_CHARS]) is not None,
        )
    )


def divided(total: Floats, chosen: int, probability: float, present: int | None) -> Placed:
    """One agent has this probability; the others share the rest as they did."""
    others = _without(total, chosen)
    if others.max() < _NEVER:
        found = np.where(np.arange(len(total)) == chosen, 0.0, total)
    else:
        found = log_softmax(others) + math.log1p(-probability)
        found[chosen] = math.log(probability)
    best = int(found.argmax())
    return Placed(found, best, best == present)


def _without(total: Floats, number: int) -> Floats:
    others = total.astype(np.float64)
    others[number] = -np.inf
    return others
