"""Failovers of Redis Sentinel under load: is everything that the new master has stored once?

    python -m venv venv && venv/bin/pip install -r tests/addresses/requirements.txt
    venv/bin/python tests/failovers/failovers.py BINARY [NUMBER]      NUMBER failovers, 20 if it is not given
        --kind NAME       only failovers of this kind
        --unhurried       the sentinels keep their own pace, as in an installation

A master, two replicas and three sentinels run on this machine, and BINARY between them and an SQLite file.
prefect-redis publishes through the same URL as BINARY reads, 500 events a second. The failovers are of four kinds, in
turn:

    killed               the master gets SIGKILL, and is started again later
    frozen               the master gets SIGSTOP, and goes on later, as a master until it is told otherwise
    on demand            SENTINEL FAILOVER
    a replica cut off    one replica gets nothing for a second or two, and is the one that is promoted

After each failover one event is published to the new master. The time until it is stored is measured from the moment
when that server said that it is a master. Ends with 1 unless all of this holds:

    - Everything that the last master's stream holds, and everything that was trimmed from it, is stored once.
    - Nothing is pending.
    - Each new master is told of once, and so is how many entries it lacks.
    - What an old master took until it was told to follow is stored too, where it was never silent.
    - The new master is read within 3 s of its promotion, median.
"""

import argparse
import asyncio
import collections
import contextlib
import datetime
import json
import os
import pathlib
import random
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid

import redis

SERVICE = "events"
RATE = 500
LOAD_SECONDS = 2.0
# A stream that grows for an hour makes each replica's copy of it slow.
TRIM_ABOVE = 20_000


def free_port():
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def until(what, condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not {what} within {seconds:.0f} s")
        time.sleep(0.02)


def connect(port):
    return redis.Redis(port=port, socket_timeout=0.5, socket_connect_timeout=0.5, decode_responses=True)


def asks(port, *words):
    with contextlib.closing(connect(port)) as client:
        try:
            return client.execute_command(*words)
        except redis.RedisError:
            return None


def role(port):
    answer = asks(port, "ROLE")
    return answer and answer[0]


class Group:
    def __init__(self, folder, hurried):
        self.folder = folder
        self.processes = {}
        ports = [free_port() for _ in range(3)]
        for port in ports:
            self.launch(port, None if port == ports[0] else ports[0])
        self.nodes = ports
        until("replicated", lambda: self.online(ports[0]) == 2)
        self.sentinels = [free_port() for _ in range(3)]
        for port in self.sentinels:
            file = folder / f"sentinel-{port}.conf"
            file.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {ports[0]} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} {500 if hurried else 5000}\n"
                f"sentinel failover-timeout {SERVICE} {3000 if hurried else 60000}\n"
                f"sentinel parallel-syncs {SERVICE} 2\n")
            self.processes[port] = spawn("redis-server", str(file), "--sentinel")
        for port in self.sentinels:
            until("there: a sentinel", lambda port=port: asks(port, "PING"))
            if hurried:
                asks(port, "SENTINEL", "DEBUG", "publish-period", "200", "info-period", "500", "ping-period", "200")
        self.settle()

    def launch(self, port, of=None):
        replica = ["--replicaof", "127.0.0.1", str(of)] if of else []
        self.processes[port] = spawn("redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "",
            "--dir", str(self.folder), "--dbfilename", f"{port}.rdb", "--repl-diskless-sync-delay", "0",
            "--repl-ping-replica-period", "1", "--repl-timeout", "5", *replica)
        until("there: a server", lambda: asks(port, "PING"))

    def online(self, port):
        info = asks(port, "INFO", "replication") or {}
        return sum(1 for key, value in info.items() if key.startswith("slave") and isinstance(value, dict)
            and value.get("state") == "online")

    def facts(self, port):
        facts = asks(port, "SENTINEL", "MASTER", SERVICE) or {}
        return facts if isinstance(facts, dict) else dict(zip(facts[::2], facts[1::2]))

    def master(self):
        address = asks(self.sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(address[1]) if address else None

    def replicas(self, master):
        return [port for port in self.nodes if port != master]

    def num_changes(self):
        """How often the sentinels have chosen another master."""
        return max(int(self.facts(port).get("config-epoch", 0)) for port in self.sentinels)

    def settle(self):
        def settled():
            for port in self.sentinels:
                facts = self.facts(port)
                flags = str(facts.get("flags"))
                if str(facts.get("num-other-sentinels")) != "2" or str(facts.get("num-slaves")) != "2":
                    return False
                if "down" in flags or "failover" in flags:
                    return False
            master = self.master()
            return master and self.online(master) == 2

        until("settled", settled, 120)

    def url(self):
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.sentinels)}/{SERVICE}/0"

    def signal(self, port, name):
        self.processes[port].send_signal(name)

    def kill(self, port):
        self.processes[port].kill()
        self.processes[port].wait()

    def end(self):
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()


