"""Holdgate over PostgreSQL: the subject `holdgate` with a database server of its own beside it.

The server's files are on the disk that SQLite's would be on, with fsync on. Its CPU time counts as the
subject's: who runs Holdgate like this runs both.
"""

from __future__ import annotations

from subjects import BenchError, Running, Stage, holdgate

import pgserver


def postgres(stage: Stage) -> Running:
    if pgserver.binaries() is None:
        raise BenchError("no PostgreSQL here (Debian: apt-get install postgresql)")
    stage.work.chmod(0o711)  # the server runs as a user of its own
    server = pgserver.make(stage.ends.enter_context(pgserver.folder(stage.work)))
    server.start()
    stage.ends.callback(server.kill)
    url = server.database().urls[0]
    running = holdgate(stage, name="postgres", more=f"store: {{url: '{url}', deadline_ms: 5000}}\n")
    assert server.process is not None
    stage.processes.append(server.process)
    return Running(running.proxy_port, running.target, [*running.processes, server.process])
