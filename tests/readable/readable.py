"""Can Prefect read what is stored? Asks Prefect's own code. How it is run stands in run.sh.

    readable.py cases                  the odd cases of tests/data/prefect-readable.jsonl.gz, without answers
    readable.py record                 the cases of standard input with what Prefect makes of them
    readable.py generate NUMBER SEED   that many hostile events, one a line
    readable.py check FILE             whether each event of the file was stored as Prefect reads it, or refused
                                       where Prefect could not store it or not read it back

The database is that of Prefect's own setting, PREFECT_API_DATABASE_CONNECTION_URL. `record` empties it. `check`
only reads it, and lets Prefect try what was refused in the database SCRATCH_URL.
"""

import asyncio
import collections
import datetime
import json
import os
import random
import struct
import subprocess
import sys
import uuid

NAMESPACE = uuid.UUID("5a6d7e1c-40a5-4f0a-9a1c-0f5a6d7e1c40")
# Longer texts do not stand in the table.
LONGEST = 20_000_000
ALL_TIME = {"since": "0001-01-01T00:00:00Z", "until": "9999-12-31T23:59:59.999999Z"}
PAGE = 50


# --- Cases and events -------------------------------------------------------------------------------------------


def event(id, fields):
    """The text of an event; the value of each field is JSON text."""
    members = {
        "id": f'"{id}"',
        "occurred": '"2026-11-20T10:00:00Z"',
        "received": '"2026-11-20T10:00:01Z"',
        "event": '"readable.case"',
        "resource": '{"prefect.resource.id":"readable.resource"}',
        **fields,
    }
    return "{" + ",".join(f'"{key}":{value}' for key, value in members.items()) + "}"


ODD_NUMBERS = (
    "0 -0 0.0 -0.0 0.00 2.50 1e2 1E+2 100E-0002 1e00005 12345678901234567890.5 1e16 1e-7 0e99 0e-99 "
    "9223372036854775807 9223372036854775808 -9223372036854775809 18446744073709551616 "
    "NaN Infinity -Infinity 1e308 -1e308 1.7976931348623157e308 1.7976931348623158e308 "
    "1.7976931348623159e308 2e308 1e309 1E400 -1e400 1e4299 1e4300 1e4301 1e16383 1e131071 1e131072 "
    "1e99999999999999999999 -1E+99999999999999999999 1e-300 1e-308 2.2250738585072014e-308 1e-323 5e-324 "
    "4.9e-324 3e-324 2e-324 -2e-324 1e-400 -1e-400 123e-400 1e-16383 1e-16384 1e-99999999999999999999 "
    "0e400 -0e400 0e-400 0.0e-16384 0e131072 0e99999999999999999999"
).split()


def long_numbers():
    """Of many digits: name and text."""
    for length in (30, 309, 310, 400, 4_298, 4_299, 4_300, 4_301, 5_000):
        yield f"{length} nines", "9" * length
        yield f"minus {length} nines", "-" + "9" * length
        yield f"1 and {length - 1} zeros", "1" + "0" * (length - 1)
    for length in (17, 1_000, 4_300, 5_000, 16_382, 16_383, 16_384, 20_000):
        yield f"0 and {length} decimals", "0." + "7" * length
        yield f"minus 1 and {length} decimals", "-1." + "7" * length
        yield f"1 and {length} decimals of 0", "1." + "0" * length
        yield f"0 and {length} decimals of 0", "0." + "0" * length
        yield f"1 behind {length} decimals of 0", "0." + "0" * length + "1"
    for exponent in ("e308", "e300", "e-300"):
        yield f"5000 decimals {exponent}", "1." + "7" * 5_000 + exponent
        yield f"17000 decimals {exponent}", "1." + "7" * 17_000 + exponent
    for length in (308, 309, 4_300, 4_301):
        yield f"{length} digits and 5000 decimals", "7" * length + "." + "7" * 5_000
        yield f"{length} digits e-4299", "9" * length + "e-4299"
        yield f"{length} digits .5e-4299", "9" * length + ".5e-4299"
    yield "210 zeros e99", "1" + "0" * 210 + "e99"
    yield "210 zeros e-99", "1" + "0" * 210 + "e-99"
    yield "20000 decimals and an exponent that undoes them", "0." + "0" * 20_000 + "1e20001"
    yield "230 decimals e-99", "0." + "0" * 230 + "1e-99"
    yield "5000 zeros in the exponent", "1e" + "0" * 5_000 + "5"
    yield "5000 zeros in the negative exponent", "1e-" + "0" * 5_000 + "5"