def spawn(*words):
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def event(number=None):
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    return {"id": str(uuid.uuid4()), "occurred": now, "received": now, "event": "failover.test",
        "resource": {"prefect.resource.id": "failover.1"}, "related": [], "payload": {"round": number}, "follows": None}


class Load:
    """Publishes as Prefect's server does."""

    def __init__(self):
        self.stop = False
        self.round = 0
        # Those that Redis has confirmed, with the round of each. An event without an answer is nobody's.
        self.taken = {}

    async def run(self):
        from prefect_redis.messaging import Cache, Publisher

        while not self.stop:
            with contextlib.suppress(Exception):
                async with Publisher("events", Cache(), batch_size=1) as publisher:
                    while not self.stop:
                        began = time.monotonic()
                        for _ in range(RATE // 20):
                            body = event(self.round)
                            attributes = {"id": body["id"], "event": body["event"]}
                            data = json.dumps(body).encode()
                            # Prefect would wait for a frozen master until that goes on.
                            await asyncio.wait_for(publisher.publish_data(data, attributes), 1)
                            self.taken[body["id"]] = body["payload"]["round"]
                        await asyncio.sleep(max(0.0, 0.05 - (time.monotonic() - began)))
            await asyncio.sleep(0.05)


class Stored:
    def __init__(self, file):
        self.file = file

    def rows(self, query, *values):
        with contextlib.closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=10)) as database:
            try:
                return database.execute(query, values).fetchall()
            except sqlite3.OperationalError:
                return []

    def has(self, id):
        return bool(self.rows("SELECT 1 FROM events WHERE id = ?", id))

    def ids(self):
        return [str(uuid.UUID(id)) for (id,) in self.rows("SELECT id FROM events")]


class Survivors:
    """What was in a master's stream and on all of its replicas, so that no failover takes it away."""

    def __init__(self):
        self.ids = set()

    def read(self, client, start="-"):
        page = None
        # The rest comes with the next time: events are published meanwhile.
        while page is None or len(page) == 5000:
            page = client.xrange("events", start, "+", 5000)
            self.ids.update(json.loads(fields["data"])["id"] for _, fields in page)
            start = f"({page[-1][0]}" if page else start

    def trim(self, master):
        """As Prefect's consumers do: up to where the last of the groups is."""
        with contextlib.closing(connect(master)) as client:
            if client.xlen("events") < TRIM_ABOVE:
                return
            lowest = min((group["last-delivered-id"] for group in client.xinfo_groups("events")),
                key=lambda id: tuple(map(int, id.split("-"))))
            self.read(client)
            with client.pipeline(transaction=False) as pipeline:
                pipeline.xtrim("events", minid=lowest, approximate=False)
                pipeline.execute_command("WAIT", 2, 400)
                pipeline.execute()


