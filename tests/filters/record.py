"""What does Prefect answer when its events are asked for? Asks Prefect's own code, in this process.

    record.py answer EVENTS                the answers of one database, one case a line
    record.py merge EVENTS SQLITE POSTGRES the answers of two, as they stand in tests/data/filters.jsonl.gz
    record.py many EVENTS CASES NUM SEED   the answers to so many cases, over so many events that it makes besides

EVENTS is a file of events, one a line (tests/data/prefect-events-dev.jsonl.gz); of those that occurred at one
moment only the first is taken, since Prefect's order among them is none. The database is that of Prefect's own
setting, PREFECT_API_DATABASE_CONNECTION_URL; its two tables are emptied. run.sh does all of it.

Where pysqlite3 can be imported it takes the place of Python's own SQLite, which may be years old.
"""

import asyncio
import copy
import datetime
import gzip
import json
import random
import sys
import uuid

try:
    import pysqlite3
    import pysqlite3.dbapi2

    sys.modules.update({"sqlite3": pysqlite3, "sqlite3.dbapi2": pysqlite3.dbapi2})
except ImportError:
    pass

NOW = "2026-11-28T12:00:00Z"
ALL_TIME = {"since": "0001-01-01T00:00:00Z", "until": "9999-12-31T23:59:59.999999Z"}
DAY = {"since": "2026-11-24T00:00:00Z", "until": "2026-11-25T00:00:00Z"}


# --- Events -----------------------------------------------------------------------------------------------------


def odd_events():
    """Events whose texts mean something to LIKE, to JSON or to a regular expression."""
    texts = [
        ("100%", "a_b", "plain"),
        ("100x", "aXb", "Plain"),
        ("back\\slash", "a\\b", "PLAIN"),
        ("*star*", "question?", "!bang"),
        ("[a-z]", "x", "[a-z]"),
        ("grün", "Grün", "GRÜN"),
        ("日本", "日本語", "emoji 😀"),
        ('with "quotes"', 'say "hi"', "it's"),
        ("tab\tand\nline", " spaces ", ""),
        ("/slash/%_", "a/b%c_d", "//"),
    ]
    for number, (name, value, other) in enumerate(texts):
        for repeat in range(3):
            yield {
                "id": f"00000000-0000-4000-8000-{number:06d}{repeat:06d}",
                "occurred": f"2026-11-26T10:{number:02d}:{repeat:02d}.{number * 1000 + repeat:06d}Z",
                "received": f"2026-11-26T10:{number:02d}:{repeat:02d}.500000Z",
                "event": f"odd.{name}",
                "resource": {
                    "prefect.resource.id": f"odd.resource.{value}.{repeat}",
                    "prefect.resource.name": other if repeat != 1 else value,
                    "label": value,
                    "other": other,
                    "dotted.label": name,
                },
                "related": [
                    {"prefect.resource.id": f"odd.related.{name}", "prefect.resource.role": "odd", "label": other},
                    {"prefect.resource.id": "odd.shared", "prefect.resource.role": f"role-{repeat}", "label": value},
                ][: repeat + 0],
                "payload": {"text": name, "deep": {"value": [value, other, number * 1.5]}, "n": number},
                "follows": None,
            }


def load(path):
    """The events that are stored, in their order, of each moment the first."""
    opened = gzip.open(path, "rt", encoding="utf-8") if path.endswith(".gz") else open(path, encoding="utf-8")
    seen, events = set(), []
    with opened as lines:
        for event in [json.loads(line) for line in lines] + list(odd_events()):
            if event["occurred"] not in seen and event["id"] not in seen:
                seen.update((event["occurred"], event["id"]))
                events.append(event)
    return events


ODD_TEXTS = [
    "", " ", "a", "A", "b_c", "b%c", "100%", "_", "%", "*", "?", "!x", "!", "\\", "a\\b", "/", "it's", 'say "hi"', "[0-9]",
    "grün", "GRÜN", "日本", "😀", "e\u0301", "tab\tline\n", "null", "true", "17", "1.50", "{}", "$.x", "x" * 300, "İ", "ß",
]
ODD_LABELS = [
    "a", "A", "a.b", 'q"q', "'", "", " ", "%", "$", "[0]", "日本", "back\\slash", "prefect.name", "prefect.resource.name",
    "null", "-1",
]

# What Prefect takes of a name.
MAX_NAME = 1024


