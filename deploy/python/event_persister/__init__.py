"""The program event-persister, which this package carries, and a way to run it in tests."""

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

__all__ = ["EventPersister", "binary"]

PREFIX = "EVENT_PERSISTER_"


def binary() -> str:
    """The path of the program that came with this package."""
    folders = [Path(sysconfig.get_path("scripts"))]
    # Where `pip install` puts it with --target, with --prefix or --user, and for an interpreter below this one.
    folders += [parent / "bin" for parent in Path(__file__).resolve().parents[1:5]]
    found = shutil.which("event-persister", path=os.pathsep.join(map(str, folders)))
    if found is None:
        raise FileNotFoundError(f"event-persister is in none of {', '.join(map(str, folders))}")
    return found


class EventPersister:
    """The service, for as long as a ``with`` block lasts; ``url`` is where it listens."""

    def __init__(self, database: str | None = None, redis: str = "off", **settings: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="event-persister-")
        self.database = database or f"sqlite://{self._folder.name}/events.db"
        self.log = Path(self._folder.name, "log")
        own = {"database_url": self.database, "redis_url": redis, "http_listen": "127.0.0.1:0"}
        # Settings that this process happens to have are another service's.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self._environment = kept | {
            PREFIX + name.upper(): str(value) for name, value in (own | settings).items()
        }

    def __enter__(self) -> "EventPersister":
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [binary(), "serve"],
                env=self._environment,
                cwd=self._folder.name,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        until = time.monotonic() + 30
        while (found := re.search(r" listen=(https?://[^\s,]+)", self.log.read_text())) is None:
            if self._process.poll() is not None or time.monotonic() > until:
                log_text = self.log.read_text()
                self.__exit__()
                raise RuntimeError(f"event-persister did not start:\n{log_text}")
            time.sleep(0.02)
        self.url = found[1]
        return self

    def __exit__(self, *_: object) -> None:
        """Has it write what it holds, and waits for its end."""
        self._process.terminate()
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()