def fail_over(group, kind):
    """Returns the new master, when it said that it is one, and what puts the old one back."""
    old = group.master()
    replicas = group.replicas(old)
    back = []
    if kind == "killed":
        group.kill(old)
        back.append(lambda: group.launch(old))
    elif kind == "frozen":
        group.signal(old, signal.SIGSTOP)
        back.append(lambda: group.signal(old, signal.SIGCONT))
    elif kind == "a replica cut off":
        cut_off, other = replicas
        asks(other, "CONFIG", "SET", "replica-priority", "0")
        # What was sent to it waits in its socket; it must not ask for more.
        group.signal(cut_off, signal.SIGSTOP)
        asks(old, "CLIENT", "KILL", "TYPE", "replica")
        time.sleep(random.uniform(1.0, 2.0))
        group.kill(old)
        group.signal(cut_off, signal.SIGCONT)
        back.append(lambda: asks(other, "CONFIG", "SET", "replica-priority", "100"))
        back.append(lambda: group.launch(old))
    new = None

    def promoted():
        nonlocal new
        new = next((port for port in replicas if role(port) == "master"), None)
        return new

    while True:
        if kind == "on demand":
            asks(group.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)
        try:
            until("promoted: a replica", promoted, 15 if kind == "on demand" else 60)
            break
        except TimeoutError:
            # On a busy machine the sentinels give it up.
            if kind != "on demand":
                raise
    at = time.monotonic()

    def followed():
        return group.master() == new

    until("named: the new master", followed, 60)
    return old, new, at, back


class Persister:
    def __init__(self, binary, folder, url, stored):
        self.log = folder / "log"
        self.process = subprocess.Popen([binary], cwd=folder, stdout=subprocess.DEVNULL, stderr=open(self.log, "w"),
            env={"EVENT_PERSISTER_REDIS_URL": url, "EVENT_PERSISTER_LISTEN": "off",
                "EVENT_PERSISTER_DATABASE_URL": f"sqlite://{stored.file}", "EVENT_PERSISTER_TRIM_EVERY": "off"})

    def told(self, words):
        return [line for line in self.log.read_text().splitlines() if words in line]

    def end(self):
        self.process.terminate()
        self.process.wait()


async def run(binary, number, kinds, hurried):
    rounds = []
    with tempfile.TemporaryDirectory(prefix="failovers") as name:
        folder = pathlib.Path(name)
        group = await asyncio.to_thread(Group, folder, hurried)
        persister = None
        try:
            os.environ["PREFECT_REDIS_MESSAGING_URL"] = group.url()
            stored, load, survivors = Stored(folder / "events.db"), Load(), Survivors()
            before = group.num_changes()
            persister = Persister(binary, folder, group.url(), stored)
            publishing = asyncio.create_task(load.run())
            began = time.monotonic()
            for round in range(number):
                kind = kinds[round % len(kinds)]
                await asyncio.sleep(LOAD_SECONDS * random.uniform(0.5, 1.5))
                load.round = round
                old, new, promoted, back = await asyncio.to_thread(fail_over, group, kind)
                probe = event(round)
                asks(new, "XADD", "events", "*", "data", json.dumps(probe), "attributes", "{}")
                await asyncio.to_thread(until, f"stored after {kind}", lambda: stored.has(probe["id"]))
                rounds.append((kind, time.monotonic() - promoted))
                for step in back:
                    await asyncio.to_thread(step)
                await asyncio.to_thread(until, "told: the old master", lambda: role(old) == "slave", 60)
                follows = time.monotonic() - promoted
                await asyncio.to_thread(group.settle)
                print(f"{round + 1}: {kind}, reading again after {rounds[-1][1]:.2f} s, the old master follows after "
                    f"{follows:.1f} s", flush=True)
                await asyncio.to_thread(survivors.trim, group.master())
            seconds = time.monotonic() - began
            load.stop = True
            await publishing
            num_changes = group.num_changes() - before
            return await asyncio.to_thread(judge, group, stored, persister, load, survivors, rounds, num_changes,
                seconds)
        except BaseException:
            if persister:
                print("\n".join(persister.log.read_text().splitlines()[-40:]), file=sys.stderr)
            raise
        finally:
            if persister:
                persister.end()
            group.end()


