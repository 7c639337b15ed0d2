"""Hostile configurations end with exit code 2 and the name of the key, construct no object and use little memory."""

import datetime
import math
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aidet import cli, config
from aidet.config import loading
from aidet.errors import UserError


def write(folder, text):
    path = folder / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path):
    """Load a file that must be refused without using much memory; return the message."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            config.load(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 1500
    return str(error.value)


TAGS = [
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/new:os.system ['touch {marker}']",
    "!!python/object/apply:builtins.eval [\"open('{marker}', 'w')\"]",
    "!!python/object/apply:subprocess.check_output [[touch, '{marker}']]",
    "!!python/object:aidet.config.Config {{}}",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!!map:os.system {{}}",
    "!exec 'touch {marker}'",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {marker}']",
]


@pytest.mark.parametrize("tag", TAGS, ids=lambda t: t.split(" ")[0])
@pytest.mark.parametrize("key", ["lr", "model_args", "ckpt_save_dir"])
def test_tags_construct_nothing_and_the_key_is_named(tmp_path, tag, key):
    marker = tmp_path / "executed"
    value = tag.format(marker=marker)
    assert f" {key}: could not determine a constructor" in refused(write(tmp_path, f"seed: 1\n{key}: {value}\n"))
    assert "model_args: x: could not" in refused(write(tmp_path, f"model_args:\n  x: {value}\n"))
    assert "could not determine a constructor" in refused(write(tmp_path, f"{value}: 1\n"))
    assert "could not determine a constructor" in refused(write(tmp_path, f"metrics:\n- {value}\n"))
    assert not marker.exists()


def laughs(levels=12, width=10, kind="[{}]"):
    """Billion laughs: one kilobyte of nested aliases that would expand to width ** levels values."""
    lines = ["model_args:", "  a0: &a0 1"]
    lines += [f"  a{i + 1}: &a{i + 1} " + kind.format(", ".join([f"*a{i}"] * width)) for i in range(levels)]
    return "\n".join(lines) + "\n"


BOMBS = {
    "laughs": (laughs(), "aliases of model_args expand"),
    "laughs as a wrong value": (laughs() + "lr: *a12\n", "lr|aliases of model_args"),
    "laughs as a key": (laughs() + "? *a12\n: 1\n", "unhashable|a key is a list"),
    "merges": ("a: &a {x: 1}\nb: &b\n  <<: [*a, *a]\nc:\n  <<: [*b, *b]\n", "merge"),
    "an alias of itself": ("model_args: &a\n  b: *a\n", "recursive"),
    "a list in itself": ("metrics: &a [*a]\n", "metrics"),
    "deep lists": ("freeze: " + "[" * 5000 + "]" * 5000, "cannot be read"),
    "deep mappings": ("model_args: " + "{a: " * 3000 + "1" + "}" * 3000, "cannot be read"),
    "a number of 5000 digits": ("seed: " + "9" * 5000, "seed: Exceeds the limit|seed"),
    "a hexadecimal number of 100000 digits": ("lr: 0x" + "f" * 100_000, "lr .*a number"),
    "a number in base 60": ("epoch_size: " + ":".join(["59"] * 3000), "epoch_size"),
    "a thirteenth month": ("ckpt_save_dir: 2001-13-13", "ckpt_save_dir: month must be"),
    "a file of two megabytes": ("# " + "x" * (2 << 20), "larger than"),
    "a directive": ("%YAML 9.9\n---\nlr: 1\n", "version"),
    "binary": (b"\x80\x02cos\nsystem\n.", "cannot be read"),
    "a zero byte": ("lr: 1\0\n", "cannot be read"),
    "a zero byte in a path": ('ckpt_save_dir: "a\\0b"', "ckpt_save_dir .*without the character 0"),
    "bytes": ("model: !!binary aGVsbG8=", "model .*must be a text"),
    "a set": ("metrics: !!set {a, b}", "metrics"),
    "an ordered map": ("model_args: !!omap [a: 1]", "model_args .*must be a mapping"),
    "no metric": ("metrics: []", "metrics .*at least one"),
    "a doubled key": ("lr: 1\nlr: 2\n", "'lr' appears twice"),
    "a list": ("- lr", "must be a mapping"),
    "a number as a key": ("1: 2", "must be a mapping"),
    "an old name with nonsense": ("dynamic_loss_scale: perhaps", "dynamic_loss_scale .*true or false"),
    "several documents": ("lr: 1\n---\nlr: 2\n", "single document"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_nonsense_are_one_clear_error(tmp_path, name):
    import re

    text, wanted = BOMBS[name]
    assert re.search(wanted, refused(write(tmp_path, text)))


def test_the_command_line_exits_with_2_and_one_line(tmp_path, capsys):
    import train

    for text, key in (
        ("lr: !!python/name:os.system", "lr"),
        ("batch_size: [1]", "batch_size"),
        (laughs(), "model_args"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(train.main, ["-c", str(write(tmp_path, text)), "--ckpt_save_dir", str(tmp_path / "o")])
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.count("\n") == 1 and key in said
    assert not (tmp_path / "o").exists()


def test_fusion_files_are_read_with_the_same_care(tmp_path):
    from aidet.detector import vote

    for text in (
        laughs().replace("model_args", "weights"),
        "weights: !!python/name:os.system",
        "fuse: [" * 200,
        "a: &a [*a]",
    ):
        with pytest.raises(UserError, match="fusion file"):
            vote.read_fusion(write(tmp_path, text))


# --- every key, every type --------------------------------------------------------------------------------------------
JUNK = [
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 10**40, 0x10**5000, 0.0, -0.0, 0.5, 1e-300, 1e308, math.inf,
    -math.inf, math.nan, "", " ", "nan", "inf", "-inf", "1e999", "0x10", "1_000", "٣", "True", "none", "auto", "a,b",
    "[", "{", "{a: 1}", "[1, [2, [3]]]", "*a", "&a", "!!python/name:os.system", "\n", "a\0b", "\ud800",
    "é" * 300, "x" * 10_000, "[" * 20_000,
    [], [None], [[]], [{}], [1], ["a", 1], [math.nan], [math.inf, 1, 1], [10**40] * 3, [True] * 2, list(range(1000)),
    {}, {"a": 1}, {"a": {"b": [1, {"c": None}]}}, {1: 2}, set(), {1, 2}, b"", b"bytes", (1, 2),
    datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1), 1j, object(), float,
]  # fmt: skip


def holds(name, value):
    """Whether a key accepts a value: then it can be written and read back; if not, the error must name the key."""
    try:
        made = config.Config({name: value})
    except UserError as error:
        target = config.ALIASES.get(name, name) or name
        assert name in str(error) or target in str(error), (name, str(error))
        assert len(str(error)) < 2000
        return False
    target = config.ALIASES.get(name, name)
    if target is not None:  # an accepted value can be written and read back
        line = loading.yaml.safe_load(loading._line(target, getattr(made, target)))
        assert config.Config(line)[target] == made[target], (name, value)
    return True


@pytest.mark.parametrize("name", [*config.SCHEMA, *config.ALIASES])
def test_every_key_accepts_a_value_or_is_named_in_the_error(name):
    accepted = [holds(name, value) for value in JUNK]
    free = config.ALIASES.get(name, name) is None  # a platform passes it, and it is ignored
    assert free or not all(accepted), "a key that accepts every value is not checked"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=800, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(config.SCHEMA)), anything)
@example("metrics", [])
@example("lr", 10**400)
def test_any_value_for_any_key(name, value):
    holds(name, value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=15) | st.sampled_from([f"--{n}" for n in config.SCHEMA]), max_size=6))
def test_any_command_line(argv):
    try:
        _, overrides, _ = config.parse_args(argv)
        config.load(None, overrides)
    except UserError as error:
        assert str(error)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from("lr: 1\n|model_args:|  a: |&x |*x\n|[|]|{|}|- |? |!!|0x|'|\"|%|\n".split("|"))).map(
        "".join
    )
)
def test_any_text_as_a_file(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config.load(path)
    except UserError as error:
        assert len(str(error)) < 1500
