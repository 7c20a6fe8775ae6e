"""The Kubernetes objects that install fastvsock into the bundle of every node that runs RunCVM, as YAML.

A DaemonSet: the init container installs, then a container that does nothing keeps the pod there, so that a new node
gets one as well. The only thing of the node that it sees is the bundle, one hostPath; changing that takes root in the
container (the bundle is root's) and nothing more: no capability, no host namespace, no token, a root file system that
cannot be written. The nodes are those with the RuntimeClass' own label.

YAML is written by this module's own few lines, since the package has no dependencies: every text is quoted, as JSON
quotes it, which YAML takes as it is.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError

# What runs in `image` where no image is given that does nothing by itself.
WAIT = ["python3", "-IS", "-c", "import signal; signal.pause()"]
LABELS = {"app.kubernetes.io/name": "fastvsock-runcvm", "app.kubernetes.io/component": "installer"}


NAME = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"  # a label as RFC 1123 has it, as for a namespace
WORD = r"[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?"
LABEL = rf"(?:{NAME}(?:\.{NAME})*/)?{WORD}=(?:{WORD})?"
PATH = r"(?!.*/\.\.(?:/|$))/+[^/:\0][^:\0]*"  # the API takes no `..` in a hostPath, and no colon in a mountPath


@dataclass(frozen=True)
class Settings:
    """What the objects are made of.

    `image` has fastvsock and Python in it, and the file `wheel`, where one is given. `pause` is an image that does
    nothing, such as Kubernetes' own; None: `image` is told to wait. `label` is ``key=value``, of the nodes.
    """

    image: str
    root: str
    namespace: str
    label: str
    pause: str | None = None
    proxy: bool = False
    wheel: str | None = None

    def check(self) -> None:
        """Raise `UsageError` for what the API would refuse, or what cannot be meant."""
        for option, value, pattern, what in (
            ("--image", self.image, r"\S+", "an image's name, without blanks"),
            ("--pause", self.pause, r"\S+", "an image's name, without blanks"),
            ("--root", self.root, PATH, "the bundle's path on the nodes, which begins with / and has no .. or colon"),
            ("--namespace", self.namespace, NAME, "a name of small letters, digits and -, 63 at most (RFC 1123)"),
            ("--node-label", self.label, LABEL, "KEY=VALUE, as Kubernetes has them"),
            ("--wheel", self.wheel, "/[^\0]+", "the path of a file in the image, which begins with /"),
        ):
            if value is not None and not re.fullmatch(pattern, value, re.A | re.S):
                raise UsageError(f"{option} is {what}, not {value!r}")


def objects(settings: Settings) -> list[dict[str, Any]]:
    """The objects."""
    key, _, value = settings.label.partition("=")
    metadata = {"name": "fastvsock-runcvm", "namespace": settings.namespace, "labels": LABELS}
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": {key: value},
        "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [_installer(settings)],
        "containers": [_idle(settings)],
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
    return [{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "spec": spec}]


def text(documents: list[dict[str, Any]]) -> str:
    """The objects as YAML."""
    return "".join("---\n" + "\n".join(_lines(document)) + "\n" for document in documents)


def _installer(settings: Settings) -> dict[str, Any]:
    """The container that installs. Root, for the bundle is root's; but with none of root's capabilities."""
    root = settings.root
    options = [*["--proxy"] * settings.proxy, *(["--wheel", settings.wheel] if settings.wheel else [])]
    return {
        "name": "install",
        "image": settings.image,
        "command": ["fastvsock", "runcvm", "install", "--root", root, *options],
        "securityContext": {**_confined(), "runAsUser": 0, "runAsGroup": 0},
        "resources": _resources("50m", "500m", "128Mi"),
        "volumeMounts": [{"name": "bundle", "mountPath": root}, {"name": "tmp", "mountPath": "/tmp"}],
    }


def _idle(settings: Settings) -> dict[str, Any]:
    image = settings.image
    return {
        "name": "installed",
        **({"image": settings.pause} if settings.pause else {"image": image, "command": WAIT}),
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


def _lines(value: Any) -> Iterator[str]:
    """A value in YAML's block style, line by line."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if isinstance(inner, dict | list) and inner:
                yield f"{_key(key)}:"
                yield from (f"  {line}" for line in _lines(inner))
            else:
                yield f"{_key(key)}: {json.dumps(inner)}"
    elif isinstance(value, list) and value:
        for inner in value:
            block = list(_lines(inner))
            yield f"- {block[0]}"
            yield from (f"  {line}" for line in block[1:])
    else:
        yield json.dumps(value)


def _key(key: str) -> str:
    """A key, plain where YAML cannot take it for anything but a text."""
    words = ("true", "false", "null", "yes", "off")
    return key if re.fullmatch("[a-z][a-zA-Z]{2,}", key) and key not in words else json.dumps(key)
