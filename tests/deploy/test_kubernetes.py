"""deploy/k3s and deploy/k3s-replicated: every object fits its schema, they fit each other, and the pods are as closed as their
comments say. What is special in the second is in test_replicated.py."""

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

import kustomize
from tools import DEPLOY, content

FOLDERS = [DEPLOY / "k3s", DEPLOY / "k3s-replicated"]
# What k3s has been for a while, and what is newest in the validator.
VERSIONS = ["1.30", "1.37"]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def objects(folder):
    return kustomize.build(folder)


@pytest.fixture(scope="module")
def stateful(objects):
    return by_kind(objects, "StatefulSet", "pithead-gateway")["spec"]


@pytest.fixture(scope="module")
def pod(stateful):
    return stateful["template"]


def by_kind(objects, kind, name=None):
    (one,) = [one for one in objects if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    return one


def selected(objects, labels):
    """What selects a pod with these labels, but for StatefulSets."""
    found = []
    for one in objects:
        spec = one.get("spec", {})
        selector = {"Service": spec.get("selector"), "NetworkPolicy": spec.get("podSelector", {}).get("matchLabels"),
                    "PodDisruptionBudget": spec.get("selector", {}).get("matchLabels")}.get(one["kind"])
        # A pod of a StatefulSet has its own name as a label.
        selector = {name: value for name, value in (selector or {}).items() if name != "statefulset.kubernetes.io/pod-name"}
        if selector and selector.items() <= labels.items():
            found.append(one)
    return found


def test_every_file_of_the_folder_is_in_the_kustomization(folder):
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    named = {*plan["resources"], *(file for one in plan["configMapGenerator"] for file in one["files"]), "kustomization.yaml"}
    named |= {patch["path"] for patch in plan.get("patches", [])}
    assert {path.name for path in folder.iterdir()} - {"make-keys"} == {name for name in named if not name.startswith("../")}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_its_schema(objects, version, tmp_path):
    built = tmp_path / "built.yaml"
    built.write_text(yaml.safe_dump_all(objects))
    said = content("kubernetes-validate", "--strict", "-k", version, built)
    assert said.count(" passed for resource ") == len(objects), said


def test_the_validator_finds_a_wrong_key(objects, tmp_path):
    broken = yaml.safe_load(yaml.safe_dump(by_kind(objects, "StatefulSet", "pithead-gateway")))
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(broken))
    with pytest.raises(AssertionError, match="readynessProbe"):
        content("kubernetes-validate", "--strict", "-k", VERSIONS[0], tmp_path / "broken.yaml")


def test_the_real_kustomize_makes_the_same(objects, folder):
    command = next((words for words in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(words[0])), None)
    if not command:
        pytest.skip("neither kustomize nor kubectl is here")
    made = list(yaml.safe_load_all(subprocess.run([*command, str(folder)], capture_output=True, check=True, text=True).stdout))

    def names(all_of_them):
        return sorted((one["kind"], re.sub(r"-[a-z0-9]{10}$", "", one["metadata"]["name"])) for one in all_of_them)

    assert names(made) == names(objects)


