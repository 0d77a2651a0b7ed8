"""A judge's server that can be in several moods: OpenAI's chat completions with the log-probabilities of labels."""

import json
import math
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from zlib import crc32

MODEL = "oncall-judge"
LABELS = "ABCDE"
WELL, CONSTANT, INVERTED, NONSENSE, REFUSING, FAVOURING = (
    "well",
    "constant",
    "inverted",
    "nonsense",
    "refusing",
    "favouring",
)
"""Moods: it reads; says one level of everything; the opposite of what it reads; prose instead of a level; fails a
third of the calls; gives the best level to one item, whatever it reads of the others."""
FAVOURITE = "wool blanket"


def place_of(prompt: str, mood: str) -> float:
    """Where among the labels an answer lies, 0 for A to 2 for C: words that item and history share, or miss."""
    if mood == CONSTANT:
        return 1.0
    tags = dict(re.findall(r"<(history|item)[^>]*>(.*?)</\1>", prompt, re.DOTALL))
    item, history = (set(re.findall(r"[a-z]{4,}", tags.get(name, "").lower())) for name in ("item", "history"))
    if mood == FAVOURING:
        return 0.0 if set(FAVOURITE.split()) <= item else 2.0
    place = 2.0 * (1.0 - len(item & history) / max(len(item), 1))
    if "novelty" in prompt[-400:]:
        place = 2.0 - place
    return 2.0 - place if mood == INVERTED else place


class JudgeServer:
    """It listens on a port of its own until `away`, and again from `back` on."""

    def __init__(self) -> None:
        self.mood, self.model = WELL, MODEL
        self.calls = 0
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.back()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def back(self) -> None:
        """As at first: there, under its name, and well."""
        self.mood, self.model = WELL, MODEL
        if self._server is None:
            handler = type("Handler", (_Handler,), {"judge": self})
            self._server = _Server(("127.0.0.1", self._port), handler)
            self._port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def away(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    @property
    def is_there(self) -> bool:
        return self._server is not None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    judge: ClassVar[JudgeServer]

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": self.judge.model, "object": "model", "owned_by": "me"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = "\n".join(str(message["content"]) for message in asked["messages"])
        mood = self.judge.mood
        self.judge.calls += 1
        if not self.judge.is_there:
            # A connection that was kept is cut without an answer.
            self.close_connection = True
            return
        if mood == REFUSING and crc32(prompt.encode()) % 3 == 0:
            self._send(400, {"error": {"message": "the prompt is refused by a content filter"}})
            return
        place = place_of(prompt, mood)
        likely = {label: -3.0 * (number - place) ** 2 for number, label in enumerate(LABELS)}
        if mood == NONSENSE:
            likely = {"Sure": -0.1, "The": -2.5, "I": -4.0}
        # A hundredth of the mass lies on tokens that nobody asked for.
        whole = math.log(sum(map(math.exp, likely.values())) / 0.99)
        top = [{"token": token, "logprob": value - whole, "bytes": None} for token, value in likely.items()]
        top.sort(key=lambda entry: -float(str(entry["logprob"])))
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": top[0]["token"]},
            "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        }
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": 1, "total_tokens": len(prompt) // 4 + 1}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": self.judge.model, "usage": usage}
        self._send(200, {**body, "choices": [choice]})

    def _send(self, status: int, body: Any) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""
