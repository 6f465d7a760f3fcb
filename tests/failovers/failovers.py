"""Failovers of Redis Sentinel under load: is everything that the new master has stored once?

    python -m venv venv && venv/bin/pip install -r tests/addresses/requirements.txt
    venv/bin/python tests/failovers/failovers.py BINARY [NUMBER]      NUMBER failovers, 20 if it is not given

A master, two replicas and three sentinels run on this machine, and BINARY between them and an SQLite file.
prefect-redis publishes through the same URL as BINARY reads, 500 events a second. Then the master is killed, or
frozen and woken later, or replaced by SENTINEL FAILOVER, or a replica is cut off before that, in turn. After each
failover one event is published to the new master, and the time until it is stored is measured from the moment when
that server said that it is the master. At the end, everything that the master's stream holds must be stored once, and
nothing may be pending. Ends with 1 if that is not so.
"""

import asyncio
import contextlib
import datetime
import json
import os
import pathlib
import random
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
# What is lost in the stream with an old master must not be looked for in the new one.
LOAD_SECONDS = 2.0


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


def asks(port, *words):
    client = redis.Redis(port=port, socket_timeout=0.5, socket_connect_timeout=0.5, decode_responses=True)
    with contextlib.closing(client):
        try:
            return client.execute_command(*words)
        except redis.RedisError:
            return None


class Group:
    def __init__(self, folder):
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
                f"sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 3000\n"
                f"sentinel parallel-syncs {SERVICE} 2\n")
            self.processes[port] = spawn("redis-server", str(file), "--sentinel")
        for port in self.sentinels:
            until("there: a sentinel", lambda port=port: asks(port, "PING"))
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

    def master(self):
        address = asks(self.sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(address[1]) if address else None

    def settle(self):
        def settled():
            for port in self.sentinels:
                facts = asks(port, "SENTINEL", "MASTER", SERVICE)
                facts = facts if isinstance(facts, dict) else dict(zip(facts[::2], facts[1::2])) if facts else {}
                flags = facts.get("flags")
                if str(facts.get("num-other-sentinels")) != "2" or str(facts.get("num-slaves")) != "2":
                    return False
                if "down" in str(flags) or "failover" in str(flags):
                    return False
            master = self.master()
            return master and self.online(master) == 2

        until("settled", settled, 60)

    def url(self):
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.sentinels)}/{SERVICE}/0"

    def signal(self, port, name):
        self.processes[port].send_signal(name)

    def end(self):
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()


def spawn(*words):
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def event():
    now = datetime.datetime.now(datetime.timezone.utc).isoformat()
    return {"id": str(uuid.uuid4()), "occurred": now, "received": now, "event": "failover.test",
        "resource": {"prefect.resource.id": "failover.1"}, "related": [], "payload": {}, "follows": None}