def varied_events(events, number, seed):
    """Events like these, each at a moment and with an id of its own, and some of them odd."""
    chance = random.Random(seed)
    taken = {event["occurred"] for event in events}
    start = datetime.datetime(2026, 10, 1, tzinfo=datetime.timezone.utc)
    odd = lambda: chance.choice(ODD_TEXTS)  # noqa: E731
    for _ in range(number):
        event = copy.deepcopy(chance.choice(events))
        while True:
            micros = chance.choice([0, 999_999, 999_500, 999_499, 500_000, chance.randrange(1_000_000)])
            span = chance.choice([58 * 86_400, 58 * 86_400, 3_600])
            occurred = start + datetime.timedelta(seconds=chance.randrange(span), microseconds=micros)
            written = occurred.isoformat(timespec="microseconds").replace("+00:00", "Z")
            if written not in taken:
                break
        taken.add(written)
        received = occurred + datetime.timedelta(milliseconds=chance.randrange(5_000))
        event.update(
            id=str(uuid.UUID(int=chance.getrandbits(128), version=4)), occurred=written, received=received.isoformat()
        )
        if chance.random() < 0.1:
            name = chance.choice([event["event"].upper(), event["event"] + "." + odd(), odd() or "x"])
            event["event"] = name[:MAX_NAME]
        for resource in [event["resource"], *event["related"]]:
            if chance.random() < 0.15:
                resource[chance.choice(ODD_LABELS)] = odd()
            if chance.random() < 0.05:
                resource["prefect.resource.id"] += odd() or "."
        if chance.random() < 0.1:
            event["related"] = [
                {"prefect.resource.id": "odd." + (odd() or "x"), "prefect.resource.role": odd() or "r", "a": odd()}
                for _ in range(chance.randrange(3))
            ]
        if chance.random() < 0.1:
            event["payload"] = chance.choice([
                {}, {"t": odd()}, {odd(): [odd(), None, True]}, {"n": chance.randrange(-(2**70), 2**70)},
                {"f": chance.random() * 10 ** chance.randrange(-12, 20)}, {"d": {"d": {"d": [[], {}, odd()]}}},
            ])
        yield event


# --- Cases ------------------------------------------------------------------------------------------------------


def filters(filter=None, limit=None, **given):
    body = dict(given)
    if filter is not None:
        body["filter"] = filter
    if limit is not None:
        body["limit"] = limit
    return {"path": "filter", "body": body}


def counts(countable, filter, **given):
    return {"path": f"count-by/{countable}", "body": {"filter": filter, **given}}


def raw(path, text, type="application/json"):
    return {"path": path, "text": text, "type": type}


