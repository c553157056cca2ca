"""What a linter says about the files below deploy/ and about these scripts: nothing."""

import json
import subprocess

from tools import DEPLOY, ask, content

WORKSPACE = DEPLOY.parent


def test_the_yaml_is_clean():
    content("yamllint", "-s", "-c", WORKSPACE / "tests/deploy/yamllint.yaml", DEPLOY)


def test_the_templates_are_clean_for_cfn_lint():
    templates = sorted((DEPLOY / "cloudformation").glob("*.yaml"))
    assert len(templates) == 3
    assert content("cfn-lint", "--non-zero-exit-code", "informational", *templates).strip() == ""


def test_the_scripts_are_clean_for_shellcheck():
    scripts = [DEPLOY / "docker/make-site", WORKSPACE / "tests/deploy/run", WORKSPACE / "tests/deploy/alerts"]
    content("shellcheck", *scripts)


def test_the_dockerfile_is_clean_for_hadolint():
    content("hadolint", DEPLOY / "docker/Dockerfile")


def test_compose_fits_its_schema(tmp_path):
    compose = DEPLOY / "docker/compose.yaml"
    content("check-jsonschema", "--builtin-schema", "vendor.compose-spec", compose)
    broken = tmp_path / "compose.yaml"
    broken.write_text(compose.read_text().replace("read_only: true", "read_onyl: true"))
    code, said = ask("check-jsonschema", "--builtin-schema", "vendor.compose-spec", broken)
    assert code != 0 and "read_onyl" in said, "the schema knows what it reads"


def test_the_images_hold_a_program_each_as_nobody_on_nothing():
    stages, stage = {}, None
    for line in (DEPLOY / "docker/Dockerfile").read_text().splitlines():
        words = line.split()
        if words[:1] == ["FROM"]:
            stage = words[-1]
            stages[stage] = [words[1]]
        elif stage and line and not line.startswith(("#", " ")):
            stages[stage].append(line)
    assert stages["base"][0] == "scratch" and "USER 65532:65532" in stages["base"]
    for name in ("gateway", "decryptor", "device"):
        assert stages[name][0] == "base"
        copied = [line.split()[-1] for line in stages[name] if line.startswith("COPY") and "/out/" in line]
        assert copied == [f"/pithead-{name}"], "the gateway's image holds no opener"
        assert f'ENTRYPOINT ["/pithead-{name}"]' in stages[name]
        assert not [line for line in stages[name] if line.startswith(("USER", "RUN"))]


def test_the_toolchain_of_the_images_is_that_of_the_tree():
    wanted = next(line.split('"')[1] for line in (WORKSPACE / "rust-toolchain.toml").read_text().splitlines() if line.startswith("channel"))
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text()
    assert f"rust:{wanted}-slim-" in dockerfile and f"RUSTUP_TOOLCHAIN={wanted}" in dockerfile


def test_the_dashboard_is_what_its_generator_writes():
    subprocess.run([DEPLOY / "grafana/generate-dashboard", "--check"], check=True)
    json.loads((DEPLOY / "grafana/pithead.json").read_text())
