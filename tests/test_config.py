"""The configuration system: files, lazy calls, overrides, YAML."""

import os
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepdisc.config import L, from_yaml, instantiate, load, save, shipped, to_yaml
from deepdisc.errors import InputError


class Layer:
    """A stand-in for a module: remembers how it was built."""

    def __init__(self, width, depth=2, rate=0.5, norm="BN", act=None, children=()):
        if depth < 0:
            raise InputError(f"depth {depth} is negative")
        if width == 13:
            raise ZeroDivisionError("thirteen")
        self.width, self.depth, self.rate, self.norm, self.act, self.children = width, depth, rate, norm, act, children

    @classmethod
    def narrow(cls, depth=1):
        return cls(1, depth)


def take_anything(**kwargs):
    return kwargs


@pytest.fixture
def write(tmp_path):
    """Write a file of the config tree; returns its path."""

    def write_(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write_


@pytest.fixture
def base(write):
    return write(
        "common/base.py",
        """
        import os
        from deepdisc.config import L
        from test_config import Layer

        _private = 3

        def helper():
            return 1

        class Ignored:
            pass

        num_bands = 3
        bands = ["g", "r", "i"]
        model = L(Layer)(width="${num_bands}", depth=2, children={"head": L(Layer)(width=7, rate=0.25)})
        optim = dict(lr=0.1, steps=[10, 20], clip=None, name="sgd", nesterov=False, max_iter=100, data="???")
        """,
    )


def test_only_public_plain_values_are_collected_in_their_order(base):
    assert list(load(base)) == ["num_bands", "bands", "model", "optim"]


def test_instantiate_builds_from_the_inside_out_and_follows_links(base):
    model = instantiate(load(base).model)
    assert (model.width, model.depth) == (3, 2)
    assert type(model.children) is dict
    assert (model.children["head"].width, model.children["head"].rate) == (7, 0.25)


def test_instantiate_lists_classmethods_and_extra_arguments():
    cfg = L(Layer)(width=1, children=[L(Layer.narrow)(depth=4), 2])
    built = instantiate(cfg, rate=0.125, width=9)
    assert (built.width, built.rate, built.children[0].depth, built.children[1]) == (9, 0.125, 4, 2)
    assert type(built.children) is list
    assert instantiate(5) == 5


def test_relative_imports_give_fresh_copies(base, write):
    path = write(
        "models/wide.py",
        """
        from ..common.base import model, num_bands
        from ..common.base import model as other
        model.depth = 50
        model.children.head.width = 99
        """,
    )
    cfg = load(path)
    assert cfg.model.depth == 50 and cfg.other.depth == 2 and cfg.other.children.head.width == 7
    assert load(base).model.depth == 2


def test_star_import_and_files_in_the_same_folder(base, write):
    cfg = load(write("common/star.py", "from .base import *\nbands = ['u']\n"))
    assert cfg.bands == ["u"] and cfg.optim.lr == 0.1 and "_private" not in cfg


def test_a_file_anywhere_can_start_from_a_loaded_one(base, write):
    cfg = load(
        write(
            "elsewhere/mine.py",
            f"""
            from deepdisc.config import load
            _base = load({str(base)!r}, ["num_bands=9"])
            num_bands, model = _base.num_bands, _base.model
            model.depth = 5
            """,
        ),
        ["num_bands=6"],
    )
    assert list(cfg) == ["num_bands", "model"]
    assert (cfg.model.width, cfg.model.depth) == (6, 5)


def test_a_link_to_a_value_that_must_be_given(write):
    path = write(
        "needs.py",
        """
        from deepdisc.config import L
        from test_config import Layer
        data = dict(path="???", train=L(Layer)(width="${data.path}"))
        """,
    )
    with pytest.raises(
        InputError, match=r"data.train.width needs data.path, which has no value; give data.path=\.\.\."
    ):
        instantiate(load(path).data.train)
    assert instantiate(load(path, ["data.path=here"]).data.train).width == "here"
    assert instantiate(load(path, ["data.train.width=3"]).data.train).width == 3


def test_imported_mappings_are_changed_by_attribute_or_item(base, write):
    cfg = load(write("common/mine.py", "from .base import optim\noptim.lr = 3.0\noptim['steps'] = [1]\n"))
    assert (cfg.optim.lr, cfg.optim.steps, cfg.optim.name) == (3.0, [1], "sgd")


def test_len_resolver_counts_the_bands(write):
    cfg = load(write("a.py", 'bands = ["g", "r"]\nnum_bands = "${len:${bands}}"\n'), ["bands=[u,g,r,i,z]"])
    assert cfg.num_bands == 5


def test_importing_a_config_leaves_python_alone(base):
    import builtins
    import sys

    before, modules = builtins.__import__, set(sys.modules)
    load(base)
    assert builtins.__import__ is before
    assert not [name for name in set(sys.modules) - modules if "base" in name]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optim.lr=1e-4", "lr", 1e-4),
        ("optim.lr=1", "lr", 1.0),
        ("optim.max_iter=1e3", "max_iter", 1000),
        ("optim.steps=[1, 2, 3]", "steps", [1, 2, 3]),
        ("optim.steps=(1,)", "steps", [1]),
        ("optim.steps.1=30", "steps", [10, 30]),
        ("optim.clip=5", "clip", 5),
        ("optim.clip={a: 1}", "clip", {"a": 1}),
        ("optim.name=adam w", "name", "adam w"),
        ("optim.name=123", "name", "123"),
        ("optim.name=a=b", "name", "a=b"),
        ("optim.nesterov=true", "nesterov", True),
        ("optim.data=x.yaml", "data", "x.yaml"),
        ("optim.max_iter=${num_bands}", "max_iter", 3),
    ],
)
def test_overrides_are_read_as_values_of_the_right_type(base, text, key, value):
    found = load(base, [text]).optim[key]
    assert found == value and (not isinstance(value, int | float) or type(found) is type(value))