def written_cases():
    at = {"occurred": ALL_TIME}
    recent = {"occurred": {"since": "2026-11-20T00:00:00Z", "until": "2026-11-28T00:00:00Z"}}

    # The body as a whole.
    for text in ("", "null", "{}", "[]", "1", '"x"', "{", "{]", "nul", '{"filter": null}', '{"limit": 3}', "{} x"):
        yield raw("filter", text)
        yield raw("count-by/event", text)
    yield raw("filter", "{}", "text/plain")
    yield raw("filter", "{}", "application/json; charset=utf-8")
    yield raw("filter", "{}", "application/vnd.api+json")
    yield raw("count-by/nothing", '{"filter": {}}')
    yield raw("count-by/Event", '{"filter": {}}')
    yield filters({}, surplus=1)
    for limit in (0, 1, 2, 49, 50, 51, -1, 1.0, 1.5, "7", "7.0", "x", "", True, False, None, [], {}, 1e30):
        yield {"path": "filter", "body": {"filter": recent, "limit": limit}}

    # The filter's own shape.
    for filter in ([], 1, "x", True, {"surplus": 1}, {"a": 1, "b": {}, "order": "UP"}):
        yield filters(filter)
        yield counts("event", filter)
    for order in ("ASC", "DESC", "asc", "", None, 1, ["ASC"]):
        yield filters({**recent, "order": order}, 5)

    # When. Only forms of which Prefect thinks the same under every Python.
    yield filters({})
    yield filters({"occurred": {}})
    for occurred in (None, [], 1, "2026-11-24", {"surplus": 1}, {"since": None}, {"until": None}):
        yield filters({"occurred": occurred})
    for since in (
        "2026-11-24", "2026-11-24T03:00", "2026-11-24 03:00:00", "2026-11-24T03:00:00+05:30",
        "2026-11-24T03:00:00.1234567Z", 1795489200, 1795489200.5, "1795489200", 1795489200000, "x", "", True, [],
        {}, "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2026-11-24T25:00:00Z", "0000-01-01T00:00:00Z",
        "2026-11-24T03:00:00Zx", -1, 1e20, "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
    ):
        yield filters({"occurred": {"since": since, "until": "2026-11-28T00:00:00Z"}}, 3)
    yield filters({"occurred": {"since": "2026-11-25T00:00:00Z", "until": "2026-11-24T00:00:00Z"}})
    yield filters({"occurred": {"since": "2026-11-24T02:55:26.882201Z", "until": "2026-11-24T02:55:26.882201Z"}})
    yield filters({"occurred": {"since": "2026-11-24T02:55:26.882202Z", "until": "2026-11-24T02:55:26.971345Z"}})

    # The name.
    for event in (
        None, {}, [], "x", {"surplus": 1}, {"name": None}, {"name": "x"}, {"name": [1]}, {"name": [None, "a"]},
        {"prefix": [{}]}, {"name": []}, {"name": ["prefect.flow-run.Completed"]},
        {"name": ["prefect.flow-run.Completed", "prefect.flow-run.Failed"]},
        {"name": ["prefect.flow-run.completed"]}, {"prefix": ["prefect.flow-run."]}, {"prefix": ["PREFECT.flow"]},
        {"prefix": ["prefect.flow-run.", "odd."]}, {"prefix": [""]}, {"prefix": ["%"]}, {"prefix": ["odd.100%"]},
        {"prefix": ["odd.___x"]}, {"prefix": ["odd.back\\"]}, {"prefix": ["odd.back\\slash"]},
        {"exclude_prefix": ["prefect."]}, {"exclude_prefix": ["prefect.", "odd."]}, {"exclude_name": ["shop.chain"]},
        {"exclude_name": ["shop.chain", "shop.rest.bulk"], "prefix": ["shop."]},
        {"prefix": ["prefect."], "name": ["shop.chain"]}, {"prefix": ["odd.grün"]}, {"prefix": ["odd.GRÜN"]},
        {"prefix": ["odd.日"]}, {"name": ['odd.with "quotes"']}, {"name": ["odd.tab\tand\nline"]},
        {"exclude_prefix": [], "exclude_name": [], "prefix": [], "name": []},
    ):
        yield filters({**at, "event": event})

    # The resource.
    for resource in (
        None, {}, [], {"surplus": 1}, {"id": "x"}, {"id": []}, {"id": [1]}, {"id_prefix": [""]},
        {"id_prefix": ["prefect.flow-run."]}, {"id_prefix": ["odd.resource.a_b"]}, {"id_prefix": ["ODD."]},
        {"id": ["odd.resource.a_b.0", "odd.resource.a\\b.1"]}, {"distinct": True}, {"distinct": False},
        {"distinct": "yes"}, {"distinct": "off"}, {"distinct": 1}, {"distinct": 0.0}, {"distinct": 2},
        {"distinct": "maybe"}, {"distinct": None}, {"distinct": True, "id_prefix": ["odd."]},
        {"distinct": True, "id_prefix": ["prefect.flow-run."]}, {"labels": None}, {"labels": {}}, {"labels": []},
        {"labels": "x"}, {"labels": {"label": 1}}, {"labels": {"label": [1, "x"]}}, {"labels": {"label": None}},
        {"labels": {"label": []}}, {"labels": {"label": ""}}, {"labels": {"label": "a_b"}}, {"labels": {"label": "a?b"}},
        {"labels": {"label": "a*"}}, {"labels": {"label": "!a*"}}, {"labels": {"label": "*"}}, {"labels": {"label": "!*"}},
        {"labels": {"label": "!"}}, {"labels": {"label": "!!bang"}}, {"labels": {"other": "!!bang"}},
        {"labels": {"other": "\\!bang"}}, {"labels": {"other": "plain"}}, {"labels": {"other": "PLAIN"}},
        {"labels": {"other": ["plain", "it's"]}}, {"labels": {"label": ["!a*", "a_b"]}},
        {"labels": {"label": "a*", "other": "plain"}}, {"labels": {"dotted.label": "100%"}},
        {"labels": {"dotted.label": "100?"}}, {"labels": {"dotted.label": "back\\slash"}},
        {"labels": {"missing": "*"}}, {"labels": {"missing": "!x"}}, {"labels": {"label": "Grün"}},
        {"labels": {"label": "grün"}}, {"labels": {"label": 'say "hi"'}}, {"labels": {"dotted.label": "[a-z]"}},
        {"labels": {"dotted.label": "tab*line"}}, {"labels": {"label": "日本*"}}, {"labels": {"other": "*😀"}},
        {"labels": {"prefect.resource.id": "odd.resource.*"}}, {"labels": {"prefect.resource.id": ["!odd.*", "*.0"]}},
        {"labels": {"prefect.resource.id": []}}, {"labels": {"prefect.resource.id": "!prefect.*"}},
        {"labels": {"prefect.resource.id": "prefect.flow-run.*", "prefect.resource.name": "*a*"}},
        {"labels": {"prefect.resource.role": "odd"}}, {"labels": {"label": "a*"}, "distinct": True},
        {"labels": {"prefect.resource.id": "", "label": "a*"}},
    ):
        yield filters({**at, "resource": resource})

    # Related resources, and any of all.
    for related in (
        None, {}, [], [{}], [[]], "x", 1, {"surplus": 1}, [{"surplus": 1}], [{}, 3], {"id": "x"}, {"id": ["odd.shared"]},
        {"role": ["odd"]}, {"role": [""]}, {"role": []}, {"id": ["odd.shared"], "role": ["role-1"]},
        {"role": ["flow"]}, {"role": ["flow", "tag"]}, [{"role": ["flow"]}, {"role": ["tag"]}],
        [{"role": ["odd"]}, {"id": ["odd.shared"]}], {"resources_in_roles": [["odd.shared", "role-1"]]},
        {"resources_in_roles": [["odd.shared", "role-1"], ["odd.shared", "role-2"]]}, {"resources_in_roles": []},
        {"resources_in_roles": [["odd.shared"]]}, {"resources_in_roles": [["a", "b", "c"]]},
        {"resources_in_roles": [["a", 1]]}, {"resources_in_roles": ["ab"]}, {"resources_in_roles": "x"},
        {"labels": {}}, {"labels": {"label": "plain"}}, {"labels": {"label": "!plain"}}, {"labels": {"label": []}},
        {"labels": {"prefect.resource.id": "odd.*"}}, {"labels": {"prefect.resource.role": "odd"}},
        {"labels": {"prefect.resource.role": ["odd", "role-2"], "label": "a*"}},
        {"labels": {"prefect.resource.role": "o*"}}, {"labels": {"prefect.resource.role": []}},
        {"labels": {"prefect.resource.id": "!odd.*"}}, {"labels": {"prefect.resource.name": "*"}},
        {"role": ["flow"], "labels": {"prefect.resource.name": "!x"}},
    ):
        yield filters({**at, "related": related})
    for any_resource in (
        None, {}, [], [{}], {"surplus": 1}, "x", {"id": 1}, {"id": ["odd.shared"]}, {"id_prefix": ["odd."]},
        {"id_prefix": ["prefect.flow.", "odd.related"]}, {"id_prefix": ["odd.resource.a_b"]}, {"id_prefix": [""]},
        {"labels": {"label": "plain"}}, {"labels": {"label": "a*"}}, {"labels": {"label": "!a*"}},
        {"labels": {"prefect.resource.role": ["odd"]}}, {"labels": {"prefect.resource.role": ""}},
        {"labels": {"prefect.resource.role": [""]}}, {"labels": {"prefect.resource.id": "*shared"}},
        {"labels": {}}, {"labels": {"label": []}}, [{"id": ["odd.shared"]}, {"id_prefix": ["odd.resource.a"]}],
        [{"id": ["odd.shared"]}, {"labels": {"label": "x"}}], {"role": ["odd"]},
    ):
        yield filters({**at, "any_resource": any_resource})

    # One event.
    one = "00000000-0000-4000-8000-000000000000"
    for id in (
        None, {}, {"id": None}, {"id": []}, {"id": one}, {"id": [one]}, {"id": [one.replace("-", "")]},
        {"id": ["{" + one + "}"]}, {"id": ["urn:uuid:" + one]}, {"id": [one, one[:-1] + "1"]}, {"id": [one, one]},
        {"id": ["x"]}, {"id": [1]}, {"id": [one, "x", None]}, {"id": ["7d3ba691-6665-4803-9905-000000000000"]},
        {"surplus": []},
    ):
        yield filters({**at, "id": id})

    # Text.
    for query in (
        "", " ", "completed", "COMPLETED", "webhook", "webhook secret", "webhook -secret", "webhook !secret", "+webhook +url",
        "-prefect", "- webhook", "+ webhook", "!", '"flow run"', '"connection timeout', '-"webhook"', '+"webhook" url',
        "100%", "a_b", "a/b%c_d", "//", "back\\slash", 'say \\"hi\\"', '"say \\\\\\"hi\\\\\\""', "grün", "GRÜN", "日本", "😀",
        "\t", "web\u00a0hook", "webhook\u2003secret", "x" * 200, "x" * 201, "ü" * 200, "ü" * 201, "shop-webhook",
        "-shop -prefect", "+odd -a_b star", "prefect.resource.id", "--webhook", "-+webhook", 'a"b c"d', "İ", "ﬀ",
    ):
        yield filters({**at, "text": {"query": query}})
    for text in (None, {}, "x", {"query": None}, {"query": 1}, {"query": ["x"]}, {"query": "x", "surplus": 1}):
        yield filters({**at, "text": text})

    # Counts.
    wide = {"occurred": {"since": "2024-03-25T00:00:00Z", "until": "2026-11-28T00:00:00Z"}}
    for countable in ("event", "resource", "day", "time"):
        yield counts(countable, wide)
        yield counts(countable, {**recent, "event": {"prefix": ["odd."]}})
        yield counts(countable, {**recent, "resource": {"labels": {"label": "a*"}}})
        yield counts(countable, {**recent, "text": {"query": "webhook"}})
        yield counts(countable, {**recent, "event": {"name": ["none"]}})
        yield counts(countable, {"surplus": 1})
    for unit in ("week", "day", "hour", "minute", "second", "Day", "", None, 1):
        yield counts("time", recent, time_unit=unit)
    for interval in (0.01, 0.009, 0, -1, 0.5, 2, 2.5, 7, "2", "x", True, None, [], 1e3, 365.25):
        yield counts("time", recent, time_interval=interval)
    for unit, interval, minutes in (
        ("second", 1, 16), ("second", 5, 80), ("second", 0.25, 4), ("second", 0.1, 1), ("minute", 1, 900),
        ("minute", 0.5, 300), ("minute", 7.3, 3000), ("hour", 0.3, 3000), ("week", 0.1, 20000), ("second", 1, 17),
    ):
        since = datetime.datetime(2026, 11, 24, 2, 55, tzinfo=datetime.timezone.utc)
        until = since + datetime.timedelta(minutes=minutes)
        occurred = {"since": since.isoformat(), "until": until.isoformat()}
        yield counts("time", {"occurred": occurred}, time_unit=unit, time_interval=interval)
    yield counts("time", {"occurred": {"since": "2026-11-28T00:00:00Z", "until": "2026-11-29T00:00:00Z"}}, time_unit="hour")
    yield counts("time", {"occurred": {"since": "2026-11-27T23:00:00Z", "until": NOW}}, time_unit="week")
    yield counts("time", {"occurred": {"since": "2026-11-28T00:00:00Z", "until": "2026-11-27T00:00:00Z"}})
    yield counts("time", {"occurred": {"since": "2026-11-23T22:30:00-04:00", "until": "2026-11-24T12:00:00+02:00"}}, time_unit="hour")

    # Tokens of pages.
    for token in ("", "?page-token=", "?page-token=x", "?page-token=%00", "?page-token=bm90IGpzb24=", "?page_token=x"):
        yield {"path": "filter/next" + token, "method": "GET"}


