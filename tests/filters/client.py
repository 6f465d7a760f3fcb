"""Prefect's own client against the service at PREFECT_API_URL: what it reads, and what it is told; as JSON."""

import asyncio
import json
import sys
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.events import EventPage
from prefect.events import Event
from prefect.events.clients import get_events_client, get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter, EventOrder
from prefect.server.events.schemas.events import EventCount
from pydantic import TypeAdapter

EVEN = EventFilter(event=EventNameFilter(prefix=["eve"]), order=EventOrder.ASC)


def of(page: EventPage):
    return [str(event.id) for event in page.events]


def read_all(client):
    page = client.read_events(EVEN, limit=5)
    pages = [of(page)]
    while page.next_page:
        page = client.read_events_page(page.next_page)
        pages.append(of(page))
    return page.total, pages


async def read_all_async(client):
    page = await client.read_events(EVEN, limit=5)
    pages = [of(page)]
    while page.next_page:
        page = await client.read_events_page(page.next_page)
        pages.append(of(page))
    return page.total, pages


async def count(client, what, **given):
    body = {"filter": EVEN.model_dump(mode="json"), **given}
    answer = await client.request("POST", "/events/count-by/{countable}", path_params={"countable": what}, json=body)
    return sum(count.count for count in TypeAdapter(list[EventCount]).validate_python(answer.json()))


async def listen(num):
    """Sends events by Prefect's client too, some that were asked for and some that were not."""
    told = []
    async with get_events_subscriber(filter=EventFilter(event=EventNameFilter(name=["told"]))) as subscriber:
        async with get_events_client() as sender:
            for number in range(num):
                for name in ("told", "untold"):
                    resource = {"prefect.resource.id": f"{name}.{number}"}
                    await sender.emit(Event(event=name, resource=resource, payload={"number": number}))
        async for event in subscriber:
            told.append([event.event, event.payload["number"]])
            if len(told) == num:
                return told


async def main():
    async with get_client() as client:
        total, pages = await read_all_async(client)
        counts = [
            await count(client, what, **given)
            for what, given in [("day", {}), ("event", {}), ("resource", {}), ("time", {"time_unit": "hour", "time_interval": 6})]
        ]
        one = await client.read_events(EventFilter(id={"id": [UUID(pages[0][0])]}), limit=1)
    told = await asyncio.wait_for(listen(20), 30)
    return {"total": total, "pages": pages, "counts": counts, "payload": one.events[0].payload, "told": told}


with get_client(sync_client=True) as client:
    plain = read_all(client)
found = asyncio.run(main())
assert plain == (found["total"], found["pages"]), plain
json.dump(found, sys.stdout)
