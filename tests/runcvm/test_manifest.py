"""The Kubernetes manifest: valid against the API's own schemas, and with as few rights as installing takes."""

import json
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from support.bundles import fastvsock

IMAGE = "example.org/fastvsock@sha256:" + "0" * 64
FULL = ["--proxy", "--pause", "example.org/pause:1", "--namespace", "install", "--wheel", "/wheels/fastvsock.whl"]
VERSIONS = ("1.27", "1.31", "1.34")


def manifest(*arguments: str) -> dict[str, Any]:
    """The DaemonSet that is printed."""
    result = fastvsock("runcvm", "manifest", "--image", IMAGE, "--node-label", "runcvm=true", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


def pod(*arguments: str) -> Any:
    """The DaemonSet's pod."""
    return manifest(*arguments)["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("arguments", [[], FULL])
def test_the_manifest_is_valid_in_the_apis_schema(version: str, arguments: list[str]) -> None:
    kubernetes_validate.validate(manifest(*arguments), version, strict=True)


def test_the_schema_would_find_a_misspelt_field() -> None:
    broken = manifest()
    container = broken["spec"]["template"]["spec"]["initContainers"][0]
    container["securityContext"]["readonlyRootFilesystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_no_container_has_a_right_that_it_does_not_need() -> None:
    spec = pod()
    assert not {"hostPID", "hostNetwork", "hostIPC", "serviceAccountName", "shareProcessNamespace"} & set(spec)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    for container in [*spec["initContainers"], *spec["containers"]]:
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert set(container["resources"]) == {"requests", "limits"}
        assert "ports" not in container
    paths = [volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume]
    assert paths == ["/opt/runcvm"]


def test_it_installs_into_the_bundle_that_it_mounts_on_the_nodes_of_the_label() -> None:
    spec = pod("--root", "/srv/run cvm", "--node-label", "on=yes", "--proxy")
    assert spec["nodeSelector"] == {"on": "yes"}
    assert spec["initContainers"][0]["command"] == [
        "fastvsock",
        "runcvm",
        "install",
        "--root",
        "/srv/run cvm",
        "--proxy",
    ]
    assert {"name": "bundle", "mountPath": "/srv/run cvm"} in spec["initContainers"][0]["volumeMounts"]
    assert spec["initContainers"][0]["image"] == IMAGE


def test_the_pod_goes_on_watching_the_bundle_that_it_installed_into() -> None:
    spec = pod("--proxy", "--wheel", "/wheels/fastvsock.whl")
    install, watch = spec["initContainers"][0], spec["containers"][0]
    assert watch["command"] == [*install["command"], "--watch", "60"]
    assert {**watch, "name": "install", "command": install["command"]} == install


def test_with_a_pause_image_it_installs_once_and_keeps_nothing_of_the_node() -> None:
    spec = pod("--pause", "example.org/pause:1")
    assert "--watch" not in spec["initContainers"][0]["command"]
    idle = spec["containers"][0]
    assert idle["image"] == "example.org/pause:1"
    assert idle["securityContext"]["runAsNonRoot"] is True
    assert not {"volumeMounts", "command"} & set(idle)


@pytest.mark.parametrize("root", ["/srv/é☃", "/srv/'x' \"y\" {z} #", "/srv/- a\tb\nc"])
def test_every_path_survives_the_printing(root: str) -> None:
    assert pod("--root", root)["volumes"][0]["hostPath"]["path"] == root


def test_it_has_no_rank_above_others_and_is_not_kept_on_a_node_that_is_drained() -> None:
    spec = pod()
    assert "priorityClassName" not in spec
    assert spec["tolerations"] == [{"operator": "Exists", "effect": "NoSchedule"}]
    assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume)


def test_the_wheel_for_the_bundle_is_one_in_the_image() -> None:
    command = pod("--wheel", "/wheels/fastvsock.whl")["initContainers"][0]["command"]
    assert command[-2:] == ["--wheel", "/wheels/fastvsock.whl"]
    assert "--wheel" not in pod()["initContainers"][0]["command"]


def test_without_a_label_it_says_which_nodes_it_is_for() -> None:
    result = fastvsock("runcvm", "manifest", "--image", IMAGE)
    assert result.returncode == 0
    assert "kubectl label node NAME runcvm=true" in result.stderr
    assert "scheduling.nodeSelector" in result.stderr
    nodes = json.loads(result.stdout)["spec"]["template"]["spec"]["nodeSelector"]
    assert nodes == {"runcvm": "true"}


def test_an_image_without_a_digest_is_warned_of_and_none_at_all_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    result = fastvsock("runcvm", "manifest", "--image", "example.org/fastvsock:1")
    assert result.returncode == 0
    assert "is not pinned by a digest" in result.stderr
    with pytest.raises(SystemExit) as refused:
        fastvsock("runcvm", "manifest")
    assert refused.value.code == 2


NONSENSE = [
    *(["--node-label", label] for label in ("runcvm", "=x", "a b=c", "a=b c", "a/b/c=d", "A/b=c", f"{'a' * 64}=b", "")),
    *(["--root", root] for root in ("opt/runcvm", "/", "//", "/opt/../etc", "/a:b", "")),
    *(["--namespace", name] for name in ("", "Kube", "a b", "a-", "a.b", "a" * 64, "a\n")),
    *([option, image] for option in ("--image", "--pause") for image in ("", " ", "a b", "a\tb", "a\n")),
    ["--wheel", ""],
    ["--wheel", "wheels/fastvsock.whl"],
]


@pytest.mark.parametrize("arguments", NONSENSE)
def test_invalid_values_are_wrong_usage(arguments: list[str]) -> None:
    result = fastvsock("runcvm", "manifest", "--image", IMAGE, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"fastvsock: invalid {arguments[0]} {arguments[1]!r}: expected ")


@pytest.mark.parametrize("arguments", [["--node-label", "example.org/run_cvm=a.b-c"], ["--node-label", "a="]])
def test_values_that_the_api_takes_are_taken(arguments: list[str]) -> None:
    assert fastvsock("runcvm", "manifest", "--image", IMAGE, *arguments).returncode == 0
