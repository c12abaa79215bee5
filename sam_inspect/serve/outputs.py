"""Where results go beside the answer: a webhook, an MQTT broker, a file of JSON lines. Each told once, in order.

What is to be told stands in the store with the inspection itself; a thread for each output tells it, and tries again
with growing pauses while the other side is away. What the other side has read and refused is set aside, said aloud, and
tried again when the service starts the next time: it must not hold up the rest. If the process dies between the other
side's word that it has a record and the note of that, the record is sent a second time: its `id` tells. A plugin is
another class with `send`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable
from urllib.parse import unquote, urlsplit

import requests
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from pydantic import Field, field_validator

from sam_inspect.config import Section, read_yaml, validated
from sam_inspect.errors import ConfigError, OutputError, Refused, ServiceError
from sam_inspect.plugins import broken_contract, load_plugin
from sam_inspect.serve.store import Store

TIMEOUT_S = 10.0
LONGEST_PAUSE_S = 60.0
IN_TOPIC = ("recipe", "verdict", "camera", "part")
UNWANTED = (400, 413, 415, 422)
AT_ONCE = 50
LONGEST_NAME = 100  # `tables.DeliveryRow.output`
log = logging.getLogger(__name__)


@runtime_checkable
class Output(Protocol):
    """One other side."""

    @classmethod
    def from_config(cls, args: Mapping[str, Any]) -> Self:
        """What the outputs file asks for. Raises ConfigError."""
        ...

    def send(self, record: Mapping[str, Any]) -> None:
        """Tells one record and returns when the other side has it.

        Raises:
            Refused: it has read the record and does not want it.
            ServiceError: it has not, for any other reason: it is away, it knows no such key.
        """
        ...


class OutputConfig(Section):
    """An entry of the outputs file."""

    name: str = Field(max_length=LONGEST_NAME)
    """The kind: `webhook`, `mqtt`, `jsonl`, or a plugin's."""
    args: dict[str, Any] = Field(default_factory=dict)
    as_: str | None = Field(None, alias="as", max_length=LONGEST_NAME)
    """What the store calls it; its kind where there is one of a kind."""


class OutputsFile(Section):
    """The file of `--outputs`."""

    outputs: tuple[OutputConfig, ...] = ()


def read_outputs(file: Path) -> dict[str, Output]:
    """The outputs of a YAML file, by name.

    Raises:
        ConfigError: a key or value that cannot be, or two of one name.
        PluginError: no such kind.
    """
    found: dict[str, Output] = {}
    for entry in validated(OutputsFile, read_yaml(file), str(file)).outputs:
        name, kind = entry.as_ or entry.name, load_plugin("outputs", entry.name)
        if not issubclass(kind, Output):
            raise broken_contract(entry.name, kind, Output)
        if name in found:
            raise ConfigError(f"{file}: two outputs are called {name}", "give one of them another `as`")
        found[name] = kind.from_config(entry.args)
    return found


def output_of(word: str) -> tuple[str, Output]:
    """What the store calls an output that one word of a command line names, and the output.

    `https://…` is a webhook, `mqtt://[user:password@]host[:port]/topic` (or `mqtts://`) a broker, else a file of JSON
    lines.

    Raises:
        ConfigError: a part of it cannot be.
    """
    where = urlsplit(word)
    if where.scheme in ("http", "https"):
        shown, query = urlsplit(without_user(word)), f" {_digest(where.query)}" if where.query else ""
        return _name(f"webhook {shown.netloc}{shown.path}{query}"), Webhook.from_config({"url": word})
    if where.scheme not in ("mqtt", "mqtts"):
        if "://" in word:
            problem = f"--to {without_user(word)}: nothing is sent by {where.scheme}"
            raise ConfigError(problem, "give https, mqtt or a file")
        return _name(f"jsonl {Path(word).absolute()}"), JsonLines.from_config({"file": word})
    try:
        port = where.port or (8883 if where.scheme == "mqtts" else 1883)
    except ValueError as error:
        raise ConfigError(f"--to {without_user(word)}: {error}", "give mqtt://host:port/topic") from None
    args = {"host": where.hostname or "", "port": port, "tls": where.scheme == "mqtts"}
    args |= {"topic": where.path.lstrip("/")} if where.path.strip("/") else {}
    user = (("username", where.username), ("password", where.password))
    args |= {key: unquote(value) if value else None for key, value in user}
    return _name(f"mqtt {where.hostname}:{port}{where.path}"), Mqtt.from_config(args)


