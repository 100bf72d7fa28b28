"""Configuration: layers, strict values, errors that name key, value, place and range, and nothing but data in YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from asg_core.backbones.registry import find_manifest
from asg_core.config.schema import RunConfig
from asg_core.config.strict_yaml import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml
from asg_core.errors import ConfigError, PluginError
from asg_core.runs.configuration import commented_yaml, load_run_config, write_run_config


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def refused(path: Path | None, *words: str) -> ConfigError:
    """The error that loading raises."""
    with pytest.raises(ConfigError) as raised:
        load_run_config(path, words)
    return raised.value


def test_layers_win_in_the_documented_order(file: Path) -> None:
    recommended = find_manifest("tiny").defaults
    assert recommended["optimizer"]["lr_solver"] != RunConfig().optimizer.lr_solver
    file.write_text("solve: {temperature: 0.8}\nsteps: 11\noptimizer: {lr_proposer: 0.5}\n")
    config = load_run_config(file, ["steps=12", "solve.framings=3"])
    assert config.steps == 12  # command line over file
    assert (config.solve.temperature, config.solve.framings) == (0.8, 3)  # sections are merged key by key
    assert config.optimizer.lr_proposer == 0.5  # file over recommended
    assert config.optimizer.lr_solver == recommended["optimizer"]["lr_solver"]  # recommended over defaults
    assert config.optimizer.weight_decay == RunConfig().optimizer.weight_decay


def test_the_backbone_named_last_brings_the_recommendations(file: Path) -> None:
    file.write_text("backbone: no_such_backbone\n")
    assert load_run_config(file, ["backbone=tiny"]).steps == find_manifest("tiny").defaults["steps"]
    with pytest.raises(PluginError, match="no_such_backbone"):
        load_run_config(file)


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("steps=7", "steps", 7),
        ("optimizer.lr_solver=1e-3", "optimizer.lr_solver", 0.001),
        ("optimizer.lr_solver=1", "optimizer.lr_solver", 1.0),
        ("ste.reduce=off", "ste.reduce", "off"),  # not a boolean, as in YAML 1.1
        ("evaluate=false", "evaluate", False),
        ("images=/data/a=b", "images", Path("/data/a=b")),
        ("images=2024-01-01", "images", Path("2024-01-01")),
        ("images=010", "images", Path("010")),  # not eight
        ("images=", "images", None),
        ("images='null'", "images", Path("null")),
        ("trackers=[wandb, trackio]", "trackers", ("wandb", "trackio")),
        ("solve={temperature: 0.5}", "solve.temperature", 0.5),
        ("schedule.ratio=[2, 1]", "schedule.ratio", (2, 1)),
    ],
)
def test_words_are_typed_as_yaml(word: str, key: str, value: object) -> None:
    found: object = load_run_config(None, [word])
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_of_equal_words_the_last_counts() -> None:
    assert load_run_config(None, ["steps=1", "steps=2"]).steps == 2


@pytest.mark.parametrize(
    ("word", "what", "allowed"),
    [
        ("steps=-1", "steps = -1", "a whole number >= 0"),
        ("schedule.ratio=[2]", "schedule.ratio = [2]", "a list of 2, each a whole number > 0"),
        ("schedule.ratio=[2, 0]", "schedule.ratio = 0", "a list of 2, each a whole number > 0"),
        ("steps=1.5", "steps = 1.5", "a whole number"),
        ("steps=true", "steps = true", "a whole number"),
        ("steps='7'", 'steps = "7"', "a whole number"),
        ("steps=010", 'steps = "010"', "a whole number"),
        ("steps=", "steps = null", "a whole number"),
        ("solve.framings=8", "solve.framings = 8", ">= 2, <= 7"),
        ("solve.temperature=0", "solve.temperature = 0", "a number > 0"),
        ("policy.clip=1", "policy.clip = 1", "> 0, < 1"),
        ("ste.reduce=sum", 'ste.reduce = "sum"', "one of max, mean, off"),
        ("optimizer.micro_batch=-1", "optimizer.micro_batch = -1", "a whole number >= 0 or auto ("),
        ("optimizer.micro_batch=few", 'optimizer.micro_batch = "few"', "a whole number >= 0 or auto ("),
        ("evaluate=yes", 'evaluate = "yes"', "true or false"),
        ("solve=3", "solve = 3", "a section"),
        ("trackers=[mlflow]", 'trackers = "mlflow"', "tensorboard, wandb, trackio"),
        ("backbone=3", "backbone = 3", "text"),
    ],
)
def test_bad_values_name_key_value_place_and_range(word: str, what: str, allowed: str) -> None:
    error = refused(None, word)
    assert what in error.what
    assert "command line" in error.what
    assert allowed in error.why
    assert error.fix


def test_the_place_of_a_bad_value_is_named(file: Path) -> None:
    file.write_text("steps: -1\nsolve: {framings: 9}\n")
    error = refused(file, "seed=-3")
    assert f"steps = -1 ({file})" in error.what
    assert f"solve.framings = 9 ({file})" in error.what
    assert "seed = -3 (command line)" in error.what
    assert "steps = -2 (command line)" in refused(file, "steps=-2").what


@pytest.mark.parametrize(
    ("word", "suggestion"),
    [
        ("setps=3", "Did you mean 'steps'?"),
        ("solve.temprature=1", "Did you mean 'solve.temperature'?"),
        ("alarms.windo=1", "Did you mean 'alarms.window'?"),
        ("temperature=1", "'solve.temperature'"),
        ("lr=1", "'optimizer.lr_solver'"),
        ("framings=5", "Did you mean 'solve.framings'?"),
        ("solver.temperature=1", "Did you mean 'solve'?"),
        ("qqq=1", "Known: ablation, alarms, ask, backbone"),
        ("solve.qqq=1", "Known: solve.caption_max_new_tokens"),
    ],
)
def test_unknown_keys_get_the_nearest_name(word: str, suggestion: str) -> None:
    error = refused(None, word)
    assert "unknown key" in error.what
    assert suggestion in error.fix


@pytest.mark.parametrize("word", ["steps", "=3", "--steps=3", "a..b=1", ".steps=1", "steps.=1", "steps.x=1", ""])
def test_words_that_are_no_setting_are_refused(word: str) -> None:
    assert refused(None, word).fix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: !!python/object/apply:os.system ['true']", "tag"),
        ("out: !!python/object/apply:pathlib.PosixPath ['/tmp']", "tag"),
        ("steps: !!int 3", "tag"),
        ("steps: ! 3", "tag"),
        ("images: ${oc.env:HOME}", "interpolation"),
        ("images: 'x${steps}'", "interpolation"),
        ("${a}: 1", "interpolation"),
        ("a: &x 1\nb: *x", "anchor"),
        ("<<: {steps: 1}", "unknown key '<<'"),
        ("steps: 1\nsteps: 2", "given twice"),
        ("solve: {framings: 3, framings: 4}", "given twice"),
        ("[a]: 1", "a key must be a name"),
        ("- 1\n- 2", "not a mapping"),
        ("just text", "not a mapping"),
        ("steps: 1\n---\nsteps: 2", "not valid YAML"),
        ("steps: [1", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("steps: \x00", "not valid YAML"),
        ("solve: {temperature: .inf}", "finite"),
        ("solve: {temperature: .nan}", "finite"),
        ("solve: {temperature: 1e999}", "finite"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("a: " + "[" * 500 + "]" * 500, "nested more than"),
        ("a: " + "{b: " * 3000 + "}" * 3000, "nested more than"),
        ("1: 2", "unknown key '1'"),
        ("true: 2", "unknown key 'true'"),
        ("solve.temperature: 1", "unknown key 'solve.temperature'"),
    ],
)
def test_a_file_is_data_and_nothing_else(text: str, message: str, file: Path) -> None:
    file.write_text(text)
    assert message in refused(file).what


def test_the_line_of_a_yaml_mistake_is_named(file: Path) -> None:
    file.write_text("steps: 3\nseed: 1\nimages: ${x}\n")
    assert f"{file}, line 3" in refused(file).what


def test_tags_and_interpolations_on_the_command_line_are_refused_too() -> None:
    assert "tag" in refused(None, "steps=!!python/object/apply:os.getpid []").what
    assert "interpolation" in refused(None, "out=${oc.env:HOME}").what


def test_an_alias_bomb_and_a_huge_file_are_refused_at_once(file: Path) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    file.write_text("\n".join(lines))
    assert "anchor" in refused(file).what
    file.write_bytes(b"# " + b"x" * MAX_BYTES)
    assert "too large" in refused(file).what
    assert parse_yaml("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), "x")


def test_unreadable_files_are_configuration_errors(tmp_path: Path, file: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "missing.yaml").what
    assert "cannot be read" in refused(tmp_path).what
    file.write_bytes(b"steps: \xff\xfe")
    assert "cannot be read" in refused(file).what
    assert "utf-8" in refused(file).why
    assert "UTF-8" in refused(file).fix
    file.write_bytes("\ufeffsteps: 3".encode())
    assert read_yaml(file) == {"steps": 3}
    file.write_text("")
    assert read_yaml(file) == {}


def test_a_stored_configuration_loads_back_equal(file: Path) -> None:
    words = ["images='/a b/ünïcode: {x}'", "ste.reduce=off", "optimizer.lr_solver=1e-7", "trackers=[wandb]", "seed=123"]
    config = load_run_config(None, words)
    write_run_config(config, file)
    assert load_run_config(file) == config
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["steps"] == config.steps  # readable by anyone's YAML


def test_a_stored_configuration_does_not_depend_on_recommendations(file: Path) -> None:
    config = RunConfig()
    assert load_run_config(None) != config
    write_run_config(config, file)
    assert load_run_config(file) == config


def test_the_commented_defaults_explain_every_key_and_load_back(file: Path) -> None:
    config = load_run_config(None, ["steps=9", "ste.reduce=off"])
    text = commented_yaml(config)
    file.write_text(text)
    reread = load_run_config(file)
    assert reread.model_copy(update={"backbone_options": {}}) == config
    assert reread.backbone_options == {"compile_decode": False}, "written out as they are by default"
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            assert lines[i - 1].lstrip().startswith("#"), f"no comment above {line!r}"
    assert "# of everything random in the run (a whole number >= 0, <= 9223372036854775807)" in text


def test_commented_options_of_a_backbone_are_listed_and_load_back(file: Path) -> None:
    config = load_run_config(None, ["backbone=tiny_flow"])
    file.write_text(commented_yaml(config))
    reread = load_run_config(file)
    assert reread.model_copy(update={"backbone_options": {}}) == config
    assert reread.backbone_options
