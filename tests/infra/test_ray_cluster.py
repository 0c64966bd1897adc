"""The cluster file: what Ray's launcher and EC2 would refuse is refused here."""

import copy
import json
import re
import subprocess
from pathlib import Path

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
LAUNCHERS = {"MinCount": 1, "MaxCount": 1, "SubnetId": "subnet-0", "SecurityGroupIds": ["sg-0"]}  # what Ray adds


@pytest.fixture
def cluster():
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


@pytest.fixture(scope="module")
def ec2():
    return botocore.session.get_session().get_service_model("ec2")


def validate(cluster):
    validate_config(prepare_config(copy.deepcopy(cluster)))


def faults_of(node_config, ec2):
    """What the model of EC2 finds wrong with a request to run such nodes: names, types, and values of enums."""
    shape = ec2.operation_model("RunInstances").input_shape
    request = {**node_config, **LAUNCHERS}
    report = ParamValidator().validate(request, shape)
    return [*([report.generate_report()] if report.has_errors() else []), *_not_of_enum(request, shape, "")]


def _not_of_enum(value, shape, name):
    if shape.type_name == "structure":
        for key in value.keys() & shape.members.keys():
            yield from _not_of_enum(value[key], shape.members[key], f"{name}.{key}")
    elif shape.type_name == "list":
        for item in value:
            yield from _not_of_enum(item, shape.member, name)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{name} is {value!r}"


def test_ray_takes_it(cluster):
    validate(cluster)


def spoil_top(cluster):
    cluster["idle_timeout"] = 5


def spoil_node_type(cluster):
    cluster["available_node_types"]["gpu"]["label"] = {}


def spoil_head(cluster):
    cluster["head_node_type"] = "heads"


def spoil_docker(cluster):
    cluster["docker"]["images"] = "x"


@pytest.mark.parametrize("spoil", [spoil_top, spoil_node_type, spoil_head, spoil_docker])
def test_ray_would_not_take_a_mistake(cluster, spoil):
    spoil(cluster)
    with pytest.raises(Exception, match=r"(?i)additional properties|head_node_type"):
        validate(cluster)


def test_ec2_takes_every_node(cluster, ec2):
    for name, node_type in cluster["available_node_types"].items():
        assert faults_of(node_type["node_config"], ec2) == [], name


@pytest.mark.parametrize(
    "mistake",
    [
        {"InstanceTyp": "m6i.large"},
        {"InstanceType": "m6i.gigantic"},
        {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": "300"}}]},
        {"InstanceMarketOptions": {"MarketType": "sport"}},
        {"IamInstanceProfile": {"Profile": "recipe-ray-worker"}},
    ],
    ids=["unknown key", "unknown instance type", "text for a number", "unknown market", "unknown key within"],
)
def test_ec2_would_not_take_a_mistake(cluster, ec2, mistake):
    assert faults_of({**cluster["available_node_types"]["gpu"]["node_config"], **mistake}, ec2)


def test_the_head_runs_no_work_and_only_ingest_is_on_spot(cluster):
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    spot = {name for name, one in types.items() if "InstanceMarketOptions" in one["node_config"]}
    assert spot == {"gpu-spot"}
    assert all(one.get("min_workers", 0) == 0 for one in types.values())  # nothing costs before work is there
    assert all(one["node_config"]["MetadataOptions"]["HttpTokens"] == "required" for one in types.values())
    assert all(one["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] for one in types.values())


def test_images_are_of_the_pinned_ray_and_the_tested_python(cluster):
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    images = {cluster["docker"]["image"], cluster["docker"]["head_image"]}
    images |= {one["docker"]["worker_image"] for one in cluster["available_node_types"].values() if "docker" in one}
    assert {image.rpartition("-")[0] for image in images} == {f"rayproject/ray:{pinned}-py311"}


def test_the_region_is_the_same_everywhere(cluster):
    region = cluster["provider"]["region"]
    assert f"--env AWS_REGION={region}" in cluster["docker"]["run_options"]
    assert all(zone.startswith(region) for zone in cluster["provider"]["availability_zone"].split(","))


def test_what_is_copied_is_there_and_enough_to_install(cluster):
    home = "/home/ray/recipe-ray/"
    copied = {source for place, source in cluster["file_mounts"].items() if place == home + source}
    assert all((ROOT / source).exists() for source in copied)
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "recipe_ray", "serving", "jobs"} == copied
    assert "--constraint constraints.txt" in cluster["setup_commands"][0]


def test_commands_are_shell(cluster):
    for name in cluster:
        if name.endswith("commands"):
            for command in cluster[name]:
                subprocess.run(["bash", "-n", "-c", command], check=True)


def test_tasks_get_the_threads_that_they_reserve(cluster):
    """The launcher exports OMP_NUM_THREADS=1 before every command, and Ray sets it only where it is not set."""
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in cluster[name] if "ray start" in command]
        assert start.startswith("unset OMP_NUM_THREADS;")


def test_the_head_may_launch_these_nodes_and_change_no_others(cluster, ec2):
    policy = json.loads((ROOT / "infra/aws/head-policy.json").read_text())
    statements = {statement["Sid"]: statement for statement in policy["Statement"]}
    actions = {action for one in statements.values() for action in one["Action"]}
    assert {action.removeprefix("ec2:") for action in actions if action.startswith("ec2:")} <= set(ec2.operation_names)
    head = cluster["head_node_type"]
    workers = [one["node_config"] for name, one in cluster["available_node_types"].items() if name != head]
    passed = {resource.rpartition("/")[2] for resource in statements["GiveWorkersTheirRoles"]["Resource"]}
    assert {one["IamInstanceProfile"]["Name"] for one in workers} <= passed
    for statement in statements.values():
        if not all(action.startswith("ec2:Describe") for action in statement["Action"]):
            assert "*" not in statement["Resource"]
        if {"ec2:TerminateInstances", "ec2:CreateTags", "iam:PassRole"} & set(statement["Action"]):
            assert statement["Condition"]