def judge(group, stored, persister, load, survivors, rounds, num_changes, seconds):
    master = group.master()
    until("read: all", lambda: not pending(master), 60)
    num_on_demand = sum(kind == "on demand" for kind, _ in rounds)
    until("told of: every old master that took events",
        lambda: len(persister.told("an old master was read")) >= num_on_demand, 10)
    with contextlib.closing(connect(master)) as client:
        survivors.read(client)
    rows = stored.ids()
    ids = set(rows)
    missing, doubled = survivors.ids - ids, len(rows) - len(ids)
    lost = [number for id, number in load.taken.items() if id not in survivors.ids]
    nowhere = collections.Counter(rounds[number][0] for id, number in load.taken.items()
        if id not in survivors.ids and id not in ids)
    told = persister.told("Redis has a new master")
    masters = [re.search(r"redis\.master=(\S+)", line)[1] for line in told]
    num_told = sum(int(number) for line in told for number in re.findall(r"num_missing=(\d+)", line))
    # Some of these have reached the new one before.
    of_old = sum(int(re.search(r"num_entries=(\d+)", line)[1]) for line in persister.told("an old master was read"))
    num_only_stored = len(ids - survivors.ids)
    times = [seconds for _, seconds in rounds]

    print(f"{len(load.taken) / seconds:.0f} events a second, {len(load.taken)} in all")
    print(f"{len(survivors.ids)} in the stream, {len(ids)} stored, {len(missing)} missing, {doubled} doubled")
    print(f"masters replaced: {num_changes}, told of: {len(told)}")
    print(f"stored and in no stream: {num_only_stored}; told of: {num_told} that were read before, {of_old} later")
    print(f"taken by a master and lost with it: {len(lost)}, of these in no database either: {sum(nowhere.values())}")
    print(f"told as lost from the stream: {sum(count(line) for line in persister.told('events are lost'))}")
    for kind in dict.fromkeys(kind for kind, _ in rounds):
        of_kind = [seconds for other, seconds in rounds if other == kind]
        print(f"  {kind}: {len(of_kind)} times, reading again after {statistics.median(of_kind):.2f} s, median, "
            f"{max(of_kind):.2f} s at most; in no database {nowhere[kind]}")
    print(f"reading again after {statistics.median(times):.2f} s, median; {max(times):.2f} s at most")

    faults = {
        "events of the stream are missing": bool(missing),
        "events are stored twice": doubled > 0,
        "a new master was not told of, or twice": not len(rounds) <= len(told) <= num_changes
            or any(one == next for one, next in zip(masters, masters[1:])),
        # An id may have been given again, which then counts as there.
        "what a new master lacks was told wrongly":
            not 0.95 * (num_only_stored - of_old) - 5 <= num_told <= num_only_stored,
        # One may be taken in the moment in which it is told.
        "what an old master took is lost": nowhere["on demand"] > num_on_demand,
        "it was not read again soon enough": statistics.median(times) > 3,
    }
    for fault in (fault for fault, is_so in faults.items() if is_so):
        print(f"WRONG: {fault}")
    return 1 if any(faults.values()) else 0


def count(line):
    return int(re.search(r"num_lost=(\d+)", line)[1])


def pending(port):
    summary = asks(port, "XPENDING", "events", "event-persister")
    groups = asks(port, "XINFO", "GROUPS", "events") or []
    last = asks(port, "XREVRANGE", "events", "+", "-", "COUNT", "1")
    delivered = [group.get("last-delivered-id") for group in groups if group.get("name") == "event-persister"]
    number = summary["pending"] if isinstance(summary, dict) else summary[0] if summary else 1
    return number or not last or delivered != [last[0][0]]


def main():
    kinds = ["killed", "frozen", "on demand", "a replica cut off"]
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("binary")
    options.add_argument("number", nargs="?", type=int, default=20)
    options.add_argument("--kind", choices=kinds)
    options.add_argument("--unhurried", action="store_true")
    options = options.parse_args()
    kinds = [options.kind] if options.kind else kinds
    return asyncio.run(run(os.path.abspath(options.binary), options.number, kinds, not options.unhurried))


if __name__ == "__main__":
    sys.exit(main())
