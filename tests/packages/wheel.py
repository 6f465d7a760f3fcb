"""Uses the installed wheel as a test of somebody else's program would."""

import asyncio
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid

import event_persister
from event_persister import EventPersister

NOW = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def event() -> dict:
    resource = {"prefect.resource.id": "order.17"}
    return {"id": str(uuid.uuid4()), "occurred": NOW, "event": "order.placed", "resource": resource}


def ask(url: str, document: object = None) -> tuple[int, bytes]:
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, answer.read()


def runs_as_a_program() -> None:
    program = event_persister.binary()
    assert pathlib.Path(program).parent == pathlib.Path(sys.prefix, "bin"), program
    said = subprocess.check_output([program, "--version"], text=True)
    as_module = [sys.executable, "-m", "event_persister"]
    assert subprocess.check_output([*as_module, "--version"], text=True) == said
    assert said.startswith("event-persister "), said
    assert subprocess.run([*as_module, "nonsense"], capture_output=True).returncode == 2


def is_found_outside_of_the_environment() -> None:
    """As `pip install --target` leaves it: scripts and modules in one folder."""
    with tempfile.TemporaryDirectory() as folder:
        package = pathlib.Path(event_persister.__file__).parent
        code = "import event_persister; print(event_persister.binary())"
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": folder}
        copied = pathlib.Path(folder, "event_persister")
        copied.mkdir()
        for file in package.glob("*.py"):
            (copied / file.name).write_bytes(file.read_bytes())
        program = pathlib.Path(folder, "bin", "event-persister")
        program.parent.mkdir()
        program.symlink_to(event_persister.binary())
        base = pathlib.Path(sys.base_prefix, "bin", "python3")
        said = subprocess.check_output([base, "-c", code], text=True, env=environment)
        assert said.strip() == str(program), said


def stores_for_as_long_as_the_block_lasts() -> None:
    sent = event()
    # What this process is set to is another service's.
    os.environ["EVENT_PERSISTER_DATABASE_URL_FILE"] = "/nonexistent"
    with EventPersister() as persister, EventPersister(http_auth_string="events:secret") as other:
        assert persister.url != other.url
        assert ask(f"{persister.url}/api/events", [sent])[0] == 204
        read = json.loads(ask(f"{persister.url}/api/events/{sent['id']}")[1])
        assert read["id"] == sent["id"] and read["resource"] == sent["resource"], read
        assert b"<title>event-persister</title>" in ask(persister.url)[1]
        try:
            ask(f"{other.url}/api/events/{sent['id']}")
            raise AssertionError("a setting had no effect")
        except urllib.error.HTTPError as error:
            assert error.code == 401, error
        folder = persister.log.parent
    assert not folder.exists()
    try:
        ask(persister.url)
        raise AssertionError("it outlived its block")
    except urllib.error.URLError:
        pass
    del os.environ["EVENT_PERSISTER_DATABASE_URL_FILE"]


def keeps_a_database_that_is_named() -> None:
    sent = event()
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite://{folder}/events.db"
        with EventPersister(database=database) as persister:
            assert ask(f"{persister.url}/api/events", [sent])[0] == 204
        with EventPersister(database=database) as persister:
            assert json.loads(ask(f"{persister.url}/api/events/{sent['id']}")[1])["id"] == sent["id"]


def says_why_it_did_not_start() -> None:
    persister = EventPersister(trim_retention="nonsense")
    try:
        with persister:
            raise AssertionError("it started")
    except RuntimeError as error:
        assert "trim.retention" in str(error), error
    assert not persister.log.parent.exists()


async def is_prefects_server_of_events() -> None:
    """Prefect's own client sends by WebSocket, and Prefect's own models read the answer."""
    from prefect import __version__
    from prefect.events import Event
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.filters import EventFilter, EventNameFilter
    from prefect.events.schemas.events import ReceivedEvent

    names = [f"order.{number}" for number in range(100)]
    with EventPersister() as persister:
        async with PrefectEventsClient(api_url=f"{persister.url}/api") as client:
            for name in names:
                await client.emit(Event(event=name, resource={"prefect.resource.id": "order.17"}))
        wanted = EventFilter(event=EventNameFilter(prefix=["order."]))
        document = {"filter": wanted.model_dump(mode="json"), "limit": 50}
        page = json.loads(ask(f"{persister.url}/api/events/filter", document)[1])
        assert page["total"] == len(names), page["total"]
        read = [ReceivedEvent.model_validate(item) for item in page["events"]]
        following = json.loads(ask(page["next_page"])[1])
        read += [ReceivedEvent.model_validate(item) for item in following["events"]]
    assert sorted(item.event for item in read) == sorted(names)
    print(f"wheel: {len(read)} events by the client of Prefect {__version__}, and back")


if __name__ == "__main__":
    runs_as_a_program()
    is_found_outside_of_the_environment()
    stores_for_as_long_as_the_block_lasts()
    keeps_a_database_that_is_named()
    says_why_it_did_not_start()
    print("wheel: used from Python")
    if "--prefect" in sys.argv[1:]:
        asyncio.run(is_prefects_server_of_events())
