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
from typing import Any

# What runs in `image` where no image is given that does nothing by itself.
WAIT = ["python3", "-IS", "-c", "import signal; signal.pause()"]
LABELS = {"app.kubernetes.io/name": "fastvsock-runcvm", "app.kubernetes.io/component": "installer"}


def objects(image: str, root: str, namespace: str, label: str, pause: str | None, proxy: bool) -> list[dict[str, Any]]:
    """The objects. `label` is ``key=value``, of the nodes; `image` has fastvsock and Python in it.

    `pause` is an image that does nothing, such as Kubernetes' own; None: `image` is told to wait.
    """
    key, _, value = label.partition("=")
    metadata = {"name": "fastvsock-runcvm", "namespace": namespace, "labels": LABELS}
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": {key: value},
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "system-node-critical",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [_installer(image, root, proxy)],
        "containers": [_idle(image, pause)],
        "volumes": [
            {"name": "bundle", "hostPath": {"path": root, "type": "Directory"}},
            {"name": "tmp", "emptyDir": {}},
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


def _installer(image: str, root: str, proxy: bool) -> dict[str, Any]:
    """The container that installs. Root, for the bundle is root's; but with none of root's capabilities."""
    return {
        "name": "install",
        "image": image,
        "command": ["fastvsock", "runcvm", "install", "--root", root, *["--proxy"] * proxy],
        "securityContext": {**_confined(), "runAsUser": 0, "runAsGroup": 0},
        "resources": _resources("50m", "500m", "128Mi"),
        "volumeMounts": [{"name": "bundle", "mountPath": root}, {"name": "tmp", "mountPath": "/tmp"}],
    }


def _idle(image: str, pause: str | None) -> dict[str, Any]:
    return {
        "name": "installed",
        **({"image": pause} if pause else {"image": image, "command": WAIT}),
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
