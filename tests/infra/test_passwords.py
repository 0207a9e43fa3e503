"""The stack's passwords: made once, kept for one user, never replaced without a word."""

import stat

import pytest

from ferd.errors import FerdError
from infra.passwords import LOGIN, SECRETS, authorization, keep


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A stack's folder, and none of its passwords in the environment."""
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_they_are_made_once_and_are_for_one_user(own_folder):
    first = keep(own_folder)
    assert keep(own_folder) == first
    assert len(set(first.values())) == len(SECRETS) == 4
    assert stat.S_IMODE((own_folder / "secrets.env").stat().st_mode) == 0o600


def test_the_environments_passwords_are_kept_at_the_first_start_and_said(own_folder, monkeypatch, capsys):
    given = {"POSTGRES_PASSWORD": "it's#${HOME}", "AWS_SECRET_ACCESS_KEY": "a b'\\"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    first = keep(own_folder)
    assert first.items() >= given.items()
    said = capsys.readouterr().out
    assert said == f"{own_folder}/secrets.env: keeps the environment's {' and '.join(given)}\n"
    assert keep(own_folder) == first
    for name in given:
        monkeypatch.delenv(name)
    assert keep(own_folder) == first


@pytest.mark.parametrize("name", SECRETS)
def test_another_password_than_the_one_kept_is_refused(own_folder, monkeypatch, name):
    keep(own_folder)
    kept = (own_folder / "secrets.env").read_bytes()
    monkeypatch.setenv(name, "another")
    with pytest.raises(FerdError, match=f"unset {name}"):
        keep(own_folder)
    assert (own_folder / "secrets.env").read_bytes() == kept


def test_no_new_password_is_made_for_a_cluster_that_has_one(own_folder):
    (own_folder / "postgresql").mkdir()
    with pytest.raises(FerdError, match="without the POSTGRES_PASSWORD"):
        keep(own_folder)
    assert not (own_folder / "secrets.env").exists()


@pytest.mark.parametrize("password", ["a:b", "a\\b", "a b"])
def test_a_password_that_asyncpg_cannot_read_is_refused(own_folder, monkeypatch, password):
    monkeypatch.setenv("POSTGRES_PASSWORD", password)
    with pytest.raises(FerdError, match="POSTGRES_PASSWORD"):
        keep(own_folder)
    assert not (own_folder / "secrets.env").exists()


@pytest.mark.parametrize("login", ["nobody", ":pass", "a:", "a:b c", "a:100%", 'a:"b"', "a:b\\"])
def test_a_login_that_prefects_server_would_not_get_is_refused(own_folder, monkeypatch, login):
    monkeypatch.setenv(LOGIN, login)
    with pytest.raises(FerdError, match=f"{LOGIN}: not NAME:PASSWORD"):
        keep(own_folder)
    assert not (own_folder / "secrets.env").exists()


def test_a_login_is_sent_as_http_asks_for_it():
    """The example of RFC 7617."""
    header = {"Authorization": "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="}
    assert authorization("Aladdin:open sesame") == header
    assert authorization("") == {}
