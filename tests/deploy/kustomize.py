"""What `kubectl kustomize` makes of deploy/k3s, as far as that folder goes: the resources in one namespace, a ConfigMap out of
files whose name carries their hash, and the tags of images. Another key of a kustomization is refused and not passed over.

The real program is not in the registries that our builds reach; where there is one (`kubectl` or `kustomize` in the PATH),
test_kubernetes.py asks it as well.
"""

import hashlib

import yaml

UNDERSTOOD = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "images"}


def _everywhere(value, change):
    if isinstance(value, dict):
        return change({key: _everywhere(one, change) for key, one in value.items()})
    return [_everywhere(one, change) for one in value] if isinstance(value, list) else value


def build(folder):
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(plan) <= UNDERSTOOD, f"not understood here: {set(plan) - UNDERSTOOD}"
    objects = [one for name in plan["resources"] for one in yaml.safe_load_all((folder / name).read_text())]
    renamed = {}
    for made in plan.get("configMapGenerator", []):
        assert set(made) == {"name", "files"}, made
        data = {name: (folder / name).read_text() for name in made["files"]}
        renamed[made["name"]] = f"{made['name']}-{hashlib.sha256(repr(sorted(data.items())).encode()).hexdigest()[:10]}"
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": renamed[made["name"]]}, "data": data})
    tags = {one["name"]: one["newTag"] for one in plan.get("images", [])}

    def change(mapping):
        if mapping.get("image") in tags:
            mapping["image"] += ":" + tags[mapping["image"]]
        if set(mapping) == {"configMap", "name"} and mapping["configMap"].get("name") in renamed:
            mapping["configMap"] = {"name": renamed[mapping["configMap"]["name"]]}
        return mapping

    objects = [_everywhere(one, change) for one in objects]
    for one in objects:
        if one["kind"] != "Namespace":
            one["metadata"]["namespace"] = plan["namespace"]
    return objects