ODD_PAYLOADS = {
    "deep and spaced": '{"deep":[[{"a":[1e400,{"b":-1e-400}]}],1e400 ,\t1e400\r],"1e400":"1e400, 1e400","a" : 1e400}',
    "hexadecimal digits": '{"id":"3e123456-0e11-4e99-9e00-1e4001e40012","a":1e10,"k":[1.5E-07,-2e+99]}',
    "last of repeated keys": '{"n":1e400,"n":1}',
    "null for the last of repeated keys": '{"n":1,"n":1e400}',
    "1000 of 1e308": '{"n":[%s0]}' % ("1e308," * 1_000),
    "9000 of 1e131071": '{"n":[%s0]}' % ("1e131071," * 9_000),
    "870000 of 1e308": '{"n":[%s0]}' % ("1e308," * 870_000),
    "empty keys": '{"":{"":[""]}}',
    "surrogates": r'{"a":"\ud83d\ude00","b":"\uffff\ufffe\u0001\u007f\u2028","c":"\\u0000"}',
    "NUL": r'{"a\u0000b":"\u0000"}',
    "half a surrogate": r'{"a":"\ud83d"}',
    "Python's own names": '{"__class__":"x","$ref":1,"self":2,"model_config":{},"root":[]}',
}

ODD_TIMES = [
    *(f'"9999-12-31T23:59:59.{micros:06}Z"' for micros in (0, 999_000, 999_984, 999_985, 999_999)),
    '"9999-12-31T23:59:59.999999-00:01"',
    '"9999-12-31T23:59:59.999999+00:01"',
    '"0001-01-01T00:00:00Z"',
    '"0001-01-01T00:00:00.000001Z"',
    '"0001-01-01T00:00:01Z"',
    '"0001-01-01T00:00:00+00:01"',
    '"0001-01-01T00:00:00-00:01"',
    '"1500-02-28T00:00:00Z"',
    "-62135596800000",
    "253402300799999",
    "253402300800000",
]

ODD_FIELDS = [
    ("event", r'"a\u0000b"'),
    ("event", r'"\uffff\u0001\u2028 \ud83d\ude00"'),
    ("resource", r'{"prefect.resource.id":"r\u0000x"}'),
    ("resource", r'{"prefect.resource.id":"r","a":"x\u0000y","b\u0000c":"d"}'),
    ("resource", r'{"prefect.resource.id":"r","":"","a.b":"1","$":"2","[0]":"3","a\"b":"4","\\":"5","%s":"%"}'),
    ("related", r'[{"prefect.resource.id":"r\u0000x","prefect.resource.role":"a\u0000"}]'),
    ("related", '[%s]' % ",".join(['{"prefect.resource.id":"r","prefect.resource.role":"a"}'] * 2)),
    ("follows", '"00000000-0000-0000-0000-000000000000"'),
    ("id", '"00000000-0000-0000-0000-000000000000"'),
    ("id", '"ffffffff-ffff-ffff-ffff-ffffffffffff"'),
]


def all_cases():
    """Name and fields of each case."""
    for name, number in [*((number, number) for number in ODD_NUMBERS), *long_numbers()]:
        yield f"number: {name}", {"payload": '{"n":%s}' % number}
    for name, payload in ODD_PAYLOADS.items():
        yield f"payload: {name}", {"payload": payload}
    for depth in (190, 197, 198, 199):
        yield f"payload: {depth} lists", {"payload": '{"n":' + "[" * depth + "1" + "]" * depth + "}"}
        yield f"payload: {depth} objects", {"payload": '{"n":' * depth + "1" + "}" * depth}
    for time in ODD_TIMES:
        for field in ("occurred", "received"):
            yield f"{field}: {time}", {field: time}
    for field, value in ODD_FIELDS:
        yield f"{field}: {value}", {field: value}
    yield "unknown field: 4301 nines", {"unknown": "[%s]" % ("9" * 4_301)}


