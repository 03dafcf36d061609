"""How hard Hypothesis looks: HYPOTHESIS_PROFILE is ``ci``, which looks at the same every time, or ``nightly``."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# No time limits: what a busy machine makes slow must not fail.
_patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

settings.register_profile("ci", _patient, max_examples=100, derandomize=True)
settings.register_profile("nightly", _patient, max_examples=10_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