def without_user(address: str) -> str:
    """An address as it may be shown: user and password are for the other side alone."""
    return re.sub(r"(?<=://)[^/?#]*@", "", address)


def _name(whole: str) -> str:
    """What the store calls an output: no longer than its column, and never two alike; no password is in it."""
    return whole if len(whole) <= LONGEST_NAME else f"{whole[: LONGEST_NAME - 9]} {_digest(whole)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class WebhookArgs(Section):
    """Arguments of the output `webhook`."""

    url: str = Field(pattern="^https?://")
    secret: str | None = None
    """Signs each message."""


class Webhook:
    """POSTs each record as JSON; any answer of 200 to 299 means that the other side has it, 400, 413, 415 and 422 that
    it does not want it.

    With a secret, `X-Signature` is `t=SECONDS,v1=HEX`: HMAC-SHA256 of `SECONDS.BODY`. `Idempotency-Key` is the record's
    id.
    """

    def __init__(self, args: WebhookArgs) -> None:
        self.args, self.session = args, requests.Session()

    @classmethod
    def from_config(cls, args: Mapping[str, Any]) -> Self:
        """See `Output.from_config`."""
        return cls(validated(WebhookArgs, dict(args), "outputs.webhook"))

    def send(self, record: Mapping[str, Any]) -> None:
        """See `Output.send`."""
        body = json.dumps(record, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": str(record["id"])}
        if self.args.secret is not None:
            headers["X-Signature"] = signature(self.args.secret, body, int(time.time()))
        try:
            answer = self.session.post(self.args.url, body, headers=headers, timeout=TIMEOUT_S, allow_redirects=False)
        except requests.RequestException as error:
            raise ServiceError(f"webhook: {type(error).__name__}", "it is tried again") from error
        if answer.status_code in UNWANTED:
            raise Refused(f"webhook: answered {answer.status_code} {answer.text[:200]!r}", "see what it expects")
        if not 200 <= answer.status_code < 300:
            raise ServiceError(f"webhook: answered {answer.status_code}", "it is tried again")


def signature(secret: str, body: bytes, seconds: int) -> str:
    """The value of `X-Signature` for a body sent at that time (seconds since 1970)."""
    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"


class MqttArgs(Section):
    """Arguments of the output `mqtt`."""

    host: str = Field(min_length=1)
    port: int = Field(1883, ge=1, le=65535)
    topic: str = "sam_inspect/{recipe}/{verdict}"
    """`{recipe}`, `{verdict}`, `{camera}` and `{part}` are filled in."""
    client_id: str | None = None
    """Of two clients with one id the broker throws one off; one of its own where it is not said."""
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca_file: str | None = None
    """Certificates that the broker's must come from; the system's where it is not said."""

    @field_validator("topic")
    @classmethod
    def _can_be_filled_in(cls, topic: str) -> str:
        try:
            topic.format(**dict.fromkeys(IN_TOPIC, ""))
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ValueError("only {recipe}, {verdict}, {camera} and {part} can be filled in") from None
        if not topic or set("+#\0") & set(topic):
            raise ValueError("is not a topic that can be published: it is empty, or holds + or #")
        return topic


class Mqtt:
    """Publishes each record as JSON with QoS 1, and returns when the broker has acknowledged it."""

    def __init__(self, args: MqttArgs) -> None:
        self.args = args
        self._client: Client | None = None

    @classmethod
    def from_config(cls, args: Mapping[str, Any]) -> Self:
        """See `Output.from_config`."""
        return cls(validated(MqttArgs, dict(args), "outputs.mqtt"))

    def send(self, record: Mapping[str, Any]) -> None:
        """See `Output.send`."""
        body = json.dumps(record, ensure_ascii=False).encode()
        try:
            sent = self._connected().publish(self._topic(record), body, qos=1)
            sent.wait_for_publish(TIMEOUT_S)
            arrived = sent.is_published()
        except (OSError, RuntimeError, ValueError) as error:
            self._forget()
            raise ServiceError(f"mqtt: {type(error).__name__}", "it is tried again") from error
        if not arrived:
            self._forget()
            raise ServiceError("mqtt: the broker did not acknowledge", "it is tried again")

    def _topic(self, record: Mapping[str, Any]) -> str:
        words = {"recipe": record["recipe"]["name"], "verdict": record["verdict"]}
        words |= {name: record[name] or "none" for name in ("camera", "part")}
        plain = {name: "".join("_" if letter in "+#/\0" else letter for letter in word) for name, word in words.items()}
        return self.args.topic.format(**plain)

    def _connected(self) -> Client:
        """A client that is connected; a lost one is not used again, since it would send what it holds on its own."""
        if self._client is not None and self._client.is_connected():
            return self._client
        self._forget()
        own = f"sam_inspect-{secrets.token_hex(4)}"
        client = self._client = Client(CallbackAPIVersion.VERSION2, self.args.client_id or own)
        if self.args.username is not None:
            client.username_pw_set(self.args.username, self.args.password)
        if self.args.tls:
            client.tls_set_context(ssl.create_default_context(cafile=self.args.ca_file))
        client.connect(self.args.host, self.args.port, keepalive=30)
        client.loop_start()
        until = time.monotonic() + TIMEOUT_S
        while not client.is_connected():
            if time.monotonic() > until:
                raise OSError("no connection")
            time.sleep(0.02)
        return client

    def _forget(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None


class JsonLinesArgs(Section):
    """Arguments of the output `jsonl`."""

    file: str


class JsonLines:
    """Appends each record as one line of JSON; a line that a crash cut is completed by the next attempt."""

    def __init__(self, args: JsonLinesArgs) -> None:
        self.path = Path(args.file)

    @classmethod
    def from_config(cls, args: Mapping[str, Any]) -> Self:
        """See `Output.from_config`."""
        output = cls(validated(JsonLinesArgs, dict(args), "outputs.jsonl"))
        there = next(folder for folder in output.path.absolute().parents if folder.exists())
        if not there.is_dir() or output.path.is_dir():
            raise ConfigError(f"outputs.jsonl: {output.path}: cannot be a file there", "name another one")
        return output

    def send(self, record: Mapping[str, Any]) -> None:
        """See `Output.send`."""
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - len(line)))
                tail = file.read()
                if tail == line:
                    return  # it was written, and the process died before it said so
                last = tail.rpartition(b"\n")[2]
                if line.startswith(last):  # what a crash left of this very line, or nothing
                    file.truncate(size - len(last))
                else:  # somebody else's line, whose end is missing
                    file.write(b"\n")
                file.write(line)
        except OSError as error:
            raise ServiceError(f"jsonl: {self.path}: {error.strerror}", "it is tried again") from error


