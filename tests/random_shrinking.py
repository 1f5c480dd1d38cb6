"""Makes a random network that fails as small as it can be and still fail in the same way."""

import dataclasses
import re

from random_checks import check_network, reason
from random_drawing import draw, model_lines

_OPTION = re.compile(
    r", \w+=(?!')[^,()]+(?=[,)])|, (?!name)\w+='[^']*'|, \w+=layers\.\w+\([^()]*\)"
)


def shrunk(seed, say=print):
    """Returns `(Network, Result)`: the smallest network found that fails like that of the seed."""
    network = draw(seed)
    result = check_network(network)
    kind = _kind(result)
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for candidate in _smaller(network):
            try:
                found = check_network(candidate)
            except Exception:  # no network any more
                continue
            if _kind(found) == kind:
                network, result, is_smaller = candidate, found, True
                say(f"{len(network.lines)} lines")
                break
    return network, result


def _kind(result):
    text = result.details if result.status == "foreign" else ""
    return result.status, result.step, reason(text)[:50]


def _smaller(network):
    """Yields networks with one thing less, the largest steps first."""
    lines = network.lines[:-1]
    for line in lines[:-1]:
        name, expression = line.split(" = ", 1)
        if "Input(" not in expression[:14]:
            yield dataclasses.replace(network, lines=model_lines(lines, [name]))
    ends = re.findall(r"x\d+(?:\[\d+\])?", network.lines[-1].split("], [")[1])
    for place, line in list(enumerate(lines))[::-1]:
        name, expression = line.split(" = ", 1)
        for other in dict.fromkeys(re.findall(r"\bx\d+(?:\[\d+\])?", expression)):
            if expression == other:
                continue
            names = re.compile(rf"\b{name}\b(\[\d+\](?=\W*$|,|\)))?")
            bypassed = [*lines[:place], *(names.sub(other, later) for later in lines[place + 1 :])]
            new_ends = [names.sub(other, end) for end in ends]
            yield dataclasses.replace(network, lines=model_lines(bypassed, new_ends))
        for option in _OPTION.finditer(expression):
            less = expression[: option.start()] + expression[option.end() :]
            fewer = [*lines[:place], f"{name} = {less}", *lines[place + 1 :]]
            yield dataclasses.replace(network, lines=model_lines(fewer, ends))
    if network.odd:
        yield dataclasses.replace(network, odd=network.odd[1:])
        yield dataclasses.replace(network, odd=network.odd[:-1])
    if network.data["scale"] != 1 or network.data["shift"]:
        yield dataclasses.replace(network, data={"scale": 1.0, "shift": 0.0})
    plain = {"w_bits": 8, "a_bits": 8, "distillation": None}
    yield from _plainer(network, "wrap", plain)
    yield from _plainer(network, "export", {"storage": "int8", "io": "float32", "softmax": True})


def _plainer(network, what, plain):
    arguments = getattr(network, what)
    for key, value in arguments.items():
        others = {other: arguments[other] for other in arguments if other != key}
        if key not in plain and key not in ("batch_size", "seed"):
            yield dataclasses.replace(network, **{what: others})
        elif key in plain and value != plain[key]:
            yield dataclasses.replace(network, **{what: {**others, key: plain[key]}})
