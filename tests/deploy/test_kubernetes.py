"""deploy/k3s: every object fits its schema, they fit each other, and the pod is as closed as its comments say."""

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

import kustomize
from tools import DEPLOY, content

FOLDER = DEPLOY / "k3s"
# What k3s has been for a while, and what is newest in the validator.
VERSIONS = ["1.30", "1.37"]


@pytest.fixture(scope="module")
def objects():
    return kustomize.build(FOLDER)


@pytest.fixture(scope="module")
def pod(objects):
    return by_kind(objects, "StatefulSet")["spec"]["template"]


def by_kind(objects, kind, name=None):
    (one,) = [one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    return one


def test_every_file_of_the_folder_is_in_the_kustomization():
    plan = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    named = {*plan["resources"], *(file for one in plan["configMapGenerator"] for file in one["files"]), "kustomization.yaml"}
    assert {path.name for path in FOLDER.iterdir()} == named


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_its_schema(objects, version, tmp_path):
    built = tmp_path / "built.yaml"
    built.write_text(yaml.safe_dump_all(objects))
    said = content("kubernetes-validate", "--strict", "-k", version, built)
    assert said.count(" passed for resource ") == len(objects), said


def test_the_validator_finds_a_wrong_key(objects, tmp_path):
    broken = yaml.safe_load(yaml.safe_dump(by_kind(objects, "StatefulSet")))
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(broken))
    with pytest.raises(AssertionError, match="readynessProbe"):
        content("kubernetes-validate", "--strict", "-k", VERSIONS[0], tmp_path / "broken.yaml")


def test_the_real_kustomize_makes_the_same(objects):
    command = next((words for words in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(words[0])), None)
    if not command:
        pytest.skip("neither kustomize nor kubectl is here")
    made = list(yaml.safe_load_all(subprocess.run([*command, str(FOLDER)], capture_output=True, check=True, text=True).stdout))

    def names(all_of_them):
        return sorted((one["kind"], re.sub(r"-[a-z0-9]{10}$", "", one["metadata"]["name"])) for one in all_of_them)

    assert names(made) == names(objects)


def test_the_pod_meets_the_restricted_profile(objects, pod):
    """The rules of "Pod Security Standards", restricted: the namespace demands them, so a pod that breaks one never starts."""
    assert by_kind(objects, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = pod["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert spec["automountServiceAccountToken"] is False
    for volume in spec["volumes"]:
        assert set(volume) - {"name"} <= {"configMap", "secret"}, "no folder of the node"
    for container in spec["containers"]:
        closed = container["securityContext"]
        assert closed == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert "memory" in container["resources"]["limits"] and container["resources"]["requests"]
        assert not [port for port in container["ports"] if "hostPort" in port]
        assert re.fullmatch(r"[a-z-]+:\d+\.\d+\.\d+", container["image"]), "a version, never latest"


def test_labels_ports_and_volumes_fit_each_other(objects, pod):
    stateful, labels = by_kind(objects, "StatefulSet")["spec"], pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert by_kind(objects, "Service", stateful["serviceName"])["spec"]["clusterIP"] == "None"
    selectors = [stateful["selector"]["matchLabels"], by_kind(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
                 by_kind(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]]
    services = [one for one in objects if one["kind"] == "Service"]
    selectors += [one["spec"]["selector"] for one in services]
    for selector in selectors:
        assert selector.items() <= labels, selector
    wanted = {port["targetPort"] for one in services for port in one["spec"]["ports"]}
    wanted |= {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    wanted |= {port["port"] for rule in by_kind(objects, "NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]}
    assert wanted <= set(ports), "ports are named, and the names exist"
    volumes = {one["name"] for one in pod["spec"]["volumes"]} | {one["metadata"]["name"] for one in stateful["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    config_map = by_kind(objects, "ConfigMap")["metadata"]["name"]
    assert {"name": "config", "configMap": {"name": config_map}} in pod["spec"]["volumes"], "the name with the hash"


def test_the_admin_port_is_for_the_monitoring_and_for_nobody_else(objects):
    policy = by_kind(objects, "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    (rule,) = [rule for rule in policy["ingress"] if {"port": "admin", "protocol": "TCP"} in rule["ports"]]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert len(rule["ports"]) == 1
    published = {port["targetPort"] for one in objects if one["kind"] == "Service" for port in one["spec"]["ports"]}
    assert "admin" not in published


def test_the_configuration_names_what_the_pod_has(pod):
    config = tomllib.loads((FOLDER / "gateway.toml").read_text())
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for section, port in (("ingest", "devices"), ("enroll", "enroll"), ("admin", "admin")):
        assert config[section]["listen"] == f"0.0.0.0:{ports[port]}"
    # Which file lies where: by the commands that make the trust and the keys, and the volumes that show them.
    header = (FOLDER / "kustomization.yaml").read_text().replace("\\\n#", "")
    sources = {one["name"]: one.get("secret", {}).get("secretName") or one.get("configMap", {}).get("name") for one in pod["spec"]["volumes"]}
    places = {mount["mountPath"]: sources.get(mount["name"]) for mount in container["volumeMounts"]}
    for path in re.findall(r'"(/[^"]+)"', (FOLDER / "gateway.toml").read_text()):
        if path in places:
            continue
        folder, name = path.rsplit("/", 1)
        made = re.search(rf"create (?:configmap|secret generic) {places[folder]} (.*)", header).group(1)
        assert f"--from-file={name}" in made.split(), f"{path} is nowhere in the pod"
