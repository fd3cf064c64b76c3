"""With a stand-in for NVIDIA's library at its seam; on a card none of this was measured."""

from types import SimpleNamespace

import pynvml
import pytest
import torch

from discord_lora.finetuning.telemetry import HEAT_AGAIN_SECONDS, HEAT_SECONDS, CardWatch, Reading

CUDA = torch.device("cuda", 0)
HOT = Reading(celsius=88, throttled=("heat",))
QUESTIONS = (
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
)


class FakeDriver:
    """Two cards, the second of which torch calls its first."""

    def __init__(self, monkeypatch):
        self.refused = {}
        self.asked = []
        self.reasons = pynvml.nvmlClocksEventReasonSwPowerCap
        self.answers = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetHandleByUUID": self.by_uuid,
            "nvmlDeviceGetHandleByPciBusId": self.by_place,
            "nvmlDeviceGetTemperature": lambda _card, _sensor: 71,
            "nvmlDeviceGetPowerUsage": lambda _card: 214_600,
            "nvmlDeviceGetMemoryInfo": lambda _card, *version: SimpleNamespace(
                used=9_000_000_000 + 300_000_000 * (not version)
            ),
            "nvmlDeviceGetCurrentClocksEventReasons": lambda _card: self.reasons,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _card: self.reasons,
        }
        for name in self.answers:
            monkeypatch.setattr(pynvml, name, self.question(name))
        self.properties = SimpleNamespace(
            uuid="aaaa-1", pci_domain_id=0, pci_bus_id=0x2B, pci_device_id=0
        )
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: self.properties)

    def question(self, name):
        def answer(*arguments):
            self.asked.append((name, *arguments))
            if name in self.refused:
                raise self.refused[name]
            if name not in ("nvmlInit",) and "Handle" not in name:
                assert arguments[0] == "second card"
            return self.answers[name](*arguments)

        return answer

    def by_uuid(self, uuid):
        return self.found("GPU-aaaa-1", uuid)

    def by_place(self, place):
        return self.found("00000000:2b:00.0", place)

    @staticmethod
    def found(expected, given):
        if given != expected:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "second card"

    def refuse(self, *names, code=pynvml.NVML_ERROR_NOT_SUPPORTED):
        self.refused |= {name: pynvml.NVMLError(code) for name in names}


@pytest.fixture
def driver(monkeypatch):
    return FakeDriver(monkeypatch)


def test_a_card_says_what_it_does(driver):
    reading = CardWatch(CUDA).read()
    assert reading == Reading(71, 214.6, 9_000_000_000, ("power limit",))
    assert reading.words() == "71 °C  215 W  slowed by power limit"
    assert reading.event() == {"celsius": 71, "watts": 214.6, "throttled": "power limit"}


@pytest.mark.parametrize("uuid", [None, "another"])
def test_a_card_is_found_by_its_place_where_the_uuid_does_not_help(driver, uuid):
    driver.properties.uuid = uuid
    assert CardWatch(CUDA).read().celsius == 71


def test_a_card_that_cannot_be_found_says_nothing(driver):
    driver.properties = SimpleNamespace(uuid="another")
    assert CardWatch(CUDA).read() == Reading()


@pytest.mark.parametrize("silent", QUESTIONS[:2])
def test_each_question_fails_by_itself(driver, silent):
    driver.refuse(silent)
    event = CardWatch(CUDA).read().event()
    assert len(event) == 2
    assert "slowed" in CardWatch(CUDA).read().words()


def test_a_card_that_answers_nothing_at_all_is_no_error(driver):
    driver.refuse(*QUESTIONS)
    reading = CardWatch(CUDA).read()
    assert reading == Reading()
    assert (reading.event(), reading.words()) == ({}, "")


def test_an_older_driver_is_asked_by_the_older_names(driver):
    driver.refuse(QUESTIONS[3], code=pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    newer = driver.answers["nvmlDeviceGetMemoryInfo"]

    def older(card, *version):
        if version:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return newer(card)

    driver.answers["nvmlDeviceGetMemoryInfo"] = older
    assert CardWatch(CUDA).read() == Reading(71, 214.6, 9_300_000_000, ("power limit",))


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (pynvml.nvmlClocksEventReasonNone, ()),
        (pynvml.nvmlClocksEventReasonGpuIdle | pynvml.nvmlClocksEventReasonSyncBoost, ()),
        (
            pynvml.nvmlClocksEventReasonSwThermalSlowdown
            | pynvml.nvmlClocksEventReasonHwThermalSlowdown,
            ("heat",),
        ),
        (
            pynvml.nvmlClocksEventReasonHwSlowdown
            | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
            ("power supply", "hardware protection"),
        ),
    ],
)
def test_reasons_come_in_words(driver, reasons, words):
    driver.reasons = reasons
    reading = CardWatch(CUDA).read()
    assert reading.throttled == words
    assert reading.event()["throttled"] == ", ".join(words)


@pytest.mark.parametrize(
    "code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED]
)
def test_without_the_drivers_library_nothing_is_asked(driver, code):
    driver.refuse("nvmlInit", code=code)
    assert CardWatch(CUDA).read() == Reading()
    assert driver.asked == [("nvmlInit",)]


def test_without_a_card_the_library_is_not_even_looked_for(driver):
    assert CardWatch(torch.device("cpu")).read() == Reading()
    assert driver.asked == []


def test_the_real_library_here_is_no_error(monkeypatch):
    properties = SimpleNamespace(uuid="aaaa")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    assert CardWatch(CUDA).read() == Reading()


def test_heat_for_long_is_said_once_an_hour():
    clock = SimpleNamespace(now=0.0)
    watch = CardWatch(torch.device("cpu"), clock=lambda: clock.now)
    said = []
    for second in range(0, int(HEAT_AGAIN_SECONDS + 2 * HEAT_SECONDS), 10):
        clock.now = float(second)
        said += [(second, it)] if (it := watch.too_hot_for_long(HOT)) else []
    assert [second for second, _ in said] == [HEAT_SECONDS, HEAT_SECONDS + HEAT_AGAIN_SECONDS]
    assert "3 minutes" in said[0][1] and "88 °C" in said[0][1]


def test_heat_that_passes_is_not_worth_a_word():
    clock = SimpleNamespace(now=0.0)
    watch = CardWatch(torch.device("cpu"), clock=lambda: clock.now)
    for second in range(0, 3600, 10):
        clock.now = float(second)
        cool = Reading(celsius=80, throttled=("power limit",))
        assert not watch.too_hot_for_long(cool if second % 170 == 0 else HOT)