def cases():
    for name, fields in all_cases():
        print(json.dumps({"name": name, "data": event(uuid.uuid5(NAMESPACE, name), fields)}))


class Generator:
    """Hostile events, the same ones for the same seed."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    def event(self):
        one_in = lambda number: self.rng.randrange(number) == 0
        fields = {"payload": self.object(0), "resource": self.resource({})}
        fields["related"] = "[%s]" % ",".join(
            self.resource({"prefect.resource.role": self.string()}) for _ in range(self.rng.randrange(4))
        )
        fields["event"] = self.string()
        for field in ("occurred", "received"):
            fields[field] = self.rng.choice(ODD_TIMES) if one_in(20) else self.time()
        if one_in(4):
            fields["follows"] = f'"{uuid.UUID(int=self.rng.getrandbits(128))}"'
        return event(uuid.UUID(int=self.rng.getrandbits(128)), fields)

    def time(self):
        micros = self.rng.randrange(-62_135_596_800_000_000, 253_402_300_800_000_000)
        if self.rng.randrange(4):
            micros = 1_700_000_000_000_000 + self.rng.randrange(9 * 10**13)
        time = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=micros)
        zone = self.rng.choice(["Z", "", "+00:00", "-23:59", "+05:30"])
        return f'"{time.isoformat()}{zone}"'

    def resource(self, labels):
        labels = {"prefect.resource.id": self.string() if self.rng.randrange(4) else '"readable.resource"', **labels}
        members = [f'"{key}":{value}' for key, value in labels.items()]
        members += [f"{self.string()}:{self.string()}" for _ in range(self.rng.randrange(4))]
        return "{" + ",".join(members) + "}"

    def string(self):
        characters = [
            lambda: self.rng.choice("abcxyz.-_/ 0123456789eE%*!$[]{}:,'"),
            lambda: self.rng.choice(["\\n", "\\t", '\\"', "\\\\", "\\/", "\\u0041", "\\u00e9", "\\ud83d\\ude00"]),
            lambda: chr(self.rng.choice([0x7F, 0xE9, 0x2028, 0xFFFF, 0xFEFF, 0x1F600, 0x10FFFF])),
            lambda: "\\u%04x" % self.rng.choice([1, 0x1F, 0x7F, 0xFFFE, 0xFFFF, 0xE000]),
        ]
        text = "".join(self.rng.choice(characters)() for _ in range(self.rng.randrange(1, 12)))
        if self.rng.randrange(400) == 0:
            text += self.rng.choice(["\\u0000", "\\ud83d", "\\ude00"])
        return f'"{text}"'

    def number(self):
        length = lambda: self.rng.choice([0, 1, 2, 17, 210, 308, 309, 310, 400, self.rng.randrange(4_295, 4_301)])
        kind = self.rng.randrange(8)
        if kind < 2:
            return self.rng.choice(ODD_NUMBERS)
        if kind == 2:
            return repr(struct.unpack("d", self.rng.randbytes(8))[0]).replace("nan", "NaN").replace("inf", "Infinity")
        digits = lambda num: "".join(self.rng.choice("0123456789") for _ in range(num))
        text = self.rng.choice(["", "-"]) + (self.rng.choice("123456789") + digits(length() - 1)).replace(" ", "")
        if kind < 5:
            return text if self.rng.randrange(200) else text + digits(4_300)
        if self.rng.randrange(3):
            text += "." + digits(1 + (length() if self.rng.randrange(20) else self.rng.randrange(16_000, 16_900)))
        if self.rng.randrange(3):
            span = self.rng.choice([5, 30, 330, 4_400, 17_000, 140_000, 10**12])
            text += self.rng.choice("eE") + self.rng.choice(["", "+", "-", "-00", "0"])
            text += str(self.rng.randrange(span))
        return text

    def value(self, depth):
        kind = self.rng.randrange(10 if depth < 4 else 7)
        if kind < 5:
            return self.number()
        if kind == 5:
            return self.string()
        if kind == 6:
            return self.rng.choice(["null", "true", "false", "[]", "{}", '""'])
        if kind == 7:
            return self.object(depth + 1)
        if kind == 8 and self.rng.randrange(60) == 0:
            depth = self.rng.randrange(180, 200)
            return "[" * depth + self.number() + "]" * depth
        return "[%s]" % self.space(",").join(self.value(depth + 1) for _ in range(self.rng.randrange(4)))

    def object(self, depth):
        keys = lambda: self.rng.choice(['"n"', '"k"', '""', self.string()])
        members = (keys() + self.space(":") + self.value(depth) for _ in range(self.rng.randrange(5)))
        return "{" + self.space(",").join(members) + "}"

    def space(self, text):
        return self.rng.choice(["", " ", "\t"]) + text + self.rng.choice(["", " "])


def generate(number, seed):
    generator = Generator(int(seed))
    for _ in range(int(number)):
        print(generator.event())


# --- Prefect ----------------------------------------------------------------------------------------------------


class Prefect:
    """A database in the hands of Prefect's own code."""

    def __init__(self):
        from prefect.server.database import provide_database_interface
        from prefect.server.events import filters
        from prefect.server.events.schemas.events import EventPage, ReceivedEvent
        from prefect.server.events.storage import database as storage
        import sqlalchemy

        self.db = provide_database_interface()
        self.filters, self.storage, self.sql = filters, storage, sqlalchemy
        self.EventPage, self.ReceivedEvent = EventPage, ReceivedEvent
        url = os.environ["PREFECT_API_DATABASE_CONNECTION_URL"]
        self.dialect = "sqlite" if url.startswith("sqlite") else "postgres"

    def parse(self, text):
        """The event, as the consumer of Prefect's persister reads it, or what is wrong."""
        try:
            return self.ReceivedEvent.model_validate_json(text), None
        except Exception as error:
            return None, str(error).split("[type=")[0].strip()

    async def write(self, event):
        """None, or what is wrong."""
        try:
            async with self.db.session_context() as session:
                await self.storage.write_events(session, [event])
                await session.commit()
        except BaseException as error:
            return describe(error)
        return None

    async def ask(self, sql, **values):
        async with self.db.session_context() as session:
            result = await session.execute(self.sql.text(sql), values)
            found = result.all() if result.returns_rows else []
            await session.commit()
            return found

    def key(self, id):
        return str(id) if self.dialect == "sqlite" else id

    async def raw(self, id):
        """Payload and times as they stand in the row."""
        length = "octet_length(payload::text)" if self.dialect == "postgres" else "length(payload)"
        columns = ", ".join(f"CAST({column} AS text)" for column in ("payload", "occurred", "received"))
        columns = columns.replace("CAST(payload", f"CAST(CASE WHEN {length} < {LONGEST} THEN payload END", 1)
        found = await self.ask(f"SELECT {columns} FROM events WHERE id = :id", id=self.key(id))
        return list(found[0])

    async def read(self, ids):
        """The events as Prefect's page gets them, by their ids."""
        filter = self.filters.EventFilter.model_validate({"occurred": ALL_TIME, "id": {"id": ids}})
        async with self.db.session_context() as session:
            events, total, next_page = await self.storage.query_events(session, filter, page_size=PAGE)
        page = self.EventPage(events=events, total=total, next_page=None)
        json.loads(page.model_dump_json())
        # As the WebSocket of live events sends them, for readers that are not Python's.
        for event in events:
            json.dumps(event.model_dump(mode="json"), allow_nan=False)
            self.ReceivedEvent.model_validate_json(event.model_dump_json())
        if self.dialect == "postgres":
            # Prefect's search for a text; the SQLite of an older Python has no concat().
            filter = self.filters.EventFilter.model_validate(
                {"occurred": ALL_TIME, "id": {"id": ids}, "text": {"query": "nothing-of-the-kind"}}
            )
            async with self.db.session_context() as session:
                await self.storage.query_events(session, filter, page_size=PAGE)
        return {event.id: event for event in events}