class Outbox:
    """Tells every output what the store holds for it, each in a thread of its own."""

    def __init__(self, store: Store, outputs: Mapping[str, Output]) -> None:
        self.store, self.outputs = store, dict(outputs)
        self._news, self._closed = {name: threading.Event() for name in outputs}, threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(name,), name=f"output-{name}", daemon=True) for name in outputs
        ]

    @property
    def names(self) -> Sequence[str]:
        """Of its outputs."""
        return tuple(self.outputs)

    def start(self) -> None:
        """Begins with what an earlier process left, and with what was refused. Raises ServiceError."""
        self.store.readmit()
        for name, count in self.store.waiting().items():
            if name not in self.outputs:
                log.warning("%d records wait for output %s, which is not one of this process", count, name)
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """There is something new."""
        for news in self._news.values():
            news.set()

    def close(self) -> None:
        """Stops after what is being told; the rest stays in the store."""
        self._closed.set()
        self.wake()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def _run(self, name: str) -> None:
        news = self._news[name]
        while not self._closed.is_set():
            news.clear()
            try:
                told = self.store.owns(name) and self._tell(name)
            except (ServiceError, OutputError) as error:  # the store itself does not answer
                log.warning("output %s: %s", name, error)
                told = False
            if not told:
                news.wait(1.0)
        self.store.disowns(name)

    def _tell(self, name: str) -> bool:
        """Whether all of a batch was taken."""
        batch = self.store.due(name, AT_ONCE)
        for delivery in batch:
            if self._closed.is_set():
                return False
            try:
                self.outputs[name].send(delivery.record)
            except Refused as error:
                log.error("output %s: inspection %s is set aside: %s", name, delivery.inspection_id, error)
                self.store.refused(delivery, error.problem)
                continue
            except Exception as error:  # A plugin's own error must not end the thread either.
                said = error.problem if isinstance(error, ServiceError) else f"{type(error).__name__}: {error}"
                pause = min(LONGEST_PAUSE_S, 0.5 * 2 ** min(delivery.attempts, 10))
                log.warning("output %s: %s; again in %.0f s", name, said, pause)
                self.store.postpone(delivery, pause, said)
                return False
            self.store.delivered(delivery.id)
        return bool(batch)
