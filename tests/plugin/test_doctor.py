"""Whatever is wrong with a machine is a line with a remedy, never an exception."""

import json
import socket
import sys
from importlib import metadata

import pytest

from skyvec import cli
from skyvec.doctor import checks, installed, machine, reach
from skyvec.doctor.checks import examine
from skyvec.doctor.findings import Finding, exit_code

REQUIRES = ["packaging>=1", "numpy<1", "ghost>=3", 'phantom>=2; extra == "hub"', "skyvec[hub]"]


class _Metadata:
    def get_all(self, _):
        return ["hub", "dev"]


@pytest.fixture
def declared(monkeypatch):
    """Requirements of skyvec, as its wheel would declare them."""

    def declare(requires=None):
        def absent(*_):
            raise metadata.PackageNotFoundError("skyvec")

        monkeypatch.setattr(
            metadata, "requires", absent if requires is None else lambda _: requires
        )
        monkeypatch.setattr(metadata, "metadata", lambda _: _Metadata())
        installed._requirements.cache_clear()

    yield declare
    installed._requirements.cache_clear()


@pytest.fixture
def quick(monkeypatch):
    """Without the model's own numbers, which take seconds."""
    monkeypatch.setattr(machine, "_golden", lambda named: Finding(topic=f"model {named}", text=""))


@pytest.fixture
def closed_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def by_topic(findings):
    return {each.topic: each for each in findings}


def test_versions_out_of_range_and_missing_packages_name_the_line_that_mends(declared):
    declared(REQUIRES)
    found = by_topic(installed.installed())
    assert found["numpy"].verdict == "wrong"
    assert found["numpy"].remedy == "pip install 'numpy<1'"
    assert "not installed" in found["ghost"].text
    assert found["ghost"].remedy == "pip install 'ghost>=3'"
    assert exit_code(found.values()) == 40
    assert "phantom" not in found


def test_a_missing_extra_is_a_note_with_its_line(declared):
    declared(REQUIRES)
    [hub] = installed.extras()
    assert (hub.topic, hub.verdict) == ("extra hub", "note")
    assert "phantom" in hub.text
    assert hub.remedy == "pip install 'skyvec[hub]'"
    assert exit_code([hub]) == 0


def test_a_source_tree_that_is_not_installed_says_so(declared):
    declared()
    found = by_topic(installed.installed())
    assert found["skyvec"].verdict == "note"
    assert found["torch"].verdict == "ok"
    assert not list(installed.extras())


def test_without_a_network_the_hub_is_not_reached_and_nothing_is_wrong(monkeypatch, closed_port):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = reach.hub()
    assert found.verdict == "note"
    assert found.text.startswith("not reached: 127.0.0.1")
    assert found.remedy


def test_whoever_is_offline_on_purpose_is_not_asked(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "create_connection", None)
    assert reach.hub().verdict == "ok"


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:PORT", "127.0.0.1:PORT", "tcp://no.such.host.invalid:8786", "a:b", ""]
)  # fmt: skip
def test_a_scheduler_that_does_not_answer_is_wrong_with_50(address, closed_port):
    [found] = reach.scheduler(address.replace("PORT", str(closed_port)))
    assert (found.verdict, found.exit_code) == ("wrong", 50)
    assert found.remedy


def test_no_scheduler_is_asked_where_none_is_named():
    [found] = reach.scheduler(None)
    assert found.verdict == "ok"


def test_a_model_that_is_not_there_is_wrong_with_40():
    found = by_topic(machine.models("no-such-model"))["model no-such-model"]
    assert (found.verdict, found.exit_code) == ("wrong", 40)
    assert found.remedy


def test_the_golden_numbers_of_a_model_are_checked(model_folder):
    found = by_topic(machine.models(str(model_folder)))[f"model {model_folder}"]
    assert found.verdict == "note"
    assert "has no golden vectors" in found.text
    assert f"skyvec models verify {model_folder} --write" in found.remedy


def test_a_disk_that_is_full_or_gone_is_told(monkeypatch, tmp_path):
    assert machine.disk(tmp_path).verdict == "ok"
    monkeypatch.setattr(machine, "LITTLE_DISK", float("inf"))
    assert machine.disk(tmp_path).verdict == "note"
    assert machine.disk(tmp_path / "gone").exit_code == 40


@pytest.mark.usefixtures("quick")
def test_what_breaks_while_it_is_looked_at_is_a_finding(monkeypatch):
    def broken():
        raise ImportError("libcuda.so: cannot open\nand more")

    monkeypatch.setattr(checks, "device", broken)
    found = by_topic(examine())
    assert found["device"].verdict == "wrong"
    assert "libcuda.so: cannot open)" in found["device"].text
    assert all(each.remedy for each in found.values() if each.verdict == "wrong")


@pytest.mark.usefixtures("quick")
def test_the_command_ends_with_the_code_and_speaks_json(monkeypatch, capsys, declared, closed_port):
    declared()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for arguments, code in (([], 0), (["--scheduler", f"127.0.0.1:{closed_port}"], 50)):
        monkeypatch.setattr(sys, "argv", ["skyvec", "doctor", "--json", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = json.loads(capsys.readouterr().out)
        assert (ended.value.code, told["exit_code"]) == (code, code)
        assert {"python", "device", "disk", "hub", "scheduler"} <= {
            each["topic"] for each in told["findings"]
        }
