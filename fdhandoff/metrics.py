"""Prometheus metrics of a service, made of what ``status`` tells: as text, or for ``prometheus_client``.

``FAMILIES`` is the contract, and docs/reference/metrics.md describes it: names and labels are only ever added.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .service import Service

    Sample = tuple[dict[str, str], float]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_INSTALL = "this needs prometheus_client: pip install 'fdhandoff[metrics]'"


class Family:
    """``name`` (of a counter without ``_total``), ``kind`` (``counter`` or ``gauge``), ``help``, ``labels`` besides
    ``service``; ``samples(status)`` are labels and values, none where it is not known."""

    __slots__ = ("help", "kind", "labels", "name", "samples")

    def __init__(
        self,
        name: str,
        kind: str,
        help: str,
        samples: Callable[[dict[str, Any]], Iterable[Sample]],
        labels: tuple[str, ...] = (),
    ) -> None:
        self.name = f"fdhandoff_{name}"
        self.kind = kind
        self.help = help
        self.labels = labels
        self.samples = samples


def _one(value: Any) -> list[Sample]:
    return [] if value is None else [({}, float(value))]


def _total(name: str) -> Callable[[dict[str, Any]], list[Sample]]:
    return lambda status: _one((status.get("totals") or {}).get(name))


def _counter(name: str) -> Callable[[dict[str, Any]], list[Sample]]:
    """Of a master alone: a ``Service`` has other counters by that key."""
    return lambda status: _one(status["counters"].get(name)) if status.get("master") else []


def _listeners(key: str) -> Callable[[dict[str, Any]], list[Sample]]:
    """Those that share an address are one here."""

    def samples(status: dict[str, Any]) -> list[Sample]:
        found: dict[tuple[str, str], float] = {}
        for one in status.get("listeners", ()):
            if one[key] is not None:
                which = (one["name"], one["address"])
                found[which] = found.get(which, 0.0) + float(one[key])
        return [({"listener": name, "address": address}, value) for (name, address), value in found.items()]

    return samples


def _generations(key: str) -> Callable[[dict[str, Any]], list[Sample]]:
    return lambda status: [
        ({"generation": str(one["number"]), "state": one["state"]}, float(one[key]))
        for one in status.get("generations", ())
        if one["pids"]
    ]


def _started(status: dict[str, Any]) -> list[Sample]:
    return _one(status.get("since"))


FAMILIES = (
    Family("ready", "gauge", "Whether the service is to get new connections.", lambda s: _one(s.get("ready"))),
    Family("generation", "gauge", "Number of the generation that serves.", lambda s: _one(s.get("generation"))),
    Family("start_time_seconds", "gauge", "When the process that answers began, since 1970.", _started),
    Family("accepted", "counter", "Connections or jobs that came in.", _total("accepted")),
    Family("finished", "counter", "Connections or jobs that ended by themselves.", _total("finished")),
    Family("forced", "counter", "Connections or jobs that were cut, or died with their process.", _total("forced")),
    Family("refused", "counter", "Connections or jobs that were not let in.", _total("refused")),
    Family("active", "gauge", "Connections or jobs that are inside now.", _total("active")),
    Family("idle", "gauge", "Active ones of which the program says that they wait for their client.", _total("idle")),
    Family("detached", "gauge", "Active ones of which the program says that they left its server's books.", _total("detached")),
    Family("upgrades", "counter", "Upgrades that were tried.", _total("upgrades")),
    Family("upgrades_failed", "counter", "Upgrades that failed or were rolled back.", _total("failed")),
    Family("upgrades_coalesced", "counter", "Requests for an upgrade that became one.", _counter("coalesced")),
    Family("workers_recycled", "counter", "Workers that were replaced.", _counter("recycled")),
    Family(
        "generation_connections", "gauge", "Connections of a generation.", _generations("active"), ("generation", "state")
    ),
    Family(
        "generation_share", "gauge", "Share of the new connections, 0 to 1.", _generations("share"), ("generation", "state")
    ),
    Family(
        "listener_queue", "gauge", "Connections that wait to be accepted.", _listeners("queue"), ("listener", "address")
    ),
    Family(
        "listener_backlog", "gauge", "How many can wait at most.", _listeners("backlog"), ("listener", "address")
    ),
    Family(
        "last_upgrade_seconds", "gauge", "How long the last upgrade took.",
        lambda s: _one((s.get("last_upgrade") or {}).get("seconds")),
    ),
)  # fmt: skip


def exposition(status: dict[str, Any]) -> str:
    """The text that Prometheus reads, of what ``status`` told."""
    service = str(status.get("service") or "")
    lines = []
    for family in FAMILIES:
        samples = list(family.samples(status))
        if not samples:
            continue
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
        for labels, value in samples:
            pairs = ",".join(
                f'{key}="{_escaped(text)}"' for key, text in sorted({"service": service, **labels}.items())
            )
            lines.append(f"{name}{{{pairs}}} {value!r}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def register(service: Service, registry: Any = None) -> Any:
    """Adds the metrics of ``service`` to ``registry``, default ``prometheus_client``'s own, so that the application's endpoint
    shows them beside its own; returns the collector, to be unregistered. ``ImportError`` says what to install."""
    try:
        import prometheus_client
        from prometheus_client import core
    except ImportError as error:
        raise ImportError(f"{_INSTALL} ({error})") from None

    class Collector(prometheus_client.registry.Collector):
        def collect(self) -> Iterable[Any]:
            status = service.status()
            for family in FAMILIES:
                kind = core.CounterMetricFamily if family.kind == "counter" else core.GaugeMetricFamily
                made = kind(family.name, family.help, labels=("service", *family.labels))
                for labels, value in family.samples(status):
                    made.add_metric([service.name, *labels.values()], value)
                if made.samples:
                    yield made

    collector = Collector()
    (prometheus_client.REGISTRY if registry is None else registry).register(collector)
    return collector