def made_cases(events, seed, number):
    """Filters that are put together from what the events hold."""
    chance = random.Random(seed)
    some = lambda: chance.choice(events)  # noqa: E731

    def part_of(text):
        place = chance.randrange(len(text) + 1) if text else 0
        return text[:place]

    def pattern(text):
        kind = chance.randrange(6)
        if kind == 0 and text:
            place = chance.randrange(len(text))
            text = text[:place] + "?" + text[place + 1 :]
        elif kind == 1:
            text = part_of(text) + "*"
        elif kind == 2:
            text = "*" + text[len(text) // 2 :]
        elif kind == 3:
            text = text.upper()
        return ("!" if chance.random() < 0.2 else "") + text

    def labels(resource):
        chosen = chance.sample(sorted(resource), k=min(len(resource), chance.randint(1, 2)))
        return {
            label: pattern(resource[label]) if chance.random() < 0.5 else [pattern(resource[label]) for _ in range(2)]
            for label in chosen
        }

    def occurred():
        a, b = sorted((some()["occurred"], some()["occurred"]))
        return chance.choice([ALL_TIME, DAY, {"since": a, "until": b}])

    def words():
        event = some()
        pool = [event["event"], event["resource"]["prefect.resource.id"], *event["resource"].values(), *event["payload"]]
        words = [part_of(str(word)) for word in chance.sample(pool, k=min(len(pool), 2))]
        signs = [chance.choice(["", "", "-", "+", "!"]) for _ in words]
        return " ".join(sign + word for sign, word in zip(signs, words))[:200]

    for _ in range(number):
        filter = {"occurred": occurred()}
        if chance.random() < 0.3:
            filter["event"] = {
                kind: [some()["event"] if "name" in kind else part_of(some()["event"]) for _ in range(chance.randint(1, 3))]
                for kind in chance.sample(["name", "prefix", "exclude_name", "exclude_prefix"], k=chance.randint(1, 2))
            }
        if chance.random() < 0.35:
            resource = some()["resource"]
            kind = chance.randrange(4)
            filter["resource"] = [
                {"id": [resource["prefect.resource.id"], some()["resource"]["prefect.resource.id"]]},
                {"id_prefix": [part_of(resource["prefect.resource.id"])]},
                {"labels": labels(resource)},
                {"distinct": True},
            ][kind]
        involved = [resource for _ in range(3) for resource in [some()["resource"], *some()["related"]]]
        related = [resource for resource in involved if "prefect.resource.role" in resource]
        if related and chance.random() < 0.3:
            one = chance.choice(related)
            id, role = one["prefect.resource.id"], one["prefect.resource.role"]
            filter["related"] = [
                {"id": [id]}, {"role": [role]}, {"id": [id], "role": [role]}, {"resources_in_roles": [[id, role]]},
                {"labels": labels(one)}, [{"id": [id]}, {"role": ["flow"]}],
            ][chance.randrange(6)]
        if chance.random() < 0.3:
            one = chance.choice(involved)
            id = one["prefect.resource.id"]
            filter["any_resource"] = [
                {"id": [id]}, {"id_prefix": [part_of(id)]}, {"labels": labels(one)}, [{"id": [id]}, {"labels": labels(one)}],
            ][chance.randrange(4)]
        if chance.random() < 0.15:
            filter["text"] = {"query": words()}
        if chance.random() < 0.5:
            filter["order"] = chance.choice(["ASC", "DESC"])
        kind = chance.randrange(5)
        if kind == 0:
            yield counts(chance.choice(["event", "resource"]), filter)
        elif kind == 1:
            filter["occurred"] = DAY
            unit, interval = chance.choice([("minute", 5.5), ("hour", 1), ("hour", 2.5), ("day", 0.1), ("week", 1)])
            yield counts("time", filter, time_unit=unit, time_interval=interval)
        else:
            yield filters(filter, chance.choice([None, 7, 20, 50]))


JUNK = [
    None, True, False, 0, 1, -1, 51, 1.5, 1e300, "", "x", "1", "2026-11-24", "2026-11-24T00:00:00Z", "day", "DESC", [], {},
    [[]], [None], ["x"], [1], {"a": 1}, {"a": ["x"]}, {"id": ["x"]}, "x" * 250, 10**30,
]


def many_cases(events, seed, number):
    """So many cases: the written ones, made ones, and made ones in which something was broken."""
    chance = random.Random(seed)
    written = list(written_cases())
    yield from written[:number]
    made = made_cases(events, seed + 1, number)
    odd = lambda: chance.choice(ODD_TEXTS)  # noqa: E731

    def places(value, at=()):
        """Every place in it, as the keys that lead there."""
        yield at
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, value in inner:
            yield from places(value, (*at, key))

    def at(body, keys):
        for key in keys:
            body = body[key]
        return body

    def break_it(body):
        *keys, last = chance.choice([place for place in places(body) if place])
        parent, kind = at(body, keys), chance.randrange(4)
        if kind == 0 and isinstance(parent, dict):
            parent[chance.choice(["surplus", "id", "labels", "name", "since", "order"])] = copy.deepcopy(chance.choice(JUNK))
        elif kind == 1 and isinstance(parent, dict):
            del parent[last]
        elif kind == 2 and isinstance(parent[last], str):
            text = parent[last]
            place = chance.randrange(len(text) + 1)
            parent[last] = text[:place] + chance.choice(["", "*", "?", "0", "-", " ", "Z"]) + text[place + 1 :]
        else:
            parent[last] = copy.deepcopy(chance.choice(JUNK))

    def make_odd(filter):
        kind = chance.randrange(6)
        label = chance.choice(ODD_LABELS)
        value = [("!" if chance.random() < 0.3 else "") + odd() for _ in range(chance.randint(1, 2))]
        if kind == 0:
            filter["text"] = {"query": " ".join(chance.choice(["", "-", "+", "!", '"']) + odd()[:40] for _ in range(3))[:200]}
        elif kind == 1:
            filter["event"] = {chance.choice(["name", "prefix", "exclude_name", "exclude_prefix"]): value}
        elif kind == 2:
            filter["resource"] = {"labels": {label: value}, "distinct": chance.random() < 0.2}
        elif kind == 3:
            filter["any_resource"] = chance.choice([{"labels": {label: value}}, {"id_prefix": ["odd." + value[0]]}])
        elif kind == 4:
            filter["related"] = chance.choice([{"labels": {label: value[0]}}, {"role": value}, [{"role": value}, {"id": value}]])
        else:
            filter["id"] = {"id": [chance.choice(events)["id"] for _ in range(chance.randint(1, 60))]}

    def shorten(filter):
        """Mostly a part of the time, at odd ends."""
        since = datetime.datetime(2026, 10, 1, tzinfo=datetime.timezone.utc)
        since += datetime.timedelta(seconds=chance.randrange(57 * 86_400), microseconds=chance.randrange(10**6))
        until = since + datetime.timedelta(seconds=chance.choice([60, 3_600, 86_400, 10 * 86_400]))
        filter["occurred"] = {"since": since.isoformat(), "until": until.isoformat()}
        return (until - since).total_seconds()

    for case in (next(made) for _ in range(max(0, number - len(written)))):
        filter = case["body"]["filter"]
        seconds = shorten(filter) if chance.random() < 0.8 else None
        if chance.random() < 0.4:
            make_odd(filter)
        if case["path"] == "count-by/time":
            unit, size = chance.choice([("second", 1), ("minute", 60), ("hour", 3_600), ("day", 86_400), ("week", 604_800)])
            least = max(seconds or 60 * 86_400, 1) / size / 900
            interval = chance.choice([least, least * 3.7, float(int(least) + 1), max(least, 1)])
            case["body"].update(time_unit=unit, time_interval=max(interval, 0.01))
            if not seconds:
                filter["occurred"] = {"since": "2026-10-01T00:00:00Z", "until": "2026-11-28T00:00:00Z"}
        if chance.random() < 0.15:
            break_it(case["body"])
        yield case


# --- Answers ----------------------------------------------------------------------------------------------------


def freeze():
    """Makes Prefect's clock stand still, so that its defaults are the same whenever this runs."""
    import prefect.server.events.counting
    import prefect.types._datetime

    moment = prefect.types._datetime.parse_datetime(NOW)
    prefect.types._datetime.now = lambda tz="UTC": moment
    prefect.server.events.counting.now = lambda tz="UTC": moment


async def fill(events):
    import sqlalchemy as sa
    from prefect.server.database import provide_database_interface
    from prefect.server.events.schemas.events import ReceivedEvent
    from prefect.server.events.storage.database import write_events

    db = provide_database_interface()
    engine = await db.engine()
    if engine.dialect.name == "sqlite" and engine.dialect.dbapi.sqlite_version_info < (3, 44):

        @sa.event.listens_for(engine.sync_engine, "connect")
        def add_concat(connection, record):
            # Prefect needs it for a search.
            join = lambda *parts: "".join(str(part) for part in parts if part is not None)  # noqa: E731
            connection.create_function("concat", -1, join)

        await engine.dispose()
    async with db.session_context(begin_transaction=True) as session:
        await session.execute(sa.delete(db.EventResource))
        await session.execute(sa.delete(db.Event))
        for start in range(0, len(events), 100):
            chunk = [ReceivedEvent.model_validate(event) for event in events[start : start + 100]]
            await write_events(session, chunk)
    return engine.dialect.name


async def ask(client, case):
    url = "/api/events/" + case["path"]
    if case.get("method") == "GET":
        return await client.get(url)
    if "text" in case:
        return await client.post(url, content=case["text"].encode(), headers={"content-type": case["type"]})
    return await client.post(url, json=case["body"])


async def page(client, url):
    """A page that follows. On a busy machine Prefect gives up a question now and then, and is asked again."""
    for _ in range(5):
        response = await client.get(url)
        if response.status_code == 200:
            break
    response.raise_for_status()
    return response.json()


async def answer(client, case, places, max_pages=12):
    """Status, and what the answer says: ids in order over all pages, counts, or what is wrong."""
    response = await ask(client, case)
    said = {"status": response.status_code}
    if response.status_code == 422:
        detail = response.json().get("exception_detail")
        # A bound that the handler checks itself has a sentence alone.
        said["wrong"] = [[*one["loc"], one["type"]] for one in detail] if isinstance(detail, list) else detail
    if response.status_code != 200:
        return said
    body = response.json()
    if not case["path"].startswith("filter"):
        return {**said, "counts": [list(one.values()) for one in body]}
    said["total"], said["events"], said["pages"] = body["total"], [], 0
    while True:
        said["events"] += [places[event["id"]] for event in body["events"]]
        said["pages"] += 1
        if not body["next_page"] or not body["events"] or said["pages"] == max_pages:
            said["next"] = body["next_page"] is not None
            return said
        body = await page(client, body["next_page"])


def prefect():
    """A client of a Prefect server in this process."""
    import httpx
    from prefect.server.api.server import create_app

    transport = httpx.ASGITransport(app=create_app(), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://prefect", timeout=600)


def with_large_numbers_as_text(case):
    """Whoever reads the case again may hold no integer of more than 64 bits, so the body is kept as it is sent."""
    if "body" in case and str(10**30) in (text := json.dumps(case["body"])):
        return raw(case["path"], text)
    return case


async def many_answers(path, num_cases, num_events, seed):
    max_pages = 3
    events = load(path)
    events += varied_events(events, num_events - len(events), seed)
    dialect = await fill(events)
    freeze()
    places = {str(event["id"]): place for place, event in enumerate(events)}
    print(json.dumps({"now": NOW, "max_pages": max_pages, "ids": list(places)}), flush=True)
    async with prefect() as client:
        for case in map(with_large_numbers_as_text, many_cases(events, seed, num_cases)):
            print(json.dumps({"case": case, dialect: await answer(client, case, places, max_pages)}), flush=True)


async def answers(path):
    events = load(path)
    dialect = await fill(events)
    freeze()
    places = {str(event["id"]): place for place, event in enumerate(events)}
    async with prefect() as client:
        made = made_cases(events, 18, 220)
        for case in [*written_cases(), *made]:
            print(json.dumps({"case": case, dialect: await answer(client, case, places)}))
        # How an event looks, to the letter.
        whole = {"path": "filter", "body": {"filter": {"occurred": ALL_TIME, "event": {"prefix": ["odd."]}}, "limit": 20}}
        text = (await ask(client, whole)).text
        print(json.dumps({"case": whole, dialect: {"body": text}}))


def merge(path, sqlite, postgresql):
    """Both databases' answers to a case stand side by side; the events that are not in EVENTS come first."""
    with gzip.GzipFile("/dev/stdout", "wb", mtime=0) as out:
        write = lambda line: out.write((json.dumps(line) + "\n").encode())  # noqa: E731
        write({"now": NOW, "odd_events": list(odd_events())})
        for one, other in zip(open(sqlite), open(postgresql), strict=True):
            one, other = json.loads(one), json.loads(other)
            assert one["case"] == other["case"]
            same = one["sqlite"] == other["postgresql"]
            # SQLite's own versions differ about the last half of a millisecond of a second.
            body = one["case"].get("body")
            if isinstance(body, dict) and body.get("time_unit") == "second" and one["sqlite"]["status"] == 200:
                write(other)
                continue
            write({"case": one["case"], "prefect": one["sqlite"]} if same else {**one, **other})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["answer", path]:
            asyncio.run(answers(path))
        case ["many", path, num_cases, num_events, seed]:
            asyncio.run(many_answers(path, int(num_cases), int(num_events), int(seed)))
        case ["merge", path, sqlite, postgresql]:
            merge(path, sqlite, postgresql)
        case _:
            sys.exit(__doc__)
