"""`docs/json.md` read as rules: which fields the JSON of each command has, and of which types."""

import re
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "json.md"
KINDS = {"integer": int, "number": (int, float), "text": str, "boolean": bool, "object": dict, "list": list}
# the section of each call of tests/commands.py
SECTIONS = {
    **dict.fromkeys(("impersonate", "evade", "identify-as", "minimal"), "fastadv attack"),
    **dict.fromkeys(("verify", "clean"), "fastadv verify"),
    **{name: f"fastadv {name}" for name in ("identify", "talfw", "transfer", "defend", "train")},
    "untargeted": "fastadv transfer --untargeted",
    "detect": "fastadv detect fit",
    "evaluate": "fastadv detect evaluate",
    "score": "fastadv detect score",
    "calibrate": "fastadv detect calibrate",
    "head": "fastadv train --head",
    "denoiser": "fastadv train denoiser",
}


@cache
def sections():
    """The fields of each heading with their types, in the order of the page."""
    found = {}
    for part in re.split(r"(?m)^##+ ", PAGE.read_text(encoding="utf-8"))[1:]:
        title, _, text = part.partition("\n")
        rows = re.findall(r"(?m)^\| `([^`]+)` \| ([^|]+) \|", text)
        if rows:
            found[title.strip()] = {name: kind.strip() for name, kind in rows}
    return found


def problems(section, value):
    """What of a JSON value is not as the section says: a line each."""
    rules = sections()[section]
    if "..." in rules:
        rules = {**sections()[rules["..."]], **{name: kind for name, kind in rules.items() if name != "..."}}
    return [f"{section}: {line}" for line in _of_object(value, rules, "")]


def _of_object(value, rules, before):
    for name, inner in value.items():
        path = next((p for p in (before + name, f"{before}NAME") if _known(p, rules)), None)
        if path is None:
            yield f"{before}{name} is not documented"
        elif path in rules:
            yield from _of_type(inner, rules[path], rules, path)
        else:
            yield from _of_object(inner, rules, f"{path}.")
    for path, kind in rules.items():
        name = path.removeprefix(before)
        direct = path.startswith(before) and not re.search(r"NAME|[.\[]", name)
        if direct and name not in value and "absent" not in kind:
            yield f"{path} is missing"


def _known(path, rules):
    return path in rules or any(rule.startswith(f"{path}.") for rule in rules)


def _of_type(value, kind, rules, path):
    if kind == "any" or (value is None and "null" in kind):
        return
    kind = re.sub(r" or (null|absent)$", "", kind) if not kind.startswith("list of") else kind
    if kind.startswith("list of "):
        if not isinstance(value, list):
            yield f"{path} is no list: {value!r}"
            return
        inner = kind.removeprefix("list of ").removesuffix(" or absent")
        for each in value:
            yield from _of_type(each, inner, rules, f"{path}[]")
    elif kind in KINDS:
        if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean"):
            yield f"{path} is no {kind}: {value!r}"
        elif kind == "object":
            yield from _of_object(value, rules, f"{path}.")
    else:
        yield from (f"{path}: {line}" for line in problems(kind, value))