async def publish(stop):
    """As Prefect's server does; an event that it could not publish is nobody's."""
    from prefect_redis.messaging import Cache, Publisher

    while not stop.is_set():
        with contextlib.suppress(Exception):
            async with Publisher("events", Cache(), batch_size=5) as publisher:
                while not stop.is_set():
                    began = time.monotonic()
                    for _ in range(RATE // 20):
                        body = event()
                        attributes = {"id": body["id"], "event": body["event"]}
                        await publisher.publish_data(json.dumps(body).encode(), attributes)
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
        return [id for (id,) in self.rows("SELECT id FROM events")]


def fail_over(group, kind):
    """Returns the new master, and what puts the old one back."""
    old = group.master()
    replicas = [port for port in group.nodes if port != old]
    back = []
    if kind == "killed":
        group.processes[old].kill()
        group.processes[old].wait()
        back.append(lambda: group.launch(old))
    elif kind == "frozen":
        group.signal(old, signal.SIGSTOP)
        back.append(lambda: group.signal(old, signal.SIGCONT))
    elif kind == "a replica cut off":
        group.signal(replicas[0], signal.SIGSTOP)
        time.sleep(0.3)
        group.processes[old].kill()
        group.processes[old].wait()
        back.append(lambda: group.signal(replicas[0], signal.SIGCONT))
        back.append(lambda: group.launch(old))
    else:
        asks(group.sentinels[0], "SENTINEL", "FAILOVER", SERVICE)
    new = old

    def replaced():
        nonlocal new
        new = group.master() or old
        role = asks(new, "ROLE") if new != old else None
        return role and role[0] in ("master", b"master")

    until("replaced: the master", replaced, 60)
    return new, back


async def run(binary, number):
    times, kinds = [], ["killed", "frozen", "on demand", "a replica cut off"]
    with tempfile.TemporaryDirectory(prefix="failovers") as name:
        folder = pathlib.Path(name)
        group = Group(folder)
        persister = None
        try:
            os.environ["PREFECT_REDIS_MESSAGING_URL"] = group.url()
            stored = Stored(folder / "events.db")
            log = open(folder / "log", "w+")
            persister = subprocess.Popen([binary], cwd=folder, stdout=subprocess.DEVNULL, stderr=log, env={
                "EVENT_PERSISTER_REDIS_URL": group.url(), "EVENT_PERSISTER_LISTEN": "off",
                "EVENT_PERSISTER_DATABASE_URL": f"sqlite://{stored.file}", "EVENT_PERSISTER_TRIM_EVERY": "off"})
            stop = asyncio.Event()
            publishing = asyncio.create_task(publish(stop))
            for round in range(number):
                kind = kinds[round % len(kinds)]
                await asyncio.sleep(LOAD_SECONDS * random.uniform(0.5, 1.5))
                new, back = await asyncio.to_thread(fail_over, group, kind)
                promoted, probe = time.monotonic(), event()
                asks(new, "XADD", "events", "*", "data", json.dumps(probe), "attributes", "{}")
                await asyncio.to_thread(until, f"stored after {kind}", lambda: stored.has(probe["id"]))
                times.append(time.monotonic() - promoted)
                print(f"{round + 1}: {kind}, reading again after {times[-1]:.2f} s", flush=True)
                for step in back:
                    await asyncio.to_thread(step)
                await asyncio.to_thread(group.settle)
            stop.set()
            await publishing
            return await asyncio.to_thread(judge, group, stored, log, times)
        finally:
            if persister:
                persister.terminate()
                persister.wait()
            group.end()


def judge(group, stored, log, times):
    master = group.master()
    until("read: all", lambda: not pending(master), 60)
    client = redis.Redis(port=master, decode_responses=True)
    in_stream = {json.loads(fields["data"])["id"] for _, fields in client.xrange("events")}
    ids = stored.ids()
    missing, doubled = in_stream - set(ids), len(ids) - len(set(ids))
    log.seek(0)
    lines = log.read().splitlines()
    told = [line for line in lines if "Redis has a new master" in line]
    print(f"{len(in_stream)} in the stream, {len(ids)} stored, {len(missing)} missing, {doubled} doubled")
    print(f"new masters told of: {len(told)}, that lacked something: {sum('lacks' in line for line in told)}")
    print(f"reading again after {statistics.median(times):.2f} s, median; {max(times):.2f} s at most")
    return 1 if missing or doubled or statistics.median(times) > 3 else 0


def pending(port):
    summary = asks(port, "XPENDING", "events", "event-persister")
    groups = asks(port, "XINFO", "GROUPS", "events") or []
    last = asks(port, "XREVRANGE", "events", "+", "-", "COUNT", "1")
    delivered = [group.get("last-delivered-id") for group in groups if group.get("name") == "event-persister"]
    number = summary["pending"] if isinstance(summary, dict) else summary[0] if summary else 1
    return number or not last or delivered != [last[0][0]]


if __name__ == "__main__":
    random.seed()
    sys.exit(asyncio.run(run(os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)))