def test_an_override_can_be_a_mapping_or_a_band_list(base):
    cfg = load(base, ["optim={lr: 3, name: adam}", "bands=[g,z]", "model.act=relu"])
    assert cfg.optim.lr == 3.0 and cfg.optim.name == "adam" and cfg.optim.max_iter == 100
    assert cfg.bands == ["g", "z"] and cfg.model.act == "relu"


def test_an_empty_mapping_takes_any_keys():
    cfg = load("configs/common/optim.py", ["optim.optimizer.lr_factors={backbone: 0.1, roi_heads: 2}"])
    assert dict(cfg.optim.optimizer.lr_factors) == {"backbone": 0.1, "roi_heads": 2}
    cfg = load("configs/common/optim.py", ["optim.optimizer.lr_factors.backbone=0"])
    assert dict(cfg.optim.optimizer.lr_factors) == {"backbone": 0}


def test_a_parameter_that_the_callable_has_can_be_added_and_set_to_its_none(base):
    cfg = load(base, ["model.rate=1", "model.children.head.depth=4"])
    assert cfg.model.rate == 1.0 and cfg.model.children.head.depth == 4
    assert load(base, ["model.act=relu", "model.act=null"]).model.act is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.learning=1", "unknown key 'optim.learning'"),
        ("optim.nestrov=true", "unknown key 'optim.nestrov'; nearest existing key: 'optim.nesterov'"),
        ("lr=1", "unknown key 'lr'; nearest existing key: 'optim.lr'"),
        ("optm.lr=1", "unknown key 'optm.lr'; nearest existing key: 'optim.lr'"),
        ("model.dpth=1", "unknown key 'model.dpth'; nearest existing key: 'model.depth'"),
        ("model.chldren.head.width=1", "nearest existing key: 'model.children.head.width'"),
        ("optim.steps.7=1", "unknown key 'optim.steps.7'"),
        ("optim.lr.x=1", "optim.lr is 0.1, which has no keys inside"),
        ("optim.lr", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("optim.max_iter=many", "optim.max_iter expects int (now 100), but str 'many' was given"),
        ("optim.max_iter=1.5", "optim.max_iter expects int (now 100), but float 1.5 was given"),
        ("optim.max_iter=true", "expects int (now 100), but bool True was given"),
        ("optim.lr=[1]", "optim.lr expects float (now 0.1), but list [1] was given"),
        ("optim.lr=null", "optim.lr expects float (now 0.1), but null was given"),
        ("optim.nesterov=1", "expects bool (now False), but int 1 was given"),
        ("optim.steps=5", "expects list (now [10, 20]), but int 5 was given"),
        ("optim.steps=[a]", "expects a list of int (now [10, 20]), but item 0 is str 'a'"),
        ("optim.name=[1]", "optim.name expects str (now 'sgd'), but list [1] was given"),
        ("optim=3", "optim expects mapping"),
        ("optim={lrr: 3}", "unknown key 'optim.lrr'; nearest existing key: 'optim.lr'"),
        ("optim.steps=[1", "cannot read the value '[1'"),
        ("model.rate=fast", "model.rate expects float (now 0.5), but str 'fast' was given"),
        ("num_bands=many", "num_bands expects int (now 3)"),
        ("model.width=many", "model.width expects int (now 3)"),
        ("optim.max_iter=${num_band}", "'${num_band}' links to a key that does not exist"),
    ],
)
def test_wrong_overrides_say_what_is_expected(base, text, message):
    with pytest.raises(InputError) as caught:
        load(base, [text])
    assert message in str(caught.value)


def test_command_line_text_is_never_evaluated(base):
    assert load(base, ["optim.name=__import__('os').getcwd()"]).optim.name == "__import__('os').getcwd()"


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text("ab: #'[{\n1.eE-_", max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
        max_leaves=10,
    )
)
def test_yaml_round_trip_keeps_every_value(value):
    cfg = L(take_anything)(value=value)
    assert instantiate(from_yaml(to_yaml(cfg))) == {"value": value}


