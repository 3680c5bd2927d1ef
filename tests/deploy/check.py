"""Checks deploy/kubernetes against the schemas of Kubernetes, and a bill of materials against
CycloneDX's:

    python3 tests/deploy/check.py deploy/kubernetes SBOM

The ServiceMonitor belongs to Prometheus' operator, whose schema no package has: servicemonitor.json
describes the fields in use. The references between the objects are checked too.
"""
import json
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

HERE = pathlib.Path(__file__).parent
# The oldest version with the policy of volume claims by default, and the newest one with a schema.
VERSIONS = ["1.27", "1.37"]
WANTED = {"Service", "StatefulSet", "PodDisruptionBudget", "Secret", "ServiceMonitor"}


def matches(selector, labels):
    return bool(selector) and selector.items() <= labels.items()


def check_references(objects):
    """Yields what an object names and no object has."""
    sets = [o for o in objects if o["kind"] == "StatefulSet"]
    services = {o["metadata"]["name"]: o for o in objects if o["kind"] == "Service"}
    secrets = {o["metadata"]["name"]: o for o in objects if o["kind"] == "Secret"}
    pods = [o["spec"]["template"] for o in sets]
    for this in objects:
        name, spec = f"{this['kind']} {this['metadata']['name']}", this.get("spec", {})
        if this["kind"] == "Service":
            if not any(matches(spec["selector"], pod["metadata"]["labels"]) for pod in pods):
                yield f"{name} selects no pod"
            ports = {port["name"] for pod in pods for port in pod["spec"]["containers"][0]["ports"]}
            yield from (f"{name}: no port {port['targetPort']}" for port in spec["ports"] if port["targetPort"] not in ports)
        elif this["kind"] == "PodDisruptionBudget":
            if not any(matches(spec["selector"]["matchLabels"], pod["metadata"]["labels"]) for pod in pods):
                yield f"{name} selects no pod"
        elif this["kind"] == "ServiceMonitor":
            selected = [s for s in services.values() if matches(spec["selector"]["matchLabels"], s["metadata"]["labels"])]
            if len(selected) != 1:
                yield f"{name} selects {len(selected)} services, so a pod is scraped as often"
            for service in selected:
                ports = {port["name"] for port in service["spec"]["ports"]}
                yield from (f"{name}: no port {e['port']}" for e in spec["endpoints"] if e["port"] not in ports)
        elif this["kind"] == "StatefulSet":
            pod, [container] = spec["template"]["spec"], spec["template"]["spec"]["containers"]
            if services.get(spec["serviceName"], {}).get("spec", {}).get("clusterIP") != "None":
                yield f"{name}: {spec['serviceName']} is no headless service"
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            claims = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            yield from (f"{name}: no volume {mount}" for mount in mounts if mount not in claims | set(volumes))
            secret = secrets.get(volumes["secrets"]["secret"]["secretName"])
            for variable in container["env"]:
                value = variable["value"]
                if value.startswith(mounts["secrets"]) and value.rsplit("/", 1)[1] not in secret["stringData"]:
                    yield f"{name}: the secret has no {value}"


def main(directory, sbom):
    faults, objects = [], []
    for path in sorted(pathlib.Path(directory).glob("*.yaml")):
        for this in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            objects.append(this)
            name = f"{path}: {this['kind']} {this['metadata']['name']}"
            try:
                if this["kind"] == "ServiceMonitor":
                    jsonschema.validate(this, json.loads((HERE / "servicemonitor.json").read_text(encoding="utf-8")))
                else:
                    for version in VERSIONS:
                        kubernetes_validate.validate(this, version, strict=True)
            except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
                faults.append(f"{name}: {'.'.join(map(str, error.path))}: {error.message}")
    missing = WANTED - {this["kind"] for this in objects}
    faults += [f"{directory} has no {kind}" for kind in sorted(missing)]
    faults += check_references(objects)
    error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(pathlib.Path(sbom).read_text(encoding="utf-8"))
    if error:
        faults.append(f"{sbom}: {error}")
    print("\n".join(faults) or f"{len(objects)} objects of Kubernetes and the bill of materials are valid")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
