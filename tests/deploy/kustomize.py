"""What `kubectl kustomize` makes of deploy/k3s and deploy/k3s-replicated, as far as those folders go: the resources in one
namespace, those of another folder below them, patches as RFC 6902 writes them, ConfigMaps out of files whose name carries their
hash, and the tags of images. Another key of a kustomization is refused and not passed over.

The real program is not in the registries that our builds reach; where there is one (`kubectl` or `kustomize` in the PATH),
test_kubernetes.py asks it as well.
"""

import hashlib

import yaml

UNDERSTOOD = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "images", "patches"}


def _everywhere(value, change):
    if isinstance(value, dict):
        return change({key: _everywhere(one, change) for key, one in value.items()})
    return [_everywhere(one, change) for one in value] if isinstance(value, list) else value


def _apply(operation, value):
    """One operation of RFC 6902, in place."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    for part in way:
        value = value[int(part)] if isinstance(value, list) else value[part]
    known, place = {"add", "replace", "remove"}, last
    assert operation["op"] in known and set(operation) <= {"op", "path", "value"}, operation
    if isinstance(value, list) and last != "-":
        place = int(last)
    if operation["op"] != "add":
        # What is to go has to be there: a patch that hits nothing is a mistake.
        value[place]
    if operation["op"] == "remove":
        del value[place]
    elif operation["op"] == "add" and isinstance(value, list):
        value.insert(len(value) if last == "-" else place, operation["value"])
    else:
        value[place] = operation["value"]


def _accumulate(folder):
    """Objects, and ConfigMaps by their name without a hash."""
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(plan) <= UNDERSTOOD, f"not understood here: {set(plan) - UNDERSTOOD}"
    objects, maps = [], {}
    for name in plan["resources"]:
        if (folder / name).is_dir():
            below, made = _accumulate((folder / name).resolve())
            objects += below
            maps |= made
        else:
            objects += yaml.safe_load_all((folder / name).read_text())
    for made in plan.get("configMapGenerator", []):
        assert set(made) <= {"name", "files", "behavior"}, made
        assert (made.get("behavior", "create") == "replace") == (made["name"] in maps), "replaced is what is there, and nothing else"
        maps[made["name"]] = {name: (folder / name).read_text() for name in made["files"]}
    for patch in plan.get("patches", []):
        assert set(patch) == {"target", "path"} and set(patch["target"]) == {"kind", "name"}, patch
        (hit,) = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (patch["target"]["kind"], patch["target"]["name"])]
        for operation in yaml.safe_load((folder / patch["path"]).read_text()):
            _apply(operation, hit)
    tags = {one["name"]: one["newTag"] for one in plan.get("images", [])}

    def change(mapping):
        if mapping.get("image") in tags:
            mapping["image"] += ":" + tags[mapping["image"]]
        return mapping

    objects = [_everywhere(one, change) for one in objects]
    for one in objects:
        if one["kind"] != "Namespace":
            one["metadata"]["namespace"] = plan["namespace"]
    return objects, maps


def build(folder):
    objects, maps = _accumulate(folder)
    renamed = {}
    for name, data in maps.items():
        renamed[name] = f"{name}-{hashlib.sha256(repr(sorted(data.items())).encode()).hexdigest()[:10]}"
        namespace = next(one["metadata"]["name"] for one in objects if one["kind"] == "Namespace")
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": renamed[name], "namespace": namespace}, "data": data})

    def change(mapping):
        if set(mapping) == {"configMap", "name"} and mapping["configMap"].get("name") in renamed:
            mapping["configMap"] = {"name": renamed[mapping["configMap"]["name"]]}
        return mapping

    return [_everywhere(one, change) for one in objects]
