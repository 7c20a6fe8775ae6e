"""The Kubernetes manifest: valid against the API's own schemas, and with as few rights as installing takes."""

from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from runcvm.bundles import fastvsock

IMAGE = "example.org/fastvsock@sha256:" + "0" * 64
VERSIONS = ("1.27", "1.31", "1.34")


def manifest(*arguments: str) -> dict[str, Any]:
    """The DaemonSet that is printed."""
    result = fastvsock("runcvm", "manifest", "--image", IMAGE, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    documents = list(yaml.safe_load_all(result.stdout))
    assert len(documents) == 1
    assert isinstance(documents[0], dict)
    return documents[0]


def pod(*arguments: str) -> Any:
    """The DaemonSet's pod."""
    return manifest(*arguments)["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("arguments", [[], ["--proxy", "--pause", "example.org/pause:1", "--namespace", "install"]])
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
    assert spec["containers"][0]["securityContext"]["runAsNonRoot"] is True
    assert "volumeMounts" not in spec["containers"][0]
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


@pytest.mark.parametrize("text", ["#x: 'y' \"z\"\\", "é☃", "true", "- a", "{b}", "1e3", "x\ty\nz"])
def test_every_text_survives_yaml(text: str) -> None:
    assert pod("--root", f"/{text}")["initContainers"][0]["command"][4] == f"/{text}"
    assert pod("--node-label", f"{text.partition('=')[0]}=1")["nodeSelector"] == {text: "1"}


def test_an_image_without_a_digest_is_warned_of_and_none_at_all_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    result = fastvsock("runcvm", "manifest", "--image", "example.org/fastvsock:1")
    assert result.returncode == 0
    assert "not fixed by a digest" in result.stderr
    with pytest.raises(SystemExit) as refused:
        fastvsock("runcvm", "manifest")
    assert refused.value.code == 2


@pytest.mark.parametrize("arguments", [["--node-label", "runcvm"], ["--root", "opt/runcvm"]])
def test_values_that_make_no_sense_are_wrong_usage(arguments: list[str]) -> None:
    assert fastvsock("runcvm", "manifest", "--image", IMAGE, *arguments).returncode == 2
