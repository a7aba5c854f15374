"""What is shipped around the code: the image, the compose file, the scripts, and that they speak of the same things."""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose

CHECKOUT = Path(__file__).parents[2]
SCRIPTS = ("check", "demo", ".ci/run", "ops/uv", "ops/install.sh")
GRACE_SECONDS = 125  # of service/wiring.py, with the default settings: how long a daemon may take after SIGTERM


def read(name: str) -> str:
    return (CHECKOUT / name).read_text()


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (WORD, rest), continued lines joined, comments gone."""
    text = re.sub(r"(?m)^\s*#.*\n", "", read("Dockerfile")).replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def final_stage() -> list[tuple[str, str]]:
    every = instructions()
    starts = [index for index, (word, _) in enumerate(every) if word == "FROM"]
    assert len(starts) > 1, "one stage only: the build tools would be shipped"
    return every[starts[-1] :]


def last(word: str) -> str:
    return [rest for name, rest in final_stage() if name == word][-1]


def services() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = yaml.safe_load(read("compose.yaml"))["services"]
    return found


def test_every_command_of_the_image_is_also_run_by_check() -> None:
    commands = [rest for word, rest in instructions() if word == "RUN"]
    assert commands
    for command in commands:
        script = command.split()[0]
        assert f'{script} "$scratch/bskt"' in read("check"), f"./check does not run {command!r}"


def test_the_image_runs_nothing_as_root_and_builds_nothing_in_its_last_stage() -> None:
    assert not [rest for word, rest in final_stage() if word == "RUN"]
    assert last("FROM").split()[0].endswith("-slim")
    assert int(last("USER").partition(":")[0]) > 0
    assert last("STOPSIGNAL") == "SIGTERM"


def test_signals_reach_the_daemon_because_no_shell_stands_between() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["bskt"]
    assert json.loads(last("CMD")) == ["run"]


def test_both_stages_have_the_same_base_so_that_the_environment_fits() -> None:
    bases = {rest.split()[0] for word, rest in instructions() if word == "FROM"}
    assert len(bases) == 1


def test_the_health_check_asks_the_address_that_the_image_listens_on() -> None:
    listen = re.search(r"BSKT_LISTEN=0\.0\.0\.0:(\d+)", last("ENV"))
    assert listen
    health = json.loads(last("HEALTHCHECK").partition("CMD")[2])
    assert health[0] == "python", "the slim image has no curl"
    compile(health[-1], "HEALTHCHECK", "exec")
    assert f"127.0.0.1:{listen[1]}/livez" in health[-1]
    assert last("EXPOSE") == listen[1]
    assert f"bskt:{listen[1]}" in read("ops/prometheus.yml")


def test_all_that_the_wheel_is_built_from_reaches_the_builder() -> None:
    project = tomllib.loads(read("pyproject.toml"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], project["project"]["readme"], "pyproject.toml", "uv.lock"}
    needed |= {"ops/install.sh", "ops/uv"}
    let_in = {line[1:].rstrip("/") for line in read(".dockerignore").splitlines() if line.startswith("!")}
    assert needed == let_in


def test_the_compose_file_keeps_to_the_compose_specification() -> None:
    assert set(PyCompose.from_yaml(read("compose.yaml")).service_names()) == set(services())


def test_the_compose_file_gives_a_running_attempt_its_time() -> None:
    grace = str(services()["bskt"]["stop_grace_period"])
    assert int(grace.removesuffix("s")) > GRACE_SECONDS


def test_no_secret_stands_in_the_compose_file() -> None:
    secret = re.compile(r"PASSWORD|SECRET|KEY|DATABASE_URL|RPC_URL")
    declared = yaml.safe_load(read("compose.yaml"))["secrets"]
    for name, service in services().items():
        granted = service.get("secrets", [])
        assert isinstance(granted, list)
        environment = service.get("environment", {})
        assert isinstance(environment, dict)
        for variable, value in environment.items():
            if secret.search(variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                file = Path(value).name
                assert file in granted, f"{name}: {file}"
                assert file in declared


def test_what_runs_only_here_is_published_only_here() -> None:
    for service in services().values():
        ports = service.get("ports", [])
        assert isinstance(ports, list)
        assert all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_scrapes_what_compose_runs() -> None:
    (job,) = yaml.safe_load(read("ops/prometheus.yml"))["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    assert target.partition(":")[0] in services()
    assert "./ops/prometheus.yml:/etc/prometheus/prometheus.yml:ro" in services()["prometheus"]["volumes"]  # type: ignore[operator]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_run(script: str) -> None:
    assert os.access(CHECKOUT / script, os.X_OK)


def test_check_explains_itself_instead_of_guessing_at_an_unknown_option() -> None:
    answer = subprocess.run([CHECKOUT / "check", "--no-such-option"], capture_output=True, text=True, check=False)  # noqa: S603 - our own script
    assert answer.returncode == 2
    assert "./check --fast" in answer.stderr


def test_one_script_is_the_truth_for_desk_commit_and_machine() -> None:
    (hook,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    assert hook["entry"] == "./check --fast"
    assert read(".ci/run").rstrip().endswith('/../check" "$@"')
