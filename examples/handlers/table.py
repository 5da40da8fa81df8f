#!/usr/bin/env python3
"""A program for orgstream's `exec` handler: keeps each event in a table of an SQLite database.

    [[subscription.handler]]
    type = "exec"
    command = ["python3", "examples/handlers/table.py", "events.db"]

Put what you want done with an event into `handle`; the rest can stay as it is. An event may come again
after a crash, with the same `id`: the table's key takes care of that, so each is there once.
"""

import json
import sqlite3
import sys


class Reject(Exception):
    """The event itself is wrong: it is parked for a person to look at."""


def connect(path):
    database = sqlite3.connect(path, isolation_level=None, timeout=10)
    database.execute("pragma journal_mode = wal")
    database.execute("pragma synchronous = full")  # a commit is there even after a power cut
    database.execute(
        "create table if not exists event"
        " (number integer primary key, id text not null unique, subject text, type text, data text)"
    )
    return database


def handle(event, database):
    """Returns once the event is kept for good."""
    if not isinstance(event.get("data"), dict):
        raise Reject("the event has no data")
    row = (event["id"], event.get("subject"), event["type"], json.dumps(event["data"]))
    database.execute("insert or ignore into event (id, subject, type, data) values (?, ?, ?, ?)", row)


def answer(identity, said):
    # Standard output is for answers alone. Write all else to sys.stderr: it goes to orgstream's log.
    print(json.dumps({"id": identity, **said}), flush=True)


def main(path):
    database = None
    # Standard input ends when orgstream stops or is gone, and with it this program.
    for line in sys.stdin:
        if not line.endswith("\n"):
            break  # half a line, whose writer is gone: the event comes again
        event = json.loads(line)
        try:
            database = database or connect(path)
            handle(event, database)
        except Reject as error:
            answer(event["id"], {"reject": str(error)})
        except sqlite3.Error as error:  # locked, no such folder, a full disk: not the event's fault
            answer(event["id"], {"retry": f"{path}: {error}"})
        else:
            answer(event["id"], {"ok": True})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "events.db")
