import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bids_sodium.config import SLOPPY, Config, load, parse_setting, preset, presets
from bids_sodium.core.errors import ConfigError


def test_defaults_are_those_of_the_modules() -> None:
    config = load()
    assert config == Config()
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        assert value == type(value)()


def test_every_layer_covers_the_one_below(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        "[run]\nrandom_seed = 2\n[denoising]\nblock_radius = 4\npatch_radius = 2\n"
        "[reconstruction.weights]\nrefine = false\n"
    )
    config = load(
        preset_name="stroke",
        file=file,
        overrides={"denoising": {"block_radius": 5}},
        settings=["denoising.method=off", "reconstruction.weights.iterations = 3"],
    )
    assert config.run.study == "stroke"
    assert config.run.output_spaces == ("T1w",)
    assert config.run.random_seed == 2
    assert (config.denoising.patch_radius, config.denoising.block_radius, config.denoising.method) == (2, 5, "off")
    assert config.reconstruction.weights.refine is False
    assert config.reconstruction.weights.iterations == 3
    assert config.reconstruction.iterations == Config().reconstruction.iterations
    assert load(preset_name="stroke", settings=["run.study=ms"]).run.study == "ms"


@pytest.mark.parametrize("name", [None, "stroke", "ms"])
def test_a_written_configuration_reads_back_the_same(tmp_path: Path, name: str | None) -> None:
    config = load(preset_name=name, settings=['run.slurm_options=["a=\\"b\\"", "c=é"]', "run.mem_gb=2"])
    file = tmp_path / "dump.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    assert load(file=file) == config


def test_presets_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(presets()) == ["ms", "stroke"]
    for name, description in presets().items():
        assert description
        assert preset(name)["run"]["study"] == name
        assert load(preset_name=name).run.study == name


def test_sloppy_lies_below_what_is_asked_for() -> None:
    config = load(overrides={"run": {"sloppy": True}, "reconstruction": {"iterations": 4}})
    assert config.run.sloppy
    assert config.reconstruction.iterations == 4
    assert config.denoising.block_radius == SLOPPY["denoising"]["block_radius"]
    assert load(settings=["run.sloppy=true"]).stroke.n_resamples == SLOPPY["stroke"]["n_resamples"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("reconstruction.iteration=3", r"unknown key 'iteration' in \[reconstruction\], did you mean 'iterations'\?"),
        ("recon.iterations=3", r"unknown section \[recon\], did you mean 'reconstruction'\?"),
        ("denoising.filter_width=3", r"unknown key .*; did you mean \[reconstruction\] filter_width\?"),
        ("reconstruction.weights.refin=true", r"'refin' in \[reconstruction.weights\], did you mean 'refine'"),
        ("reconstruction.iterations=three", "reconstruction.iterations is 'three', expected a whole number"),
        ("reconstruction.iterations=3.5", "reconstruction.iterations is 3.5, expected a whole number"),
        ("reconstruction.filter_width=wide", "reconstruction.filter_width is 'wide', expected a number"),
        ("reconstruction.filter_width=true", "reconstruction.filter_width is True, expected a number"),
        ("reconstruction.weights.refine=1", "reconstruction.weights.refine is 1, expected true or false"),
        ("reconstruction.weights=1", "reconstruction.weights is 1, expected a section"),
        ("run.study=strke", 'expected one of "", "stroke", "ms", did you mean \'stroke\''),
        ("calibration.vial_mmol_l=40", "calibration.vial_mmol_l is 40, expected a list, each entry a number"),
        ('calibration.vial_mmol_l=["40"]', "calibration.vial_mmol_l is '40', expected a number"),
        ("stroke.early_h=[1]", r"stroke.early_h is \[1\], expected a list of 2 entries"),
        ("reconstruction.filter=gauss", "unknown k-space filter 'gauss'"),
        ("run.n_procs=-1", "run.n_procs is -1"),
        ("iterations=3", "'iterations=3' is no setting"),
        ("run.sloppy", "'run.sloppy' is no setting"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_what_is_expected(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(settings=[setting])
    assert caught.value.exit_code == 78
    assert "--set" in caught.value.where
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("[run", "is not TOML"), ("[rum]", "mean 'run'")]
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file=file)
    assert caught.value.where == str(file)


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"no preset 'storke', did you mean 'stroke'\? \(try: choose one of ms, stroke\)"
    ):
        load(preset_name="storke")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=1", 1),
        ("a.b = 1.5", 1.5),
        ("a.b=true", True),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b=x y", "x y"),
        ('a.b="1"', "1"),
        ("a.b=c=d", "c=d"),
    ],
)
def test_values_of_settings_are_toml_or_text(text: str, value: Any) -> None:
    assert parse_setting(text) == (("a", "b"), value)


def _undocumented(value: Any, name: str) -> list[str]:
    import ast
    import inspect
    import textwrap

    tree = ast.parse(textwrap.dedent(inspect.getsource(type(value))))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    missing = []
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and not (
            isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
        ):
            missing.append(f"{name}.{ast.unparse(statement.target)}")
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            missing += _undocumented(inner, f"{name}.{field.name}")
    return missing


@pytest.mark.parametrize("section", [field.name for field in dataclasses.fields(Config)])
def test_every_setting_says_what_it_means(section: str) -> None:
    assert _undocumented(getattr(Config(), section), section) == []


def test_all_settings_are_toml() -> None:
    assert set(tomllib.loads(Config().to_toml())) == {field.name for field in dataclasses.fields(Config)}