def describe(error):
    while error.__cause__ is not None and type(error).__module__.startswith("sqlalchemy"):
        error = error.__cause__
    return f"{type(error).__name__}: {error}"[:200]


async def record():
    prefect = Prefect()
    for line in sys.stdin:
        case = json.loads(line)
        answers = case.setdefault("prefect", {})
        event, wrong = prefect.parse(case["data"])
        answers["parse"] = wrong or "accepted"
        if event is not None:
            for table in ("events", "event_resources"):
                await prefect.ask(f"DELETE FROM {table}")
            answers["id"] = str(event.id)
            wrong = await prefect.write(event)
            answer = answers[prefect.dialect] = {"write": wrong or "stored"}
            if wrong is None:
                answer["payload"], answer["occurred"], answer["received"] = await prefect.raw(event.id)
                try:
                    found = await prefect.read([event.id])
                    answer["read"] = "ok" if list(found) == [event.id] else "another event"
                except Exception as error:
                    answer["read"] = describe(error)
        print(json.dumps(case, ensure_ascii=True), flush=True)


# --- What is stored ---------------------------------------------------------------------------------------------


def as_stored(value):
    """What Prefect stores of a value."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, list):
        return [as_stored(item) for item in value]
    if isinstance(value, dict):
        return {key: as_stored(item) for key, item in value.items()}
    return value


def is_same(expected, found):
    """Equal; a double may have become the integer or the exact number that it was written as."""
    if isinstance(expected, bool) or isinstance(found, bool) or expected is None or found is None:
        return expected is found
    if isinstance(expected, float):
        return isinstance(found, (int, float)) and float(found) == expected
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(is_same, expected, found))
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(is_same(expected[key], found[key]) for key in expected)
    return type(expected) is type(found) and expected == found


def differences(expected, found):
    for column in ("id", "event", "follows", "resource", "related"):
        if getattr(expected, column) != getattr(found, column):
            yield column
    for column in ("occurred", "received"):
        # In the year 9999 Prefect itself is up to 15 microseconds off, on PostgreSQL.
        if abs(getattr(expected, column) - getattr(found, column)) > datetime.timedelta(microseconds=16):
            yield column
    if not is_same(as_stored(expected.payload), found.payload):
        yield "payload"


def why_prefect_cannot(texts):
    """Why Prefect does not store each of the events, or not read it back, in the other database; else None."""
    environment = {**os.environ, "PREFECT_API_DATABASE_CONNECTION_URL": os.environ["SCRATCH_URL"]}
    cases = "\n".join(json.dumps({"name": "", "data": text}) for text in texts)
    command = [sys.executable, __file__, "record"]
    done = subprocess.run(command, input=cases, text=True, capture_output=True, env=environment, check=True)
    for line in done.stdout.splitlines():
        answers = json.loads(line)["prefect"]
        [answer] = [answers[key] for key in ("postgres", "sqlite") if key in answers]
        if answer["write"] != "stored":
            yield answer["write"]
        else:
            yield None if answer["read"] == "ok" else answer["read"]


async def check(path):
    prefect = Prefect()
    wrong, counts = [], collections.Counter()
    stored = {str(row[0]) for row in await prefect.ask("SELECT id FROM events")}
    letters = {}
    for id, reason in await prefect.ask("SELECT event_id, reason FROM event_persister_dead_letters"):
        letters[str(id)] = reason
    expected, refused = [], []
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            event, refusal = prefect.parse(line)
            if event is None:
                counts["refused by both"] += 1
                # The id is known where it stood before what is wrong.
                continue
            if str(event.id) in stored:
                expected.append(event)
            elif str(event.id) not in letters:
                wrong.append(f"line {number}: neither stored nor a dead letter")
            else:
                refused.append((number, line, letters[str(event.id)]))
    answers = why_prefect_cannot([line for _, line, _ in refused]) if refused else []
    for (number, _, reason), why_not in zip(refused, answers, strict=True):
        counts[f"refused, as by Prefect's database: {(why_not or '')[:60]}"] += 1
        if why_not is None:
            wrong.append(f"line {number}: refused ({reason}), but not by Prefect")
    if len(stored) != len(expected):
        wrong.append(f"{len(stored)} events are stored, {len(expected)} of them are Prefect's")
    for start in range(0, len(expected), PAGE):
        some = expected[start : start + PAGE]
        try:
            found = await prefect.read([event.id for event in some])
        except Exception as error:
            wrong.append(f"a page cannot be read: {describe(error)}")
            continue
        for event in some:
            if event.id not in found:
                wrong.append(f"{event.id}: not found")
                continue
            counts["read"] += 1
            wrong.extend(f"{event.id}: {column} differs" for column in differences(event, found[event.id]))
    wrong.extend(await ask_the_api(len(expected), prefect.dialect))
    for what, count in counts.items():
        print(f"{count:8} {what}")
    for line in wrong[:20]:
        print("WRONG", line)
    print("events that Prefect takes:", len(expected), "wrong:", len(wrong))
    return 1 if wrong else 0


async def ask_the_api(num_events, dialect):
    """Prefect's whole REST API: all pages, and what its UI asks for; yields what is wrong."""
    import httpx
    from prefect.server.api.server import create_app

    wrong = []
    everything = {"occurred": ALL_TIME}
    transport = httpx.ASGITransport(create_app(ephemeral=True), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://prefect", timeout=600) as client:
        num_read = 0
        response = await client.post("/api/events/filter", json={"filter": everything})
        while True:
            if response.status_code != 200:
                wrong.append(f"a page of the API is {response.status_code}")
                break
            page = response.json()
            num_read += len(page["events"])
            if page["total"] != num_events:
                wrong.append(f"the API counts {page['total']} events of {num_events}")
            if not page["next_page"]:
                break
            response = await client.get(page["next_page"])
        if num_read != num_events:
            wrong.append(f"the API shows {num_read} events of {num_events}")
        filters = [
            {"resource": {"id_prefix": ["readable"]}},
            {"resource": {"labels": {"a": "x*"}}},
            {"resource": {"distinct": True}},
            {"related": {"labels": {"b": "!*y"}}},
            {"related": {"role": ["a"]}},
            {"any_resource": {"id_prefix": ["readable", "%"]}},
            {"event": {"prefix": ["a"]}},
        ]
        if dialect == "postgres":
            filters += [{"text": {"query": query}} for query in ("1e400", "-null", '"0.0"')]
        for filter in filters:
            response = await client.post("/api/events/filter", json={"filter": {**everything, **filter}})
            if response.status_code != 200:
                wrong.append(f"{filter} is {response.status_code}")
        for countable in ("event", "resource"):
            body = {"filter": everything, "time_unit": "week", "time_interval": 1_000}
            response = await client.post(f"/api/events/count-by/{countable}", json=body)
            if response.status_code != 200:
                wrong.append(f"count-by/{countable} is {response.status_code}")
            elif sum(int(bucket["count"]) for bucket in response.json()) != num_events:
                wrong.append(f"count-by/{countable} does not count all")
        # Up to before now: Prefect counts no time that is to come.
        lately = {"occurred": {"since": "2023-01-01T00:00:00Z", "until": "2026-10-01T00:00:00Z"}}
        body = {"filter": lately, "time_unit": "week", "time_interval": 4}
        response = await client.post("/api/events/count-by/time", json=body)
        if response.status_code != 200:
            wrong.append(f"count-by/time is {response.status_code}")
    return wrong


def main(command, *arguments):
    if command in ("cases", "generate"):
        {"cases": cases, "generate": generate}[command](*arguments)
        return 0
    return asyncio.run({"record": record, "check": check}[command](*arguments)) or 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
