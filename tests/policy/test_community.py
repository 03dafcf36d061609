"""Settings of OpenFaaS's community queue-worker."""

from __future__ import annotations

import re

from worker.config import load
from worker.policy.community import REPLACEMENTS, community_warning
from worker.settings import SETTING_FIELDS


def test_community_settings_get_one_warning_with_their_replacements() -> None:
    """One warning names each such setting and what to do; none of them is also taken for a typo."""
    environment = dict.fromkeys(REPLACEMENTS, "1")
    (warning,) = load(environment).warnings
    for name, remedy in REPLACEMENTS.items():
        assert f"{name} ({remedy})" in warning


def test_community_settings_of_the_chart_keep_what_both_have_in_common() -> None:
    """Settings that mean the same in both editions are read."""
    chart = {"faas_nats_address": "nats.openfaas", "ack_wait": "30s", "max_inflight": "1", "write_debug": "false"}
    loaded = load(chart)
    assert (loaded.settings.ack_wait, loaded.settings.max_inflight) == (30.0, 1)
    named = "faas_nats_address (set nats_host), write_debug (set debug)"
    assert loaded.warnings == (f"settings of OpenFaaS's community queue-worker are ignored: {named}",)


def test_community_warning_without_such_settings_is_none() -> None:
    """Other variables get no warning."""
    assert community_warning(["nats_host", "PATH"]) is None


def test_community_replacements_name_existing_settings() -> None:
    """Each setting that a replacement names exists, and none is itself a setting."""
    named = {name for text in REPLACEMENTS.values() for name in re.findall(r"[a-z]+_[a-z_]+", text)}
    assert named - {"nats_token_file"} <= SETTING_FIELDS.keys()
    assert not REPLACEMENTS.keys() & SETTING_FIELDS.keys()
