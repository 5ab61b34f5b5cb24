"""Arguments, names and ports of a server; which pages may use it."""

import sys

import pytest

from lae_jax import serve
from lae_jax.predict import answers
from lae_jax.runtime.errors import InputError
from lae_jax.serve import __main__ as door
from lae_jax.serve import guard, limits, listen


@pytest.mark.parametrize(("given", "message"), [
    ({"max_mb": 0}, "max_mb is 0: it must be more than 0"),
    ({"max_pixels": 999_000_000}, "at most 256000000"),
    ({"max_held_mb": 1}, "at least max_mb"),
    ({"max_held_mb": 1e308}, r"max_held_mb is 1e\+308: it must be more than 0, and at most 1,000,000,000"),
    ({"max_files": 10**400}, "max_files is 10000000000000000000: it must be at least 1, and at most 1,000,000,000"),
    ({"max_wait": 10**400}, "max_wait is 10000000000000000000: it must lie between 0 and 10000"),
    ({"max_wait": -1}, "max_wait is -1: it must lie between 0 and 10000"),
    ({"interval": 1}, "interval is 1: it must lie between 0 and 1"),
    ({"smallest_face": 10}, "--smallest-face must be at least 20 pixels, got 10"),
    ({"aligned": True, "smallest_face": 24}, "--smallest-face is for photographs, and the images are face crops"),
])  # fmt: skip
def test_wrong_arguments(given, message):
    with pytest.raises(InputError, match=message):
        serve.application("runs/r", **given)


def test_how_photographs_are_searched_reaches_the_recipe(monkeypatch, trained):
    def recipe_of(run, estimator, allow_other, **how):
        raise InputError(str(how))

    monkeypatch.setattr(answers, "recipe_of", recipe_of)
    args = vars(door.parse_args(["--run", str(trained("represent")), "--smallest-face", "24", "--rotate"]))
    with pytest.raises(InputError, match="{'faces': 'all', 'smallest_face': 24, 'rotate': True}"):
        serve.application(**{name: args[name] for name in ("run", "smallest_face", "rotate")})


def test_a_port_is_a_number_that_ports_have():
    with pytest.raises(InputError, match="--port is 65536: it must lie between 0 and 65535"):
        door.parse_args(["--run", "runs/r", "--port", "65536"])


def test_a_port_that_is_taken_and_an_extra_that_is_missing_are_told(monkeypatch, trained):
    with listen.bind("127.0.0.1", 0) as taken, pytest.raises(InputError, match="in use.*; choose another"):
        listen.bind(*taken.getsockname())
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"serve needs the package uvicorn: .* pip install 'lae-jax\[serve\]'"):
        door.main(["--run", str(trained("represent"))])


@pytest.mark.parametrize(("origin", "host", "words"), [
    ("https://age.example.com", "age.example.com", ""),
    ("https://age.example.com", "age.example.com:443", ""),
    ("https://age.example.com:443", "AGE.example.com", ""),
    ("http://age.example.com", "age.example.com:80", ""),
    ("https://age.example.com:8443", "age.example.com:8443", ""),
    ("http://localhost.:8000", "localhost.:8000", ""),
    ("http://localhost:8000", "localhost.:8000", ""),
    ("http://[::1]:8000", "[::1]:8000", ""),
    (None, "localhost.", ""),
    ("https://age.example.com", "localhost:8000", "'localhost:8000': a proxy must pass on the header Host"),
    ("https://age.example.com:8443", "age.example.com", "a page of https://age.example.com:8443 may not use"),
    ("http://age.example.com", "age.example.com:443", "'age.example.com:443': a proxy"),
    ("http://age.example.com:99999", "age.example.com", "a page of http://age.example.com:99999"),
    ("null", "localhost", "a page of null may not"),
    ("app://localhost", "localhost", "a page of app://localhost may not"),
    ("https://other.example", "other.example", "not called 'other.example': add the name with --allow-host"),
    ("http://localhost", "", "not called ''"),
])  # fmt: skip
def test_a_page_is_this_servers_own_also_behind_a_proxy(origin, host, words):
    own = guard.Guard(None, door.hosts_of("127.0.0.1", ["age.example.com"]), None)
    headers = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin else [])]
    told = own._foreign({"headers": headers})
    assert words in told if words else told == ""


@pytest.mark.parametrize("name", ["https://age.example.com", "age.example.com:443", ""])
def test_a_name_that_is_allowed_has_no_scheme_and_no_port(name):
    with pytest.raises(InputError, match="give only the name"):
        door.parse_args(["--run", "r", "--allow-host", name])
    assert door.parse_args(["--run", "r", "--allow-host", "Age.example.com."]).allow_host == ["age.example.com"]


def test_names_are_checked_on_this_machine_and_where_they_are_given():
    def hosts(*words):
        args = door.parse_args(["--run", "r", *words])
        return door.hosts_of(args.host, args.allow_host)

    assert "localhost" in hosts() and "::1" in hosts("--host", "::1") and hosts("--host", "0.0.0.0") is None
    assert "ages.example" in hosts("--allow-host", "ages.example") and "ages.example" not in hosts()


def test_limits_have_defaults_that_fit_each_other():
    assert limits.Limits().bytes <= limits.Limits().held
