"""The Kubernetes DaemonSet that installs fastvsock into the bundle of every node that runs RunCVM, as JSON.

The init container installs, so that a rollout waits until a node is done. The pod's container then watches the bundle:
an upgrade of RunCVM replaces the files there, and they are edited again within a minute. The pod sees one thing of the
node, the bundle, by a hostPath. Changing that takes root in the container (the bundle belongs to root) and nothing
more: no capability, no host namespace, no token, a root file system that cannot be written. The nodes are those with
the RuntimeClass' own label.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

WATCH = 60  # seconds between two looks at the bundle: each is a stat(2) of the files in some folders
LABELS = {"app.kubernetes.io/name": "fastvsock-runcvm", "app.kubernetes.io/component": "installer"}
NAME = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"  # a DNS label (RFC 1123), such as the name of a namespace
WORD = r"[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?"
LABEL = rf"(?:{NAME}(?:\.{NAME})*/)?{WORD}=(?:{WORD})?"
PATH = r"(?!.*/\.\.(?:/|$))/+[^/:\0][^:\0]*"  # the API refuses `..` in a hostPath and a colon in a mountPath


@dataclass(frozen=True)
class Settings:
    """What the DaemonSet is made of.

    `image` has fastvsock in it, and the file `wheel` where one is given. `label` is the nodes', as ``key=value``. With
    `pause`, an image that does nothing (such as Kubernetes' own), the pod installs once and does not watch.
    """

    image: str
    root: str
    namespace: str
    label: str
    pause: str | None = None
    proxy: bool = False
    wheel: str | None = None

    def check(self) -> None:
        """Raise `UsageError` for a value that the API would refuse, or that cannot be meant."""
        for option, value, pattern, expected in (
            ("--image", self.image, r"\S+", "an image's name, without spaces"),
            ("--pause", self.pause, r"\S+", "an image's name, without spaces"),
            ("--root", self.root, PATH, "the bundle's absolute path on the nodes, without .. and colons"),
            ("--namespace", self.namespace, NAME, "1 to 63 lower-case letters, digits and - (RFC 1123)"),
            ("--node-label", self.label, LABEL, "KEY=VALUE, a Kubernetes label"),
            ("--wheel", self.wheel, "/[^\0]+", "the absolute path of a file in the image"),
        ):
            if value is not None and not re.fullmatch(pattern, value, re.A | re.S):
                raise UsageError(f"invalid {option} {value!r}: expected {expected}")


def text(settings: Settings) -> str:
    """The DaemonSet as JSON, which ``kubectl apply -f -`` reads as it reads YAML."""
    return json.dumps(daemon_set(settings), indent=2) + "\n"


def daemon_set(settings: Settings) -> dict[str, Any]:
    """The DaemonSet."""
    key, _, value = settings.label.partition("=")
    metadata = {"name": "fastvsock-runcvm", "namespace": settings.namespace, "labels": LABELS}
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": {key: value},
        "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [_installer(settings, "install")],
        "containers": [_idle(settings.pause) if settings.pause else _installer(settings, "watch", WATCH)],
        "volumes": [
            {"name": "bundle", "hostPath": {"path": settings.root, "type": "Directory"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }
    spec = {
        "selector": {"matchLabels": LABELS},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%"}},
        "template": {"metadata": {"labels": LABELS}, "spec": pod},
    }
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": spec}


def _installer(settings: Settings, name: str, watch: int = 0) -> dict[str, Any]:
    """A container that installs: as root, since the bundle belongs to root, but with none of root's capabilities."""
    root = settings.root
    options = [*["--proxy"] * settings.proxy, *(["--wheel", settings.wheel] if settings.wheel else [])]
    if watch:
        options += ["--watch", str(watch)]
    return {
        "name": name,
        "image": settings.image,
        "command": ["fastvsock", "runcvm", "install", "--root", root, *options],
        "securityContext": {**_confined(), "runAsUser": 0, "runAsGroup": 0},
        "resources": _resources("50m", "500m", "128Mi"),
        "volumeMounts": [{"name": "bundle", "mountPath": root}, {"name": "tmp", "mountPath": "/tmp"}],
    }


def _idle(image: str) -> dict[str, Any]:
    return {
        "name": "installed",
        "image": image,
        "securityContext": {**_confined(), "runAsNonRoot": True, "runAsUser": 65535, "runAsGroup": 65535},
        "resources": _resources("1m", "50m", "32Mi"),
    }


def _confined() -> dict[str, Any]:
    return {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _resources(request: str, limit: str, memory: str) -> dict[str, Any]:
    return {"requests": {"cpu": request, "memory": memory}, "limits": {"cpu": limit, "memory": memory}}
