"""Kubernetes: a Deployment whose pods leave without cutting anybody."""

from __future__ import annotations

import json
import re

from ..system.sockets import parse_bind
from .plan import File, check_words, comment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .plan import Plan

# RFC 1123, which Kubernetes asks of names.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LOOK_SECONDS = 2


# What a pod can't do without, unless something else was said: a port where the master says whether it is ready, and some
# seconds until the cluster's routing has heard that it is no longer.
NEEDED = {"pre-stop-delay": "5s", "health": ":8086"}


def files(plan: Plan) -> list[File]:
    if not _LABEL.fullmatch(plan.name):
        raise ValueError(f"{plan.name!r} can't name anything in Kubernetes: small letters, digits and '-' only")
    words = plan.run()
    check_words(words, "Kubernetes", lines=True)
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": plan.name, "labels": {"app": plan.name}},
        "spec": {
            "replicas": plan.replicas,
            "selector": {"matchLabels": {"app": plan.name}},
            # A pod more before one less.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"app": plan.name}}, "spec": _pod(plan, words)},
        },
    }
    head = comment(
        f"{plan.name}.yaml\n"
        f"kubectl apply -f {plan.name}.yaml; in place: kubectl exec deploy/{plan.name} -- {' '.join(plan.verb('upgrade'))}"
    )
    return [File(".", f"{plan.name}.yaml", f"{head}{_yaml(manifest)}")]


def _pod(plan: Plan, words: list[str]) -> dict[str, Any]:
    return {
        "securityContext": _security(plan),
        "terminationGracePeriodSeconds": plan.stop_seconds,
        "containers": [
            {
                "name": plan.name,
                "image": plan.image,
                # $(NAME) would be replaced.
                "command": [word.replace("$", "$$") for word in words],
                "env": [{"name": "FDHANDOFF_RUNTIME_DIR", "value": "/run/fdhandoff"}],
                "ports": [{"containerPort": number, "protocol": kind.upper()} for kind, number in plan.ports()],
                "readinessProbe": _probe(plan, "/ready"),
                "livenessProbe": _probe(plan, "/live"),
                "lifecycle": {"preStop": {"exec": {"command": plan.verb("drain", "--wait")}}},
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }


def _security(plan: Plan) -> dict[str, Any]:
    security: dict[str, Any] = {"seccompProfile": {"type": "RuntimeDefault"}}
    for key, value in (("runAsUser", plan.user), ("runAsGroup", plan.group)):
        if value:
            if not value.isdigit():
                raise ValueError(f"Kubernetes is told users and groups by their numbers, not {value!r}")
            security[key] = int(value)
    if plan.user:
        security["runAsNonRoot"] = plan.user != "0"
    return security


def _probe(plan: Plan, path: str) -> dict[str, Any]:
    bind = parse_bind(plan.options.health)
    if bind.kind != "tcp" or not bind.port:
        raise ValueError(f"--health {plan.options.health} is no TCP port that Kubernetes could ask")
    return {"httpGet": {"path": path, "port": bind.port}, "periodSeconds": _LOOK_SECONDS}


def _yaml(value: Any, indent: int = 0) -> str:
    """As YAML, of which JSON's texts are a part: whatever is in them can't be mistaken."""
    pad = "  " * indent
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            nested = isinstance(item, (dict, list)) and item
            lines.append(f"{pad}{key}:\n{_yaml(item, indent + 1)}" if nested else f"{pad}{key}: {json.dumps(item)}\n")
        return "".join(lines)
    if isinstance(value, list) and value:
        return "".join(
            f"{pad}- {_yaml(item, indent + 1).lstrip()}" if isinstance(item, dict) else f"{pad}- {json.dumps(item)}\n"
            for item in value
        )
    return f"{pad}{json.dumps(value)}\n"
