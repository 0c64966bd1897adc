"""What an operator can get wrong is refused before anything is deployed."""

import shutil
import socket
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema
from tiny_models import tiny_editor

import serving
from recipe_ray.errors import ConfigError, EditorError, ServiceError, TableError
from recipe_ray.store.table import FactTable
from serving.app import build_app
from serving.local import bindable_port, why_not_started
from serving.settings import AppArgs, ServerArgs

HERE = Path(serving.__file__).parent
CONFIG = HERE / "config.yaml"
CONFIGS = [CONFIG, *sorted((HERE / "presets").glob("*.yaml"))]


@pytest.fixture
def args(editor_dir, table_uri):
    return {"editor": str(editor_dir), "table": table_uri}


def test_a_good_application_is_built(args):
    assert build_app(AppArgs(**args)).__class__.__name__ == "Application"


def test_engine_and_writer_learn_where_prompts_stand_and_what_makes_them(tmp_path, llm_dir):
    places = {"prompt_position": "after_bos", "chat_position": "user_turn"}
    editor = tiny_editor(llm="of the training", prompt_source="statement", **places)
    editor.save(tmp_path / "editor")
    table = FactTable.create_or_open(str(tmp_path / "table"), editor.identity()).uri
    app = build_app(AppArgs(editor=str(tmp_path / "editor"), table=table, llm=str(llm_dir)))
    ((parts,),) = app._bound_deployment.init_args
    told = parts.engine._bound_deployment.init_kwargs
    assert (told["position"], told["chat_position"], told["llm"]) == ("after_bos", "user_turn", str(llm_dir))
    assert parts.writer._bound_deployment.init_kwargs["llm"] == str(llm_dir)


def test_a_table_of_another_editor_is_refused_with_both_fingerprints(args, other_editor_dir, editor):
    from recipe_ray.model.editor import read_identity

    with pytest.raises(TableError) as error:
        build_app(AppArgs(**{**args, "editor": str(other_editor_dir)}))
    assert editor.identity().fingerprint in str(error.value)
    assert read_identity(other_editor_dir).fingerprint in str(error.value)


def test_an_llm_of_another_width_is_refused_with_both_widths(args, llm_dir, tmp_path):
    wide = tmp_path / "wide"
    shutil.copytree(llm_dir, wide)
    config = (wide / "config.json").read_text()
    (wide / "config.json").write_text(config.replace('"hidden_size": 32', '"hidden_size": 48'))
    with pytest.raises(EditorError, match=r"width 48.* width 32"):
        build_app(AppArgs(**args, llm=str(wide)))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"editor": "/nowhere"}, EditorError),
        ({"table": "/nowhere"}, TableError),
        ({"snapshot": 99}, TableError),
    ],
)
def test_what_is_not_there_is_refused(args, changed, error):
    with pytest.raises(error, match=r"nowhere|99"):
        build_app(AppArgs(**{**args, **changed}))


def test_an_unknown_or_impossible_argument_is_refused():
    with pytest.raises(ValidationError, match="tabel"):
        AppArgs(editor="e", table="t", tabel="t")
    with pytest.raises(ValidationError, match="max_batch_size"):
        AppArgs(editor="e", table="t", max_batch_size=0)
    with pytest.raises(ConfigError, match="max_engines is 1, but num_engines is 2"):
        AppArgs(editor="e", table="t", num_engines=2, max_engines=1)
    with pytest.raises(ConfigError, match="vllm_options is of the engine vllm"):
        AppArgs(editor="e", table="t", vllm_options={"gpu_memory_utilization": 0.4})
    with pytest.raises(ConfigError, match="editor stands beside models"):
        AppArgs(editor="e", models=[{"editor": "e", "table": "t"}])
    with pytest.raises(ConfigError, match="gpus is 0"):
        AppArgs(editor="e", table="t", device="cuda", gpus=0)
    with pytest.raises(ConfigError, match="device is cpu, but gpus is 1"):
        AppArgs(editor="e", table="t", device="cpu", gpus=1)
    with pytest.raises(ConfigError, match="shard_resources is given, but num_index_shards is 0"):
        AppArgs(editor="e", table="t", shard_resources={"index": 1})
    with pytest.raises(ConfigError, match="shard_resources has CPU 1; give custom resources"):
        AppArgs(editor="e", table="t", num_index_shards=1, shard_resources={"CPU": 1})


def test_two_models_of_one_name_are_refused(args):
    with pytest.raises(ConfigError, match="two models are called"):
        build_app(AppArgs(models=[args, args]))


def test_several_models_have_deployments_of_their_own(args):
    one, other = {**args, "model_name": "one"}, {**args, "model_name": "other", "num_index_shards": 2}
    assert build_app(AppArgs(models=[one, other])).__class__.__name__ == "Application"


def test_server_args_hand_the_application_its_part():
    server = ServerArgs(editor="e", table="t", port=9000, max_batch_size=3)
    assert server.app_args() == AppArgs(editor="e", table="t", max_batch_size=3)
    assert server.app_args().models[0].max_batch_size == 3
    assert server.host == "127.0.0.1", "only this machine, unless asked"


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} on 127.0.0.1 is in use"):
            bindable_port("127.0.0.1", port)
    assert bindable_port("127.0.0.1", port) == port


def test_a_host_that_is_not_of_this_machine_is_named():
    with pytest.raises(ServiceError, match=r"198\.51\.100\.7"):
        bindable_port("198.51.100.7", 8000)


def test_of_a_replicas_traceback_the_operator_sees_the_error():
    message = """The deployment failed to start 2 times in a row. See controller logs for details. Error:
      File "replica.py", line 1928, in initialize
        raise RuntimeError(traceback.format_exc()) from None
    RuntimeError: Traceback (most recent call last):
      File "hub.py", line 39, in loading
        raise ModelError(
    recipe_ray.errors.ModelError: LLM /models/a: cannot be loaded (header too small); give another
    """
    said = why_not_started({"Retriever": "", "Engine": message, "Ingress": ""})
    assert said == "Engine: LLM /models/a: cannot be loaded (header too small); give another"


def test_there_are_presets_for_a_laptop_a_gpu_and_a_cluster():
    assert {path.stem for path in CONFIGS} == {"config", "laptop", "one-gpu", "gpu-cluster", "kubernetes"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_file_holds_only_keys_that_serve_and_we_know(path):
    config = yaml.safe_load(path.read_text())
    parsed = ServeDeploySchema.model_validate(config)
    for application in config["applications"]:
        AppArgs(**application["args"])
        assert application["import_path"] == "serving.app:build_app"
    # Serve drops keys that it does not know without a word, so what it kept is compared with what is written.
    kept = parsed.model_dump(mode="json", exclude_unset=True)
    assert _keys(config) == _keys(kept)


def test_a_misspelt_key_of_the_config_file_would_be_found():
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"]["prot"] = config["http_options"].pop("port")
    kept = ServeDeploySchema.model_validate(config).model_dump(mode="json", exclude_unset=True)
    assert _keys(config) - _keys(kept) == {"http_options.prot"}


def _keys(value, path=""):
    """Every key of nested mappings and lists, dotted."""
    if isinstance(value, dict):
        return {f"{path}{key}" for key in value}.union(*(_keys(item, f"{path}{key}.") for key, item in value.items()))
    if isinstance(value, list):
        return set().union(*(_keys(item, f"{path}{index}.") for index, item in enumerate(value)))
    return set()