def test_saved_config_loads_again_with_its_links_and_order(base, tmp_path):
    cfg = load(base, ["optim.data=x"])
    save(cfg, tmp_path / "out" / "config.yaml")
    text = (tmp_path / "out" / "config.yaml").read_text()
    assert "_target_: test_config.Layer" in text
    again = load(tmp_path / "out" / "config.yaml", ["num_bands=8"])
    assert list(again) == list(cfg) and list(again.optim) == list(cfg.optim)
    assert instantiate(again.model).width == 8
    assert load(tmp_path / "out" / "config.yaml") == cfg
    assert "width: 3" in to_yaml(cfg.model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb = = 2\n", "bad.py:2: syntax error"),
        ("a = 1\n\nb = c\n", "bad.py:3: NameError: name 'c' is not defined"),
        ("from .common.bse import model\n", "is not a config file"),
        ("from . import common\n", "from .FILE import NAME"),
        ("from .common.base import modl\n", "has no 'modl'; nearest: 'model'"),
        ("from .bad import a\n", "which imports it"),
        ("import no_such_module\n", "bad.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("from deepdisc.config import L\nx = L(lambda: 1)()\n", "bad.py:2: TypeError"),
        ("from deepdisc.config import L\ndef f(): pass\nx = L(f)()\n", "bad.py:3: TypeError"),
        ("from deepdisc.config import L\nx = L('a.b')(\n  width=[object()])\n", "width.0 is a object"),
        ("x = {'a': object}\n", "x.a is a type"),
        ("x = '${y}'\n", "x = '${y}' links to a key that does not exist"),
    ],
)
def test_wrong_config_files_are_named_with_their_line(base, write, text, message):
    with pytest.raises(InputError) as caught:
        load(write("bad.py", text))
    assert message in str(caught.value)


def test_wrong_yaml_missing_files_and_other_types(write, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"bad.yaml:2: not valid YAML"):
        load(write("bad.yaml", "a: 1\nb: ]\n"))
    with pytest.raises(InputError, match="a config is a mapping"):
        load(write("list.yaml", "- 1\n"))
    with pytest.raises(InputError, match=r"expected a .py or .yaml file"):
        load(write("a.txt", "a = 1"))
    with pytest.raises(InputError, match=r"config file .*nothing.py does not exist"):
        load(tmp_path / "nothing.py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read config"):
        load("binary.py")


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_folder_is_not_a_config(tmp_path):
    (tmp_path / "x.py").mkdir()
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "x.py")


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"m": {"b": {"_target_": "test_config.Layr", "width": 1}}}, "m.b._target_: cannot import 'test_config.Layr'"),
        ({"m": {"b": {"_target_": "no_such.Layer"}}}, "m.b._target_: cannot import 'no_such.Layer'"),
        ({"m": {"b": {"_target_": "os.sep"}}}, "m.b._target_: 'os.sep' is a str"),
        ({"m": {"b": {"_target_": "test_config.Layer", "widht": 1}}}, "m.b.widht: test_config.Layer has no parameter"),
        ({"m": {"b": {"_target_": "test_config.Layer", "widht": 1}}}, "nearest: 'width'"),
        ({"m": {"b": {"_target_": "test_config.Layer"}}}, "m.b: test_config.Layer needs width; give m.b.width="),
        ({"m": {"b": {"_target_": "test_config.Layer", "width": 1, "depth": -1}}}, "m.b: depth -1 is negative"),
        ({"m": {"b": {"_target_": "test_config.Layer", "width": "???"}}}, "m.b.width has no value; give m.b.width="),
        ({"m": {"b": {"_target_": "test_config.Layer", "width": "${q}"}}}, "m.b.width = '${q}' is a link that leads"),
    ],
)
def test_instantiate_errors_name_the_key(cfg, message):
    from omegaconf import OmegaConf

    with pytest.raises(InputError) as caught:
        instantiate(OmegaConf.create(cfg).m)
    assert message in str(caught.value)


def test_other_errors_of_a_constructor_keep_their_type_and_get_a_note(base):
    with pytest.raises(ZeroDivisionError) as caught:
        instantiate(load(base, ["model.children.head.width=13"]).model)
    assert "while building model.children.head = test_config.Layer" in caught.value.__notes__[0]


def test_extra_arguments_need_a_callable_and_known_names(base):
    with pytest.raises(InputError, match="optim: arguments .* there is no _target_"):
        instantiate(load(base).optim, lr=1)
    with pytest.raises(InputError, match="has no parameter 'widht'"):
        instantiate(load(base).model, widht=1)


def test_functions_with_kwargs_accept_any_name():
    assert instantiate(L(take_anything)(a=1), b=2) == {"a": 1, "b": 2}


def test_shipped_names_resolve_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(iter(sorted(shipped("configs").rglob("*.py"))), None)
    if name is None:
        pytest.skip("no config file is shipped yet")
    relative = name.relative_to(shipped("configs").parent)
    assert load(relative) == load(name)
    with pytest.raises(InputError, match=f'nearest shipped config: "{Path(relative).as_posix()}"'):
        load(str(relative).replace(".py", "_.py"))
