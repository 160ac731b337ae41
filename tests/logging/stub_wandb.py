"""A server in this process that speaks as much of wandb's protocol as `wandb sync` and an online run ask for: it keeps
the lines, files and settings that it is sent, as wandb's own would."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from stub_server import serving


@dataclass
class SentRun:
    said: dict = field(default_factory=dict)  # group, job type, tags, config ...
    lines: dict[str, dict[int, str]] = field(default_factory=dict)  # file -> line number -> line
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    def rows(self, file: str) -> list[dict]:
        """The lines of a file in their order; they must be without a gap."""
        lines = self.lines.get(file, {})
        assert sorted(lines) == list(range(len(lines)))
        return [json.loads(lines[number]) for number in sorted(lines)]


@dataclass
class Server:
    url: str = ""
    runs: dict[str, SentRun] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "a" * 40}

    def answer(self, operation: str, asked: dict) -> dict | None:
        if operation == "UpsertBucket":
            return {"upsertBucket": self._upsert(asked)}
        if operation == "RunResumeStatus":
            run = self.runs.get(asked["name"])
            return {"model": {"id": "p", "name": asked["project"], "bucket": run and _bucket(asked["name"], run)}}
        if operation == "CreateArtifact":
            artifact = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a"}}}
            return {"createArtifact": {"artifact": artifact}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{asked['run']}/{name}"} for name in asked["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return None

    def _upsert(self, asked: dict) -> dict:
        inserted = asked["name"] not in self.runs
        run = self.runs.setdefault(asked["name"], SentRun())
        run.said |= {key: value for key, value in asked.items() if value is not None}
        return {"inserted": inserted, "bucket": _bucket(asked["name"], run)}

    def stream(self, run: str, sent: dict) -> None:
        kept = self.runs[run]
        for name, chunk in sent.get("files", {}).items():
            lines = kept.lines.setdefault(name, {})
            lines.update(enumerate(chunk["content"], start=chunk["offset"]))
        if sent.get("complete"):
            kept.exit_code = sent["exitcode"]


def _bucket(name: str, run: SentRun) -> dict:
    history = run.lines.get("wandb-history.jsonl", {})
    tail = json.dumps([history[max(history)]] if history else [])
    summary = run.lines.get("wandb-summary.json", {}).get(0, "{}")
    counts = {"historyLineCount": len(history), "eventsLineCount": 0, "logLineCount": 0}
    tails = {"historyTail": tail, "eventsTail": "[]", "summaryMetrics": summary, "tags": []}
    tails |= {"config": "{}", "wandbConfig": '{"t": 1}'}  # the run has started
    project = {"id": "p", "name": run.said.get("project"), "entity": {"id": "e", "name": "me"}}
    return {"id": f"id-{name}", "name": name, "displayName": name, "project": project, **counts, **tails}


@contextmanager
def stub_wandb() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self._body()
            if self.path.endswith("/graphql"):
                asked = json.loads(body)
                self._reply({"data": server.answer(asked["operationName"], asked.get("variables") or {})})
                return
            if self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(body))
            self._reply({})

        def do_PUT(self):
            run, name = self.path.removeprefix("/put/").split("/", 1)
            server.runs[run].files[name] = self._body()
            self._reply({})

        def do_GET(self):
            self._reply({})

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _reply(self, value: object) -> None:
            sent = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_): ...

    with serving(Handler) as server.url:
        yield server