def test_the_pods_meet_the_restricted_profile(objects):
    """The rules of "Pod Security Standards", restricted: the namespace demands them, so a pod that breaks one never starts."""
    assert by_kind(objects, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for stateful in (one for one in objects if one["kind"] == "StatefulSet"):
        spec = stateful["spec"]["template"]["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert spec["automountServiceAccountToken"] is False
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= {"configMap", "secret", "persistentVolumeClaim"}, "no folder of the node"
        for container in spec["containers"]:
            closed = container["securityContext"]
            assert closed == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
            assert "memory" in container["resources"]["limits"] and container["resources"]["requests"]
            assert not [port for port in container["ports"] if "hostPort" in port]
            assert re.fullmatch(r"[a-z-]+:\d+\.\d+\.\d+", container["image"]), "a version, never latest"


def test_labels_ports_and_volumes_fit_each_other(objects):
    claims = {one["metadata"]["name"] for one in objects if one["kind"] == "PersistentVolumeClaim"}
    reached = []
    for stateful in (one["spec"] for one in objects if one["kind"] == "StatefulSet"):
        pod, labels = stateful["template"], stateful["template"]["metadata"]["labels"]
        (container,) = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert by_kind(objects, "Service", stateful["serviceName"])["spec"]["clusterIP"] == "None"
        assert stateful["selector"]["matchLabels"].items() <= labels.items()
        around = selected(objects, labels)
        assert {one["kind"] for one in around} == {"Service", "NetworkPolicy", "PodDisruptionBudget"}
        reached += around
        wanted = {port["targetPort"] for one in around if one["kind"] == "Service" for port in one["spec"]["ports"]}
        wanted |= {container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
        wanted |= {port["port"] for one in around if one["kind"] == "NetworkPolicy" for rule in one["spec"]["ingress"] for port in rule["ports"]}
        assert wanted <= set(ports), "ports are named, and the names exist"
        volumes = {one["name"] for one in pod["spec"]["volumes"]} | {one["metadata"]["name"] for one in stateful["volumeClaimTemplates"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert {one["persistentVolumeClaim"]["claimName"] for one in pod["spec"]["volumes"] if "persistentVolumeClaim" in one} <= claims
        (config,) = [one["configMap"]["name"] for one in pod["spec"]["volumes"] if one["name"] == "config"]
        assert by_kind(objects, "ConfigMap", config), "the name with the hash"
    selecting = [one for one in objects if one["kind"] in ("Service", "NetworkPolicy", "PodDisruptionBudget")]
    assert len(reached) == len(selecting), "each of them belongs to exactly one kind of pod"


def test_the_admin_port_is_for_the_monitoring_and_for_nobody_else(objects):
    policy = by_kind(objects, "NetworkPolicy", "pithead-gateway")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    (rule,) = [rule for rule in policy["ingress"] if {"port": "admin", "protocol": "TCP"} in rule["ports"]]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert len(rule["ports"]) == 1
    published = {port["targetPort"] for one in objects if one["kind"] == "Service" for port in one["spec"]["ports"]}
    assert "admin" not in published


def test_the_configuration_names_what_the_pod_has(folder, stateful):
    config = tomllib.loads((folder / "gateway.toml").read_text())
    pod = stateful["template"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for section, port in (("ingest", "devices"), ("enroll", "enroll"), ("admin", "admin")):
        assert config[section]["listen"] == f"0.0.0.0:{ports[port]}"
    environment = [one["value"] for one in container.get("env", []) if one.get("value", "").startswith("/")]
    names = [f"pithead-gateway-{number}" for number in range(stateful["replicas"])]
    paths = re.findall(r'"(?:file://)?(/[^"]+)"', (folder / "gateway.toml").read_text())
    assert_files_of_the_pod(folder, pod, paths + [value.replace("$(POD_NAME)", name) for value in environment for name in names])


def assert_files_of_the_pod(folder, pod, paths):
    """Which file lies where: by the commands that make the trust and the keys, and the volumes that show them."""
    header = (folder / "kustomization.yaml").read_text().replace("\\\n#", "")
    (container,) = pod["spec"]["containers"]
    sources = {one["name"]: one.get("secret", {}).get("secretName") or one.get("configMap", {}).get("name") for one in pod["spec"]["volumes"]}
    places = {mount["mountPath"]: sources.get(mount["name"]) for mount in container["volumeMounts"]}
    for path in paths:
        if path in places:
            continue
        place, name = path.rsplit("/", 1)
        made = re.search(rf"create (?:configmap|secret generic) {places[place]} (.*)", header).group(1)
        assert f"--from-file={name}" in made.split(), f"{path} is nowhere in the pod"
